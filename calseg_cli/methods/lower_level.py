"""Owns DA-Cal's lower level, solved: softmax regression of the last layer on fixed features, and its derivative.

One small step on soft labels is linear in them, so that the outer loss has no minimum between the sharpest and the
softest label. Solved to its end the last layer becomes as sharp as its labels are, and the outer loss is least where
that is right. The problem is convex: Newton's method finds its end, and the implicit function theorem the derivative.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_LEAST_WEIGHT = 1e-12
_ENOUGH_DECREASE = 1e-4
_HALVINGS = 12


@dataclass(frozen=True)
class Whitening:
    """Features (N,D) made uncorrelated with variance about 1, and a constant beside them: (N,D+1).

    A last layer (C,D) with bias (C,) is one matrix (C,D+1) over them. In these coordinates a gradient step is worth as
    much in every direction, whatever the scale of a feature.
    """

    mean: Tensor
    factor: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor, *, damping: float = 1e-2) -> Self:
        """From features (N,D) and weights (N,) >= 0; `damping` times the mean variance is added to every direction."""
        total = weights.sum().clamp_min(_LEAST_WEIGHT)
        mean = (weights @ features) / total
        centred = features - mean
        covariance = (centred * weights[:, None]).T @ centred / total
        level = covariance.diagonal().mean().clamp_min(_LEAST_WEIGHT)
        eye = torch.eye(len(covariance), dtype=features.dtype, device=features.device)
        factor = torch.linalg.cholesky(covariance + damping * level * eye)
        return cls(mean, factor, torch.linalg.solve_triangular(factor, eye, upper=False))

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N,D) as (N,D+1)."""
        white = (features - self.mean) @ self.inverse.T
        return torch.cat([white, white.new_ones(len(white), 1)], dim=1)

    def layer(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A last layer (C,D), (C,) as the matrix (C,D+1) that gives the same logits."""
        return torch.cat([weight @ self.factor, (bias + weight @ self.mean)[:, None]], dim=1)


@dataclass(frozen=True)
class Regression:
    """min over W (C,D+1) of sum_i w_i CE(softmax(W f_i), t_i) / sum w + ridge/2 |W - start|^2.

    Whitened features (N,D+1), targets (N,C) that sum to 1, weights (N,). The ridge keeps the solution near the layer
    that the student has; with 0 it can run away where the features tell the targets apart without error.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor
    start: Tensor
    ridge: float

    @property
    def total(self) -> Tensor:
        """The sum of weights."""
        return self.weights.sum().clamp_min(_LEAST_WEIGHT)

    def loss(self, layer: Tensor) -> Tensor:
        """The objective, a scalar."""
        log_probs = (self.features @ layer.T).log_softmax(1)
        fit = -((self.targets * log_probs).sum(1) * self.weights).sum() / self.total
        return fit + 0.5 * self.ridge * (layer - self.start).square().sum()

    def gradient(self, layer: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's gradient (C,D+1), and the probabilities (N,C) there."""
        probs = (self.features @ layer.T).softmax(1)
        residual = (probs - self.targets) * self.weights[:, None]
        return residual.T @ self.features / self.total + self.ridge * (layer - self.start), probs

    def curvature(self, probs: Tensor, direction: Tensor) -> Tensor:
        """The Hessian at the layer with these probabilities, times a direction (C,D+1)."""
        moved = self.features @ direction.T
        change = probs * (moved - (probs * moved).sum(1, keepdim=True)) * self.weights[:, None]
        return change.T @ self.features / self.total + self.ridge * direction


@dataclass(frozen=True)
class Solution:
    """The layer (C,D+1), its probabilities (N,C), how many Newton steps it took, and the gradient's norm at the end."""

    layer: Tensor
    probs: Tensor
    steps: int
    residual: float


def solve(problem: Regression, *, tolerance: float = 1e-3, most: int = 10, passes: int = 12) -> Solution:
    """Newton's method with conjugate gradients from the start; stops when the gradient has shrunk to `tolerance`.

    `tolerance` is a share of the first gradient's norm; at most `most` Newton steps of `passes` passes over the
    features each. Nothing is differentiated by autograd, and no graph is kept.
    """
    with torch.no_grad():
        layer = problem.start
        gradient, probs = problem.gradient(layer)
        first = float(gradient.norm())
        size, steps = first, 0
        while steps < most and size > tolerance * first:
            forcing = min(0.5, (size / first) ** 0.5) if first else 0.5
            step = conjugate_gradients(problem, probs, -gradient, tolerance=forcing * 0.3, most=passes)
            before, layer = layer, _descend(problem, layer, step, float((gradient * step).sum()))
            if layer is before:  # no step falls any more: rounding, or a start where all is certain
                break
            gradient, probs = problem.gradient(layer)
            size, steps = float(gradient.norm()), steps + 1
        return Solution(layer, probs, steps, size)


def _descend(problem: Regression, layer: Tensor, step: Tensor, slope: float) -> Tensor:
    """The layer moved along the step, by half and half again until the objective has fallen enough."""
    before, share = float(problem.loss(layer)), 1.0
    for _ in range(_HALVINGS):
        moved = layer + share * step
        if float(problem.loss(moved)) <= before + _ENOUGH_DECREASE * share * slope:
            return moved
        share /= 2
    return layer


def conjugate_gradients(
    problem: Regression, probs: Tensor, right: Tensor, *, tolerance: float = 1e-3, most: int = 40
) -> Tensor:
    """V (C,D+1) with Hessian times V = `right`, to a residual of `tolerance` times that of V = 0."""
    solution = torch.zeros_like(right)
    rest = right.clone()
    direction = rest.clone()
    size = float(rest.square().sum())
    enough = size * tolerance**2
    for _ in range(most):
        if size <= enough or size == 0:
            break
        bent = problem.curvature(probs, direction)
        length = size / max(float((direction * bent).sum()), _LEAST_WEIGHT**2)
        solution = solution + length * direction
        rest = rest - length * bent
        size, before = float(rest.square().sum()), size
        direction = rest + (size / before) * direction
    return solution


def implicit_direction(problem: Regression, solution: Solution, outer: Tensor, *, tolerance: float = 1e-2) -> Tensor:
    """U (N,C): what the outer loss changes by when a target of the lower level is raised, over that pixel's weight.

    `outer` (C,D+1) is the outer loss' gradient at the solution. With H the Hessian there, d outer / d t_ic =
    (w_i / sum w) u_ic for u = features (H^-1 outer)^T, by the implicit function theorem; for targets that keep summing
    to 1, a constant over classes in u changes nothing.
    """
    with torch.no_grad():
        return problem.features @ conjugate_gradients(problem, solution.probs, outer, tolerance=tolerance).T


def outer_loss(layer: Tensor, features: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """The weighted cross-entropy of a layer (C,D+1) on other features (M,D+1), and its gradient (C,D+1).

    Targets (M,C), weights (M,): their mean is over the weights.
    """
    with torch.no_grad():
        total = weights.sum().clamp_min(_LEAST_WEIGHT)
        log_probs = (features @ layer.T).log_softmax(1)
        loss = -((targets * log_probs).sum(1) * weights).sum() / total
        gradient = ((log_probs.exp() - targets) * weights[:, None]).T @ features / total
        return float(loss), gradient
