"""Owns what --classes and --ids say: class names, and which raw value of a label file stands for which class."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.foreign import read_text, shown
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE, LAYOUTS, Layout, find_layout, remap_classes
from calseg_cli.data.palettes import default_palette
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.stages.domains import domain_layout, open_domain

CLASSES_FILE = "classes.json"
_LARGEST_FILE = 1024**2  # bytes
_FORMS = "train, dataset, a layout such as cityscapes, RAW=CLASS,... or RAW,RAW,... in the order of classes, or a file"
Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Class names in the order of their indices, and how they are drawn."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]


def find_classes(given: str | None, resolved: Resolved | None, folder: Path) -> ClassList:
    """The classes `given` (names between commas, or a file of them), else those of the configuration, else those that
    `calseg artifact export` wrote into the folder. Raises ConfigError where nobody names them.
    """
    if given is not None:
        return _with_colors(_given_names(given), resolved)
    written = _written(folder / CLASSES_FILE) if (folder / CLASSES_FILE).is_file() else None
    configured = _configured(resolved)
    if configured is None and written is None:
        raise ConfigError("nothing says which classes there are", "--classes a,b,c or --classes FILE lists them, or -c")
    if configured is not None and written is not None and configured.names != written.names:
        raise ArtifactError(
            f"{folder / CLASSES_FILE} lists other classes than the configuration: {_where(written, configured)}",
            "give the list to use with --classes",
        )
    return configured or written or ClassList((), ())


def labels_layout(ids: str, classes: ClassList, resolved: Resolved | None, domain: str | None) -> Layout:
    """How label files are read into these classes. Raises ConfigError for an `ids` that means nothing."""
    if len(classes.names) > IGNORE - 1:
        raise ConfigError(f"{len(classes.names)} classes; a label tells {IGNORE - 1} apart", "use fewer")
    base = Layout(name="import", images="{path}.*", class_names=classes.names, palette=classes.palette)
    if ids == "train":
        return base
    if ids == "dataset" or ids in LAYOUTS:
        return _dataset_layout(ids, classes, resolved, domain)
    table = _table(ids, classes)
    named = {raw: index for raw, index in table.items() if index != IGNORE}
    return replace(base, ids=named, ignore_ids=frozenset(table) - frozenset(named))


def raw_values(
    ids: str, classes: ClassList, resolved: Resolved | None, domain: str | None
) -> tuple[tuple[int, ...], int]:
    """The raw value that stands for each class, and that for ignored pixels where the user names none.

    The latter is 0 where the dataset ignores 0, as Cityscapes' `unlabeled` is, else 255. Raises ConfigError for a
    class without a value, with two, or with one that no 8-bit file holds.
    """
    if ids == "train":
        return _bytes(tuple(range(len(classes.names))), classes), IGNORE
    if ids == "dataset" or ids in LAYOUTS:
        layout = _dataset_layout(ids, classes, resolved, domain)
        if layout.encoding == "color":
            raise ConfigError(
                f"the labels of {layout.name!r} are painted and have no numbers", "--ids train, and --palette for looks"
            )
        lacking = [
            name
            for index, (name, raw) in enumerate(zip(classes.names, layout.class_ids, strict=True))
            if raw == IGNORE and layout.raw_classes().get(raw) != index
        ]
        if lacking:
            raise ConfigError(
                f"the dataset {layout.name!r} has no value for {', '.join(lacking)}",
                "give a raw value for each class, such as --ids 7,8,11",
            )
        unlabeled = layout.raw_classes().get(0) == IGNORE
        return _bytes(layout.class_ids, classes), 0 if unlabeled else IGNORE
    return _bytes(_one_each(_table(ids, classes), classes), classes), IGNORE


def _configured(resolved: Resolved | None) -> ClassList | None:
    if resolved is None or resolved.config.source is None:
        return None
    layout = domain_layout(resolved.config, "source")
    return ClassList(layout.class_names, layout.palette) if layout.class_names else None


def _with_colors(names: tuple[str, ...], resolved: Resolved | None) -> ClassList:
    """The configuration's colours, where it has these very classes."""
    configured = _configured(resolved)
    if configured is not None and configured.names == names:
        return configured
    return ClassList(names, _colors(len(names)))


def _colors(count: int) -> tuple[Color, ...]:
    """Distinct colours as far as there are any; more classes than that begin again."""
    colors = default_palette(count)
    return tuple(colors[number % len(colors)] for number in range(count))


def _given_names(given: str) -> tuple[str, ...]:
    text = _file_or_text(given)
    if text is None and "," not in given:
        raise ConfigError(f"there is no file {given!r} of classes", "list names as a,b,c, or name a text file of them")
    lines = text.splitlines() if text is not None else given.split(",")
    names = tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))
    _check_names(names, given)
    return names


