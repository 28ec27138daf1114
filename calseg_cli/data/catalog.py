"""Owns the door to datasets on disk: the built-in ones by name, a user's own, and their files. No torch."""

import difflib

from calseg_cli.data.changes import make_layout, remap_classes
from calseg_cli.data.items import Item, find_images, find_items, find_labels
from calseg_cli.data.layout import IGNORE, ROLES, Layout
from calseg_cli.data.layouts import CITYSCAPES19, LAYOUTS, SYNTHIA13, SYNTHIA16
from calseg_cli.errors import ConfigError

__all__ = [
    "CITYSCAPES19",
    "IGNORE",
    "LAYOUTS",
    "ROLES",
    "SYNTHIA13",
    "SYNTHIA16",
    "Item",
    "Layout",
    "find_images",
    "find_items",
    "find_labels",
    "find_layout",
    "make_layout",
    "remap_classes",
]


def find_layout(name: str) -> Layout:
    """The built-in dataset of that name. Raises ConfigError with the known names, the nearest first."""
    if name in LAYOUTS:
        return LAYOUTS[name]
    near = difflib.get_close_matches(name.lower(), LAYOUTS, n=3, cutoff=0.4)
    names = [*near, *(known for known in LAYOUTS if known not in near)]
    raise ConfigError(f"there is no built-in dataset layout {name!r}", f"known: {', '.join(names)}")
