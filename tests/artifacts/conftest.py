"""Small artifacts, what is in them, and what an attacker does to them."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.seal import seal
from calseg_cli.artifacts.writer import ArtifactWriter

CLASSES = {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}
META = {"classes": CLASSES, "protocol": {"stride": 4}, "recipe": {"stage": "predict", "options": {"flip": False}}}
GEOMETRY = Geometry(in_hw=(33, 45), out_hw=(66, 90), pad=(3, 3), stride=4, align_corners=True)


@dataclass
class Made:
    """A file that a test made, and what is in it."""

    path: Path
    digest: str = ""
    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return list(self.items)


def make_items(count: int, *, seed: int = 0, classes: int = 2, size=(5, 7), dtype="float16", prefix="city/ünï "):
    rng = np.random.default_rng(seed)
    height, width = size
    return {
        f"{prefix}{n}": {"logits": rng.normal(size=(classes, height + n, width)).astype(dtype)} for n in range(count)
    }


def write(path: Path, items=None, *, kind="logits", meta=META, geometry=GEOMETRY, arrays=None, **options) -> Made:
    """Write an artifact; `items` is a number or {id: arrays}."""
    items = make_items(3 if items is None else items) if not isinstance(items, dict) else items
    with ArtifactWriter(path, kind, meta=meta, **options) as writer:
        for name, values in items.items():
            writer.add_item(name, values, geometry, image_digest=f"sha256:{name}")
        for name, array in (arrays or {}).items():
            writer.add_array(name, array)
    return Made(path, writer.digest, items)


def read_all(path: Path, **options) -> dict:
    """Every value of an artifact, so that two readings can be compared."""
    with open_artifact(path, **options) as artifact:
        return {
            "digest": artifact.digest,
            "kind": artifact.kind.name,
            "meta": artifact.meta,
            "attrs": {name: value for name, value in artifact.attrs.items() if name != "created_utc"},
            "items": {
                name: (
                    artifact.geometry(name) if artifact.kind.has_geometry else None,
                    artifact.image_digest(name),
                    artifact.item_facts(name),
                    {key: told(artifact.item(name, key)) for key in artifact.keys(name)},
                )
                for name in artifact.ids
            },
            "arrays": {name: told(artifact.array(name)) for name in artifact.array_names},
        }


def told(array: np.ndarray) -> tuple:
    return array.dtype.str, array.shape, array.tobytes()


def end_of_hdf5(path: Path) -> int:
    with h5py.File(path, locking=False) as file:
        return int(file.id.get_filesize())


def reseal(path: Path) -> None:
    """Seal a file again, as a stranger can; all of it, so that the seal itself says nothing."""
    end = end_of_hdf5(path)
    with path.open("r+b") as stream:
        stream.truncate(end)
    seal(path, [])


def edit(path: Path, change: Callable[[h5py.File], None], **options) -> None:
    with h5py.File(path, "r+", **options) as file:
        change(file)


def chunks_of(path: Path, place: str) -> list[tuple[int, int]]:
    """(offset in the file, bytes) of the chunks of a dataset."""
    found: list[tuple[int, int]] = []
    with h5py.File(path, locking=False) as file:
        file[place].id.chunk_iter(lambda info: found.append((info.byte_offset, info.size)))
    return found


@contextmanager
def frugal(*, seconds: float = 1.0, megabytes: float = 100.0) -> Iterator[None]:
    """Fail if the block takes more processor time or memory than that, in this process and in those it waits for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    before, started = _memory("VmRSS", reset=True), time.process_time()
    yield
    used = time.process_time() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used += after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    assert used < seconds, f"{used:.1f} s of processor time"
    grown = _memory("VmHWM") - before
    assert grown < megabytes * 1e6, f"{grown / 1e6:.0f} MB"


def _memory(what: str, *, reset: bool = False) -> int:
    if not os.path.exists("/proc/self/clear_refs"):  # noqa: PTH110
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="session")
def store() -> SimpleNamespace:
    """The makers of this file."""
    return SimpleNamespace(
        CLASSES=CLASSES,
        META=META,
        GEOMETRY=GEOMETRY,
        make_items=make_items,
        write=write,
        read_all=read_all,
        told=told,
        reseal=reseal,
        edit=edit,
        chunks_of=chunks_of,
        end_of_hdf5=end_of_hdf5,
        frugal=frugal,
    )
