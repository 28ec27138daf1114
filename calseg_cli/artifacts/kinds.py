"""Owns the kinds of artifact: what each holds for an image and for the whole, and in which version."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.errors import ArtifactError

FORMAT = "calseg-artifact"
SCHEMA = (1, 0)  # readers take the same major number and ignore what a newer minor number added
IGNORED_CLASS = 255
MOST_CLASSES = 1024
LARGEST_SIDE = 16384  # pixels; no grid or label is higher or wider
LARGEST_ITEM = 4 * 1024**3  # bytes of one array


@dataclass(frozen=True)
class Field:
    """One array of an item: the numpy types it may have and its number of dimensions."""

    types: tuple[str, ...]
    dimensions: int
    required: bool = True


@dataclass(frozen=True)
class Kind:
    """One kind of artifact: `item` describes the arrays of an image, `arrays` names those the whole must have."""

    name: str
    version: int
    holds: str
    item: Mapping[str, Field] = field(default_factory=dict)
    arrays: frozenset[str] = frozenset()
    has_geometry: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "logits",
            1,
            "the network's answers (C,h,w) at its own stride, one dataset an image",
            item={"logits": Field(("float16", "float32"), 3)},
            has_geometry=True,
        ),
        Kind(
            "pseudo_labels",
            1,
            "class indices (H,W) at the label's full size, 255 where none was believed; the confidence on request",
            item={
                "label": Field(("uint8",), 2),
                "confidence": Field(("uint8", "float16"), 2, required=False),
            },
            has_geometry=True,
        ),
        Kind(
            "prototypes",
            1,
            "sums of softmax vectors (C,C) by predicted class and their weights (C,)",
            arrays=frozenset({"sums", "weights"}),
        ),
        Kind("calibrator", 1, "the parameters of a correction of logits"),
        Kind(
            "logit_statistics",
            1,
            "histograms of logits (C,C,1024) by label and channel, the edges of their bins, the pixels of each label",
            arrays=frozenset({"counts", "edges", "pixels"}),
        ),
        Kind("value_scores", 1, "the calibration error that a value net expects of each image"),
        Kind("selection", 1, "the score of each checkpoint, and which was chosen", arrays=frozenset({"scores"})),
        Kind("metrics", 1, "counts and exact sums that scores are read off"),
    )
}


def find_kind(name: str) -> Kind:
    """The kind of that name. Raises ArtifactError for one this version does not know."""
    if name not in KINDS:
        raise ArtifactError(
            f"unknown kind of artifact {name!r}; this version knows {', '.join(KINDS)}", "upgrade calseg"
        )
    return KINDS[name]


def check_item(kind: Kind, name: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Whether the arrays are those of an item of that kind.

    Raises ValueError for what only a program can do wrong (types, dimensions, names), ArtifactError for values and
    sizes, which a user's data may have.
    """
    missing = [key for key, wanted in kind.item.items() if wanted.required and key not in arrays]
    unknown = [key for key in arrays if key not in kind.item]
    if missing or unknown:
        raise ValueError(f"{name!r} of kind {kind.name} lacks {missing} and has {unknown} too much")
    for key, array in arrays.items():
        wanted = kind.item[key]
        if array.dtype.name not in wanted.types or array.ndim != wanted.dimensions:
            raise ValueError(f"{key} of {name!r} is {array.dtype} with {array.ndim} dimensions")
        _check_size(name, key, array)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(
                f"{key} of {name!r} holds values that are not finite in {array.dtype}",
                "float32 keeps what float16 cannot hold (predict.logits_dtype, import --dtype); "
                "NaN means that the network is broken",
            )
    _check_together(name, {key: array.shape[-2:] for key, array in arrays.items()})


def _check_size(name: str, key: str, array: NDArray[Any]) -> None:
    classes = array.shape[0] if array.ndim == 3 else 1
    if not array.size or classes > MOST_CLASSES or max(array.shape[-2:]) > LARGEST_SIDE or array.nbytes > LARGEST_ITEM:
        size = "x".join(map(str, array.shape))
        raise ArtifactError(
            f"{key} of {name!r} is {size}; an artifact holds 1 to {MOST_CLASSES} classes, 1 to {LARGEST_SIDE} rows and "
            f"columns, and at most {LARGEST_ITEM // 1024**3} GiB an image",
            "split or shrink the image",
        )


def _check_together(name: str, sizes: Mapping[str, tuple[int, ...]]) -> None:
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the arrays of {name!r} have different sizes: {dict(sizes)}")


def class_hash(names: Sequence[str], ignore: int = IGNORED_CLASS) -> str:
    """The digest of a class list: names in their order, and the ignored index. Two artifacts fit only if it is equal.

    Colours are left out: they change a picture, not a number.
    """
    text = json.dumps([list(names), int(ignore)], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
