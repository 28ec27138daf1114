"""Owns label calibration by soft-label prototypes: pixels take the class of the nearest mean soft label.

Bohdal et al. 2023, "Label Calibration for Semantic Segmentation Under Domain Shift" (arXiv 2307.10842, ICLR workshop).
The prototype of a class is the confidence-weighted mean of the soft labels of the pixels predicted as it; a pixel gets
the class whose prototype is nearest to its own soft label. No author code is public: where the text leaves a choice
open it is an option, and the default follows the words of the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.methods.correction import Correction
from calseg_cli.methods.prototype_rows import Rows, known_rows, mean_rows, rows_in, shrunk
from calseg_cli.methods.prototype_state import PixelRule, PrototypeState, soft_labels
from calseg_cli.metrics.pixels import first_index

Distance = Literal["l2", "cosine", "hellinger", "kl"]
Unseen = Literal["mask", "onehot", "source", "error"]
Confidence = Literal["max", "distance"]

NEAR = 1e-3
"""Two prototypes that are nearer than this tell no pixels apart; less mass than this off the diagonal does nothing."""
TIE = 1e-12
"""Scores that differ by less are equal: it is the rounding of float64 that differs, and the lowest index wins."""
KL_FLOOR = 1e-8
MARGIN = 30.0
"""How far below every other logit of a pixel that of a class without a prototype is: exp(-30) is 1e-13."""
_DIGITS = 2.0**-9  # of a logit: what float16 still tells apart
_BLOCK = 2**16  # pixels whose scores are in memory at a time


@dataclass(frozen=True)
class PrototypeOptions:
    """What may differ from the paper; raises ValueError for a value out of range.

    weight_power: weight of a pixel is confidence ** this (paper 1). temperature: of the softmax. min_confidence,
    top_frac: which pixels count, by one bound or as that most confident share of each predicted class. iterations:
    how often pixels are assigned anew to the nearest prototype and counted again. min_pixels: a class with fewer has
    no prototype. prior: so much weight of a one-hot label, or of the source's prototype, is in each class from the
    start. unseen: a class without a prototype takes no pixel (mask), has a one-hot prototype, that of another artifact
    (source), or is an error. shrink: 0 is the paper, 1 is argmax. per_image: mix each image's own sums with so much
    weight of the prototypes. confidence: what the corrected logits say of it, see `Prototypes.__call__`; tau:
    temperature of `distance`.
    """

    weight_power: float = 1.0
    temperature: float = 1.0
    min_confidence: float = 0.0
    top_frac: float | None = None
    iterations: int = 1
    min_pixels: int = 0
    prior: float = 0.0
    unseen: Unseen = "mask"
    shrink: float = 0.0
    distance: Distance = "l2"
    per_image: float | None = None
    confidence: Confidence = "max"
    tau: float = 0.25

    def __post_init__(self) -> None:
        for name, kind in (("distance", Distance), ("unseen", Unseen), ("confidence", Confidence)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(get_args(kind))}")
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("top_frac", "per_image"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
                raise ValueError(f"{name} is {value!r}, not a number from {lowest:g} to {highest:g}")

    def rule(self, thresholds: Sequence[float] | None = None) -> PixelRule:
        """The rule by which pixels are counted; `thresholds` (C,) are those of `top_frac`."""
        own = None if thresholds is None else tuple(float(value) for value in thresholds)
        return PixelRule(float(self.weight_power), float(self.temperature), float(self.min_confidence), own)


_RANGES: dict[str, tuple[float, float]] = {
    "weight_power": (0, 16),
    "temperature": (1e-2, 1e3),
    "min_confidence": (0, 1),
    "top_frac": (1e-9, 1),
    "iterations": (1, 100),
    "min_pixels": (0, 2**53),
    "prior": (0, 1e12),
    "shrink": (0, 1),
    "per_image": (1e-9, 1e12),
    "tau": (1e-3, 1e3),
}


class Prototypes(Correction):
    """The prototypes (C,C) of a state, one a row, and the classes that have one, `valid` (C,).

    Raises DataError where one class alone has a prototype, because every pixel would become it, and where `unseen` is
    "error" and a class has none; ConfigError where `unseen` is "source" and there are no `source_rows` (C,C), which
    hold NaN in the row of a class that the source does not know either.

    `prior_rows` (C,C), NaN likewise, are prototypes of the source that this begins with: `options.prior` is weight of
    theirs, and a class that would have none takes the source's as it is, whatever `unseen` says.
    """

    kind = "prototypes"

    def __init__(
        self,
        state: PrototypeState,
        options: PrototypeOptions | None = None,
        *,
        source_rows: Rows | None = None,
        prior_rows: Rows | None = None,
        names: Sequence[str] = (),
        fitted_on: Mapping[str, Any] | None = None,
    ) -> None:
        self.state, self.options = state, options or PrototypeOptions()
        self.names = list(names) or [str(index) for index in range(state.num_classes)]
        self.fitted_on = dict(fitted_on or {})
        self.source_rows, self.prior_rows = source_rows, prior_rows
        if self.options.unseen == "source" and source_rows is None:
            raise ConfigError("prototypes of the source are wanted, and none are given", "--source FILE names them")
        self._base, self.valid = mean_rows(
            state.sums,
            state.weights,
            state.pixels,
            prior=self.options.prior,
            prior_rows=prior_rows,
            min_pixels=self.options.min_pixels,
        )
        self.borrowed = self._borrow()
        self.unseen = [int(index) for index in np.flatnonzero(~self.valid)]
        self._fill_unseen()
        self.rows = shrunk(self._base, self.valid, self.options.shrink)
        if self.options.shrink == 1:
            self.valid = np.ones_like(self.valid)
        self._check_classes()

    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) whose largest, of equals the first, is that of the nearest prototype's class.

        With confidence "max" a pixel whose class changes has the logits of its old and new class exchanged: its
        confidence stays what it was. With "distance" the logits are scores / tau, 0 for the nearest prototype, and of
        l2 their softmax is that of -|p - c|**2 / tau; this is no part of the paper. A class without a prototype is 30
        below the lowest other one, so that it wins nowhere between two cells either, and confidence is that of the
        others. Where every prototype is one-hot, and where there is none, logits stay as they are.
        """
        rows = self.rows if self.options.per_image is None else self._rows_of(logits)
        if not self.valid.any() or (self.valid.all() and np.array_equal(rows, np.eye(len(rows)))):
            return logits.float()
        flat = logits.flatten(1).float()
        pieces = [self._corrected(part, rows) for part in torch.split(flat, _BLOCK, dim=1)]
        return torch.cat(pieces, dim=1).reshape(logits.shape)

    def labels(self, logits: Tensor) -> Tensor:
        """The class (h,w) int64 of each cell of logits (C,h,w) after the correction."""
        corrected = self(logits).flatten(1)
        return first_index(corrected, corrected.amax(dim=0)).reshape(logits.shape[1:])

    def scores(self, logits: Tensor, rows: Rows | None = None) -> Tensor:
        """How near each prototype is, (V,n) float64 of logits (C,n), for the V valid classes: the larger the nearer."""
        probs = soft_labels(logits, self.options.temperature).probs.double()
        weight, bias = linear_form((self.rows if rows is None else rows)[self.valid], self.options.distance)
        features = probs.sqrt() if self.options.distance == "hellinger" else probs
        # In float64, which no setting of a device makes coarser, as TF32 does float32.
        return torch.from_numpy(weight).to(probs.device) @ features + torch.from_numpy(bias).to(probs.device)[:, None]

    def describe(self) -> str:
        """One line: what is done, with which options."""
        chosen = asdict(self.options)
        usual = asdict(PrototypeOptions())
        told = [f"{key} {value}" for key, value in chosen.items() if value != usual[key] or key == "confidence"]
        images = self.fitted_on.get("images")
        counted = f" of {images} images" if images is not None else ""
        begun = ["beginning with the source's prototypes"] if self.prior_rows is not None else []
        return ", ".join([f"class of the nearest soft-label prototype{counted}", *begun, *told])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The state's arrays, and `source_rows` and `prior_rows` (C,C) where there are any.

        The prior is beside the sums and not in them, so that parts add up with one prior.
        """
        others = {"source_rows": self.source_rows, "prior_rows": self.prior_rows}
        return {**self.state.to_arrays(), **{name: rows for name, rows in others.items() if rows is not None}}

    def facts(self) -> dict[str, Any]:
        """Method, options, what was counted, and notes for a person."""
        return {
            "method": "prototypes",
            "labels": "none",
            "options": asdict(self.options),
            "fitted_on": self.fitted_on,
            "class_names": self.names,
            "dropped": self.state.dropped,
            "unsure": self.state.unsure,
            "notes": self.notes(),
        }

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """The inverse. Raises ArtifactError for arrays or options that no counting gives."""
        try:
            chosen = dict(facts.get("options", {}))
            unknown = sorted(set(chosen) - {field.name for field in fields(PrototypeOptions)})
            if unknown:
                raise ValueError(f"the option {unknown[0]!r} is unknown; a newer calseg may know it")
            options = PrototypeOptions(**chosen)
            thresholds = arrays.get("thresholds")
            state = PrototypeState.from_arrays(
                arrays, options.rule(None if thresholds is None else thresholds.tolist())
            )
            names, fitted_on = facts.get("class_names", ()), dict(facts.get("fitted_on", {}))
            source_rows, prior_rows = (
                rows_in(arrays, name, state.num_classes) for name in ("source_rows", "prior_rows")
            )
            return cls(state, options, source_rows=source_rows, prior_rows=prior_rows, names=names, fitted_on=fitted_on)
        except (ConfigError, DataError) as error:
            raise ArtifactError(error.message, error.hint) from error
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"prototypes cannot be read: {error}", "make them again") from error

    def counted_rows(self) -> Rows:
        """S / W (C,C) of what was counted, without prior, stand-ins and shrinking; NaN rows where there is none."""
        state = self.state
        rows, seen = mean_rows(state.sums, state.weights, state.pixels, min_pixels=self.options.min_pixels)
        counted: Rows = np.where(seen[:, None], rows, np.nan)
        return counted

    def distances(self) -> Rows:
        """The Euclidean distances (C,C) of the prototypes; infinite to itself and to a class that has none."""
        apart: Rows = np.sqrt(((self.rows[:, None] - self.rows[None]) ** 2).sum(axis=-1))
        apart[~self.valid] = np.inf
        apart[:, ~self.valid] = np.inf
        np.fill_diagonal(apart, np.inf)
        return apart

    def off_diagonal(self) -> Rows:
        """How much of each prototype is with other classes (C,), in [0,1]; NaN where there is none."""
        mass: Rows = np.where(self.valid, 1 - self.rows.diagonal(), np.nan)
        return mass

    def notes(self) -> list[str]:
        """What a person should know before trusting it, one line each; empty where nothing is odd."""
        told = []
        if self.unseen and self.options.shrink < 1:
            told.append(f"without a prototype of their own ({self.options.unseen}): {self._named(self.unseen)}")
        if self.borrowed and self.options.shrink < 1:
            told.append(f"the source's prototype stands in for: {self._named(self.borrowed)}")
        if not self.valid.any():
            return [*told, "warning: no class has a prototype; labels stay those of the largest logit"]
        apart = self.distances()
        if apart.min() < NEAR:
            one, other = np.unravel_index(int(apart.argmin()), apart.shape)
            told.append(
                f"warning: the prototypes of {self._named([int(one), int(other)])} are only {apart.min():.2g} apart"
            )
        mean = float(np.nanmean(self.off_diagonal()))
        if mean < NEAR and self.options.shrink < 1:
            told.append(
                f"warning: prototypes are nearly one-hot (mean mass off the diagonal {mean:.2g}) and change almost "
                "nothing; a temperature above 1 softens them"
            )
        if self.options.iterations > 1:
            told.append("warning: assigning anew often lowers accuracy; the paper does it once")
        if self.state.dropped:
            told.append(f"warning: {self.state.dropped} pixels with NaN or infinite logits were left out")
        return told

    def _corrected(self, logits: Tensor, rows: Rows) -> Tensor:
        scores = self.scores(logits, rows)
        nearest = scores > scores.amax(dim=0) - TIE
        if self.options.confidence == "distance":
            scores -= scores.amax(dim=0)
            return self._with_masked((scores.masked_fill_(nearest, 0.0) / self.options.tau).float())
        wanted = first_index(nearest, torch.ones_like(nearest[0]))
        if not self.valid.all():
            places = torch.from_numpy(np.flatnonzero(self.valid)).to(logits.device)
            logits, wanted = self._with_masked(logits[places]), places[wanted]
        changed = (first_index(logits, logits.amax(dim=0)) != wanted).nonzero()[:, 0]
        if not len(changed):
            return logits
        result = logits.clone()
        result[:, changed] = exchanged(logits[:, changed], wanted[changed])
        return result

    def _with_masked(self, values: Tensor) -> Tensor:
        """All classes' logits (C,n) from those of the valid ones (V,n): the others far below them."""
        logits = (values.amin(dim=0) - MARGIN).repeat(len(self.valid), 1)
        logits[torch.from_numpy(self.valid).to(values.device)] = values
        return logits

    def _rows_of(self, logits: Tensor) -> Rows:
        """The prototypes of this image: its own sums, and so much weight of those of all images."""
        own = PrototypeState(self.state.num_classes, self.state.rule)
        own.add(logits)
        held = float(self.options.per_image or 0)
        mixed = (self._base * held + own.sums) / (held + own.weights)[:, None]
        return shrunk(np.where(self.valid[:, None], mixed, 0.0), self.valid, self.options.shrink)

    def _borrow(self) -> list[int]:
        """Give classes that have none of their own the prototype of `prior_rows`, exactly; which they are."""
        if self.prior_rows is None:
            return []
        lacking = (~self.valid | (self.state.weights == 0)) & known_rows(self.prior_rows)
        self._base[lacking], self.valid[lacking] = self.prior_rows[lacking], True
        return [int(index) for index in np.flatnonzero(lacking)]

    def _fill_unseen(self) -> None:
        if not self.unseen or self.options.shrink == 1:
            return
        if self.options.unseen == "error":
            raise DataError(
                f"no prototype for {self._named(self.unseen)}",
                "--unseen mask leaves such classes out, onehot and source give them one",
            )
        rows = np.eye(len(self.valid)) if self.options.unseen == "onehot" else self.source_rows
        if self.options.unseen == "mask" or rows is None:
            return
        for index in self.unseen:
            if np.isfinite(rows[index]).all():
                self._base[index], self.valid[index] = rows[index], True

    def _check_classes(self) -> None:
        if len(self.valid) > 1 and self.valid.sum() == 1:
            only = self._named([int(self.valid.argmax())])
            raise DataError(
                f"{only} is the only class with a prototype: every pixel would become it",
                "count more images, or give the other classes one: --unseen onehot, or --prior 1",
            )

    def _named(self, indices: Sequence[int]) -> str:
        return ", ".join(self.names[index] for index in indices)


