"""Owns the HDF5 file of an artifact from its first attribute to its seal and its name."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import calseg_cli
from calseg_cli.artifacts.kinds import FORMAT, SCHEMA, Kind
from calseg_cli.artifacts.seal import seal
from calseg_cli.artifacts.text import text_array, write_attribute, write_text
from calseg_cli.artifacts.whole_file import replace_file, sync


def create_file(partial: Path, kind: Kind, tables: Mapping[str, str], items: int) -> h5py.File:
    """Begin an artifact of `items` items, with its description as JSON texts; unfinished until `finish_file`."""
    # Our own lock keeps others away; HDF5's would stay with forked readers of images after a kill of this process.
    file = h5py.File(partial, "w", locking=False)
    root: dict[str, str | int] = {
        "format": FORMAT,
        "schema": f"{SCHEMA[0]}.{SCHEMA[1]}",
        "kind": kind.name,
        "kind_version": kind.version,
        "complete": 0,
        "items": items,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "calseg_version": calseg_cli.__version__,
    }
    for name, value in root.items():
        write_attribute(file, name, value)
    meta = file.create_group("meta")
    for name, text in tables.items():
        write_text(meta, name, text)
    file.flush()
    return file


def write_index(file: h5py.File, facts: Mapping[int, Mapping[str, Any]]) -> None:
    """Write /index, a column each fact, rows by rising position."""
    if not facts:
        return
    index = file.create_group("index")
    positions = sorted(facts)
    index.create_dataset("position", data=np.array(positions, dtype=np.int64))
    for column in [name for name in facts[positions[0]] if name != "arrays"]:
        values = [facts[position][column] for position in positions]
        array = text_array(values) if isinstance(values[0], str) else np.array(values)
        index.create_dataset(column, data=array.astype(np.uint8) if array.dtype.kind == "b" else array)


def finish_file(file: h5py.File, digest: str, items: int) -> None:
    """Write the last attributes of an artifact, close it and seal it."""
    write_attribute(file, "items", items)
    write_attribute(file, "content_digest", digest)
    write_attribute(file, "complete", 1)
    file.flush()
    chunks = [chunk for group in _groups(file) for key in group for chunk in _chunks(group[key])]
    path = Path(file.filename)
    file.close()
    seal(path, chunks)


def name_file(partial: Path, path: Path) -> None:
    """Give a finished file its name, in place of an older one."""
    sync(partial)
    replace_file(partial, path)
    sync(path.parent)


def _groups(file: h5py.File) -> Iterator[h5py.Group]:
    if "arrays" in file:
        yield file["arrays"]
    items = file.get("items")
    for key in items if items is not None else ():
        yield items[key]


def _chunks(dataset: h5py.Dataset) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    if dataset.chunks is not None:
        dataset.id.chunk_iter(lambda info: found.append((info.byte_offset, info.size)))
    return found