def _check_names(names: Sequence[str], where: str) -> None:
    doubles = sorted({name for name in names if names.count(name) > 1})
    if not names or doubles:
        fault = f"lists {', '.join(doubles)} twice" if doubles else "lists no class"
        raise ConfigError(f"{where} {fault}", "one name each, in the order of their indices")


def _written(path: Path) -> ClassList:
    """The classes that an export recorded. Raises DataError for a file that is something else."""
    try:
        table: Any = json.loads(read_text(path, most=_LARGEST_FILE))
        names = tuple(str(name) for name in table["names"])
        palette = tuple((int(r) & 255, int(g) & 255, int(b) & 255) for r, g, b in table["palette"])
        if len(names) != len(palette) or table.get("ignore", IGNORE) != IGNORE:
            raise ValueError("names, palette and ignore do not fit")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no class list of calseg's: {error}", "remove it, or give --classes") from error
    _check_names(names, str(path))
    return ClassList(names, palette)


def _where(written: ClassList, configured: ClassList) -> str:
    for number, (there, here) in enumerate(zip(written.names, configured.names, strict=False)):
        if there != here:
            return f"class {number} is {shown(there)!r} there and {here!r} here"
    return f"{len(written.names)} there and {len(configured.names)} here"


def _dataset_layout(ids: str, classes: ClassList, resolved: Resolved | None, domain: str | None) -> Layout:
    if ids in LAYOUTS:
        layout = find_layout(ids)
        if not layout.class_names:
            raise ConfigError(f"the layout {ids!r} has no values of its own", f"--ids is {_FORMS}")
    elif resolved is None:
        raise ConfigError("--ids dataset needs a configuration", f"-c FILE names one; --ids is {_FORMS}")
    else:
        layout = open_domain(resolved, domain or resolved.config.predict.domain, classes.names).layout
    return layout if layout.class_names == classes.names else remap_classes(layout, classes.names)


def _file_or_text(given: str) -> str | None:
    """The file's text where `given` names one."""
    try:
        there = Path(given).is_file()
    except (OSError, ValueError):  # too long for a name
        there = False
    return read_text(Path(given), most=_LARGEST_FILE) if there else None


def _table(ids: str, classes: ClassList) -> dict[int, int]:
    """Raw values with their class index or IGNORE, from RAW=CLASS,... or RAW,RAW,... or a file of either."""
    text = _file_or_text(ids)
    lines = [line.partition("#")[0] for line in (text if text is not None else ids).splitlines()]
    parts = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    table: dict[int, int] = {}
    for place, part in enumerate(parts):
        raw, equals, name = part.partition("=")
        value = _number(raw, ids)
        if value in table:
            raise ConfigError(f"--ids {ids} names {value} twice", "a raw value stands for one class")
        table[value] = _class_index(name.strip(), ids, classes) if equals else place
    if not any("=" in part for part in parts) and len(parts) != len(classes.names):
        raise ConfigError(
            f"--ids {ids} lists {len(parts)} values for {len(classes.names)} classes", f"--ids is {_FORMS}"
        )
    if any("=" in part for part in parts) and not all("=" in part for part in parts):
        raise ConfigError(f"--ids {ids} mixes RAW=CLASS and RAW", f"--ids is {_FORMS}")
    return table


def _number(text: str, ids: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal()) or len(text) > 5 or int(text) > 65535:
        raise ConfigError(f"--ids {ids}: {text!r} is no value of 0 to 65535, and there is no such file",
                          f"--ids is {_FORMS}")  # fmt: skip
    return int(text)


def _class_index(name: str, ids: str, classes: ClassList) -> int:
    if name in classes.names:
        return classes.names.index(name)
    if name == "ignore":
        return IGNORE
    if name.isascii() and name.isdecimal() and int(name) < len(classes.names):
        return int(name)
    raise ConfigError(
        f"--ids {ids}: {name!r} is no class", f"classes: {', '.join(classes.names)}, by index from 0, or ignore"
    )


def _one_each(table: dict[int, int], classes: ClassList) -> tuple[int, ...]:
    values: list[int] = []
    for index, name in enumerate(classes.names):
        raws = [raw for raw, to in table.items() if to == index]
        if len(raws) != 1:
            told = "has no raw value" if not raws else f"has the raw values {', '.join(map(str, raws))}"
            raise ConfigError(f"the class {name!r} {told}", "an exported class has exactly one")
        values += raws
    return tuple(values)


def _bytes(values: tuple[int, ...], classes: ClassList) -> tuple[int, ...]:
    large = [f"{name} ({raw})" for name, raw in zip(classes.names, values, strict=True) if raw > 255]
    if large:
        raise ConfigError(
            f"raw values above 255 do not fit an 8-bit file: {', '.join(large[:4])}", "--ids lists others"
        )
    if len(set(values)) != len(values):
        raise ConfigError("two classes have the same raw value", "an exported class has one of its own")
    return values
