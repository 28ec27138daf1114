"""Owns the frame of self-training with a mean teacher and mixed domains, and what DAFormer and MIC add to it.

DACS: Tranheden et al. 2021, arXiv 2007.08702. DAFormer: Hoyer et al. 2022, arXiv 2111.14887. MIC: Hoyer et al. 2023,
arXiv 2212.01322. Other papers change it through the openings of `methods.self_training_view.Plugin`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.block_masks import block_masks
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.data.mixing import class_mix_masks, mixed
from calseg_cli.engine.batch_statistics import own_statistics, predicting
from calseg_cli.engine.distributed import Ranks
from calseg_cli.engine.draws import draw_generator
from calseg_cli.engine.forward import dense_logits, native_logits, upsample_logits
from calseg_cli.engine.method import Method, ParameterGroup
from calseg_cli.engine.moving_average import decay_at, move_average
from calseg_cli.errors import ConfigError
from calseg_cli.losses.weighted_cross_entropy import weighted_cross_entropy
from calseg_cli.methods.feature_distance import FeatureDistance, encoder_seen
from calseg_cli.methods.parted_network import Parted
from calseg_cli.methods.prototype_labels import PrototypeLabels
from calseg_cli.methods.self_training_domains import both_domains, check_source_free, of_the_neighbour, only_target
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.methods.self_training_labels import Taught, taught
from calseg_cli.methods.self_training_view import Plugin, Term, View

if TYPE_CHECKING:
    from calseg_cli.artifacts.geometry import Geometry

_MIX, _STRENGTHEN, _SAMPLE, _MASK, _STRENGTHEN_MASKED = range(5)  # what a random stream is for


@dataclass(frozen=True)
class Look:
    """What a step on a batch sees: the view, the teacher's corrected logits and the student's on the mix, (B,C,h,w)."""

    view: View
    believed: Tensor
    student: Tensor


class SelfTraining(Method):
    """A student learns source labels, and what its moving average says of target pixels, in images mixed of both.

    The terms: "source", cross-entropy on source images over labelled pixels; "mix", on the mix, over all pixels;
    "feature_distance" with the bases daformer and mic; "masked" with mic; then the plugins'. `reference` is the
    encoder that the feature distance keeps to, the network's own at the start without it. `label_correction` changes
    the teacher's logits (C,h,w) of one image (3,H,W) before they are labels, `prototypes`, counted as it trains, those
    of a batch before that; weights come from the uncorrected ones.

    Where several `ranks` share a batch, each works on its images as one process would on all of them: what is drawn
    follows from an image's place in the whole batch, means are over the whole batch, and batch norm is to be shared.
    """

    name: ClassVar[str] = "self-training"
    requires: ClassVar[frozenset[str]] = frozenset({"source", "labels", "target"})
    remeasures: ClassVar[bool] = True

    def __init__(
        self,
        network: nn.Module,
        frame: Frame | None = None,
        *,
        seed: int = 0,
        plugins: Iterable[Plugin] = (),
        reference: nn.Module | None = None,
        label_correction: Callable[[Tensor, Tensor], Tensor] | None = None,
        prototypes: PrototypeLabels | None = None,
    ) -> None:
        super().__init__(network)
        self.frame = frame or Frame()
        self.seed = seed
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.plugins = nn.ModuleList(plugins)
        if self.frame.source_free:
            check_source_free(self.frame.base, self.openings)
        self.distance = self._distance(reference)
        self.label_correction, self.prototypes = label_correction, prototypes
        self.class_weights: Tensor | None = None
        """(C,) how much a source pixel counts by its class, in the source's images and in the mix; None for the same.

        Scaled to mean 1 over the labelled source pixels of a batch. Target pixels have none: what the teacher says of
        them has learned the weights already.
        """
        self.watch: Callable[[int], None] | None = None
        """Called with the number of steps done, 0 before the first: to look and change nothing."""
        self._step = 0  # told before every step, so no memory
        self._seen: dict[str, Tensor] = {}  # of the last step, for the log
        self.train(self.training)

    def _distance(self, reference: nn.Module | None) -> FeatureDistance | None:
        frame = self.frame
        if frame.base == "dacs" or frame.source_free or not frame.feature_weight:
            return None
        own = getattr(self.network, "encoder", None)
        # A plug-in's encoder is the whole module: what it gives are logits, not features that ImageNet knew.
        if not isinstance(own, nn.Module) or hasattr(self.network, "head_path"):
            raise ConfigError(
                f"base: {frame.base} compares features of an encoder, and the network "
                f"{getattr(self.network, 'name', '')!r} has none apart from its head",
                "set adapt.self_training.feature_weight: 0, or base: dacs",
            )
        return FeatureDistance(
            copy.deepcopy(reference if reference is not None else own),
            weight=frame.feature_weight,
            ratio=frame.feature_ratio,
            classes=frame.feature_classes,
        )

    def work_with(self, ranks: Ranks) -> None:
        """Share every batch with these processes, in the plugins too."""
        super().work_with(ranks)
        for plugin in self.openings:
            plugin.ranks = ranks

    @property
    def openings(self) -> Sequence[Plugin]:
        """The plugins, in the order in which they act."""
        return [plugin for plugin in self.plugins if isinstance(plugin, Plugin)]

    @property
    def needs_held_out(self) -> bool:
        """Whether a plugin looks at labelled source images that the student is not trained on."""
        return any(plugin.needs_held_out for plugin in self.openings)

    @property
    def measures_again(self) -> bool:
        """Whether this run's running statistics mean nothing in the end: a student that normalises by batch."""
        return self.frame.statistics == "batch"

    def train(self, mode: bool = True) -> "SelfTraining":
        """The student as asked; the teacher as it predicts, but for the batch statistics (see `_teacher_pass`)."""
        super().train(mode)
        self.teacher.eval()
        return self

    def parameter_groups(self) -> list[ParameterGroup]:
        """The student's, then the plugins'."""
        further = [group for plugin in self.openings for group in plugin.parameter_groups()]
        return [*super().parameter_groups(), *further]

    def deployed(self) -> nn.Module:
        """The student, or the teacher where it is to be kept."""
        return self.teacher if self.frame.keep == "teacher" else self.network

    def restart_teacher(self) -> None:
        """Make the teacher the student again: where the network was changed before the first step."""
        move_average(self.teacher, self.network, 0.0)

    def before_step(self, batch: Batch, step: int) -> None:
        """Note the step."""
        self._step = step
        if not step and self.watch is not None:
            self.watch(0)

    def after_step(self, step: int) -> None:
        """The teacher moves, then what plugins keep."""
        move_average(self.teacher, self.network, decay_at(step, self.frame.ema))
        for plugin in self.openings:
            plugin.after_step(step)
        if self.watch is not None:
            self.watch(step + 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The step's terms. Raises DataError where the domains' images differ in size."""
        terms = {} if self.frame.source_free else self._source_terms(*both_domains(batch)[:2])
        view, believed, logits = self._see(batch)
        if self.prototypes is not None:  # of the batches before: a look at a batch must not count it
            self.prototypes.count(view.teacher_logits, view.geometry, self.ranks)
        lesson = self._lesson(view, believed, batch)
        terms["mix"] = self.frame.mix_weight * self._mix_loss(view.dense(logits), lesson, view)
        if self.frame.base == "mic" and self.frame.masking.weight:
            terms["masked"] = self._masked_term(view, lesson, batch)
        for plugin in self.openings:
            terms |= plugin.terms(view)
        return terms

    def _see(self, batch: Batch) -> tuple[View, Tensor, Tensor]:
        """The step's view, the teacher's corrected logits (B,C,h,w), and the student's on the mix with their graph."""
        target = only_target(batch)
        raw, geometry = self._teacher_pass(target)
        confidence = upsample_logits(raw, geometry).softmax(dim=1).amax(dim=1)
        believed, trusted = self._believed(raw, target), self.frame.trust(confidence, self.ranks)
        said = upsample_logits(believed, geometry).argmax(dim=1)
        source, labels, known = self._pasted(batch, said, trusted)
        masks = class_mix_masks(labels, self._generator(batch, _MIX), self.ranks.first(len(labels)))
        images = self._strengthened(mixed(source, target, masks), batch, _STRENGTHEN)
        student = Parted(self.network)
        logits, geometry = native_logits(student, images)
        view = View(
            step=self._step,
            seed=self.seed,
            source_images=source,
            source_labels=labels,
            target_images=target,
            held_out_images=batch.held_out_images,
            held_out_labels=batch.held_out_labels,
            masks=masks,
            teacher_logits=raw,
            teacher_labels=said,
            source_weights=known,
            target_weights=trusted,
            geometry=geometry,
            mixed_images=images,
            student_features=student.features,
            weights=mixed(known, trusted, masks),
            augmentation=self.frame.strong,
            student=self.network,
        )
        self._seen = {
            "quality": trusted.mean(),
            "confidence": confidence.mean(),
            "target_share": 1 - self._domain(view).float().mean(),
        }
        return view, believed, logits

    def _pasted(self, batch: Batch, said: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is pasted into the target's images: images, labels (B,H,W), and how much their pixels count (B,H,W)."""
        if self.frame.source_free:
            return self._neighbours(only_target(batch)), self._neighbours(said), self._neighbours(trusted)
        source, labels, _ = both_domains(batch)
        return source, labels, self._source_weights(labels)

    def _neighbours(self, values: Tensor) -> Tensor:
        return of_the_neighbour(values, self.ranks)

    def _domain(self, view: View) -> Tensor:
        """(B,1,H,W) bool: the source's pixels of the mix."""
        return torch.zeros_like(view.masks) if self.frame.source_free else view.masks

    @torch.no_grad()
    def look(self, batch: Batch) -> Look:
        """What a step on this batch would see now; nothing changes, and what it draws follows from the batch's step.

        Here the student predicts, with the statistics of the mix, as it does in training.
        """
        step, seen = self._step, self._seen
        self._step = batch.step
        try:
            with predicting(self.network):
                return Look(*self._see(batch))
        finally:
            self._step, self._seen = step, seen

    @torch.no_grad()
    def believed(self, images: Tensor) -> "tuple[Tensor, Geometry]":
        """The teacher's corrected logits (B,C,h,w) on target images (B,3,H,W), and where they lie."""
        raw, geometry = self._teacher_pass(images)
        return self._believed(raw, images), geometry

    def report(self) -> dict[str, float]:
        """Of the last step: the target pixels' mean weight and confidence, their share in the mix; the plugins'."""
        found = {name: float(self.ranks.total(value) / self.ranks.world) for name, value in self._seen.items()}
        for plugin in self.openings:
            found |= plugin.report()
        return found

    def _generator(self, batch: Batch, purpose: int) -> torch.Generator:
        return draw_generator(self.seed, batch.step, purpose)

    def _strengthened(self, images: Tensor, batch: Batch, purpose: int) -> Tensor:
        return self.frame.strong(images, self._generator(batch, purpose), self.ranks.first(len(images)))

    def _source_terms(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        # With "running" the student's statistics are those of the mix and the target, so the source leaves no trace.
        apart: AbstractContextManager[object] = (
            own_statistics(self.network) if self.frame.statistics == "running" else nullcontext()
        )
        watched: AbstractContextManager[dict[str, Tensor]] = (
            encoder_seen(self.network) if self.distance is not None else nullcontext(seen)
        )
        with apart, watched as seen:
            logits = dense_logits(self.network, images)  # type: ignore[arg-type]
        classes = logits.shape[1]
        logits = self._corrected(logits, labels, torch.ones_like(labels, dtype=torch.bool)[:, None], "source")
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        total = (self._source_weights(labels) * loss).sum()
        known = self.ranks.total((labels != IGNORE).sum())
        terms = {"source": self.frame.source_weight * total / known.clamp_min(1)}
        if self.distance is not None:
            maps = seen["features"], seen["entering"]
            terms["feature_distance"] = self.distance(*maps, labels, classes, self.ranks)
        return terms

    def _source_weights(self, labels: Tensor) -> Tensor:
        """(B,H,W) float32: how much source pixels count; 0 without a label, 1 in the mean of those with one."""
        known = (labels != IGNORE).float()
        if self.class_weights is None:
            return known
        weights = self.class_weights[labels.masked_fill(labels == IGNORE, 0)] * known
        counted, weighed = self.ranks.total(known.sum()), self.ranks.total(weights.sum())
        return weights * counted / weighed.clamp_min(torch.finfo(weights.dtype).tiny)

    @torch.no_grad()
    def _teacher_pass(self, images: Tensor) -> "tuple[Tensor, Geometry]":
        """The teacher's raw logits (B,C,h,w), float32: by the batch at hand, or by its own averaged statistics."""
        if self.frame.statistics != "batch":
            logits, geometry = native_logits(self.teacher, images)  # type: ignore[arg-type]
        else:
            with own_statistics(self.teacher):
                logits, geometry = native_logits(self.teacher, images)  # type: ignore[arg-type]
        return logits.float(), geometry

    @torch.no_grad()
    def _believed(self, raw: Tensor, images: Tensor) -> Tensor:
        """The teacher's logits (B,C,h,w) as the user's corrections leave them."""
        if self.prototypes is not None:
            raw = self.prototypes(raw)
        if self.label_correction is None:
            return raw
        return torch.stack([self.label_correction(*pair) for pair in zip(raw, images, strict=True)])

    def _lesson(self, view: View, believed: Tensor, batch: Batch) -> Taught:
        """What target pixels are taught: by the last plugin that says so, else by the teacher."""
        lesson = Taught(view.teacher_labels)
        if self.frame.labels != "hard" and self._step >= self.frame.hard_steps:
            drawn = self._generator(batch, _SAMPLE)
            lesson = taught(view.dense(believed), self.frame.labels, drawn, self.ranks.first(len(believed)))
        for plugin in self.openings:
            if self._step >= max(self.frame.hard_steps, plugin.warm_up_steps):
                soft = plugin.targets(view, believed)
                lesson = lesson if soft is None else Taught(soft.argmax(dim=1), soft.detach())
        return lesson

    def _mix_loss(self, logits: Tensor, lesson: Taught, view: View) -> Tensor:
        own, soft, domain = self.frame.trust.inside(lesson.labels, IGNORE), lesson.soft, self._domain(view)
        pasted = self._neighbours(own) if self.frame.source_free else view.source_labels
        if self.frame.source_free and soft is not None:
            soft = mixed(self._neighbours(soft), soft, view.masks)
        labels = mixed(pasted, own, view.masks)
        logits = self._corrected(logits, labels, domain, "mix")
        loss = weighted_cross_entropy(logits, labels, view.weights, soft=soft, hard=domain[:, 0])
        return loss / self.ranks.world

    def _corrected(self, logits: Tensor, labels: Tensor, domain: Tensor, term: Term) -> Tensor:
        for plugin in self.openings:
            logits = plugin.correct(logits, labels, domain, term)
        return logits

    def _masked_term(self, view: View, lesson: Taught, batch: Batch) -> Tensor:
        masking = self.frame.masking
        images = self._strengthened(view.target_images, batch, _STRENGTHEN_MASKED)
        size = (images.shape[0], images.shape[2], images.shape[3])
        block = min(masking.block or max(1, size[1] // 8), max(size[1:]))
        first = self.ranks.first(len(images))
        shown = block_masks(size, block, masking.ratio, self._generator(batch, _MASK), first).to(images.device)
        hidden = getattr(self.network, "mean", None)  # what the network's normalisation makes 0
        images = torch.where(shown, images, images.mean(dim=(2, 3), keepdim=True) if hidden is None else hidden)
        logits = dense_logits(self.network, images)  # type: ignore[arg-type]
        soft = lesson.soft if masking.labels == "same" else None
        labels = lesson.labels if masking.labels == "same" else view.teacher_labels
        labels = self.frame.trust.inside(labels, IGNORE)
        logits = self._corrected(logits, labels, torch.zeros_like(view.masks), "masked")
        loss = weighted_cross_entropy(logits, labels, view.target_weights, soft=soft)
        return masking.weight * loss / self.ranks.world
