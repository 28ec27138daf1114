"""Owns the one look that a round takes at every target image: logits, features, and what follows from them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.config import Predict
from calseg_cli.engine.infer import Prediction
from calseg_cli.errors import disk_errors
from calseg_cli.methods.checkpoint_criteria import Outlook, OutlookSums
from calseg_cli.methods.expected_confidence import ConfidenceSample
from calseg_cli.methods.value_net import Tap
from calseg_cli.stages.corrections import Loaded, corrected
from calseg_cli.stages.roads import NetworkRoad, Road
from calseg_cli.stages.target_training import Setting
from calseg_cli.stages.value_nets import LoadedValueNet


@dataclass(frozen=True)
class Seen:
    """One image as the pass left it: native logits (C,h,w), and how they lie on the network's input."""

    id: str
    logits: Tensor
    geometry: Geometry


@dataclass
class RoundPass:
    """Logits of every image laid down in `scratch`, one inference each; memory holds one image."""

    scratch: Path
    outlook: Outlook
    sample: ConfidenceSample
    ids: list[str] = field(default_factory=list)
    geometries: list[Geometry] = field(default_factory=list)
    confidence: dict[str, float] = field(default_factory=dict)
    expected_error: dict[str, float] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Seen]:
        for place, (name, geometry) in enumerate(zip(self.ids, self.geometries, strict=True)):
            logits = torch.from_numpy(np.load(self.scratch / f"{place:06d}-logits.npy", allow_pickle=False))
            yield Seen(name, logits, geometry)

    @property
    def expected_confidence(self) -> float:
        """The mean confidence that is expected to be right: (1 - e) times the network's own, over images."""
        errors = (self.expected_error.get(name, 0.0) for name in self.ids)
        scaled = [(1 - error) * own for error, own in zip(errors, self.sample.means(), strict=True)]
        return math.fsum(scaled) / len(scaled) if scaled else math.nan

    @property
    def mean_expected_error(self) -> float:
        """Over all images; NaN without guidance."""
        return math.fsum(self.expected_error.values()) / len(self.ids) if self.expected_error else math.nan


def look(
    setting: Setting,
    scratch: Path,
    *,
    guide: LoadedValueNet | None,
    trust: float,
    warm: bool,
    corrections: Sequence[Loaded],
) -> RoundPass:
    """One inference on every image, in evaluation mode.

    The outlook is the network's own; logits laid down are corrected. With a `guide` each image's error is expected,
    within the range that it was trained on, beyond which it would only guess; where it is to be `warm`, with the
    statistics of these very images. Both its normalisation and its convolution are linear in the features and commute
    with pooling, so pooled features are kept and the statistics are put in when all are known: no second look is
    needed. `trust` in [0,1] says how far the errors of images lie apart: 1 as the guide says, 0 all at their mean.
    Raises StoppedError when asked to stop.
    """
    setting.loaded.network.eval()
    road = target_road(setting)
    sums, pools = OutlookSums(), PooledFeatures(scratch, guide) if guide is not None else None
    seen = RoundPass(scratch, sums.outlook(), ConfidenceSample(len(setting.images)))
    tap = Tap(setting.loaded.network) if guide is not None else nullcontext()
    scratch.mkdir(parents=True, exist_ok=True)
    setting.progress.start("looking at target images", len(setting.images))
    with tap as features:
        for place, prediction in enumerate(corrected(_Watched(road, sums, seen.sample), corrections).stream()):
            _stop(setting)
            logits = prediction.logits
            with disk_errors(scratch):
                np.save(scratch / f"{place:06d}-logits.npy", logits.numpy())
            seen.ids.append(prediction.id)
            seen.geometries.append(replace(prediction.geometry, out_hw=prediction.geometry.in_hw))
            seen.confidence[prediction.id] = float(logits.float().softmax(dim=0).amax(dim=0).double().mean())
            if pools is not None and features is not None:
                pools.add(place, features.features)
            setting.progress.advance()
    setting.progress.finish()
    seen.outlook = sums.outlook()
    if pools is not None:
        seen.expected_error = dict(zip(seen.ids, drawn_together(pools.expected(warm=warm), trust), strict=True))
    return seen


def drawn_together(errors: Sequence[float], trust: float) -> list[float]:
    """Errors moved towards their mean: `trust` of each one's distance to it is left.

    With the squared correlation of expected and true errors as `trust` this is what a regression would leave, were the
    spread of both the same: what cannot be told apart is treated alike.

    >>> drawn_together([0.25, 0.75], 0.5)
    [0.375, 0.625]
    """
    mean = math.fsum(errors) / max(len(errors), 1)
    return [mean + trust * (error - mean) for error in errors]


def target_road(setting: Setting) -> NetworkRoad:
    """The network's plain logits of the images, whatever views `predict` is configured for."""
    config = setting.resolved.config
    options = Predict(logits_dtype=config.predict.logits_dtype)
    return NetworkRoad(setting.loaded, setting.images, options, device=setting.device, workers=config.workers)


class _Watched:
    """A road whose logits are counted as they pass, before any correction."""

    def __init__(self, road: Road, sums: OutlookSums, sample: ConfidenceSample) -> None:
        self._road, self._sums, self._sample = road, sums, sample
        self.class_names, self.palette, self.dataset = road.class_names, road.palette, road.dataset
        self.protocol, self.parents, self.files = road.protocol, road.parents, road.files
        self.network_digest: str | None = None  # it changes from round to round; the stage has spoken of the first

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Prediction]:
        """The road's predictions."""
        for prediction in self._road.stream(indices):
            self._sums.add(prediction.logits)
            self._sample.add(prediction.logits)
            yield prediction


class PooledFeatures:
    """Pooled features of every image on the disk, and the sums of all features by channel."""

    def __init__(self, scratch: Path, guide: LoadedValueNet) -> None:
        self._scratch, self._net, self._range, self._count = scratch, guide.net, guide.range, 0
        channels = guide.net.channels
        self._sum, self._squares = (
            torch.zeros(channels, dtype=torch.float64),
            torch.zeros(channels, dtype=torch.float64),
        )
        self._images = 0

    def add(self, place: int, features: Tensor) -> None:
        """Features (1,D,h,w) of one image."""
        flat = features[0].flatten(1).double().cpu()
        self._sum += flat.sum(dim=1)
        self._squares += flat.square().sum(dim=1)
        self._count += flat.shape[1]
        pooled = self._net.pool(features)[0].cpu().numpy()
        with disk_errors(self._scratch):
            np.save(self._scratch / f"{place:06d}-pooled.npy", pooled)
        self._images = place + 1

    def expected(self, *, warm: bool) -> list[float]:
        """The error e expected of each image, in the guide's range."""
        net = self._net
        before = {name: buffer.clone() for name, buffer in net.norm.named_buffers()}
        try:
            if warm:
                self._put_statistics(net.norm)
            low, high = self._range
            return [min(max(self._one(place), low), high) for place in range(self._images)]
        finally:
            net.norm.load_state_dict(before, strict=False)

    def _put_statistics(self, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean.square()).clamp_min(0) * self._count / max(self._count - 1, 1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    @torch.no_grad()
    def _one(self, place: int) -> float:
        pooled: NDArray[np.float32] = np.load(self._scratch / f"{place:06d}-pooled.npy", allow_pickle=False)
        device = next(self._net.parameters()).device
        return float(self._net.eval()(torch.from_numpy(pooled)[None].to(device)))


def _stop(setting: Setting) -> None:
    if setting.stop:
        raise setting.stop.error(
            "stopped while looking at target images", "the same command with --resume begins this look again"
        )