def linear_form(rows: Rows, distance: str) -> tuple[Rows, Rows]:
    """(A, b) such that argmax of A f(p) + b is the nearest of the prototypes (V,C); f is the root for Hellinger's.

    l2: |p - c|**2 = |p|**2 - 2 p.c + |c|**2, so A = 2c and b = -|c|**2. cosine: p.c / |c|, as |p| is the same for all.
    hellinger: 1 - sum of sqrt(p c). kl: KL(p||c) = -H(p) - p.log c, with c no smaller than 1e-8.

    >>> linear_form(np.eye(2), "l2")[1].tolist()
    [-1.0, -1.0]
    """
    nothing = np.zeros(len(rows))
    if distance == "l2":
        return 2 * rows, -(rows**2).sum(axis=1)
    if distance == "cosine":
        return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True)), nothing
    if distance == "hellinger":
        return np.sqrt(rows), nothing
    return np.log(np.maximum(rows, KL_FLOOR)), nothing


def exchanged(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logits (C,n) whose largest, of equals the first, is that of `wanted` (n,): the values of old and new exchanged.

    Where a third class has the same largest logit and would come first, it is lowered by what float16 can tell.

    >>> exchanged(torch.tensor([[3.0], [1.0], [0.0]]), torch.tensor([1])).flatten().tolist()
    [1.0, 3.0, 0.0]
    """
    largest = logits.amax(dim=0)
    old = first_index(logits, largest)[None]
    new = wanted[None]
    result = logits.scatter(0, old, logits.gather(0, new)).scatter_(0, new, largest[None])
    places = torch.arange(len(logits), device=logits.device)[:, None]
    in_the_way = (result == largest) & (places < new)
    return torch.where(in_the_way, largest - largest.abs().clamp(min=1.0) * _DIGITS, result)
