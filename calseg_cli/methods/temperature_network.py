"""Owns DA-Cal's temperature network: a temperature for each pixel of a teacher's logits, its optimiser, its average.

Li et al. 2026, arXiv 2602.20860. The paper's layers, range and start are unknown; these are this project's. What the
optimiser and the average remember is part of the state dict, so that a run that was broken off goes on as it was.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

Form = Literal["tanh", "softplus"]
Inputs = Literal["log-probs", "centred"]
GradientRule = Literal["unit", "clip", "none"]

LEAST = 0.01
"""The lowest temperature of the form "softplus"."""
_NEAR = 0.02  # of the way from 1 to a bound, in log T: so close to it counts as at it
_STEEP = -math.expm1(-(1 - LEAST))  # sigmoid of the offset at which softplus is 1 - LEAST
_STRAIGHT = 30.0  # from here softplus is a straight line to the last bit, and exp would only overflow


class TemperatureNetwork(nn.Module):
    """Temperatures T (B,1,h,w) from logits (B,C,h,w): two 3x3 convolutions to `width` channels, ReLU, one 1x1 to r.

    The last layer begins at zero, so T is exactly 1 at first. Nothing in it depends on the batch, since a step asks it
    about several. The frame is continued by its border, so that equal logits everywhere have one temperature.
    One number, the `level`, is added to r for all pixels: what they have in common is learned from all of them, and
    need not wait for the convolutions. 14,786 parameters at 19 classes; with `width` 0 the level alone.

    `form` "tanh": log T = log(`bound`) tanh(r), T in [1/bound, bound]; "softplus": T = LEAST + softplus(r + c), with c
    such that r = 0 gives 1, unbounded above. `inputs` says what is read of the logits: log-probabilities, or the logits
    minus their mean over classes; neither sees a constant added to all classes, and no gradient flows back to logits.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int = 32,
        bound: float = 3.0,
        inputs: Inputs = "log-probs",
        form: Form = "tanh",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not (bound > 1 and math.isfinite(bound)):
            raise ValueError(f"bound {bound} is no number above 1")
        self.classes, self.width, self.bound = classes, width, bound
        self.inputs: Inputs = inputs
        self.form: Form = form
        self.layers = nn.ModuleList()
        if width:
            # Unfilled: torch would draw from the generator that the training draws from.
            for shape in ((classes, width, 3), (width, width, 3), (width, 1, 1)):
                self.layers.append(skip_init(nn.Conv2d, *shape))  # type: ignore[no-untyped-call]
            self._start(torch.Generator().manual_seed(seed))
        self.level = nn.Parameter(torch.zeros(1, 1, 1, 1))

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        """As torch starts convolutions, from a generator of its own; the last layer zero."""
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            reach = layer.weight[0].numel() ** -0.5
            for tensor in (layer.weight, layer.bias):
                tensor.uniform_(-reach, reach, generator=generator)
        for parameter in self.layers[-1].parameters():
            parameter.zero_()

    def raw(self, logits: Tensor) -> Tensor:
        """What the form makes temperatures of, r (B,1,h,w): enlarge this where temperatures are wanted finer.

        Raises ValueError for another number of classes than the network's.
        """
        if logits.ndim != 4 or logits.shape[1] != self.classes:
            raise ValueError(f"logits of {self.classes} classes (B,C,h,w) are wanted, not {tuple(logits.shape)}")
        if not self.width:
            return self.level.expand(len(logits), 1, *logits.shape[-2:])
        first, second, last = self.layers
        with torch.autocast(logits.device.type, enabled=False):
            seen = self._seen(logits.detach()).to(last.weight.dtype)  # type: ignore[arg-type]
            raw: Tensor = last(second(_framed(first(_framed(seen)).relu())).relu()) + self.level
        return raw

    def _seen(self, logits: Tensor) -> Tensor:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.inputs == "centred":
            return wide - wide.mean(dim=1, keepdim=True)
        return wide.log_softmax(dim=1)

    def log_temperature_of(self, raw: Tensor) -> Tensor:
        """Log T from r, both (B,1,any,any); 0 exactly where r is 0."""
        with torch.autocast(raw.device.type, enabled=False):
            wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
            if self.form == "tanh":
                return math.log(self.bound) * wide.tanh()
            return _softplus_above_one(wide).log1p()

    def temperature_of(self, raw: Tensor) -> Tensor:
        """T from r, both (B,1,any,any); within the bounds also after rounding."""
        temperature = self.log_temperature_of(raw).exp()
        if self.form == "tanh":
            return temperature.clamp(1 / self.bound, self.bound)
        return temperature.clamp_min(LEAST)

    def forward(self, logits: Tensor) -> Tensor:
        """Temperatures (B,1,h,w) > 0 of logits (B,C,h,w)."""
        return self.temperature_of(self.raw(logits))

    def statistics(self, temperatures: Tensor) -> dict[str, float]:
        """`temperature_statistics` with this network's bound, where it has one."""
        return temperature_statistics(temperatures, self.bound if self.form == "tanh" else None)


