"""Owns logit adjustment as a calibrator: logits without the logarithm of how often classes occur.

Menon et al. 2021, arXiv 2007.07314, section 4.1; the baseline that BLDA stands beside.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.calibrator import Calibrator, check_channels, read_array, read_number
from calseg_cli.methods.logit_alignment import logit_adjustment
from calseg_cli.metrics.pixels import first_index

_AGAIN = "make it again with calseg calibrate --method logit-adjustment"


class LogitAdjustment(Calibrator):
    """z - tau log(prior), `prior` (C,) in [0,1] that sums to 1; a class of frequency 0 stays as it is."""

    method: ClassVar[str] = "logit-adjustment"

    def __init__(self, prior: NDArray[np.float64], tau: float, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        self.prior, self.tau = prior, tau

    @torch.no_grad()
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w), shifted. Raises ArtifactError for another number of classes."""
        check_channels(logits, len(self.prior), self.method)
        return logit_adjustment(logits.float(), self._log_prior(logits), self.tau)

    @torch.no_grad()
    def classes(self, logits: Tensor, taus: Sequence[float]) -> Tensor:
        """The classes (T,P) int64 that each strength predicts for logits (C,P), whatever `tau` is."""
        check_channels(logits, len(self.prior), self.method)
        log_prior, values = self._log_prior(logits), logits.float()[..., None]
        shifted = (logit_adjustment(values, log_prior, tau)[..., 0] for tau in taus)
        return torch.stack([first_index(one, one.amax(dim=0)) for one in shifted])

    def _log_prior(self, logits: Tensor) -> Tensor:
        return torch.from_numpy(self.prior).log().float().to(logits.device)

    def parameters(self) -> dict[str, float | str]:
        """tau, and the range of the frequencies."""
        return {"tau": self.tau, "prior": f"{self.prior.min():.4g} to {self.prior.max():.4g}"}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`prior` (C,) and `tau` (1,), float64."""
        return {"prior": self.prior, "tau": np.array([self.tau])}

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless there are frequencies that sum to 1, and a strength."""
        prior = read_array(arrays, "prior", dimensions=1)
        if (prior < 0).any() or abs(prior.sum() - 1) > 1e-6:
            raise ArtifactError(f"its 'prior' sums to {prior.sum():.6g} and not to 1, or is below 0", _AGAIN)
        return cls(prior, read_number(arrays, "tau", least=0), facts)
