"""Owns the generated tables of the documents: configuration keys and built-in datasets, read from the code itself.

python docs/make_tables.py            # write them
python docs/make_tables.py --check    # exit with 1 if one would change
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from calseg_cli.config import explain
from calseg_cli.config.keys import KeyInfo
from calseg_cli.config.resolved import plain_values
from calseg_cli.config.yaml_text import flow_yaml
from calseg_cli.data.catalog import IGNORE, LAYOUTS, Layout
from calseg_cli.data.labels import ranges
from calseg_cli.data.layout import unpacked

FOLDER = Path(__file__).parent
_NONE = "–"


def keys_table() -> str:
    """All configuration keys, in the order of the schema; those of source and target share a row."""
    infos = explain()
    rows = []
    for info in infos:
        if info.name.startswith("target."):
            continue
        names = [info.name]
        if info.name.startswith("source."):
            names.append(f"target.{info.name.removeprefix('source.')}")
        told = info.description
        if info.section is not None:
            rows.append([f"**{_code(*names)}**", "", told])
        else:
            rows.append([_code(*names), _default(info), told])
    assert _twins(infos, "source") == _twins(infos, "target"), "source and target differ: give each its own rows"
    return _table(["key", "default", "meaning"], rows)


def layouts_table() -> str:
    """The built-in layouts: patterns below root, and what they add to them."""
    rows = [
        [
            _code(layout.name),
            _code(layout.images),
            _code(layout.labels) if layout.labels else _NONE,
            str(layout.num_classes or "yours"),
            _code(layout.encoding),
            f"every {layout.holdout}th of train" if layout.holdout else _NONE,
        ]
        for layout in LAYOUTS.values()
    ]
    return _table(["layout", "images", "labels", "classes", "encoding", "val held out"], rows)


def classes_table() -> str:
    """Classes and the label values they have, one table a family of class lists."""
    named = [layout for layout in LAYOUTS.values() if layout.class_names]
    largest = [one for one in named if not any(set(one.class_names) < set(other.class_names) for other in named)]
    families = list(dict.fromkeys(layout.class_names for layout in largest))
    tables = []
    for classes in families:
        members = [layout for layout in named if set(layout.class_names) <= set(classes)]
        columns: dict[tuple[str, ...], list[str]] = {}
        for layout in members:
            columns.setdefault(_column(layout, classes), []).append(layout.name)
        rows = [[name, *(column[place] for column in columns)] for place, name in enumerate([*classes, "*ignored*"])]
        tables.append(_table(["class", *(_code(*_shortened(names)) for names in columns.values())], rows))
    return "\n\n".join(tables)


def _column(layout: Layout, classes: Iterable[str]) -> tuple[str, ...]:
    values: dict[int, list[int]] = {}
    for raw, index in layout.raw_classes().items():
        values.setdefault(index, []).append(raw)
    place = {name: index for index, name in enumerate(layout.class_names)}
    cells = [_values(layout, values.get(place[name], [])) if name in place else _NONE for name in classes]
    return (*cells, _values(layout, values.get(IGNORE, [])))


def _values(layout: Layout, raw: list[int]) -> str:
    if layout.encoding == "color":
        return ", ".join(",".join(map(str, unpacked(value))) for value in raw).replace(", ", "; ") or _NONE
    return ranges(raw) or _NONE


def _shortened(names: list[str]) -> list[str]:
    """Without the variants of a layout that stands in the list itself."""
    return [name for name in names if name.rpartition("-")[0] not in names]


def _twins(infos: Iterable[KeyInfo], role: str) -> list[tuple[str, Any, str]]:
    return [
        (info.name.removeprefix(role), info.default, info.description)
        for info in infos
        if info.name.startswith(f"{role}.")
    ]


def _default(info: KeyInfo) -> str:
    return "required" if info.required else _code(flow_yaml(plain_values(info.default, Path())))


def _code(*words: str) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "keys": ("configuration.md", keys_table),
    "layouts": ("datasets.md", layouts_table),
    "classes": ("datasets.md", classes_table),
}


def refreshed(text: str, block: str, content: str) -> str:
    """The document with a block's content in place of the old. Raises ValueError where it has no such block."""
    begin, end = f"<!-- made by docs/make_tables.py: {block} -->", f"<!-- end of {block} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document has no block {block!r}: {begin} ... {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main(arguments: list[str]) -> int:
    """Write the blocks, or with --check say which are out of date; the exit code."""
    if unknown := [word for word in arguments if word != "--check"]:
        sys.stderr.write(f"unknown argument {unknown[0]!r}; known: --check\n")
        return 2
    stale = []
    for block, (name, make) in BLOCKS.items():
        path = FOLDER / name
        text = path.read_text(encoding="utf-8")
        new = refreshed(text, block, make())
        if new == text:
            continue
        stale.append(f"{name}: {block}")
        if "--check" not in arguments:
            path.write_text(new, encoding="utf-8")
    for line in stale:
        sys.stderr.write(f"{'out of date' if '--check' in arguments else 'written'}: {line}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
