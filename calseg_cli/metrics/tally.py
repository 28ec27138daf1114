"""Owns the tally: one pass over an image leaves counts that add exactly; every score is read off their sum."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError, CalsegError, DataError
from calseg_cli.metrics.confusion import Confusion
from calseg_cli.metrics.counting import count_image
from calseg_cli.metrics.extra_counts import Extra, ExtraCounts, ExtraSum, count_extra
from calseg_cli.metrics.fine_histogram import CalibrationCounts, Edges
from calseg_cli.metrics.grid import Grid, bilinear_grid, enlarge
from calseg_cli.metrics.image_rows import ImageRows, coarsen, stack
from calseg_cli.metrics.invariants import contradictions

_GROUPINGS = ("by_predicted", "by_true")
_COUNTS = ("count", "correct", "confidence")


@dataclass(frozen=True, eq=False)
class Tally:
    """What was counted of some images: a row an image, fine histograms by predicted and true class, and `extra` ones.

    Tallies of disjoint sets of images add to the tally of all, bit for bit, in any order and grouping.
    """

    images: ImageRows
    by_predicted: CalibrationCounts
    by_true: CalibrationCounts
    extra: ExtraCounts = field(default_factory=ExtraCounts)

    def __post_init__(self) -> None:
        broken = contradictions(self.images, self.by_predicted, self.by_true)
        broken = broken or self.extra.contradictions(self.images, self.by_predicted)
        if broken:
            raise ValueError(f"counts contradict each other in {'; '.join(broken)}")

    @classmethod
    def zeros(cls, num_classes: int, edges: Edges = "right", extra: Extra | None = None) -> "Tally":
        """The tally of no image."""
        by_predicted, by_true = (CalibrationCounts.zeros(num_classes, edges) for _ in _GROUPINGS)
        more = ExtraCounts.zeros(extra or Extra(), num_classes, edges)
        return cls(ImageRows.zeros(num_classes), by_predicted, by_true, more)

    @property
    def edges(self) -> Edges:
        """Which edge belongs to a bin."""
        return self.by_predicted.edges

    @property
    def num_classes(self) -> int:
        """C."""
        return self.by_predicted.num_groups

    @property
    def ids(self) -> tuple[str, ...]:
        """The images, sorted."""
        return self.images.ids

    @property
    def confusion(self) -> Confusion:
        """The matrix (C,C) int64 of all images, rows true."""
        total: Confusion = self.images.confusion.sum(axis=0)
        return total

    @property
    def num_valid(self) -> int:
        """Pixels measured."""
        return int(self.images.valid.sum())

    @property
    def num_ignored(self) -> int:
        """Pixels whose label is the ignored value."""
        return int(self.images.ignored.sum())

    @property
    def num_invalid(self) -> int:
        """Labelled pixels left out because a logit was NaN or infinite."""
        return int(self.images.invalid.sum())

    def __add__(self, other: "Tally") -> "Tally":
        return merge([self, other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tally):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return set(mine) == set(theirs) and all(np.array_equal(mine[name], theirs[name]) for name in mine)

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as plain arrays by name, for a file; `ids` and `edges` are arrays of text."""
        arrays: dict[str, NDArray[Any]] = {
            "ids": np.array(self.ids, dtype=np.str_),
            "edges": np.array([self.edges], dtype=np.str_),
        }
        arrays |= {f"images_{name}": array for name, array in self.images.arrays().items()}
        for grouping in _GROUPINGS:
            counts: CalibrationCounts = getattr(self, grouping)
            arrays |= {f"{grouping}_{name}": array for name, array in zip(_COUNTS, counts.arrays(), strict=True)}
        return arrays | self.extra.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Tally":
        """The tally that `to_arrays` gave. Raises ArtifactError where an array is missing or contradicts another."""
        try:
            return _assemble(arrays)
        except KeyError as error:
            raise ArtifactError(f"the counts lack the array {error}", "evaluate again to write them anew") from error
        except (ValueError, IndexError, CalsegError) as error:
            raise ArtifactError(f"the counts cannot be read: {error}", "evaluate again to write them anew") from error


