"""Owns DA-Cal on a network that stays as it is: only the temperatures of its logits are learned.

Li et al. 2026, arXiv 2602.20860, calibrate in training; that a finished network can be judged likewise is this
project's. The network is teacher and student at once. What it would learn from its own softened labels, and how that
fares on labels of source images that it was not trained on, moves the temperatures; no label of the target is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.data.mixing import class_mix_masks, mixed
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.batch_statistics import own_statistics
from calseg_cli.engine.draws import draw_generator
from calseg_cli.engine.forward import pad_to_divisor
from calseg_cli.engine.infer import LogitsDtype, Views, predict
from calseg_cli.errors import ConfigError
from calseg_cli.methods.dacal import Mask, Outer
from calseg_cli.methods.self_training_domains import check_sizes
from calseg_cli.methods.temperature_learning import Learning, Mixed, TemperatureLearner, last_layer, on_grid
from calseg_cli.methods.temperature_network import TemperatureNetwork

if TYPE_CHECKING:
    from calseg_cli.artifacts.geometry import Geometry

Statistics = Literal["batch", "running"]
_MASKS, _OWN_MASKS, _STRENGTHEN, _STRENGTHEN_OUTER = range(4)  # what a random stream is for


@dataclass(frozen=True)
class FrozenOptions:
    """As in training (docs/dacal.md): `learning`, `outer`, `mask`, `strong`, and `augmentation`, that of the mixes.

    `statistics`: whose mean and variance batch-norm layers use on mixes, those of the "batch", since a mix is of
    neither domain, or the network's "running" ones, with which it predicts. `views`, `dtype` and `amp` say how logits
    of the target are made: as `predict` does.
    """

    learning: Learning = field(default_factory=Learning)
    outer: Outer = "held-out"
    mask: Mask = "complementary"
    strong: bool = False
    statistics: Statistics = "batch"
    augmentation: StrongAugmentation = field(default_factory=StrongAugmentation)
    views: Views = field(default_factory=Views)
    dtype: LogitsDtype = "float16"
    amp: str = "off"


@dataclass(frozen=True)
class _Step:
    """A batch and what the network says of it: target logits (B,C,h,w) and where their cells lie on the pixels."""

    batch: Batch
    source: tuple[Tensor, Tensor]
    target: Tensor
    judging: tuple[Tensor, Tensor]
    logits: Tensor
    geometry: "Geometry"
    masks: Tensor

    def cells(self, values: Tensor, outside: int = 0) -> Tensor:
        """Labels or masks (B,H,W) at the cells (h,w): those of the nearest pixel, `outside` in padding."""
        height, width = self.logits.shape[-2:]
        return on_grid(values, self.geometry.pad, (height, width), outside)

    def inside(self) -> Tensor:
        """The cells (B,h,w) that lie on the image, bool."""
        return self.cells(torch.ones_like(self.source[1])) > 0


class FrozenDACal:
    """Steps of a temperature network; the network that is calibrated keeps its weights, its buffers and its mode.

    It must be in evaluation mode. All random numbers follow from the seed and the step. Raises ConfigError for a
    network that does not end in a 1x1 convolution on features, but for the route "network".
    """

    def __init__(self, network: nn.Module, options: FrozenOptions | None = None, *, seed: int = 0) -> None:
        self.network, self.options, self.seed = network, options or FrozenOptions(), seed
        if self._reads_features and (last_layer(network) is None or not hasattr(network, "features")):
            raise ConfigError(
                f"dacal: the network {getattr(network, 'name', '')!r} does not end in a 1x1 convolution on features",
                "adapt.dacal.route: network takes any network",
            )
        learner = TemperatureLearner(int(network.num_classes), self.options.learning, seed=seed)  # type: ignore[arg-type]
        self.learner = learner.to(next(network.parameters()).device)

    @property
    def _reads_features(self) -> bool:
        return self.options.learning.route != "network"

    @property
    def needs_held_out(self) -> bool:
        """Whether batches must bring labelled source images that the network was not trained on."""
        return self.options.outer.startswith("held-out")

    @property
    def temperatures(self) -> TemperatureNetwork:
        """The temperature network so far: the mean over its steps, T = 1 before the first."""
        return self.learner.average.network.eval()

    def step(self, batch: Batch) -> None:
        """Learn from a batch of labelled source images, target images and labelled held-out source images.

        Raises DataError where their sizes differ.
        """
        seen = self._look(batch)
        with self._as_student():
            self.learner.step(self.network, seen.logits, self._inner(seen), self._outer(seen))

    def report(self) -> dict[str, float]:
        """Of the last step, as in training."""
        return self.learner.report()

    def _look(self, batch: Batch) -> _Step:
        source, target = (batch.source_images, batch.source_labels), batch.target_images
        judging = (batch.held_out_images, batch.held_out_labels) if self.needs_held_out else source
        assert source[0] is not None
        assert source[1] is not None
        assert judging[0] is not None
        assert judging[1] is not None
        assert target is not None
        for images in (source[0], judging[0]):
            check_sizes(tuple(images.shape[-2:]), tuple(target.shape[-2:]))
        logits, geometry = self._predicted(target)
        masks = class_mix_masks(source[1], self._generator(batch, _MASKS))
        return _Step(batch, (source[0], source[1]), target, (judging[0], judging[1]), logits, geometry, masks)

    def _predicted(self, images: Tensor) -> "tuple[Tensor, Geometry]":
        """Logits (B,C,h,w) float32 as they will be when the calibrator corrects them, image by image."""
        height, width = images.shape[-2:]
        samples = ((str(place), image[None], None, (height, width)) for place, image in enumerate(images))
        made = list(
            predict(
                self.network,  # type: ignore[arg-type]
                samples,
                device=images.device,
                views=self.options.views,
                dtype=self.options.dtype,
                amp=self.options.amp,
            )
        )
        return torch.stack([one.logits for one in made]).float().to(images.device), made[0].geometry

    def _inner(self, seen: _Step) -> Mixed:
        """What the network is thought to learn: source labels where pasted, softened labels on target cells."""
        images, labels = seen.source
        pasted = self._strengthened(mixed(images, seen.target, seen.masks), seen, _STRENGTHEN)
        taught = mixed(labels, torch.full_like(labels, IGNORE), seen.masks)
        weights = (labels != IGNORE) | ~seen.masks[:, 0]
        return self._mix(seen, pasted, seen.cells(taught, IGNORE), seen.cells(weights).float())

    def _outer(self, seen: _Step) -> Mixed:
        """Labelled cells that judge, pasted into target images."""
        images, labels = seen.judging
        masks = self._judging_masks(seen)
        pasted = mixed(images, seen.target, masks)
        if self.options.strong:
            pasted = self._strengthened(pasted, seen, _STRENGTHEN_OUTER)
        cells = seen.cells(mixed(labels, torch.full_like(labels, IGNORE), masks), IGNORE)
        if self.options.outer.endswith("hard"):
            of_target = seen.inside() & ~seen.cells(masks[:, 0])
            cells = torch.where(of_target, seen.logits.argmax(dim=1), cells)
        return self._mix(seen, pasted, cells, (cells != IGNORE).float())

    def _judging_masks(self, seen: _Step) -> Tensor:
        if self.options.mask == "own":
            return class_mix_masks(seen.judging[1], self._generator(seen.batch, _OWN_MASKS))
        return seen.masks if self.options.mask == "same" else ~seen.masks

    @torch.no_grad()
    def _mix(self, seen: _Step, images: Tensor, labels: Tensor, weights: Tensor) -> Mixed:
        whole, _ = pad_to_divisor(images, int(self.network.divisor))  # type: ignore[arg-type]
        if self._reads_features:
            features: Tensor = self.network.features(whole)  # type: ignore[operator]
            return Mixed(features, labels, weights)
        return Mixed(seen.logits[:, :0], labels, weights, whole)

    def _strengthened(self, images: Tensor, seen: _Step, purpose: int) -> Tensor:
        return self.options.augmentation(images, self._generator(seen.batch, purpose))

    def _generator(self, batch: Batch, purpose: int) -> Generator:
        return draw_generator(self.seed, batch.step, purpose)

    @contextmanager
    def _as_student(self) -> Iterator[None]:
        if self.options.statistics == "running":
            yield
            return
        with own_statistics(self.network):
            yield
