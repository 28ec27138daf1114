"""Owns what `calseg inspect` says of a file, whichever of calseg's formats it has; no torch."""

from pathlib import Path
from typing import Any

from calseg_cli.artifacts.lineage import parents
from calseg_cli.artifacts.policy import check_item_group, member
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.safe_open import HDF5_MAGIC, PARTIAL, hdf5_reading, open_hdf5
from calseg_cli.artifacts.tensors_file import FACTS, read_facts, read_header
from calseg_cli.errors import ArtifactError


def describe(path: Path) -> dict[str, Any]:
    """Kind, classes, sizes, protocol and provenance of an artifact or a checkpoint, as plain values.

    Raises ArtifactError for a file that is neither, is unfinished, damaged, or breaks a rule in any of its parts.
    """
    if not path.exists():
        return _describe_artifact(path)  # which says it best
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder", "name a file in it: an .h5 artifact or a .safetensors checkpoint")
    if not path.is_file():
        raise ArtifactError(f"{path} is no plain file", "name an .h5 artifact or a .safetensors checkpoint")
    if path.suffix == ".json" or path.name.endswith(PARTIAL):
        return _describe_artifact(path)
    with path.open("rb") as stream:
        magic = stream.read(8)
    if magic == HDF5_MAGIC:
        return _describe_artifact(path)
    if not 2 <= int.from_bytes(magic, "little") <= path.stat().st_size:
        raise ArtifactError(
            f"{path} is no file of calseg's: neither HDF5 nor safetensors, or cut short", "check the path"
        )
    return _describe_tensors(path)


def _describe_artifact(path: Path) -> dict[str, Any]:
    with open_artifact(path) as artifact:
        facts = {**artifact.facts(), "stored": _stored(artifact), "parents": parents(artifact)}
        for file in artifact.files:
            check_items(file)
    return facts


def _stored(artifact: Artifact) -> dict[str, str]:
    """Type, size and packing of the first item's arrays, by name."""
    if not artifact.ids:
        return {}
    name = artifact.ids[0]
    return {key: _form(artifact.form(name, key)) for key in artifact.keys(name)}


def _form(form: tuple[tuple[int, ...], str, str]) -> str:
    shape, dtype, packing = form
    return f"{dtype} {'x'.join(map(str, shape))}, {packing}"


def check_items(path: Path) -> None:
    """Hold every item of a file that passed the quick check against the rules; no value is read.

    Raises ArtifactError.
    """
    with hdf5_reading(path), open_hdf5(path) as file:
        items = file.get("items", {})
        for key in items:
            check_item_group(member(items, key, "/items"), f"/items/{key}")


def _describe_tensors(path: Path) -> dict[str, Any]:
    header = read_header(path)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    sizes = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(tensors),
        "values": sum(_product(entry["shape"]) for entry in tensors.values()),
    }
    if FACTS not in (header.get("__metadata__") or {}):
        return {**sizes, "kind": "safetensors, not written by calseg"}
    facts = read_facts(path)
    facts.pop("state", None)
    return {**sizes, **facts}


def _product(shape: list[int]) -> int:
    result = 1
    for length in shape:
        result *= length
    return result
