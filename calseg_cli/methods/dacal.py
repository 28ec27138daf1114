"""Owns DA-Cal in self-training: pseudo-labels as soft as a temperature network says, which learns beside the student.

Li et al. 2026, arXiv 2602.20860. The paper's full text is not public; docs/dacal.md says what is this project's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.mixing import class_mix_masks, mixed
from calseg_cli.engine.batch_statistics import predicting
from calseg_cli.engine.forward import native_logits
from calseg_cli.errors import ConfigError
from calseg_cli.losses.weighted_cross_entropy import weighted_cross_entropy
from calseg_cli.methods.self_training_view import Plugin, View
from calseg_cli.methods.temperature_learning import Learning, Mixed, TemperatureLearner, last_layer, lesson, on_grid
from calseg_cli.methods.temperature_network import calibrated

Outer = Literal["held-out", "held-out+hard", "source", "source+hard"]
Mask = Literal["complementary", "same", "own"]
_OWN_MASKS, _STRENGTHEN, _STRENGTHEN_HARD = range(3)  # what a random stream is for
_SLOW = 0.9  # of what is watched for alarms, a step
_TOO_MANY_AT_BOUNDS, _TOO_LOW_QUALITY, _TOO_FAR = 0.2, 0.5, 0.08
_SETTLING, _SLOWER = 20, 0.98
"""The usual shares of classes are the mean of so many looks, and later ones change slowly: few images say little."""


@dataclass(frozen=True)
class DACalOptions:
    """See docs/dacal.md. `outer`: whose labels judge; `mask`: what the outer mix shows of the target.

    `interval` steps lie between two steps of the temperature network. `hard_share` of a target pixel's lesson is the
    teacher's class, the rest its softened probabilities. `hard_weight` adds the complementary mix of the training
    images with hard labels to the loss. With `alarms`, hard labels are taught as long as temperatures lie at their
    bounds, the quality weight has halved, or the shares of classes have drifted.
    """

    learning: Learning = field(default_factory=Learning)
    outer: Outer = "held-out"
    mask: Mask = "complementary"
    strong: bool = False
    interval: int = 1
    warm_up: int = 60
    hard_share: float = 0.0
    hard_weight: float = 0.0
    alarms: bool = True


class DACal(Plugin):
    """Teaches target pixels softmax(z / T) of the teacher's logits z; T learns what labels of the outer mix ask of it.

    Raises ConfigError for a network that does not end in a 1x1 convolution, but for the route "network". Where several
    processes share a batch, all move the same temperatures, by what the features of the whole batch say.
    """

    fallen: Tensor
    quality: Tensor
    usual_quality: Tensor
    at_bound: Tensor
    looks: Tensor
    shares: Tensor
    usual_shares: Tensor

    def __init__(self, network: nn.Module, options: DACalOptions | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.options = options or DACalOptions()
        self.warm_up_steps = self.options.warm_up
        ends = last_layer(network) is not None and hasattr(network, "features")
        if self.options.learning.route != "network" and not ends:
            raise ConfigError(
                f"dacal: the network {getattr(network, 'name', '')!r} does not end in a 1x1 convolution on features",
                "network.options.head names the last layer of a plug-in; adapt.dacal.route: network takes any network",
            )
        self.learner = TemperatureLearner(
            int(network.num_classes),  # type: ignore[arg-type]
            self.options.learning,
            seed=seed,
            hard_share=self.options.hard_share,
        )
        for name in ("quality", "usual_quality", "at_bound"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("shares", "usual_shares"):
            self.register_buffer(name, torch.zeros(int(network.num_classes)))  # type: ignore[arg-type]
        self.register_buffer("looks", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fallen", torch.zeros((), dtype=torch.bool))

    @property
    def needs_held_out(self) -> bool:  # type: ignore[override]
        """Where labels of held-out source images judge."""
        return self.options.outer.startswith("held-out")

    def check_source_free(self) -> None:
        """Refuse."""
        raise ConfigError(
            "dacal learns its temperatures from labelled source images, and source_free has none",
            "leave source_free out, or take self-training or blda",
        )

    def targets(self, view: View, logits: Tensor) -> Tensor | None:
        """Softened probabilities (B,C,H,W), after a step of the temperature network; None while an alarm is on."""
        if view.step % self.options.interval == 0:
            ranks = self.ranks
            self.learner.step(
                view.student, ranks.whole(logits), self._inner(view).whole(ranks), self._outer(view).whole(ranks)
            )
            ranks.equalise(self.learner.parameters())
        self._watch(view)
        if bool(self.fallen):
            return None
        return self._soft(view, logits)

    def terms(self, view: View) -> dict[str, Tensor]:
        """The term "complement", hard labels on the pixels that the inner mix left out, where it has a weight."""
        if not self.options.hard_weight:
            return {}
        labels = mixed(view.source_labels[:, None], view.teacher_labels[:, None], ~view.masks)[:, 0]
        weights = mixed(view.source_weights, view.target_weights, ~view.masks)
        images = mixed(view.source_images, view.target_images, ~view.masks)
        images = view.augmentation(images, view.generator(_STRENGTHEN_HARD), self._first(view))
        logits, _ = native_logits(view.student, images)  # type: ignore[arg-type]
        loss = weighted_cross_entropy(view.dense(logits), labels, weights)
        return {"complement": self.options.hard_weight * loss / self.ranks.world}

    @torch.no_grad()
    def temperatures(self, logits: Tensor, dense: Callable[[Tensor], Tensor]) -> Tensor:
        """T (B,1,H,W) of the mean temperature network, which labels are softened by once the warm-up is over."""
        average = self.learner.average.network
        return average.temperature_of(dense(average.raw(logits)))

    def pictures(self, view: View) -> dict[str, Tensor]:
        """The outer mix, as the student's features there are judged."""
        return {"outer mix": self._pasted(view, *self._judging(view))}

    def report(self) -> dict[str, float]:
        """The temperatures of the last step, and whether hard labels have taken over."""
        moved = (self.shares - self.usual_shares).abs().sum() / 2
        return {**self.learner.report(), "class_drift": float(moved), "fallen_back": float(self.fallen)}

    @torch.no_grad()
    def _soft(self, view: View, logits: Tensor) -> Tensor:
        softened = calibrated(view.dense(logits), self.temperatures(logits, view.dense))
        return lesson(softened, self.options.hard_share)

    def _inner(self, view: View) -> Mixed:
        """The mix that the student has just seen: source labels where pasted, none on target cells."""
        none = torch.full_like(view.source_labels, IGNORE)
        labels = mixed(view.source_labels[:, None], none[:, None], view.masks)[:, 0]
        features = view.mixed_features if view.mixed_features is not None else view.teacher_logits[:, :0]
        labels, weights = _on_grid(labels, view, IGNORE), _on_grid(view.weights, view)
        return Mixed(features, labels, weights, self._shown(view.mixed_images))

    def _outer(self, view: View) -> Mixed:
        """Labelled cells that judge, pasted into target images."""
        images, labels, masks = self._judging(view)
        taught = view.teacher_labels if self.options.outer.endswith("hard") else torch.full_like(labels, IGNORE)
        weights = mixed((labels != IGNORE).float(), view.target_weights * (taught != IGNORE), masks)
        pasted = self._pasted(view, images, labels, masks)
        labels = mixed(labels[:, None], taught[:, None], masks)[:, 0]
        features = _features(view.student, pasted) if self.options.learning.route != "network" else pasted[:, :0]
        return Mixed(features, _on_grid(labels, view, IGNORE), _on_grid(weights, view), self._shown(pasted))

    def _shown(self, images: Tensor) -> Tensor | None:
        """Images of a mix where the route needs them: they would travel between processes for nothing."""
        return images if self.options.learning.route == "network" else None

    def _pasted(self, view: View, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        pasted = mixed(images, view.target_images, masks)
        if not self.options.strong:
            return pasted
        return view.augmentation(pasted, view.generator(_STRENGTHEN), self._first(view))

    def _judging(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Labelled images, their labels, and the masks (B,1,H,W) of where the outer mix shows them."""
        images, labels = view.source_images, view.source_labels
        if self.needs_held_out:
            assert view.held_out_images is not None
            assert view.held_out_labels is not None
            images, labels = view.held_out_images, view.held_out_labels
        if self.options.mask == "own":
            return images, labels, class_mix_masks(labels, view.generator(_OWN_MASKS), self._first(view))
        return images, labels, view.masks if self.options.mask == "same" else ~view.masks

    def _first(self, view: View) -> int:
        """The place of the view's first image in the whole batch."""
        return self.ranks.first(len(view.target_images))

    @torch.no_grad()
    def _watch(self, view: View) -> None:
        """Fall back to hard labels while the temperatures are of no use, or the target teaches ever less or else."""
        quality = self.ranks.total(view.target_weights.mean()) / self.ranks.world
        first = bool(self.usual_quality == 0)
        near = self.learner.report().get("temperature_at_bound", 0.0)
        if first:
            self.usual_quality.copy_(quality)
            self.quality.copy_(quality)
        self.quality.lerp_(quality, 1 - _SLOW)
        self.at_bound.lerp_(self.at_bound.new_tensor(near), 1 - _SLOW)
        alarmed = (self.at_bound > _TOO_MANY_AT_BOUNDS) | (self.quality < _TOO_LOW_QUALITY * self.usual_quality)
        self.fallen.copy_((alarmed | (self._drift(view) > _TOO_FAR)) & self.options.alarms)

    def _drift(self, view: View) -> Tensor:
        """How far the teacher's classes have moved, 0 to 1: the share of pixels that lie with other classes than first.

        Soft labels have no force of their own that holds a class where it is: over long runs one takes the others'
        place while confidence and quality stay what they were (docs/soft_vs_hard.md).
        """
        counted = self.ranks.total(view.teacher_labels.flatten().bincount(minlength=len(self.shares)))
        found = counted.float() / (view.teacher_labels.numel() * self.ranks.world)
        self.looks += 1
        self.usual_shares.lerp_(found, float(self.looks <= _SETTLING) / float(self.looks))
        self.shares.lerp_(found, max(1 - _SLOWER, 1 / float(self.looks)))
        return (self.shares - self.usual_shares).abs().sum() / 2 * (self.looks > _SETTLING)


def build_dacal(network: nn.Module, *, seed: int = 0, **options: Any) -> DACal:
    """The plugin from the options of both dataclasses, by their names. Raises TypeError for another name."""
    own = {one.name for one in fields(DACalOptions)}
    learning = Learning(**{name: value for name, value in options.items() if name not in own})
    chosen = {name: value for name, value in options.items() if name in own}
    return DACal(network, DACalOptions(learning=learning, **chosen), seed=seed)


@torch.no_grad()
def _features(student: nn.Module, images: Tensor) -> Tensor:
    """The student's features (B,D,h,w) as it sees them in training, without a trace in it."""
    with predicting(student):
        parted = _FeaturesOnly(student)
        features, _ = native_logits(parted, images)
    return features


class _FeaturesOnly:
    """A network that stops at its features."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.num_classes = int(network.num_classes)  # type: ignore[arg-type]
        self.stride, self.divisor = int(network.stride), int(network.divisor)  # type: ignore[arg-type]
        self.align_corners = bool(network.align_corners)

    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self._network.features(images)  # type: ignore[operator]
        return features


def _on_grid(values: Tensor, view: View, outside: int = 0) -> Tensor:
    height, width = view.teacher_logits.shape[-2:]
    return on_grid(values, view.geometry.pad, (height, width), outside)
