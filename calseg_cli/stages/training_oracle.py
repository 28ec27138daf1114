"""Owns curves of a self-training run that labels of the target measure: for study, stamped, and never part of the run.

Whatever is measured here is measured on copies; nothing is chosen by it.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from calseg_cli.config import Resolved
from calseg_cli.config.self_training import on_frame
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import EvaluationSample, evaluation_samples
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.infer import predict
from calseg_cli.errors import DataError, StoppedError
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.temperature_network import calibrated
from calseg_cli.metrics.scores import Scores, read_scores
from calseg_cli.metrics.tally import Tally, merge, tally_image
from calseg_cli.stages.domains import DomainData, evaluation_subset
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.roads import views_of
from calseg_cli.stages.target_training import Setting, remeasure

STAMP = "ORACLE.txt"
_WARNING = (
    "ORACLE: labels of the target draw curves, which nobody has who needs to adapt. They train nothing and choose "
    "nothing; the result is stamped"
)
Tallies = tuple[Tally, Tally | None]


@dataclass(frozen=True)
class Labelled:
    """Labelled target images that the curves are measured on, and where they are from."""

    images: SegmentationDataset
    place: str

    @property
    def used_for(self) -> str:
        """What a result has to say of it."""
        return f"oracle: curves on {self.place} while training"

    @property
    def warning(self) -> str:
        """What a person has to know."""
        return f"{_WARNING} ({self.place}, {len(self.images)} images)"


def open_labelled(resolved: Resolved, domain: DomainData) -> Labelled | None:
    """The images that the options ask to measure on, labels opened; None unless they are asked for.

    Raises DataError where the split has no labels. No split named: val, and test where there is no val.
    """
    options = resolved.config.adapt.self_training
    if not options.oracle or not on_frame(resolved.config.adapt.method):
        return None

    def opened(split: str) -> Labelled:
        images = domain.dataset(split, with_labels=True, max_items=options.oracle_images)
        return Labelled(images, f"{domain.role} {split}")

    if options.oracle_split is not None:
        return opened(options.oracle_split)
    try:
        return opened("val")
    except DataError:
        return opened("test")


@dataclass
class OracleCurves:
    """Measures the network that would be kept, and the labels that the teacher would make, every so many steps.

    The network is measured as it would be kept if training ended there: a copy, its statistics measured again where
    the method does that. The teacher labels in batches as in training.
    """

    setting: Setting
    method: SelfTraining
    labelled: Labelled
    log: Callable[[Mapping[str, Any]], None]

    def __call__(self, done: int) -> None:
        """Measure and log, where it is time to after so many steps. Asked to stop, it leaves off without a record."""
        options = self.setting.options
        every = options.oracle_every or max(1, -(-options.steps // 6))
        if done % every and done != options.steps:
            return
        try:
            scores = self._network_scores(self._network())
        except StoppedError:
            return  # the loop sees the same and saves its state
        scores |= self._label_scores()
        if not self.setting.stop:
            place = {"split": self.labelled.place, "images": len(self.labelled.images)}
            self.log({"event": "oracle", "step": done, **place, **scores})
            told = f"mIoU {scores['miou']:.4f}, ECE {scores['ece']:.4f}; labels' ECE {scores['teacher_ece']:.4f}"
            soft = f", softened {scores['softened_ece']:.4f}" if "softened_ece" in scores else ""
            self.setting.progress.note(f"ORACLE, step {done}, {self.labelled.place}: {told}{soft}")

    def _network(self) -> nn.Module:
        network = copy.deepcopy(self.method.deployed()).eval()
        if self.method.measures_again:
            remeasure(self.setting, "an oracle's look: measuring the statistics", network)
        return network

    def _network_scores(self, network: nn.Module) -> dict[str, float]:
        config = self.setting.resolved.config
        predictions = predict(
            network,  # type: ignore[arg-type]
            self._samples(),
            device=self.setting.device,
            views=views_of(config.predict, plain=True),
            dtype=config.predict.logits_dtype,
            amp=config.predict.amp,
        )
        images = self.labelled.images
        tally = measure(
            predictions, len(images), images.num_classes, edges=config.evaluate.edges, progress=self.setting.progress
        )
        scores = self._scores(tally)
        return {"miou": scores.miou, "ece": scores.ece, "nll": scores.nll}

    def _label_scores(self) -> dict[str, float]:
        groups = _groups(self._samples(), self.setting.options.batch_size)
        found = [pair for group in groups for pair in self._tallies(group)]
        if not found:
            return {}
        plain = self._scores(merge([one for one, _ in found]))
        told = {"teacher_accuracy": plain.accuracy, "teacher_ece": plain.ece, "teacher_nll": plain.nll}
        softened = [two for _, two in found if two is not None]
        if softened:
            scores = self._scores(merge(softened))
            told |= {"softened_ece": scores.ece, "softened_nll": scores.nll}
        return told

    @torch.no_grad()
    def _tallies(self, group: list[EvaluationSample]) -> Iterator[Tallies]:
        """Of each image's labels by the teacher: as they are, and softened where a plugin says how much."""
        images = torch.cat([image for _, image, _, _ in group]).to(self.setting.device)
        logits, seen = self.method.believed(images)
        for place, (name, _, label, size) in enumerate(group):
            assert label is not None
            geometry, own = replace(seen, out_hw=size), logits[place : place + 1]
            stored, grid = label_grid(own[0].cpu(), geometry)
            plain = tally_image(stored, label, image_id=name, ignore=IGNORE, edges=self._edges, grid=grid)
            soft = self._softened(own, partial(upsample_logits, geometry=geometry))
            yield (
                plain,
                None if soft is None else tally_image(soft, label, image_id=name, ignore=IGNORE, edges=self._edges),
            )

    def _softened(self, logits: Tensor, dense: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The logits (1,C,h,w) enlarged and divided by the temperatures of the first plugin that has some, (C,H,W)."""
        for plugin in self.method.openings:
            temperatures = plugin.temperatures(logits, dense)
            if temperatures is not None:
                return calibrated(dense(logits), temperatures)[0].cpu()
        return None

    def _samples(self) -> Iterator[EvaluationSample]:
        samples = evaluation_samples(self.labelled.images, self.setting.resolved.config.workers)
        return takewhile(lambda _: not self.setting.stop, samples)

    @property
    def _edges(self) -> Any:
        return self.setting.resolved.config.evaluate.edges

    def _scores(self, tally: Tally) -> Scores:
        options, names = self.setting.resolved.config.evaluate, self.setting.loaded.class_names
        subset = evaluation_subset(names, names=options.classes, preset=options.eval_classes)
        return read_scores(tally, bins=options.bins, classes=subset, class_names=names)


def _groups(samples: Iterable[EvaluationSample], size: int) -> Iterator[list[EvaluationSample]]:
    """As many samples as a batch holds, all of one size."""
    group: list[EvaluationSample] = []
    for sample in samples:
        if group and (len(group) == size or group[0][1].shape != sample[1].shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
