"""Owns datasets described in a file of their own: `layout: my_dataset.yaml` brings keys that the section overrides."""

from typing import Any

from calseg_cli.config.draft import Complaint, Draft
from calseg_cli.config.paths import from_home
from calseg_cli.config.yaml_file import read_keys
from calseg_cli.errors import ConfigError

_LONGEST_CHAIN = 8


def merge_layout_files(draft: Draft) -> None:
    """Put the keys of layout files under the domains that name them; `layout` becomes the built-in name below all."""
    for role in ("source", "target"):
        domain = draft.values.get(role)
        if isinstance(domain, dict):
            _merge(draft, role, domain)


def _merge(draft: Draft, role: str, domain: dict[Any, Any]) -> None:
    key = (role, "layout")
    for _ in range(_LONGEST_CHAIN):
        named = domain.get("layout")
        if not isinstance(named, str) or not is_layout_file(named):
            return
        place = draft.place_of(key)
        path = place.folder / from_home(named)
        del domain["layout"]
        try:
            table, places, complaints = read_keys(path, below=(role,))
        except ConfigError as error:
            draft.complaints.append(Complaint(place, f"{role}.layout: {error.message}"))
            return
        draft.complaints += complaints
        draft.places.pop(key, None)
        given = {(role, str(name)) for name in domain}
        for name, value in table.items():
            if (role, str(name)) not in given:
                domain[name] = value
        draft.places |= {inner: there for inner, there in places.items() if inner[:2] not in given}
    draft.complaints.append(Complaint(draft.place_of(key), f"{role}.layout: layout files name each other in a circle"))
    domain.pop("layout", None)


def is_layout_file(layout: str) -> bool:
    """Whether a layout is a file's path rather than a built-in name."""
    return layout.endswith((".yaml", ".yml")) or "/" in layout or "\\" in layout
