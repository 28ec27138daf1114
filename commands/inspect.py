"""calseg inspect: what a file of calseg's is."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree


def inspect(
    session: Session,
    file: Annotated[Path, typer.Argument(help="An artifact (.h5) or a checkpoint (.safetensors).")],
) -> None:
    """Show what an artifact or a checkpoint holds: kind, classes, sizes, protocol, where it came from.

    Example: calseg inspect runs/sample/1-pretrain/network.safetensors
    """
    from calseg_cli.artifacts.describe import describe

    for number in (signal.SIGINT, signal.SIGTERM):
        # A damaged file can hold HDF5 in a loop of its own, where Python's handlers never run; nothing to clean here.
        signal.signal(number, signal.SIG_DFL)
    facts = describe(file)
    session.result(facts, lambda console: _show(console, file, facts))


def _show(console: "Console", file: Path, facts: Mapping[str, Any]) -> None:
    from rich.tree import Tree

    tree = Tree(str(file).replace("[", "\\["))
    for key, value in facts.items():
        if key not in ("file", "config"):
            _branch(tree, key, value)
    console.print(tree)
    if "config" in facts:
        console.print("(--json also shows the whole configuration)", style="dim")


def _branch(tree: "Tree", key: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        branch = tree.add(key)
        for name, item in value.items():
            _branch(branch, str(name), item)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= 400 else f"{text[:400]}..."
    tree.add(f"{key}: {shown}".replace("[", "\\["))
