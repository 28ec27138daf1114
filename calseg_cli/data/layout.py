"""Owns the description of a dataset: where its files lie, what its label values mean, how its classes are drawn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from calseg_cli.data.patterns import pattern_fault, pattern_fields
from calseg_cli.errors import ConfigError

IGNORE = 255
ROLES = ("train", "val", "test")
MAX_CLASSES = 254  # 255 is IGNORE and 254 marks an unknown value while a label is read
MAX_RAW = 65535

Encoding = Literal["index", "color", "first-channel-16bit"]
Color = tuple[int, int, int]


def _own_names() -> dict[str, str]:
    return {role: role for role in ROLES}


@dataclass(frozen=True)
class Layout:
    """A dataset's folders, label values and classes; plain data, so it can be pickled and compared.

    `images` and `labels` are patterns below the root (see `patterns`); `labels` None means that there are none.
    `ids` maps raw label values to class indices; empty means that a value is the class index. `colors` does the same
    for the encoding "color", where `ignore_ids` holds packed colours (0xRRGGBB). A raw value in neither is an error
    when a label is read, never silently ignored; 255 counts as ignored in the encoding "index" unless `ids` maps it.
    `splits` names the folder that stands for `{split}` by role, `lists` a text file of image ids by role. With
    `holdout` N every N-th image of train, sorted by id, is val and the others are train. `class_ids` are the official
    raw values of the classes, for export.
    """

    name: str
    images: str
    labels: str | None = None
    class_names: tuple[str, ...] = ()
    ids: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)
    ignore_ids: frozenset[int] = frozenset()
    encoding: Encoding = "index"
    palette: tuple[Color, ...] = ()
    splits: Mapping[str, str] = field(default_factory=_own_names)
    lists: Mapping[str, Path] = field(default_factory=dict)
    holdout: int | None = None
    class_ids: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes a label may show."""
        return len(self.class_names)

    def raw_classes(self) -> dict[int, int]:
        """Every value that a label file may hold, with its class index or IGNORE; colours are packed as 0xRRGGBB.

        >>> Layout("x", "{path}.png", class_names=("road", "sky")).raw_classes()
        {255: 255, 0: 0, 1: 1}
        """
        ignored = dict.fromkeys(sorted(self.ignore_ids), IGNORE)
        if self.encoding == "color":
            return ignored | {packed(color): index for color, index in self.colors.items()}
        always = {IGNORE: IGNORE} if self.encoding == "index" else {}
        own = dict(self.ids) if self.ids else {index: index for index in range(self.num_classes)}
        # A value that is both named and ignored is named: the explicit map is the later word.
        return always | ignored | own


def packed(color: Color) -> int:
    """A colour as one number.

    >>> hex(packed((128, 64, 128)))
    '0x804080'
    """
    return color[0] << 16 | color[1] << 8 | color[2]


def unpacked(number: int) -> Color:
    """The colour that `packed` made a number of."""
    return number >> 16 & 255, number >> 8 & 255, number & 255


def validated(layout: Layout) -> Layout:
    """The layout itself. Raises ConfigError with every fault it has, one a line."""
    faults = list(_faults(layout))
    if not faults:
        return layout
    lines = [f"the dataset {layout.name!r}: {fault}" for fault in faults]
    raise ConfigError("\n".join(lines), "mend the dataset's keys in the configuration")


def _faults(layout: Layout) -> Iterator[str]:
    yield from _class_faults(layout)
    yield from _pattern_faults(layout)
    yield from _value_faults(layout)
    yield from _split_faults(layout)


def _class_faults(layout: Layout) -> Iterator[str]:
    names = layout.class_names
    if any(not isinstance(name, str) or not name.strip() for name in names):
        yield "a class has no name"
    doubles = sorted({str(name) for name in names if names.count(name) > 1})
    if doubles:
        yield f"classes listed twice: {', '.join(doubles)}"
    if len(names) > MAX_CLASSES:
        yield f"{len(names)} classes, but a label can tell {MAX_CLASSES} apart"
    if len(layout.palette) != len(names):
        yield f"palette holds {len(layout.palette)} colours for {len(names)} classes"
    for color in layout.palette:
        if not _is_color(color):
            yield f"palette: {color!r} is not a colour (three numbers from 0 to 255)"


def _pattern_faults(layout: Layout) -> Iterator[str]:
    patterns = {"images": layout.images, **({} if layout.labels is None else {"labels": layout.labels})}
    faults = {key: fault for key, pattern in patterns.items() if (fault := pattern_fault(pattern)) is not None}
    yield from (f"{key}: {patterns[key]!r} {fault}" for key, fault in faults.items())
    if faults or layout.labels is None:
        return
    captured, needed = set(pattern_fields(layout.images)), set(pattern_fields(layout.labels))
    if captured != needed:
        yield (
            f"images and labels are paired by their fields, but images has {_braced(captured)} "
            f"and labels has {_braced(needed)}"
        )


def _value_faults(layout: Layout) -> Iterator[str]:
    if layout.encoding not in get_args(Encoding):
        yield f"encoding: {layout.encoding!r} is none of {', '.join(get_args(Encoding))}"
    if layout.encoding == "color" and not layout.colors:
        yield "encoding is color, but colors is empty"
    indices = range(layout.num_classes)
    highest = max(indices, default=-1)
    for raw, index in layout.ids.items():
        if not 0 <= raw <= MAX_RAW:
            yield f"ids: {raw} cannot stand in a label file (0 to {MAX_RAW})"
        if index not in indices:
            yield f"ids: {raw} is class {index}, but the classes go from 0 to {highest}"
    for color, index in layout.colors.items():
        if not _is_color(color):
            yield f"colors: {color!r} is not a colour (three numbers from 0 to 255)"
        if index not in indices:
            yield f"colors: {color} is class {index}, but the classes go from 0 to {highest}"
    largest = 0xFFFFFF if layout.encoding == "color" else MAX_RAW
    yield from (f"ignore: {raw} is not in 0 to {largest}" for raw in layout.ignore_ids if not 0 <= raw <= largest)


def _split_faults(layout: Layout) -> Iterator[str]:
    for key, table in (("splits", layout.splits), ("lists", layout.lists)):
        unknown = [str(role) for role in table if role not in ROLES]
        if unknown:
            yield f"{key}: {', '.join(unknown)} is none of {', '.join(ROLES)}"
    if layout.holdout is not None and layout.holdout < 2:
        yield f"holdout: {layout.holdout} would leave nothing to train on; every N-th image is held out, N >= 2"


def _is_color(color: Color) -> bool:
    return len(color) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in color)


def _braced(fields: set[str]) -> str:
    return " ".join(f"{{{name}}}" for name in sorted(fields)) or "none"
