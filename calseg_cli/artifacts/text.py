"""Owns text in HDF5: UTF-8 of fixed length; variable length lives in tables that send HDF5 in loops when damaged."""

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.policy import LONGEST_TABLE, RefusedError
from calseg_cli.errors import ArtifactError


def text_array(texts: Sequence[str]) -> NDArray[Any]:
    """Texts (N,) as HDF5 keeps them: bytes of the longest one's length, at least 1."""
    raw = [text.encode("utf-8") for text in texts]
    length = max([1, *(len(text) for text in raw)])
    return np.array(raw, dtype=h5py.string_dtype("utf-8", length))


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Write one text as a dataset without dimensions. Raises ArtifactError for one too long to be read again."""
    if len(text.encode()) > LONGEST_TABLE:
        raise ArtifactError(
            f"the table {name} has {len(text.encode())} bytes; an artifact holds {LONGEST_TABLE} at most", "shorten it"
        )
    group.create_dataset(name, data=text_array([text])[0], dtype=h5py.string_dtype("utf-8", max(1, len(text.encode()))))


def write_attribute(thing: Any, name: str, value: str | int) -> None:
    """Write an attribute of text (fixed length) or of a whole number (uint64), over an older one."""
    if isinstance(value, int):
        thing.attrs.create(name, np.uint64(value))
        return
    thing.attrs.create(name, text_array([value])[0], dtype=h5py.string_dtype("utf-8", max(1, len(value.encode()))))


def texts(array: NDArray[Any], place: str) -> NDArray[Any]:
    """An array of numbers as it is, one of text as an array of str. Raises RefusedError for text that is not UTF-8."""
    if array.dtype.kind != "S":
        return array
    try:
        decoded = [value.decode("utf-8") for value in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise RefusedError(f"{place} is not UTF-8") from error
    return np.array(decoded, dtype=str).reshape(array.shape)


def read_text(dataset: h5py.Dataset, place: str) -> str:
    """A text without dimensions. Raises RefusedError for one that is not UTF-8."""
    value = dataset[()]
    if not isinstance(value, bytes):
        raise RefusedError(f"{place} is no text")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{place} is not UTF-8") from error


def attribute(thing: Any, name: str) -> str | int | None:
    """The value of a plain attribute, None where it is missing."""
    value = thing.attrs.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return int(value)
