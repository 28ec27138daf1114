"""Owns `python -m calseg_cli`, which torchrun needs."""

from calseg_cli.app import main

if __name__ == "__main__":
    main()
