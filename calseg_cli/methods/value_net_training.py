"""Owns how a value net learns: the error it is to expect, its loss, and the plain predictors that it must beat.

Cal-SFDA (Wang et al., ACM MM 2023, arXiv 2308.03003), stage 2. The segmentation network answers in evaluation mode
without gradients and is no part of what is trained, moved or saved.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.forward import native_logits, upsample_logits
from calseg_cli.engine.method import Method
from calseg_cli.losses.soft_ece import class_conditional_ece, image_ece
from calseg_cli.methods.corruption import corrupt_batch
from calseg_cli.methods.value_net import Tap, ValueNet, warm_up_statistics

Target = Literal["image", "class"]
PLAIN = ("entropy", "doubt")
"""Numbers that need no value net: the mean entropy of an image's pixels in nats, and one minus its mean confidence."""
_SMALLEST = 1e-4  # errors are kept that far from 0 and 1 before their logit is taken


@dataclass(frozen=True)
class Recipe:
    """How a value net learns; the configuration's section says what each part means."""

    target: Target = "image"
    bins: int = 10
    loss: Literal["squared", "logit"] = "squared"
    statistics: Literal["pooled", "batch"] = "pooled"
    probability: float = 0.75
    strength: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Measures:
    """What is measured of a frozen network's answers to images: errors (B,), whether labelled (B,), plain (B,2)."""

    errors: Tensor
    labelled: Tensor
    plain: Tensor


@dataclass(frozen=True)
class Seen(Measures):
    """The same, and what a value net reads: features (B,D,h,w)."""

    features: Tensor


@torch.no_grad()
def look(
    network: nn.Module, images: Tensor, labels: Tensor, *, target: Target, bins: int, size: tuple[int, int]
) -> Seen:
    """What `network`, in evaluation mode, makes of images (B,3,H,W) and labels (B,*`size`), 255 ignored.

    The error is that of the logits enlarged to the labels' size, as they are measured.
    """
    with Tap(network) as tap:
        native, geometry = native_logits(network, images, size)  # type: ignore[arg-type]
        features = tap.features
    logits = upsample_logits(native, geometry)
    measure = image_ece if target == "image" else class_conditional_ece
    errors = measure(logits, labels, bins=bins).float()
    labelled = (labels < logits.shape[1]).flatten(1).any(1)
    return Seen(errors, labelled, plain_numbers(logits.log_softmax(1)), features)


def plain_numbers(log_probs: Tensor) -> Tensor:
    """PLAIN of each image (B,2) from log-probabilities (B,C,H,W): over all pixels, whichever will have a label."""
    entropy = -(log_probs.exp() * log_probs).sum(1).flatten(1).mean(1)
    doubt = 1 - log_probs.amax(1).exp().flatten(1).mean(1)
    return torch.stack([entropy, doubt], dim=1)


