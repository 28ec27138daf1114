"""Help is quick, complete and true."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calseg_cli.app import ALIASES, COMMANDS, GROUPS

NAMES = [*COMMANDS, *ALIASES, *(f"{group} {name}" for group, (_, functions) in GROUPS.items() for name in functions)]

ALIASED = {full: short for short, full in ALIASES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_and_an_example(name, calseg, tmp_path):
    for flag in ("--help", "-h"):
        ran = calseg(*name.split(), flag, cwd=tmp_path)
        assert ran.code == 0
    text = " ".join(ran.out.split())
    assert f"Example: calseg {ALIASED.get(name, name.split()[0])}" in text


def test_help_loads_neither_torch_nor_pydantic_models():
    """In one process for all: what the first help loads would be seen behind it too."""
    code = (
        "import contextlib, io, sys\nfrom calseg_cli.app import build\n"
        f"for name in {['', *NAMES]!r}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "        build()([*name.split(), '--help'], prog_name='calseg')\n"
        "    heavy = ('torch', 'h5py', 'numpy', 'matplotlib', 'PIL', 'yaml')\n"
        "    print(name, 'Usage' in said.getvalue(), [m for m in heavy if m in sys.modules], sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name}|True|[]" for name in ("", *NAMES)]


def fastest(*codes: str, repeats: int = 10) -> list[float]:
    """The least time of each; they take turns, so that other work on the machine meets all of them."""
    times: list[list[float]] = [[] for _ in codes]
    for _ in range(repeats):
        for code, own in zip(codes, times, strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            own.append(time.perf_counter() - start)
    return [min(own) for own in times]


def test_help_takes_at_most_twice_a_bare_import():
    help_page = "import sys; sys.argv = ['calseg', '--help']; from calseg_cli.app import main; main()"
    bare, ours = fastest("import typer, rich", help_page)
    assert ours <= 2 * bare, (ours, bare)


def test_commands_are_named_after_their_files():
    folder = Path(__file__).parent.parent.parent / "commands"
    files = {path.stem for path in folder.glob("[a-z]*.py")}
    assert {name.replace("-", "_") for name in [*COMMANDS, *GROUPS]} == files


def test_docs_name_every_command(repository):
    text = "\n".join(path.read_text(encoding="utf-8") for path in (repository / "docs").glob("*.md"))
    for name in COMMANDS:
        assert re.search(rf"calseg {name}\b", text), name


def test_no_arguments_print_help(calseg, tmp_path):
    ran = calseg(cwd=tmp_path)
    assert "Usage" in ran.out + ran.err


def test_version_names_what_matters(calseg, tmp_path):
    ran = calseg("--version", cwd=tmp_path)
    assert ran.code == 0
    assert {"calseg", "python", "torch", "h5py"} <= {line.split()[0] for line in ran.out.splitlines()}