def tally_image(
    logits: Tensor,
    labels: Tensor | NDArray[Any],
    *,
    image_id: str,
    ignore: int,
    edges: Edges = "right",
    extra: Extra | None = None,
    grid: Grid | None = None,
) -> Tally:
    """The tally of one image from logits (C,h,w) and labels (H,W), which lie on each other as `grid` says.

    Without a grid the logits are (C,H,W), at the label's own resolution.

    A pixel labelled `ignore` is counted as ignored; a labelled one with a NaN or infinite logit as invalid, and is in
    nothing else. Softmax is float32, sums are whole numbers; at most some rows of full size are alive, unless `extra`
    asks for class-wise counts, a preset or logits.
    Raises DataError where sizes differ or a label is neither a class nor `ignore`.
    """
    truth = _label_tensor(labels, logits, ignore)
    grid = grid or bilinear_grid(_hw(logits), _hw(logits))
    if grid.native_hw != _hw(logits):
        raise ValueError(f"{image_id}: the grid is of {grid.native_hw} cells, the logits are {_hw(logits)}")
    if grid.out_hw != truth.shape:
        raise DataError(
            f"{image_id}: the label is {_size(truth.shape)} and the prediction {_size(grid.out_hw)}",
            "image and label must have one size; `calseg data check` lists the pairs that differ",
        )
    counted = count_image(
        logits,
        truth,
        grid,
        ignore=ignore,
        edges=edges,
        keep_pixels=extra is not None and extra.needs_pixels,
        where=image_id,
    )
    row = ImageRows(
        (image_id,),
        confusion=counted.confusion[None],
        coarse=np.stack([coarsen(array) for array in counted.by_predicted.arrays()])[None],
        ignored=np.array([counted.ignored], np.int64),
        invalid=np.array([counted.invalid], np.int64),
        nll=np.array([counted.nll]),
        brier=np.array([counted.brier]),
        brier_top=np.array([counted.brier_top]),
    )
    more = ExtraCounts()
    if extra is not None and counted.pixels is not None:
        full = enlarge(logits, grid) if extra.needs_logits else None
        more = count_extra(extra, full, truth.long(), counted.pixels, ignore=ignore, edges=edges)
    return Tally(row, counted.by_predicted, counted.by_true, more)


def merge(tallies: Iterable[Tally]) -> Tally:
    """The tally of all images of one or more tallies; a generator is taken one by one and needs little memory.

    Raises DataError where an image is in two of them, ConfigError where conventions or class counts differ.
    """
    rows: list[ImageRows] = []
    by_predicted: CalibrationCounts | None = None
    by_true: CalibrationCounts | None = None
    more = ExtraSum()
    for tally in tallies:
        rows.append(tally.images)
        more.add(tally.extra)
        if by_predicted is None or by_true is None:
            by_predicted, by_true = tally.by_predicted.copy(), tally.by_true.copy()
            continue
        by_predicted.absorb(tally.by_predicted)
        by_true.absorb(tally.by_true)
    if by_predicted is None or by_true is None:
        raise ValueError("merge needs a tally; start from Tally.zeros where there may be none")
    return Tally(stack(rows), by_predicted, by_true, more.total([table.ids for table in rows]))


def _assemble(arrays: Mapping[str, NDArray[Any]]) -> Tally:
    edges = cast(Edges, _text(arrays["edges"])[0])
    columns = {name.removeprefix("images_"): array for name, array in arrays.items() if name.startswith("images_")}
    by_predicted, by_true = (
        CalibrationCounts(*(arrays[f"{grouping}_{name}"] for name in _COUNTS), edges=edges) for grouping in _GROUPINGS
    )
    try:
        rows, more = ImageRows(tuple(_text(arrays["ids"])), **columns), ExtraCounts.from_arrays(arrays, edges)
        return Tally(rows, by_predicted, by_true, more)
    except TypeError as error:  # a column more or less than an image's row has
        raise ValueError(str(error)) from error


def _text(array: NDArray[Any]) -> list[str]:
    return [item.decode() if isinstance(item, bytes) else str(item) for item in array.tolist()]


def _label_tensor(labels: Tensor | NDArray[Any], logits: Tensor, ignore: int) -> Tensor:
    if not isinstance(labels, Tensor):
        array = np.asarray(labels)
        narrow = array.dtype in (np.uint8, np.int16, np.int32, np.int64)
        labels = torch.from_numpy(np.ascontiguousarray(array if narrow else array.astype(np.int64)))
    if labels.dtype == torch.uint8 and not 0 <= ignore < 256:
        labels = labels.short()  # torch would take an ignored value of -1 for 255
    return labels.to(logits.device)


def _hw(logits: Tensor) -> tuple[int, int]:
    height, width = logits.shape[-2:]
    return int(height), int(width)


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
