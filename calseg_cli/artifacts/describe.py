"""Owns what `calseg inspect` says of a file, whichever of calseg's formats it has; no torch."""

from pathlib import Path
from typing import Any

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import FACTS, read_facts, read_header
from calseg_cli.errors import ArtifactError

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def describe(path: Path) -> dict[str, Any]:
    """Kind, classes, sizes, protocol and provenance of an artifact or a checkpoint, as plain values.

    Raises ArtifactError for a file that is neither, or is damaged.
    """
    if not path.exists():
        raise ArtifactError(f"there is no file {path}", "check the path")
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder", "name a file in it: an .h5 artifact or a .safetensors checkpoint")
    with path.open("rb") as stream:
        magic = stream.read(8)
    if magic == _HDF5_MAGIC:
        with open_artifact(path) as artifact:
            try:
                return artifact.facts()
            except (KeyError, RuntimeError, OSError, ValueError, TypeError) as error:
                raise ArtifactError(f"{path} is damaged ({error})", "copy or write it again") from error
    if not 2 <= int.from_bytes(magic, "little") <= path.stat().st_size:
        raise ArtifactError(
            f"{path} is no file of calseg's: neither HDF5 nor safetensors, or cut short", "check the path"
        )
    return _describe_tensors(path)


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
