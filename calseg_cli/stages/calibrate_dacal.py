"""Owns how DA-Cal's calibrator is fed: a frozen network, images of both domains, labels of the source alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.config import Resolved
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.batch_statistics import too_small_for_batch_norm
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import DataError
from calseg_cli.methods.dacal_calibrator import DACalCalibrator
from calseg_cli.methods.dacal_frozen import FrozenDACal, FrozenOptions
from calseg_cli.methods.temperature_learning import Learning
from calseg_cli.methods.temperature_network import TemperatureNetwork, calibrated
from calseg_cli.stages.domains import DomainData, open_domain
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.roads import NetworkRoad, views_of
from calseg_cli.stages.training import augmentation

CELLS = "cells of images mixed of both domains, at the network's input size"
"""On what it is fitted."""
LEARNING = ("route", "ridge", "step_size", "bound", "width", "inputs", "lr", "level_lr", "rule", "average")
"""What of adapt.dacal says how temperatures are learned."""
_MIXING = ("outer", "mask", "strong")
_LOOKED_AT = 64
"""The images of the target, at most, that temperatures and confidence are told of."""


@dataclass(frozen=True)
class FrozenFit:
    """A network, unlabelled images of the target, and the source's labelled images: the train split and val.

    Raises ConfigError for a network that DA-Cal cannot judge or without a source, DataError without its images.
    """

    resolved: Resolved
    loaded: LoadedNetwork
    target: SegmentationDataset
    device: torch.device
    progress: Progress

    def __post_init__(self) -> None:
        self._frozen()
        for images in (self.training, self.judging):
            if not len(images):
                raise DataError("there are no source images to learn from", "check the source's root and splits")

    @cached_property
    def training(self) -> SegmentationDataset:
        """Labelled source images: what the network was trained on."""
        return self._source.dataset("train", with_labels=True)

    @cached_property
    def judging(self) -> SegmentationDataset:
        """Labelled source images that it was not trained on."""
        return self._source.dataset("val", with_labels=True)

    @property
    def labels(self) -> str:
        """Whose labels are opened."""
        return "source"

    @property
    def measured(self) -> NetworkRoad:
        """To logits of the judging images."""
        return self._road(self.judging)

    def told(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the artifact tells of the images; `options` are those of the command's own section."""
        section = self.resolved.config.adapt.dacal
        kept = f"source val, {len(self.judging)} images"
        judged = self._frozen().needs_held_out
        return {
            "fitted_on": f"target {self._split}, {len(self.target)} images, labels of source train"
            + (" and val" if judged else ""),
            "images": len(self.target),
            "measured_on": f"{kept}, whose labels judged it" if judged else f"{kept}, held out",
            "grid": CELLS,
            "options": {**options, **{name: getattr(section, name) for name in (*_MIXING, *LEARNING)}},
        }

    def fit(self, told: Mapping[str, Any], stop: StopRequest | None = None) -> DACalCalibrator:
        """Learn; `told` is what the artifact tells of its origin. Raises StoppedError as soon as `stop` asks for it."""
        config = self.resolved.config
        frozen = self._frozen()
        self.progress.start("learning temperatures", config.calibrate.steps)
        with too_small_for_batch_norm():
            for batch in self._stream(frozen).batches(0, config.calibrate.steps):
                frozen.step(batch.to(self.device))
                if stop:
                    hint = "the same command with --resume goes on from there"
                    raise stop.error("stopped while learning temperatures", hint)
                self.progress.advance(1, T=frozen.report()["temperature_mean"])
        self.progress.finish()
        fit = {"status": "trained", "steps": config.calibrate.steps, **self._looked(frozen.temperatures)}
        return DACalCalibrator(frozen.temperatures.cpu(), {**told, "fit": fit})

    def _frozen(self) -> FrozenDACal:
        config = self.resolved.config
        section = config.adapt.dacal
        options = FrozenOptions(
            learning=Learning(**{name: getattr(section, name) for name in LEARNING}),
            outer=section.outer,
            mask=section.mask,
            strong=section.strong,
            statistics=config.calibrate.statistics,
            augmentation=StrongAugmentation(**config.adapt.self_training.strong.model_dump()),
            views=views_of(config.predict),
            dtype=config.predict.logits_dtype,
            amp=config.predict.amp,
        )
        return FrozenDACal(self.loaded.network, options, seed=config.seed)

    def _stream(self, frozen: FrozenDACal) -> TrainStream:
        config = self.resolved.config
        return TrainStream(
            self.training,
            self.target,
            batch_size=config.calibrate.batch_size,
            augmentation=augmentation(config.adapt.self_training.augment),
            seed=config.seed,
            workers=config.workers,
            held_out=self.judging if frozen.needs_held_out else None,
        )

    @property
    def _split(self) -> str:
        return self.resolved.config.calibrate.split or "train"

    @property
    def _source(self) -> DomainData:
        return open_domain(self.resolved, "source", self.loaded.class_names)

    def _road(self, dataset: SegmentationDataset) -> NetworkRoad:
        config = self.resolved.config
        return NetworkRoad(self.loaded, dataset, config.predict, device=self.device, workers=config.workers)

    def _looked(self, temperatures: TemperatureNetwork) -> dict[str, float]:
        """T and the mean confidence, before and after, on images of the target spread evenly over the split."""
        places = _spread(len(self.target), _LOOKED_AT)
        network = temperatures.to("cpu")
        self.progress.start("looking at the target", len(places))
        found = []
        for one in self._road(self.target).stream(places):
            found.append(_seen(network, one.logits, replace(one.geometry, out_hw=one.geometry.in_hw)))
            self.progress.advance()
        self.progress.finish()
        told = network.statistics(torch.cat([each for each, _, _ in found]))
        return {
            "target_images_looked_at": len(places),
            **{f"target_temperature_{name}": value for name, value in told.items()},
            "target_confidence_before": float(np.mean([before for _, before, _ in found])),
            "target_confidence_after": float(np.mean([after for _, _, after in found])),
        }


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the places 0 to count - 1, as evenly as can be."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, most)).round()})


@torch.no_grad()
def _seen(network: TemperatureNetwork, stored: Tensor, geometry: Geometry) -> tuple[Tensor, float, float]:
    """Temperatures of an image, one a cell, and its mean confidence before and after, at the network's input size."""
    logits = stored.float()[None]
    temperatures = network(logits)
    corrected = calibrated(logits, temperatures)
    before, after = (
        float(upsample_logits(one, geometry).softmax(dim=1).amax(dim=1).mean()) for one in (logits, corrected)
    )
    # Pixels and not cells, since cells of the padding are no part of the image.
    return (
        upsample_logits(temperatures, geometry)[..., :: geometry.stride, :: geometry.stride].flatten(),
        before,
        after,
    )
