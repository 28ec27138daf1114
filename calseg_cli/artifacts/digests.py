"""Owns what a content digest is taken of: names, types, shapes and values; never compression, time or place."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CONTENT_TABLES = ("classes", "protocol")  # the tables of /meta that are content; the others say how it came about


def json_text(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 kept as it is, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def text_sha256(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def array_digest(array: Array) -> str:
    """sha256 in hexadecimal over a line with type and shape, then the values little-endian in row-major order.

    The line is `<f2 19,60,80` and a newline. Texts are the JSON list of the array's strings, with the type `utf8`.
    """
    shape = ",".join(map(str, array.shape))
    if array.dtype.kind in "UO":
        texts = json.dumps([str(value) for value in array.ravel()], ensure_ascii=False, separators=(",", ":"))
        return text_sha256(f"utf8 {shape}\n{texts}")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little.dtype.str} {shape}\n".encode())
    digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def item_digest(facts: Mapping[str, Any]) -> str:
    """sha256 in hexadecimal of an item's facts: id, image digest, geometry, and the digest of each of its arrays."""
    return text_sha256(json_text({name: value for name, value in facts.items() if name != "digest"}))


def content_digest(
    kind: str, tables: Mapping[str, str], items: Iterable[tuple[int, str]], arrays: Mapping[str, str]
) -> str:
    """The digest of a whole artifact: `sha256:` and sha256 over lines, each ended by a newline.

    The lines are the kind, the sha256 of the JSON texts of `classes` and `protocol`, POSITION=DIGEST of each item by
    rising position, and NAME=DIGEST of each array of the whole by name.
    """
    lines = [kind, *(f"{name}={text_sha256(tables.get(name, ''))}" for name in CONTENT_TABLES)]
    lines += [f"{position}={digest}" for position, digest in sorted(items)]
    lines += [f"{name}={digest}" for name, digest in sorted(arrays.items())]
    return f"sha256:{text_sha256(''.join(f'{line}{chr(10)}' for line in lines))}"


def list_digest(names: Iterable[str]) -> str:
    """The digest of a list of ids in its order."""
    return f"sha256:{text_sha256(json.dumps(list(names), ensure_ascii=False, separators=(',', ':')))}"
