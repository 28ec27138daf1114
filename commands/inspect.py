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

_MOST = 400  # characters of one value


def inspect(
    session: Session,
    file: Annotated[
        Path, typer.Argument(help="An artifact (.h5), a manifest of shards (.json) or a checkpoint (.safetensors).")
    ],
) -> None:
    """Show what an artifact or a checkpoint holds: kind, images, classes, protocol, where it came from.

    Example: calseg inspect runs/sample/1-pretrain/network.safetensors
    """
    from calseg_cli.artifacts.describe import describe

    for number in (signal.SIGINT, signal.SIGTERM):
        # A hostile file can hold HDF5 in a loop of its own, where Python's handlers never run; nothing to clean here.
        signal.signal(number, signal.SIG_DFL)
    facts = describe(file)
    session.result(facts, lambda console: _show(console, file, facts))


def _show(console: "Console", file: Path, facts: Mapping[str, Any]) -> None:
    from rich.tree import Tree

    tree = Tree(_plain(f"{file}: {_headline(facts)}"))
    shown = dict(_artifact(facts)) if facts.get("format") == "calseg-artifact" else dict(facts)
    for key, value in shown.items():
        if key not in ("file", "config"):
            _branch(tree, key, value)
    console.print(tree, soft_wrap=True)
    console.print("(--json shows everything, digests in full length and the whole configuration)", style="dim")


def _headline(facts: Mapping[str, Any]) -> str:
    """The file in one line."""
    from calseg_cli.artifacts.disk import human

    names = (facts.get("classes") or {}).get("names") or []
    parts = [str(facts.get("kind", "unknown"))]
    parts += [f"{facts['images']} images"] if facts.get("images") else []
    parts += [f"{len(names)} classes"] if names else []
    parts += [f"{len(facts['shards'])} shards"] if facts.get("shards") else []
    return ", ".join([*parts, human(facts["bytes"])])


def _artifact(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """An artifact's facts in the order of a person's questions."""
    provenance = dict(facts.get("provenance") or {})
    recipe = facts.get("recipe") or {}
    sizes, classes = facts["image_sizes"], facts.get("classes") or {}
    stages = [(entry["role"], _parent(entry)) for entry in facts.get("parents", ())]
    made = {key: provenance.get(key) for key in ("command", "calseg", "commit", "seed", "device") if key in provenance}
    return [
        ("kind", facts["kind"]),
        *([("image sizes", _some(sizes))] if sizes else []),
        *((f"stored {key}", form) for key, form in facts["stored"].items()),
        *(
            [("arrays", {k: "x".join(map(str, v)) or "one value" for k, v in facts["arrays"].items()})]
            if facts["arrays"]
            else []
        ),
        *([("classes", _some(classes["names"])), ("class hash", _short(facts["class_hash"]))] if classes else []),
        ("protocol", facts.get("protocol") or "not recorded"),
        ("made by", {"stage": recipe.get("stage", "not recorded"), **made}),
        *([("made from", dict(stages))] if stages else []),
        *(
            [("shards", {s["file"]: f"{s['items']} images, {_short(s['digest'])}" for s in facts["shards"]})]
            if "shards" in facts
            else []
        ),
        ("content digest", facts["content_digest"]),
        ("written", f"{facts['created_utc']}, schema {facts['schema']}"),
    ]


def _parent(entry: Mapping[str, Any]) -> str:
    file = f"{entry['file']} " if entry["file"] else ""
    return f"{file}({_short(entry['digest'])}, {entry['state'] if entry['file'] else 'place not recorded'})"


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(digest: str) -> str:
    return digest[:19]


def _branch(tree: "Tree", key: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        branch = tree.add(_plain(key))
        for name, item in value.items():
            _branch(branch, str(name), item)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    tree.add(_plain(f"{key}: {shown}"))


def _plain(text: str) -> str:
    """Text that a stranger's file may have filled: no markup, no control characters for the terminal."""
    clean = "".join(sign if sign.isprintable() else "?" for sign in text)
    return clean.replace("[", "\\[")
