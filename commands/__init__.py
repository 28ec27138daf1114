"""Owns the subcommands, one thin file each; installed as calseg_cli.commands."""
