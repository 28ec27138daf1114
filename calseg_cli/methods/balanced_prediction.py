"""Owns BLDA's balanced prediction of a finished network as a calibrator: a table of offsets and a strength.

Li et al. 2025, arXiv 2512.06886, equations 6, 7 and 13.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.calibrator import Array, Calibrator, check_channels, read_array, read_number
from calseg_cli.methods.logit_alignment import AlignmentTable, Tail, balanced_scores, hypothesis_scores
from calseg_cli.metrics.pixels import first_index

_AGAIN = "make it again with calseg calibrate --method blda"
_BLOCK = 2**9
_SLACK = 1e-4  # of the largest offset: what float32 loses of the order


class BalancedPrediction(Calibrator):
    """log p of the balanced prediction at `tau`, at least 0: every class is asked with its own logits' offsets.

    With 0 the logits stay as they are. `table` has C rows and channels. The predicted class may change.
    """

    method: ClassVar[str] = "blda"

    def __init__(self, table: AlignmentTable, tau: float, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        offsets, low, step = (part.detach().cpu().float() for part in (table.offsets, table.low, table.step))
        self.table, self.tau = AlignmentTable(offsets, low, step, table.tail), tau

    @torch.no_grad()
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """The log p (C,h,w) float32 of logits (C,h,w). Raises ArtifactError for another number of classes."""
        check_channels(logits, len(self.table.offsets), self.method)
        values = logits.float()
        if not self.tau:
            return values
        scores, _ = balanced_scores(values[None], self.table.to(values.device), self.tau)
        return scores[0].log_softmax(dim=0).clamp_min_(torch.finfo(torch.float32).min)

    @torch.no_grad()
    def classes(self, logits: Tensor, taus: Sequence[float]) -> Tensor:
        """The classes (T,P) int64 that each strength predicts for logits (C,P), whatever `tau` is."""
        check_channels(logits, len(self.table.offsets), self.method)
        table = self.table.to(logits.device)
        return torch.cat([_classes(block, table, taus) for block in torch.split(logits.float(), _BLOCK, dim=1)], dim=1)

    def parameters(self) -> dict[str, float | str]:
        """tau, and the range of the offsets in logits."""
        offsets = self.table.offsets
        return {"tau": self.tau, "offsets": f"{float(offsets.min()):.4g} to {float(offsets.max()):.4g}"}

    def facts(self) -> dict[str, Any]:
        """The method, what becomes of logits in the tails, its origin."""
        return {**super().facts(), "tail": self.table.tail}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`offsets` (C,C,G), `low` and `step` (C,C), float32; `tau` (1,) float64."""
        table = self.table
        arrays: dict[str, Array] = {name: getattr(table, name).numpy() for name in ("offsets", "low", "step")}
        return {**arrays, "tau": np.array([self.tau])}

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless the arrays are a table that keeps the logits' order, and a strength."""
        offsets = read_array(arrays, "offsets", dimensions=3)
        low, step = (read_array(arrays, name, dimensions=2) for name in ("low", "step"))
        classes, channels, nodes = offsets.shape
        if classes != channels or nodes < 2 or not low.shape == step.shape == (classes, classes):
            raise ArtifactError(
                f"its arrays are no table: offsets {offsets.shape}, low {low.shape}, step {step.shape}", _AGAIN
            )
        if facts.get("tail") not in get_args(Tail):
            raise ArtifactError(f"its tail {facts.get('tail')!r} is unknown", _AGAIN)
        _check_ranges(offsets, low, step)
        parts = [torch.from_numpy(part) for part in (offsets, low, step)]
        return cls(
            AlignmentTable(parts[0], parts[1], parts[2], facts["tail"]), read_number(arrays, "tau", least=0), facts
        )


def _check_ranges(offsets: Array, low: Array, step: Array) -> None:
    largest = np.finfo(np.float32).max
    if any(np.abs(part).max() > largest / 1024 for part in (offsets, low, step)) or not (step > 0).all():
        raise ArtifactError("its offsets or its nodes are not in the range of logits", _AGAIN)
    slack = _SLACK * max(1.0, float(np.abs(offsets).max()))
    if (np.diff(offsets, axis=2) + step[..., None] < -slack).any():
        raise ArtifactError("its offsets turn the order of logits around", _AGAIN)


def _classes(values: Tensor, table: AlignmentTable, taus: Sequence[float]) -> Tensor:
    offsets = table.hypotheses(values) if any(taus) else None
    scores = (hypothesis_scores(values, offsets, tau) if tau else values for tau in taus)
    return torch.stack([first_index(one, one.amax(dim=0)) for one in scores])
