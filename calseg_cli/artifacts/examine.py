"""Owns looking at an unsealed HDF5 file in a process of its own, which damage may hang or crash without harm.

`python -m calseg_cli.artifacts.examine FILE 0|1` prints one JSON object; 1 also reads every item and lists the whole
ones.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from calseg_cli.artifacts.digests import array_digest, item_digest
from calseg_cli.artifacts.kinds import FORMAT
from calseg_cli.artifacts.policy import RefusedError, check_attributes, check_file, check_item_group
from calseg_cli.artifacts.reader import FileArtifact
from calseg_cli.artifacts.safe_open import DAMAGE
from calseg_cli.artifacts.text import attribute
from calseg_cli.errors import ArtifactError

_MEMORY = 8 * 1024**3  # bytes of address space: a legal item of 4 GiB and its packed form
_CPU_SECONDS = 3600
_AT_THE_END = frozenset({"index", "arrays"})  # of an unfinished file: half written at best, and written again anyway


def main() -> None:
    """Print what is wrong with the file, and its whole items if asked."""
    path, items = Path(sys.argv[1]), sys.argv[2] == "1"
    _limit()
    sys.stdout.write(json.dumps(examined(path, items=items)))


def examined(path: Path, *, items: bool) -> dict[str, Any]:
    """The rule that the file breaks, if any, and the facts of its whole items by position."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(file)
            passed_over = _AT_THE_END if items else frozenset()
            check_file(file, everything=not items, passed_over=passed_over, variable_text=True)
            if items:
                return {"refused": None, "items": dict(_whole_items(file))}
            FileArtifact(path, handle=file)
            return {"refused": None, "items": None}
    except RefusedError as error:
        return {"refused": str(error), "items": None}
    except ArtifactError as error:
        return {"refused": error.message.replace(str(path), "it"), "items": None}
    except OSError as error:
        told = "it is cut short" if "truncated" in str(error) else "HDF5 cannot read it"
        return {"refused": f"{told}, or its inner tables are damaged", "items": None}
    except DAMAGE as error:
        return {"refused": f"its inner tables are damaged ({str(error)[:100]})", "items": None}


def _check_format(file: h5py.File) -> None:
    """Another program's file breaks many rules; that it is not calseg's says more than the first of them."""
    check_attributes(file, "/", variable_text=True)
    if attribute(file, "format") != FORMAT:
        raise RefusedError("it is an HDF5 file, but no calseg artifact")


def _whole_items(file: h5py.File) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in file.get("items", {}):
        facts = _facts(file["items"], key)
        if facts is not None:
            yield str(int(key)), facts


def _facts(items: h5py.Group, key: str) -> dict[str, Any] | None:
    """An item's facts, or None where it is not whole: it was being written when its writer was killed."""
    try:
        group = items[key]
        check_item_group(group, f"/items/{key}")
        facts: dict[str, Any] = json.loads(str(attribute(group, "facts")))
        arrays = {name: array_digest(group[name][()]) for name in group}
        whole = facts["arrays"] == arrays and facts["digest"] == item_digest(facts)
    except DAMAGE:
        return None
    return facts if whole else None


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
