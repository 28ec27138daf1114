"""Owns how a layout is changed: by a user's own keys, or into the class list of a network."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from calseg_cli.data.layout import IGNORE, Color, Layout, packed, validated
from calseg_cli.data.palettes import default_palette
from calseg_cli.errors import ConfigError

_ALIASES = {"classes": "class_names", "ignore": "ignore_ids"}


def make_layout(base: Layout, **changes: Any) -> Layout:
    """`base` with a user's keys in place of its own, checked. Raises ConfigError, one complaint a line.

    Keys are the fields of Layout (`classes` and `ignore` are understood too). `ids` and `colors` may map to a class
    name, a class index, or "ignore"; colours are (r, g, b), "#rrggbb" or "r,g,b". `ignore` adds to what `base`
    ignores. Another class list without `ids` or `colors` keeps the classes of those names and ignores the rest.
    """
    given = {_ALIASES.get(key, key): value for key, value in changes.items()}
    _refuse_unknown(base, given)
    layout = _with_classes(base, given)
    layout = replace(layout, **_values(layout, given))
    if "class_ids" not in given and ("ids" in given or len(layout.class_ids) != layout.num_classes):
        layout = replace(layout, class_ids=_official_ids(layout))
    return validated(layout)


def remap_classes(layout: Layout, class_names: Sequence[str]) -> Layout:
    """The same dataset with its labels in another class list, by name; capitals, `_`, `-` and blanks do not matter.

    Classes the list lacks become ignored; classes only the list has never occur. Raises ConfigError when no class is
    shared.
    """
    names = tuple(class_names)
    place = {_plain(name): index for index, name in enumerate(names)}
    new = [place.get(_plain(name), IGNORE) for name in layout.class_names]
    if all(index == IGNORE for index in new):
        raise ConfigError(
            f"the dataset {layout.name!r} shares no class with the network: "
            f"{', '.join(layout.class_names) or 'it lists none'} against {', '.join(names)}",
            "give both the same class names, or map the dataset's values to them with ids",
        )
    moved = {raw: IGNORE if old == IGNORE else new[old] for raw, old in layout.raw_classes().items()}
    values = _moved_values(layout, moved)
    fresh = default_palette(len(names))
    back = {index: old for old, index in enumerate(new)}
    return replace(
        layout,
        class_names=names,
        palette=tuple(layout.palette[back[i]] if i in back else fresh[i] for i in range(len(names))),
        class_ids=tuple(
            layout.class_ids[back[i]] if i in back and layout.class_ids else IGNORE for i in range(len(names))
        ),
        **values,
    )


def _moved_values(layout: Layout, moved: Mapping[int, int]) -> dict[str, Any]:
    ignored = frozenset(raw for raw, index in moved.items() if index == IGNORE)
    if layout.encoding == "color":
        kept = {color: moved[packed(color)] for color in layout.colors if moved[packed(color)] != IGNORE}
        return {"colors": kept, "ignore_ids": ignored}
    return {"ids": {raw: index for raw, index in moved.items() if index != IGNORE}, "ignore_ids": ignored}


def _refuse_unknown(base: Layout, given: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Layout)]
    unknown = [key for key in given if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            f"the dataset {base.name!r}: {unknown[0]} is not a known key", f"did you mean {near[0]}?" if near else None
        )


def _with_classes(base: Layout, given: Mapping[str, Any]) -> Layout:
    names = tuple(given.get("class_names", base.class_names))
    if names == base.class_names:
        return base
    own_values = base.colors if base.encoding == "color" else base.ids
    if not own_values or "ids" in given or "colors" in given:
        # The base's values belonged to its own class list.
        return replace(base, class_names=names, ids={}, colors={}, palette=default_palette(len(names)), class_ids=())
    known = {_plain(name) for name in base.class_names}
    strangers = [str(name) for name in names if _plain(str(name)) not in known]
    if strangers:
        raise ConfigError(
            f"the dataset {base.name!r} has no class {', '.join(strangers)}",
            f"its classes are {', '.join(base.class_names)}; for others, say with ids which label values they have",
        )
    return remap_classes(base, names)


def _values(layout: Layout, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given keys as the types of Layout; `ids` and `colors` also say what they ignore."""
    values = dict(given)
    ignored = set(layout.ignore_ids)
    if "colors" in values:
        pairs = {_color(layout, key): index for key, index in values["colors"].items()}
        mapped = {color: _class_index(layout, f"colors: {color}", value) for color, value in pairs.items()}
        values["colors"] = {color: index for color, index in mapped.items() if index != IGNORE}
        ignored |= {packed(color) for color, index in mapped.items() if index == IGNORE}
        values.setdefault("encoding", "color")
    if "ids" in values:
        mapped_ids = {raw: _class_index(layout, f"ids: {raw}", value) for raw, value in values["ids"].items()}
        values["ids"] = {raw: index for raw, index in mapped_ids.items() if index != IGNORE}
        ignored |= {raw for raw, index in mapped_ids.items() if index == IGNORE}
        if layout.encoding == "color":
            values.setdefault("encoding", "index")
    values["ignore_ids"] = frozenset(ignored | set(given.get("ignore_ids") or ()))
    if "palette" in values:
        values["palette"] = tuple(_color(layout, color) for color in values["palette"])
    elif len(layout.palette) != layout.num_classes:
        values["palette"] = default_palette(layout.num_classes)
    if "class_names" in values:
        values["class_names"] = tuple(values["class_names"])
    if "lists" in values:
        values["lists"] = {role: Path(path) for role, path in values["lists"].items()}
    return values


def _class_index(layout: Layout, where: str, value: str | int) -> int:
    """A class index from an index, a name, or "ignore"; names the nearest class where there is none."""
    if isinstance(value, int):
        return value
    if value in layout.class_names:
        return layout.class_names.index(value)
    if value == "ignore":
        return IGNORE
    near = difflib.get_close_matches(value, layout.class_names, n=1)
    raise ConfigError(
        f"the dataset {layout.name!r}: {where} is {value!r}, which is not one of its classes",
        f"did you mean {near[0]!r}?" if near else f"classes: {', '.join(layout.class_names) or 'none are listed'}",
    )


def _color(layout: Layout, value: str | Iterable[int]) -> Color:
    """A colour from "#rrggbb", "r,g,b" or three numbers."""
    try:
        if isinstance(value, str) and value.startswith("#") and len(value) == 7:
            return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)
        parts = value.split(",") if isinstance(value, str) else value
        red, green, blue = (int(part) for part in parts)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"the dataset {layout.name!r}: {value!r} is not a colour", 'write "#804080" or "128,64,128"'
        ) from error
    return red, green, blue


def _official_ids(layout: Layout) -> tuple[int, ...]:
    """The smallest raw value of each class, or its index where the values are colours or it has none."""
    if layout.encoding == "color" or not layout.ids:
        return tuple(range(layout.num_classes))
    return tuple(
        min((raw for raw, to in layout.ids.items() if to == index), default=IGNORE)
        for index in range(layout.num_classes)
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")
