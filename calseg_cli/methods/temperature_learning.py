"""Owns one outer step of DA-Cal: a temperature network moved against what an outer loss says of its soft labels.

Li et al. 2026, arXiv 2602.20860. The paper's full text is not public; docs/dacal.md says what is this project's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.distributed import Ranks
from calseg_cli.engine.forward import pad_to_divisor
from calseg_cli.methods.hypergradient import (
    Level,
    covariance_gradient,
    finite_difference_direction,
    last_layer_direction,
)
from calseg_cli.methods.lower_level import Regression, Whitening, implicit_direction, outer_loss, solve
from calseg_cli.methods.temperature_network import (
    AveragedTemperature,
    GradientRule,
    Inputs,
    MetaOptimizer,
    TemperatureNetwork,
    temperature_statistics,
)

Route = Literal["solved", "last-layer", "network"]


@dataclass(frozen=True)
class Learning:
    """How temperatures are found; docs/dacal.md tells what each does.

    `route`: what the student is thought to do with its soft labels before the outer loss looks at it. "solved": its
    last layer learns them to the end, with `ridge` keeping it near where it was; "last-layer" and "network": one
    gradient step of `step_size` of that layer or of everything. `bound`, `width` and `inputs` are the temperature
    network's; `lr` and `rule` its optimiser's, `level_lr` that of the one number added for all pixels; `average` the
    decay of the mean of its weights.
    """

    route: Route = "solved"
    ridge: float = 5e-3
    step_size: float = 0.3
    bound: float = 3.0
    width: int = 32
    inputs: Inputs = "log-probs"
    lr: float = 1e-4
    level_lr: float = 2e-2
    rule: GradientRule = "unit"
    average: float = 0.97


@dataclass(frozen=True)
class Mixed:
    """A mix of two domains on the network's grid, B images of h x w cells.

    `features` (B,D,h,w) of the student, detached; `labels` (B,h,w) int64 where known, else 255; `weights` (B,h,w) at
    least 0, what a cell counts. `images` (B,3,H,W) are needed for the route "network" only.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor
    images: Tensor | None = None

    def whole(self, ranks: Ranks) -> "Mixed":
        """The mixes of all processes that share a batch, one after another."""
        images = None if self.images is None else ranks.whole(self.images)
        return Mixed(ranks.whole(self.features), ranks.whole(self.labels), ranks.whole(self.weights), images)

    def one_hot(self, classes: int) -> Tensor:
        """Labels as probabilities (B,C,h,w), zero where none is known."""
        known = self.labels != IGNORE
        hot = F.one_hot(self.labels.where(known, torch.zeros_like(self.labels)), classes).permute(0, 3, 1, 2)
        return hot.float() * known[:, None]


def lesson(softened: Tensor, hard_share: float = 0.0) -> Tensor:
    """What target pixels are taught (B,C,h,w): softmax of the softened logits, and a share of it their class alone."""
    soft = softened.softmax(dim=1)
    if not hard_share:
        return soft
    hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).permute(0, 3, 1, 2)
    return torch.lerp(soft, hard.to(soft.dtype), hard_share)


def on_grid(values: Tensor, pad: tuple[int, int], grid: tuple[int, int], outside: int = 0) -> Tensor:
    """Labels or weights (B,H,W) at the cells `grid` (h,w) of logits: those of the nearest pixel.

    `pad` is how many rows and columns the network's input was continued by; cells there get `outside`.
    """
    whole = F.pad(values.double(), (0, pad[1], 0, pad[0]), value=outside)
    small = F.interpolate(whole[:, None], size=grid, mode="nearest-exact")
    return small[:, 0].to(values.dtype)


