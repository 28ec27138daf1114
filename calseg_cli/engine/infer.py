"""Owns inference: a stream of images becomes a stream of logits, rounded to what an artifact stores."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry, Size
from calseg_cli.data.ordered import closing_reader
from calseg_cli.engine.device import autocast
from calseg_cli.engine.forward import geometry_of, native_logits
from calseg_cli.engine.network_shape import SegmentationNetwork
from calseg_cli.engine.windows import Windows, window_grid, window_logits
from calseg_cli.errors import CalsegError

Sample = tuple[str, Tensor, NDArray[np.uint8] | None, Size]
LogitsDtype = Literal["float16", "float32"]
_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Prediction:
    """One image's answer: `logits` (C,h,w) on the CPU in the stored type, and the label (H0,W0) where one is known.

    Rounding to the stored type happens here, before anything is measured: evaluating from the network and from the
    artifact then gives the same numbers, bit for bit.
    """

    id: str
    logits: Tensor
    geometry: Geometry
    label: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Views:
    """Test-time augmentation: every scale, each also mirrored where `flip`; one plain view by default.

    With `windows` each view that is larger than one is seen window by window. A view's logits are the mean of its
    windows' logits; views themselves are averaged as probabilities.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    windows: Windows | None = None

    @property
    def single(self) -> bool:
        """True where the network's own logits are the answer."""
        return tuple(self.scales) == (1.0,) and not self.flip

    def describe(self) -> str:
        """What a stored value is: "logits", or "log-probabilities" where several views were averaged; and windows."""
        kind, how = ("logits", []) if self.single else ("log-probabilities", ["mean of the views' probabilities"])
        if self.windows is not None:
            how.append(self.windows.describe() if self.single else f"their logits: {self.windows.describe()}")
        return f"{kind} ({'; '.join(how)})" if how else kind


def predict(
    network: SegmentationNetwork,
    samples: Iterable[Sample],
    *,
    device: torch.device,
    views: Views | None = None,
    dtype: LogitsDtype = "float16",
    amp: str = "off",
) -> Iterator[Prediction]:
    """Predictions in the order of `samples`; the network must be in evaluation mode on `device`."""
    views = views or Views()
    with closing_reader(samples), torch.inference_mode():
        for name, image, label, out_hw in samples:
            with autocast(device, amp):
                logits, geometry = _answer(network, image, out_hw, views, device)
            stored = logits[0].to(_DTYPES[dtype]).cpu()
            if not bool(torch.isfinite(stored).all()):
                raise CalsegError(
                    f"the logits of {name} are not finite in {dtype}",
                    "set predict.logits_dtype=float32 if they are merely large; NaN means that the network is broken",
                )
            yield Prediction(name, stored, geometry, label)


def _answer(
    network: SegmentationNetwork, image: Tensor, out_hw: Size, views: Views, device: torch.device
) -> tuple[Tensor, Geometry]:
    geometry = geometry_of(network, image, out_hw)
    if views.windows is None or views.windows.hold(image):
        image = image.to(device)
    if views.single:
        return _logits(network, image, views, device), geometry
    grid = _grid(network, image, views, device)
    total = sum(_view_probs(network, image, view, grid, views, device) for view in _all_views(views))
    assert isinstance(total, Tensor)
    # One view's share keeps log(0) away; float16 could not hold it either.
    return (total / len(_all_views(views))).clamp_min(1e-12).log(), geometry


def _logits(network: SegmentationNetwork, view: Tensor, views: Views, device: torch.device) -> Tensor:
    """The network's answer (1,C,h,w) to a view, whole or by windows."""
    if views.windows is None or views.windows.hold(view):
        return native_logits(network, view.to(device))[0]
    return window_logits(network, view, views.windows, device)


def _all_views(views: Views) -> list[tuple[float, bool]]:
    return [(scale, mirror) for scale in views.scales for mirror in ((False, True) if views.flip else (False,))]


def _grid(network: SegmentationNetwork, image: Tensor, views: Views, device: torch.device) -> Size:
    if views.windows is not None and not views.windows.hold(image):
        return window_grid(network, image, views.windows, device)
    height, width = native_logits(network, image)[0].shape[-2:]
    return int(height), int(width)


def _view_probs(
    network: SegmentationNetwork,
    image: Tensor,
    view: tuple[float, bool],
    grid: Size,
    views: Views,
    device: torch.device,
) -> Tensor:
    """Probabilities (1,C,h,w) of one view (scale, mirrored), laid back onto the plain view's grid."""
    (scale, mirror), (height, width) = view, image.shape[-2:]
    size = (max(32, round(height * scale)), max(32, round(width * scale)))
    scaled = image if scale == 1.0 else F.interpolate(image, size=size, mode="bilinear", antialias=True)
    logits = _logits(network, scaled.flip(-1) if mirror else scaled, views, device)
    logits = logits.float().flip(-1) if mirror else logits.float()
    if tuple(logits.shape[-2:]) != grid:
        logits = F.interpolate(logits, size=grid, mode="bilinear", align_corners=network.align_corners)
    return logits.softmax(dim=1)