def _framed(maps: Tensor) -> Tensor:
    """(B,K,h,w) with its border rows and columns once more around it.

    Pieces set together: the gradient of torch's own padding is not repeatable on a GPU.
    """
    tall = torch.cat([maps[..., :1, :], maps, maps[..., -1:, :]], dim=-2)
    return torch.cat([tall[..., :1], tall, tall[..., -1:]], dim=-1)


def _softplus_above_one(raw: Tensor) -> Tensor:
    """LEAST + softplus(r + c) - 1, with c such that it is 0 at r = 0: there exactly, by log1p and expm1."""
    low = raw.clamp(max=_STRAIGHT)
    return (_STEEP * low.expm1()).log1p() + (raw - low)


def calibrated(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Logits (B,C,H,W) over temperatures (B,1,H,W), in float32 at least; the most probable class stays.

    Both must be on the grid where the answer is wanted: logits divided first and enlarged later can change class.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperatures


def temperature_statistics(temperatures: Tensor, bound: float | None) -> dict[str, float]:
    """Of temperatures of any shape: their "mean", the quantiles "q05", "q50", "q95", and the share "at_bound".

    At a bound is what lies within 2 % of it in log T. Without a `bound` there is no "at_bound"; of no temperatures
    there is nothing to say.
    """
    values = temperatures.detach().double().cpu().numpy().ravel()
    if not values.size:
        return {}
    q05, q50, q95 = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    told = {"mean": float(values.mean()), "q05": q05, "q50": q50, "q95": q95}
    if bound is not None:
        told["at_bound"] = float((np.abs(np.log(values)) >= (1 - _NEAR) * math.log(bound)).mean())
    return told


class MetaOptimizer(nn.Module):
    """Adam over a network's parameters, with its memory in the state dict: moments and steps come back bit for bit.

    The network itself is no part of this module. Only the memory is stored: rate and rule are those that it is made
    with. `rule` says what becomes of a gradient first: "unit", scaled to norm 1, since hypergradients are often far
    smaller than Adam's epsilon; "clip", scaled down to norm 1 where it is longer; "none". `level_lr` is the learning
    rate of a temperature network's level, None for that of everything.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 1e-3,
        level_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        rule: GradientRule = "unit",
    ) -> None:
        super().__init__()
        self.rule: GradientRule = rule
        self._parameters_moved = list(network.parameters())
        rates = [level_lr if name == "level" and level_lr is not None else lr for name, _ in network.named_parameters()]
        groups = [{"params": [one], "lr": rate} for one, rate in zip(self._parameters_moved, rates, strict=True)]
        self._adam = torch.optim.Adam(groups, lr=lr, betas=betas)

    def step(self, gradients: Sequence[Tensor]) -> Tensor:
        """Move the parameters against gradients given in their order; returns the gradients' norm before the rule.

        A gradient that is not finite counts as zero. The parameters' own `.grad` is left empty.
        """
        norm: Tensor = torch.stack([gradient.detach().norm() for gradient in gradients]).norm()
        usable = norm.isfinite()
        for parameter, gradient in zip(self._parameters_moved, gradients, strict=True):
            scaled = gradient.detach() * self._factor(norm)
            parameter.grad = torch.where(usable, scaled, torch.zeros_like(scaled))
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return norm

    def _factor(self, norm: Tensor) -> Tensor | float:
        if self.rule == "none":
            return 1.0
        tiny = torch.finfo(norm.dtype).tiny
        return 1 / norm.clamp_min(tiny if self.rule == "unit" else 1.0)

    def descend(self, outputs: Tensor, gradient: Tensor) -> Tensor:
        """`step` with the gradient of the outer loss carried back from `outputs`, for example log T, to the parameters.

        `gradient` has the shape of `outputs`. Nothing else gets a gradient.
        """
        found = torch.autograd.grad(outputs, self._parameters_moved, gradient.to(outputs.dtype), allow_unused=True)
        pairs = zip(self._parameters_moved, found, strict=True)
        return self.step([torch.zeros_like(p) if one is None else one for p, one in pairs])

    def get_extra_state(self) -> dict[str, Any]:
        """Adam's moments and steps by the parameter's number, as a checkpoint can hold them."""
        return {"moments": {number: dict(one) for number, one in self._adam.state_dict()["state"].items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from there; tensors go where the parameters are."""
        groups = self._adam.state_dict()["param_groups"]
        self._adam.load_state_dict({"state": state["moments"], "param_groups": groups})


class AveragedTemperature(nn.Module):
    """The mean of a temperature network's weights over the steps of its training, older ones weighing less.

    After n updates the weights of step k count in proportion to `decay`^(n-k), and these shares add up to 1: the
    first update takes the network as it is, and no start before it counts. Single steps wander, their mean less.
    """

    def __init__(self, network: TemperatureNetwork, *, decay: float = 0.97) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} is not in [0, 1)")
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, network: TemperatureNetwork) -> None:
        """Take the weights of `network`, of the same shape, into the mean."""
        self.updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.updates)
        for mean, new in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(new.detach(), share)

    def forward(self, logits: Tensor) -> Tensor:
        """Temperatures (B,1,h,w) by the mean weights, without gradient."""
        temperatures: Tensor = self.network(logits)
        return temperatures

    def get_extra_state(self) -> dict[str, int]:
        """How many updates the mean is of."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.updates = int(state["updates"])
