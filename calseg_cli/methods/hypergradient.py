"""Owns the derivative of an outer loss by the temperature of each soft label that a network learns from (DA-Cal).

Li et al. 2026, arXiv 2602.20860; the closed form is this project's. Cross-entropy is linear in its target, so what the
outer loss owes to the target t_ic of inner pixel i is (w_i / N) u_ic, up to a constant over classes, which softmax
takes out. u = step * J g is the change of the student's inner logits along g, the outer loss' gradient after the step.
From there to the temperature it is a covariance. No second derivative is taken.

Classes are dimension 1 throughout: pixels (N,C) with weights (N,), or maps (B,C,h,w) with weights (B,h,w). A pixel of
weight 0 takes no part. Nothing here touches a buffer, a `.grad` or the random state.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

LogitsOf = Callable[[nn.Module, Tensor], Tensor]
Tensors = dict[str, Tensor]


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i CE(softmax(logits_i), targets_i) / N, a scalar in float32 at least; N counts all pixels.

    Logits and targets (B,C,H,W), weights (B,H,W) >= 0; or (N,C) and (N,).
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probs = _wide(logits).log_softmax(dim=1)
        return -((targets * log_probs).sum(dim=1) * weights).sum() / weights.numel()


def covariance_gradient(
    direction: Tensor, logits: Tensor, temperatures: Tensor, weights: Tensor, *, total: Tensor | float | None = None
) -> Tensor:
    """Of each pixel, d outer loss / d log T: -(w_i / N) Cov_q(u_i, z_i) / T_i with q = softmax(z / T); shape of T.

    u (`direction`) and teacher logits z (B,C,h,w), T (B,1,h,w), weights (B,h,w); or (N,C), (N,1), (N,). N is `total`,
    or the number of pixels. u holds the step size. Raises ValueError for a T of another shape.

    T grows by descent where u rises with z: where labels that are as sharp as the teacher would raise the outer loss.
    """
    if temperatures.shape != (len(logits), 1, *logits.shape[2:]):
        raise ValueError(f"temperatures {tuple(temperatures.shape)} do not fit logits {tuple(logits.shape)}")
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        u, z, T = _wide(direction), _wide(logits), _wide(temperatures)
        q = (z / T).softmax(dim=1)
        centred = u - (q * u).sum(dim=1, keepdim=True)  # of both, or large logits would cancel
        covariance = (q * centred * (z - (q * z).sum(dim=1, keepdim=True))).sum(dim=1, keepdim=True)
        return -weights.unsqueeze(1) * covariance / T / (weights.numel() if total is None else total)


def last_layer_direction(
    inner_features: Tensor,
    outer_features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    inner_targets: Tensor,
    inner_weights: Tensor,
    outer_targets: Tensor,
    outer_weights: Tensor,
    step_size: float,
) -> Tensor:
    """The u of inner pixels for one gradient step of the last layer alone: exact, and without autograd.

    Features (B,D,h,w) or (N,D), targets with C instead of D, weights without; the last layer is `weight` (C,D) or
    (C,D,1,1) and `bias` (C,) or None. Returns (B,C,h,w) or (N,C).
    """
    with torch.no_grad(), torch.autocast(inner_features.device.type, enabled=False):
        layer = _wide(weight).flatten(1)
        if bias is not None:
            layer = torch.cat([layer, _wide(bias)[:, None]], dim=1)
        inner = _rows(_wide(inner_features), bias is not None)
        outer = _rows(_wide(outer_features), bias is not None)
        moved = layer - step_size * _layer_gradient(layer, inner, inner_targets, inner_weights)
        gradient = _layer_gradient(moved, outer, outer_targets, outer_weights)
        return _like(step_size * (inner @ gradient.T), inner_features)


def _layer_gradient(layer: Tensor, features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The gradient (C,D) of `soft_cross_entropy` of features (N,D) by the layer."""
    wanted = _rows(targets.to(features.dtype))
    residual = (features @ layer.T).softmax(dim=1) * wanted.sum(dim=1, keepdim=True) - wanted
    return (residual * weights.reshape(-1, 1)).T @ features / weights.numel()


