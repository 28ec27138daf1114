"""Owns what an HDF5 file may contain before calseg reads from it; a stranger's file must not be able to hurt.

Nothing is read from outside the file (links, external storage, virtual datasets), nothing is allocated that is not
there (declared against stored size), nothing is run (object, reference and opaque types, unknown filters).
"""

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from calseg_cli.artifacts.kinds import LARGEST_ITEM, LARGEST_SIDE, MOST_CLASSES

UNITS = frozenset({"meta", "index", "items", "arrays"})
FILTERS = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
    32008: "bitshuffle",
    32015: "zstd",
    32026: "blosc2",
}
"""The filters that may stand between a file and its values: HDF5's own, h5py's, and three of hdf5plugin's."""
_HDF5PLUGIN = (32008, 32015, 32026)
_MOST_ATTRIBUTES = 64
_LONGEST_ATTRIBUTE = 65536  # bytes
_MOST_MEMBERS = 4096  # of a group other than /items
_LARGEST_CHUNK = 64 * 1024**2  # bytes
_SMALL = 1024**2  # bytes; what is smaller cannot hurt whatever it claims
_BEST_RATIO = {True: 40_000, False: 1_100}  # zstd and blosc2 pack constants without end, deflate at most 1032 to 1
_TYPES = {h5py.h5t.FLOAT: "float", h5py.h5t.INTEGER: "integer", h5py.h5t.STRING: "text", h5py.h5t.ENUM: "enum"}


class RefusedError(ValueError):
    """The file breaks a rule; the text says where and which."""


def check_file(
    file: h5py.File,
    *,
    everything: bool = False,
    passed_over: frozenset[str] = frozenset(),
    variable_text: bool = False,
) -> None:
    """Check the root, the description and the lists of the file; each item is checked when it is read.

    `everything` looks into all items too; the contents of groups `passed_over` are not looked at. `variable_text` lets
    attributes of variable length pass, where a loop of HDF5's does no harm. Raises RefusedError.
    """
    check_attributes(file, "/", variable_text=variable_text)
    for name in links(file, "/", most=len(UNITS)):
        if name not in UNITS:
            raise RefusedError(f"/{name} is nothing that an artifact has: groups stand no deeper than /items/N")
        group = member(file, name, "/")
        if not isinstance(group, h5py.Group):
            raise RefusedError(f"/{name} is no group")
        if name in passed_over:
            continue
        most = None if name == "items" else _MOST_MEMBERS
        inner = list(links(group, name, most=most))
        if name != "items":
            for key in inner:
                check_dataset(member(group, key, name), f"/{name}/{key}")
        elif everything:
            for key in inner:
                check_item_group(member(group, key, name), f"/{name}/{key}")


def check_item_group(group: Any, place: str) -> None:
    """Check one image's group: datasets only, each by `check_dataset`."""
    if not isinstance(group, h5py.Group):
        raise RefusedError(f"{place} is no group")
    check_attributes(group, place)
    for key in links(group, place, most=16):
        check_dataset(member(group, key, place), f"{place}/{key}")


def links(group: h5py.Group, place: str, *, most: int | None) -> Iterator[str]:
    """The names in a group, all of them hard links. Raises RefusedError for any other, and for more than `most`."""
    number = group.id.get_num_objs() if hasattr(group.id, "get_num_objs") else len(group)
    if most is not None and number > most:
        raise RefusedError(f"{place} has {number} members; {most} are allowed")
    found: list[tuple[bytes, int]] = []
    group.id.links.iterate(lambda name, info: found.append((name, info.type)), info=True)
    for raw, kind in found:
        name = _utf8(raw, f"a name in {place}")
        if kind != h5py.h5l.TYPE_HARD:
            raise RefusedError(f"{place.rstrip('/')}/{name} is {_link_name(kind)}; calseg follows none")
        yield name


def _link_name(kind: int) -> str:
    names = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
    return names.get(kind, "a link of an unknown kind")


def member(group: h5py.Group, name: str, place: str) -> Any:
    """A member of a group by its own name, never through a link out of the file."""
    try:
        info = group.id.links.get_info(name.encode())
    except (KeyError, OSError, RuntimeError) as error:
        raise RefusedError(f"{place.rstrip('/')} lacks {name}") from error
    if info.type != h5py.h5l.TYPE_HARD:
        raise RefusedError(f"{place.rstrip('/')}/{name} is {_link_name(info.type)}; calseg follows none")
    return group[name]