class ExpectedError(Method):
    """A value net that learns the calibration error of a frozen network's answers to changed source images.

    Besides it fits, on the very same images, what costs nothing: the mean error, and straight lines from PLAIN to it.

    Where several `ranks` share a batch, each looks at its own images, and its term is their part of the whole batch's.
    What is remembered is that of the whole batch, in the order of one process. Batch norm is the caller's to share.
    """

    name = "value-net"
    requires = frozenset({"source", "labels"})

    def __init__(self, frozen: nn.Module, value_net: ValueNet, recipe: Recipe, ranks: Ranks = ALONE) -> None:
        super().__init__(value_net)
        self._frozen = (frozen.requires_grad_(False).eval(),)  # a tuple: no part of this module
        self.value_net, self.recipe, self.ranks = value_net, recipe, ranks
        for name, start in (("center", 0.0), ("spread", 1.0), ("low", 1.0), ("high", 0.0)):
            self.register_buffer(name, torch.tensor(start, dtype=torch.float64))
        self.register_buffer("moments", torch.zeros(len(PLAIN), 5, dtype=torch.float64))

    def train(self, mode: bool = True) -> "ExpectedError":
        """Training mode; batch norm with pooled statistics keeps them."""
        super().train(mode)
        if self.recipe.statistics == "pooled":
            self.value_net.norm.eval()
        return self

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Before the first step: batch norm's statistics of these batches, and their mean error as first answer."""
        seen = [self.look(batch) for batch in batches]
        warm_up_statistics(self.value_net, (one.features for one in seen), ranks=self.ranks)
        errors = torch.cat([one.errors[one.labelled] for one in map(self._of_all, seen)]).double()
        if not len(errors):
            return
        logits = _logit(errors)
        self.get_buffer("center").copy_(logits.mean())
        self.get_buffer("spread").copy_(logits.std(unbiased=False).clamp_min(0.05))
        first = logits.mean() if self.recipe.loss == "logit" else _logit(errors.mean())
        nn.init.constant_(self.value_net.linear.bias, float(first))

    def look(self, batch: Batch) -> Seen:
        """What the frozen network makes of a batch's images once they are changed."""
        assert batch.source_images is not None
        assert batch.source_labels is not None
        images, _ = corrupt_batch(
            batch.source_images,
            probability=self.recipe.probability,
            strength=self.recipe.strength,
            seed=self.recipe.seed,
            step=batch.step,
            first=self.ranks.first(len(batch.source_images)),
        )
        return look(
            self._frozen[0],
            images,
            batch.source_labels,
            target=self.recipe.target,
            bins=self.recipe.bins,
            size=(batch.source_labels.shape[-2], batch.source_labels.shape[-1]),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean over labelled images of the squared distance between what is expected and what is so."""
        seen = self.look(batch)
        everyones = self._of_all(seen)
        scores = self.value_net.score(seen.features)
        if self.training:
            self._remember(everyones)
        if self.recipe.loss == "logit":
            spread = self.get_buffer("spread").float()
            distance = (scores - _logit(seen.errors.double()).float()) / spread
        else:
            distance = scores.sigmoid() - seen.errors
        weights = seen.labelled.float()
        return {self.recipe.loss: (weights * distance.square()).sum() / everyones.labelled.float().sum().clamp_min(1)}

    def _of_all(self, seen: Measures) -> Measures:
        """What is known of all images of the whole batch, whoever looked at them."""
        return Measures(*(self.ranks.whole(column) for column in (seen.errors, seen.labelled, seen.plain)))

    def _remember(self, seen: Measures) -> None:
        errors, plain = seen.errors[seen.labelled].double(), seen.plain[seen.labelled].double()
        if not len(errors):
            return
        low, high = self.get_buffer("low"), self.get_buffer("high")
        low.copy_(torch.minimum(low, errors.min()))
        high.copy_(torch.maximum(high, errors.max()))
        for number in range(len(PLAIN)):
            x = plain[:, number]
            terms = (torch.ones_like(x), x, errors, x * x, x * errors)
            self.get_buffer("moments")[number] += torch.stack([term.sum() for term in terms])

    def plain_lines(self) -> dict[str, tuple[float, float]]:
        """Offset and slope of the least-squares line from each plain number to the error; "mean" has slope 0."""
        moments = self.get_buffer("moments").cpu()
        lines = {"mean": (float(moments[0, 2] / moments[0, 0].clamp_min(1)), 0.0)}
        for name, (count, x, y, xx, xy) in zip(PLAIN, moments.tolist(), strict=True):
            variance = count * xx - x * x
            slope = (count * xy - x * y) / variance if variance > 1e-12 * max(count * xx, 1e-300) else 0.0
            lines[name] = ((y - slope * x) / max(count, 1), slope)
        return lines

    def seen_range(self) -> tuple[float, float]:
        """The smallest and the largest error that was trained on; (0, 1) before any."""
        low, high = float(self.get_buffer("low")), float(self.get_buffer("high"))
        return (low, high) if low <= high else (0.0, 1.0)


def _logit(errors: Tensor) -> Tensor:
    return errors.clamp(_SMALLEST, 1 - _SMALLEST).logit()
