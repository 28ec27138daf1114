"""Owns what a folder or file of another tool holds: which images, in which file and under which name, and what kind."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calseg_cli.artifacts.foreign import (
    ARRAY_SUFFIXES,
    ArrayFile,
    check_id,
    check_plain_file,
    find_foreign_files,
    read_text,
    shown,
)
from calseg_cli.artifacts.foreign_values import EXTRAS, Place, checked_digest
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.errors import ConfigError, DataError

INDEX_FILE = "index.csv"
INDEX_COLUMNS = (
    "id", "file", "in_h", "in_w", "out_h", "out_w", "pad_bottom", "pad_right", "stride", "align_corners",
    "image_digest",
)  # fmt: skip
KINDS = {"logits": "logits", "pseudo-labels": "pseudo_labels"}
"""What the command line calls a kind, and what an artifact calls it."""
ITEM_KEYS = {"logits": "logits", "pseudo_labels": "label"}
"""The array of an image in an .npz of its own, by kind."""
_PNG = ".png"
_SHOWN = 8


@dataclass(frozen=True)
class ForeignItem:
    """One image: its id, its file, and the name of its array there ("" in .npy and PNG).

    `alone`: the .npz is this image's own, and may say more of it. `place` is what an index.csv says of it.
    """

    id: str
    path: Path
    name: str = ""
    alone: bool = False
    place: Place = field(default_factory=Place)

    @property
    def where(self) -> str:
        """How an error names it."""
        return shown(f"{self.path}: {self.name}" if self.name else str(self.path))


@dataclass(frozen=True)
class ForeignSource:
    """The images of a source sorted by id, their kind, and the folder beside which a class list may lie."""

    kind: str
    items: list[ForeignItem]
    folder: Path

    @property
    def files(self) -> list[Path]:
        """The files behind it, each once, in order."""
        return list(dict.fromkeys(item.path for item in self.items))


def find_source(path: Path, kind: str | None, key: str | None) -> ForeignSource:
    """What `path` holds: a folder of .npy, .npz or PNG files, one such file, or an .npz with an array per image.

    `kind` None takes PNG files, and .npz files with a `label`, as pseudo-labels, other arrays as logits. Raises
    DataError for a source that holds nothing, or files that cannot be trusted; ConfigError where the kind is unclear.
    """
    if path.is_dir():
        files = find_foreign_files(path, _suffixes(kind))
        if not files:
            raise DataError(f"{path} holds no {', '.join(_suffixes(kind))} file", "name a folder of logits or labels")
        chosen = kind or _kind_of(path, list(files.values()))
        items = _listed([_own_file(name, file, chosen, key) for name, file in files.items()], path)
        return ForeignSource(chosen, sorted(items, key=lambda item: item.id), path)
    check_plain_file(path)
    if path.suffix.lower() not in _suffixes(kind):
        raise DataError(f"{path} is none of {', '.join(_suffixes(kind))}", "name such a file, or a folder of them")
    chosen = kind or _kind_of(path, [path])
    return ForeignSource(chosen, _items_of_file(path, chosen, key), path.parent)


def index_rows(text: str, where: str) -> dict[str, tuple[str, Place]]:
    """What an index.csv of calseg's export says: by file its id and place; empty for a table of something else.

    Raises DataError for a number or a digest that is none.
    """
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != INDEX_COLUMNS:
        return {}
    found = {}
    for row in rows:
        try:
            number = {name: int(row[name]) for name in INDEX_COLUMNS[2:-1]}
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: line {rows.line_num} is damaged", "export again, or remove the file") from error
        place = Place(
            in_hw=(number["in_h"], number["in_w"]),
            out_hw=(number["out_h"], number["out_w"]),
            pad=(number["pad_bottom"], number["pad_right"]),
            stride=number["stride"],
            align_corners=bool(number["align_corners"]),
            image_digest=checked_digest(row["image_digest"] or "", f"{where}: line {rows.line_num}"),
        )
        found[row["file"]] = (check_id(row["id"], where), place)
    return found


def index_row(name: str, file: str, geometry: Geometry, image_digest: str) -> dict[str, str | int]:
    """The row of one image in an index.csv."""
    sizes = [*geometry.in_hw, *geometry.out_hw, *geometry.pad, geometry.stride, int(geometry.align_corners)]
    return dict(zip(INDEX_COLUMNS, [name, file, *sizes, image_digest], strict=True))


def _suffixes(kind: str | None) -> tuple[str, ...]:
    return ARRAY_SUFFIXES if kind == "logits" else (*ARRAY_SUFFIXES, _PNG)


def _kind_of(path: Path, files: Sequence[Path]) -> str:
    pictures = {file.suffix.lower() == _PNG for file in files}
    if len(pictures) > 1:
        raise ConfigError(
            f"{path} holds arrays and PNG files", "--kind logits takes the arrays, --kind pseudo-labels all as labels"
        )
    if True in pictures:
        return "pseudo_labels"
    if files[0].suffix.lower() == ".npz":
        with ArrayFile(files[0]) as arrays:
            if "label" in arrays.names and "logits" not in arrays.names:
                return "pseudo_labels"
    return "logits"


def _items_of_file(path: Path, kind: str, key: str | None) -> list[ForeignItem]:
    name = check_id(path.stem, str(path))
    if path.suffix.lower() != ".npz":
        return [_own_file(name, path, kind, key)]
    with ArrayFile(path) as arrays:
        names = arrays.names
    own = ITEM_KEYS[kind]
    if key is not None or (own in names and set(names) <= {own, *EXTRAS}):
        return [ForeignItem(name, path, _chosen(names, kind, key, path), alone=True)]
    return sorted((ForeignItem(check_id(name, str(path)), path, name) for name in names), key=lambda item: item.id)


def _own_file(name: str, path: Path, kind: str, key: str | None) -> ForeignItem:
    """The image that has the file for itself."""
    if path.suffix.lower() == ".npz":
        with ArrayFile(path) as arrays:
            return ForeignItem(name, path, _chosen(arrays.names, kind, key, path), alone=True)
    if key is not None:
        raise ConfigError(f"--key {key} names an array in an .npz; {path} is none", "leave --key out")
    return ForeignItem(name, path)


def _chosen(names: Sequence[str], kind: str, key: str | None, path: Path) -> str:
    listed = shown(", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else ""))
    if key is not None:
        if key not in names:
            raise DataError(f"{path} has no array {key!r}", f"it has {listed}")
        return key
    candidates = [ITEM_KEYS[kind]] if ITEM_KEYS[kind] in names else [name for name in names if name not in EXTRAS]
    if len(candidates) != 1:
        raise DataError(f"{path} holds the arrays {listed}", "--key NAME says which is the image's")
    return candidates[0]


def _listed(items: list[ForeignItem], folder: Path) -> list[ForeignItem]:
    """The items with the ids and places that an index.csv in their folder has for them."""
    file = folder / INDEX_FILE
    rows: Mapping[str, tuple[str, Place]] = index_rows(read_text(file), str(file)) if file.is_file() else {}
    found = []
    for item in items:
        name, place = rows.get(item.path.relative_to(folder).as_posix(), (item.id, item.place))
        found.append(replace(item, id=name, place=place))
    doubles = [name for name, count in Counter(item.id for item in found).items() if count > 1]
    if doubles:
        raise DataError(f"{file} gives the id {doubles[0]!r} twice", "export again, or remove the file")
    return found