def last_layer(network: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight (C,D) and bias (C,) of the 1x1 convolution that ends a network, detached; None where it ends otherwise."""
    head = getattr(network, "head", None)
    for layer in (getattr(head, "classifier", None), head):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
            weight = layer.weight.detach().flatten(1).float()
            bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
            return weight, bias
    return None


_TOLD = ("mean", "q05", "q50", "q95", "at_bound", "gradient")


class TemperatureLearner(nn.Module):
    """A temperature network, its optimiser and its average; everything it remembers is in the state dict.

    `hard_share` of what a target cell is taught is the teacher's class: temperatures must make up for its sharpness.
    """

    told: Tensor

    def __init__(self, classes: int, learning: Learning, *, seed: int = 0, hard_share: float = 0.0) -> None:
        super().__init__()
        self.classes, self.learning, self.hard_share = classes, learning, hard_share
        self.network = TemperatureNetwork(
            classes, width=learning.width, bound=learning.bound, inputs=learning.inputs, seed=seed
        )
        self.optimizer = MetaOptimizer(self.network, lr=learning.lr, level_lr=learning.level_lr, rule=learning.rule)
        self.average = AveragedTemperature(self.network, decay=learning.average)
        self.register_buffer("told", torch.full((len(_TOLD),), math.inf))

    def step(self, student: nn.Module, logits: Tensor, inner: Mixed, outer: Mixed) -> None:
        """Move the temperatures of the teacher's logits (B,C,h,w) once.

        Cells of the inner mix without a label are taught `lesson`; nothing of the student changes.
        """
        raw = self.network.raw(logits)
        temperatures = self.network.temperature_of(raw)
        soft = (inner.labels == IGNORE) & (inner.weights > 0)
        targets = self._targets(inner, logits, temperatures.detach())
        with torch.no_grad():
            direction, total = self._direction(student, inner, targets, outer)
            weights = (1 - self.hard_share) * inner.weights * soft
            gradient = covariance_gradient(direction, logits, temperatures.detach(), weights, total=total)
        norm = self.optimizer.descend(self.network.log_temperature_of(raw), gradient)
        self.average.update(self.network)
        found = {
            **temperature_statistics(temperatures, self.learning.bound),
            "gradient": float(norm),
        }
        self.told.copy_(torch.tensor([found.get(name, math.inf) for name in _TOLD]))

    def report(self) -> dict[str, float]:
        """Of the last step: the spread of T, and the norm of its gradient before it was scaled; nothing before it."""
        found = zip(_TOLD, self.told.tolist(), strict=True)
        return {f"temperature_{name}": value for name, value in found if math.isfinite(value)}

    def _targets(self, inner: Mixed, logits: Tensor, temperatures: Tensor) -> Tensor:
        soft = lesson(logits.float() / temperatures, self.hard_share)
        known = (inner.labels != IGNORE)[:, None]
        return torch.where(known, inner.one_hot(self.classes), soft)

    def _direction(
        self, student: nn.Module, inner: Mixed, targets: Tensor, outer: Mixed
    ) -> tuple[Tensor, Tensor | float]:
        """U (B,C,h,w) of the inner cells, and what their weights are divided by."""
        if self.learning.route == "network":
            return self._through_network(student, inner, targets, outer), float(inner.weights.numel())
        layer = last_layer(student)
        assert layer is not None
        if self.learning.route == "last-layer":
            direction = last_layer_direction(
                inner.features.float(),
                outer.features.float(),
                *layer,
                inner_targets=targets,
                inner_weights=inner.weights,
                outer_targets=outer.one_hot(self.classes),
                outer_weights=outer.weights,
                step_size=self.learning.step_size,
            )
            return direction, float(inner.weights.numel())
        return self._solved(layer, inner, targets, outer)

    def _solved(
        self, layer: tuple[Tensor, Tensor], inner: Mixed, targets: Tensor, outer: Mixed
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(inner.features.device.type, enabled=False):
            features, weights = _rows(inner.features.float()), inner.weights.flatten()
            whitening = Whitening.of(features, weights)
            problem = Regression(
                whitening(features), _rows(targets), weights, whitening.layer(*layer), self.learning.ridge
            )
            solution = solve(problem, tolerance=_TOLERANCE)
            _, gradient = outer_loss(
                solution.layer,
                whitening(_rows(outer.features.float())),
                _rows(outer.one_hot(self.classes)),
                outer.weights.flatten(),
            )
            found = implicit_direction(problem, solution, gradient)
        batch, _, height, width = inner.features.shape
        return found.view(batch, height, width, -1).permute(0, 3, 1, 2), problem.total

    def _through_network(self, student: nn.Module, inner: Mixed, targets: Tensor, outer: Mixed) -> Tensor:
        assert inner.images is not None
        assert outer.images is not None
        divisor = int(getattr(student, "divisor", 1))
        return finite_difference_direction(
            student,
            Level(pad_to_divisor(inner.images, divisor)[0], targets, inner.weights),
            Level(pad_to_divisor(outer.images, divisor)[0], outer.one_hot(self.classes), outer.weights),
            step_size=self.learning.step_size,
        )


_TOLERANCE = 1e-2
"""Of the lower level's gradient: closer, T changes by less than from one batch to the next."""


def _rows(maps: Tensor) -> Tensor:
    """(B,K,h,w) as (B h w, K)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