def _rows(maps: Tensor, with_one: bool = False) -> Tensor:
    """(B,K,h,w) or (N,K) as (N,K), or with a column of ones as (N,K+1)."""
    rows = maps.flatten(2).transpose(1, 2).flatten(0, 1) if maps.ndim == 4 else maps
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if with_one else rows


def _like(rows: Tensor, maps: Tensor) -> Tensor:
    """(N,K) laid out as `maps` is, with K channels."""
    if maps.ndim != 4:
        return rows
    batch, _, height, width = maps.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Level:
    """What a loss of the two levels is taken on: images (B,3,H,W), targets (B,C,h,w), weights (B,h,w)."""

    images: Tensor
    targets: Tensor
    weights: Tensor


def network_itself(network: nn.Module, images: Tensor) -> Tensor:
    """Logits as the network gives them, on its own grid."""
    logits: Tensor = network(images)
    return logits


def finite_difference_direction(
    network: nn.Module,
    inner: Level,
    outer: Level,
    *,
    step_size: float,
    relative_size: float = 3e-5,
    logits_of: LogitsOf = network_itself,
) -> Tensor:
    """The u (B,C,h,w) of inner pixels for one gradient step of all the network's trainable parameters.

    u is a central difference of the inner logits between parameters moved along g and against it, by `relative_size`
    of their own norm; in float32, since half precision would lose it. Its error is of second order for a smooth
    network, and about 1 to 4 % with ReLU at 1e-5 to 1e-4, where kinks are crossed. `logits_of(network, images)` says
    on which grid logits, targets and weights lie. The network stays in the mode it is in; its random layers draw the
    same numbers each time.
    """
    ask = _Asked(network, logits_of)
    with _exact(), torch.autocast(inner.images.device.type, enabled=False):
        start = ask.parameters()
        gradient = ask.gradient(start, inner)
        stepped = _moved(start, gradient, -step_size)
        along = ask.gradient(stepped, outer)
        length = relative_size * (_norm(start) or 1.0) / max(_norm(along), _SMALLEST)
        with torch.no_grad():
            ahead = ask(_moved(start, along, length), inner.images)
            behind = ask(_moved(start, along, -length), inner.images)
        return (ahead - behind) * (step_size / (2 * length))


_SMALLEST = 1e-30  # a gradient that short has no direction: the difference along it comes out as 0


class _Asked:
    """A network asked with other parameters than its own. Buffers are copies, random layers draw the same each time."""

    def __init__(self, network: nn.Module, logits_of: LogitsOf) -> None:
        self._caller = _Caller(network, logits_of)

    def parameters(self) -> Tensors:
        """The trainable ones, detached."""
        named = self._caller.named_parameters()
        return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in self._caller.named_buffers()}
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            logits: Tensor = functional_call(self._caller, {**parameters, **buffers}, (images,))
        return logits

    def gradient(self, parameters: Mapping[str, Tensor], level: Level) -> Tensors:
        """The gradient of a level's loss at these parameters."""
        free = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        with torch.enable_grad():
            loss = soft_cross_entropy(self(free, level.images), level.targets, level.weights)
            found = torch.autograd.grad(loss, list(free.values()), materialize_grads=True)
        return dict(zip(free, found, strict=True))


class _Caller(nn.Module):
    """`functional_call` replaces what a module holds and calls it: so the call must be a module's."""

    def __init__(self, network: nn.Module, logits_of: LogitsOf) -> None:
        super().__init__()
        self.network = network
        self._logits_of = logits_of

    def forward(self, images: Tensor) -> Tensor:
        return self._logits_of(self.network, images)


def _moved(parameters: Mapping[str, Tensor], along: Mapping[str, Tensor], length: float) -> Tensors:
    return {name: tensor + length * along[name] for name, tensor in parameters.items()}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions of a GPU in full float32 meanwhile: ten bits of TF32 would lose the difference."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