def check_dataset(dataset: Any, place: str) -> None:
    """A dataset of plain numbers or text, kept in this file, as large as it says. Raises RefusedError."""
    if not isinstance(dataset, h5py.Dataset):
        raise RefusedError(f"{place} is no dataset: groups stand no deeper than /items/N")
    if dataset.is_virtual:
        raise RefusedError(f"{place} is a virtual dataset; calseg reads no other file through it")
    properties = dataset.id.get_create_plist()
    if properties.get_external_count():
        raise RefusedError(f"{place} keeps its data in external storage; calseg reads no other file through it")
    check_type(dataset.id.get_type(), place)
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    unknown = [code for code in filters if code not in FILTERS]
    if unknown:
        raise RefusedError(f"{place} needs the unknown filter {unknown[0]}; known are {', '.join(FILTERS.values())}")
    _check_shape(dataset, place)
    _check_stored(dataset, place, strong=any(code in (32015, 32026) for code in filters))
    if any(code in _HDF5PLUGIN for code in filters):
        _load_plugins([FILTERS[code] for code in filters if code in _HDF5PLUGIN], place)


def _check_shape(dataset: h5py.Dataset, place: str) -> None:
    shape = dataset.shape
    if shape is None:
        raise RefusedError(f"{place} is empty space without a shape")
    classes = shape[0] if len(shape) == 3 else 1
    item = place.startswith("/items/")
    if item and (len(shape) not in (2, 3) or classes > MOST_CLASSES or max(shape[-2:]) > LARGEST_SIDE):
        raise RefusedError(
            f"{place} claims the size {'x'.join(map(str, shape))}; at most {MOST_CLASSES} classes and "
            f"{LARGEST_SIDE}x{LARGEST_SIDE} are allowed"
        )


def _check_stored(dataset: h5py.Dataset, place: str, *, strong: bool) -> None:
    """What is declared must be there: space that was never written reads as zeros without an error."""
    declared = int(np.prod(dataset.shape, dtype=np.float64)) * dataset.id.get_type().get_size()
    stored = dataset.id.get_storage_size()
    chunks = dataset.chunks
    bomb = f"{place} claims {declared} bytes and stores {stored}"
    if declared > LARGEST_ITEM or (declared > _SMALL and declared > _BEST_RATIO[strong] * max(stored, 1)):
        raise RefusedError(bomb)
    if chunks is None:
        if stored != declared:
            raise RefusedError(bomb)
        return
    if int(np.prod(chunks, dtype=np.float64)) * dataset.id.get_type().get_size() > _LARGEST_CHUNK:
        raise RefusedError(f"{place} has chunks of more than {_LARGEST_CHUNK // 1024**2} MiB")
    wanted = int(np.prod([-(-length // step) for length, step in zip(dataset.shape, chunks, strict=True)]))
    if dataset.id.get_num_chunks() != wanted:
        raise RefusedError(f"{bomb}: {dataset.id.get_num_chunks()} of {wanted} chunks are there")


def check_type(kind: Any, place: str, *, variable_text: bool = False) -> None:
    """Floats, integers, booleans and text of fixed length; nothing that points elsewhere. Raises RefusedError."""
    family = kind.get_class()
    if family not in _TYPES:
        raise RefusedError(f"{place} is of an object, reference or compound type; calseg reads numbers and text only")
    if family == h5py.h5t.STRING and kind.is_variable_str() and not variable_text:
        raise RefusedError(f"{place} is text of variable length; an artifact has fixed lengths only")
    if family == h5py.h5t.ENUM and kind.get_size() != 1:
        raise RefusedError(f"{place} is of an enumeration type; calseg reads numbers and text only")


def check_attributes(thing: Any, place: str, *, variable_text: bool = False) -> None:
    """Few, small, plain attributes. Raises RefusedError."""
    number = h5py.h5a.get_num_attrs(thing.id)
    if number > _MOST_ATTRIBUTES:
        raise RefusedError(f"{place} has {number} attributes; {_MOST_ATTRIBUTES} are allowed")
    for index in range(number):
        attribute = h5py.h5a.open(thing.id, index=index)
        name = _utf8(attribute.name, f"the name of an attribute of {place}")
        where = f"the attribute {name!r} of {place}"
        check_type(attribute.get_type(), where, variable_text=variable_text)
        if attribute.get_storage_size() > _LONGEST_ATTRIBUTE:
            raise RefusedError(f"{where} is huge: {attribute.get_storage_size()} bytes")
        fixed = attribute.get_type().get_class() == h5py.h5t.STRING and not attribute.get_type().is_variable_str()
        if fixed and attribute.get_storage_size():
            _utf8(bytes(np.asarray(thing.attrs[name]).tobytes()), where)


def _utf8(raw: bytes | str, place: str) -> str:
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        text.encode("utf-8")
    except UnicodeError as error:
        raise RefusedError(f"{place} is not UTF-8") from error
    return text


def _load_plugins(names: list[str], place: str) -> None:
    try:
        import hdf5plugin  # noqa: F401
    except ImportError as error:
        raise RefusedError(f"{place} is packed with {names[0]}: pip install 'calseg[fast-io]'") from error
