"""Owns what an HDF5 file may contain before calseg reads from it; a stranger's file must not be able to hurt.

Nothing is read from outside the file (links, external storage, virtual datasets), nothing is allocated that is not
there (declared against stored size), nothing is run (object, reference and opaque types, unknown filters). Chunks that
unpack to more than they say are `unpack`'s, what the lists may say is `listing`'s.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import h5py
import numpy as np

from calseg_cli.artifacts.kinds import LARGEST_ITEM, LARGEST_SIDE, MOST_CLASSES

LONGEST_TABLE = 1024**2  # bytes of one JSON table

UNITS = frozenset({"meta", "index", "items", "arrays"})
FILTERS = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    32000: "lzf",
    32008: "bitshuffle",
    32015: "zstd",
}
"""The filters that may stand between a file and its values: HDF5's own, h5py's, and two of hdf5plugin's."""
_HDF5PLUGIN = (32008, 32015)
_PACKING = (1, 32000, *_HDF5PLUGIN)
_MOST_ATTRIBUTES = 64
_LONGEST_ATTRIBUTE = 65536  # bytes
_MOST_MEMBERS = {"meta": 16, "index": 32, "arrays": 4096}
LONGEST_ROW = 4096  # bytes of one value of /index, such as an id: what a path may have
_LARGEST_CHUNK = 64 * 1024**2  # bytes
_SMALL = 1024**2  # bytes; what is smaller cannot hurt whatever it claims
_BEST_RATIO = {True: 40_000, False: 1_100}  # zstd packs constants without end, deflate at most 1032 to 1
_NUMBERS = [
    getattr(h5py.h5t, f"{family}{bits}{order}")
    for order in ("LE", "BE")
    for family, widths in (("IEEE_F", (16, 32, 64)), ("STD_I", (8, 16, 32, 64)), ("STD_U", (8, 16, 32, 64)))
    for bits in widths
]
_BOOLEAN = h5py.h5t.py_create(np.dtype(bool), logical=True)


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
        inner = list(links(group, f"/{name}", most=_MOST_MEMBERS.get(name)))
        if name != "items":
            for key in inner:
                check_dataset(member(group, key, f"/{name}"), f"/{name}/{key}")
        elif everything:
            for key in inner:
                check_item_group(member(group, key, "/items"), f"/items/{key}")


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
        if not name.isprintable() or "/" in name or name in ("", "."):
            raise RefusedError(f"{place} has a member of the name {name!r}")
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
    _check_filters(filters, place)
    _check_shape(dataset, place)
    _check_stored(dataset, place, strong=32015 in filters)
    if any(code in _HDF5PLUGIN for code in filters):
        _load_plugins([FILTERS[code] for code in filters if code in _HDF5PLUGIN], place)


def packing(dataset: h5py.Dataset) -> str:
    """The name of the codec of a checked dataset: gzip, none, zstd, ..."""
    properties = dataset.id.get_create_plist()
    names = [FILTERS[properties.get_filter(number)[0]] for number in range(properties.get_nfilters())]
    codecs = [name for name in names if name not in ("shuffle", "fletcher32")]
    return {"deflate": "gzip"}.get(codecs[0], codecs[0]) if codecs else "none"


def _check_filters(filters: list[int], place: str) -> None:
    unknown = [code for code in filters if code not in FILTERS]
    if unknown:
        raise RefusedError(f"{place} needs the unknown filter {unknown[0]}; known are {', '.join(FILTERS.values())}")
    if len(set(filters)) != len(filters) or sum(code in _PACKING for code in filters) > 1:
        names = ", ".join(FILTERS[code] for code in filters)
        raise RefusedError(f"{place} is packed more than once ({names}), which hides how large it is")


def _check_shape(dataset: h5py.Dataset, place: str) -> None:
    shape = dataset.shape
    if shape is None:
        raise RefusedError(f"{place} is empty space without a shape")
    classes = shape[0] if len(shape) == 3 else 1
    if place.startswith("/meta/") and (shape or dataset.id.get_type().get_size() > LONGEST_TABLE):
        raise RefusedError(f"{place} is no text of at most {LONGEST_TABLE} bytes")
    if place.startswith("/index/") and _row_bytes(dataset) > LONGEST_ROW:
        raise RefusedError(f"{place} is no list of values of at most {LONGEST_ROW} bytes")
    item = place.startswith("/items/")
    if item and (len(shape) not in (2, 3) or classes > MOST_CLASSES or max(shape[-2:]) > LARGEST_SIDE):
        raise RefusedError(
            f"{place} claims the size {'x'.join(map(str, shape))}; at most {MOST_CLASSES} classes and "
            f"{LARGEST_SIDE}x{LARGEST_SIDE} are allowed"
        )


def _row_bytes(dataset: h5py.Dataset) -> float:
    wide = float(np.prod(dataset.shape[1:], dtype=np.float64)) * dataset.id.get_type().get_size()
    return wide if dataset.shape else float("inf")


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
    spans: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda info: spans.append((info.byte_offset, info.byte_offset + info.size)))
    spans.sort()
    if any(start < end for (_, end), (start, _) in pairwise(spans)):
        raise RefusedError(f"{place} has chunks that lie on each other: it claims more than it stores")


def check_type(kind: Any, place: str, *, variable_text: bool = False) -> None:
    """Floats, integers, booleans and text of fixed length; nothing that points elsewhere. Raises RefusedError."""
    family = kind.get_class()
    if family == h5py.h5t.STRING:
        if kind.is_variable_str() and not variable_text:
            raise RefusedError(f"{place} is text of variable length; an artifact has fixed lengths only")
    elif family == h5py.h5t.ENUM:
        if not kind.equal(_BOOLEAN):
            raise RefusedError(f"{place} is of an enumeration type; calseg reads numbers and text only")
    elif family not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER):
        raise RefusedError(f"{place} is of an object, reference or compound type; calseg reads numbers and text only")
    elif not any(kind.equal(known) for known in _NUMBERS):
        raise RefusedError(f"{place} is of an unusual number type; calseg reads those of 16, 32 and 64 bits only")


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
