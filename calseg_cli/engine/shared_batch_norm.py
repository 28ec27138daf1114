"""Owns batch norm over a batch that several processes share: the statistics are those of all images together.

Written out because torch's SyncBatchNorm knows no CPU. What is calculated is the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calseg_cli.engine.distributed import ALONE, Ranks


class SharedBatchNorm(_BatchNorm):
    """A batch-norm layer of any dimension whose training statistics are summed over the processes, in float32.

    (B,F) or (B,F,...) in, the same out. Its parameters and buffers are those of the layer whose place it takes, name by
    name. In evaluation mode it is that layer, and within `apart`.
    """

    def __init__(self, layer: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(0, layer.eps, layer.momentum, affine=False, track_running_stats=False)
        self.num_features, self.affine, self.ranks = layer.num_features, layer.affine, ranks
        self.track_running_stats, self.training = layer.track_running_stats, layer.training
        self._parameters, self._buffers = layer._parameters, layer._buffers

    def forward(self, entering: Tensor) -> Tensor:
        """Normalise. Every process must be in the same mode and have at least one image."""
        if self.ranks.world == 1 or (not self.training and self.running_mean is not None):
            return super().forward(entering)
        with torch.autocast(entering.device.type, enabled=False):
            values = entering.to(torch.promote_types(entering.dtype, torch.float32))
            count, mean, variance, centred = self._moments(values)
            if self.training and self.track_running_stats and self.running_mean is not None:
                self._move(mean.detach(), variance.detach() * (count / (count - 1)))
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                scale = scale * self.weight
            normalised = centred * _along_channels(scale, values)
            if self.bias is not None:
                normalised = normalised + _along_channels(self.bias, values)
            return normalised.to(entering.dtype)

    def _moments(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Number of values a channel, mean and variance (F,) over all processes, and the values less the mean."""
        own = [dimension for dimension in range(values.ndim) if dimension != 1]  # two processes: never one value alone
        number = values.new_full((1,), values.numel() // values.shape[1])  # a copy would wait for the device
        sums = _Total.apply(torch.cat([values.sum(dim=own), number]), self.ranks)  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - _along_channels(mean, values)
        squares: Tensor = _Total.apply(centred.square().sum(dim=own), self.ranks)  # type: ignore[no-untyped-call]
        return count, mean, squares / count, centred

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        for kept, found in ((self.running_mean, mean), (self.running_var, variance)):
            if self.momentum is None:  # a mean over all batches, whose number only the device knows
                kept.add_((found - kept) / self.num_batches_tracked)
            else:
                kept.mul_(1 - self.momentum).add_(found, alpha=self.momentum)

    def _check_input_dim(self, entering: Tensor) -> None:
        """Accept any dimension: the layer whose place this takes had its own."""


def share_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Put a `SharedBatchNorm` in every batch-norm layer's place below `module`; nothing where there is one process."""
    if ranks.world == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
            setattr(module, name, SharedBatchNorm(child, ranks))
        else:
            share_batch_norm(child, ranks)


@contextmanager
def apart(module: nn.Module) -> Iterator[None]:
    """Inside, no layer below `module` talks to other processes: each normalises with what it has itself."""
    layers = [layer for layer in module.modules() if isinstance(layer, SharedBatchNorm)]
    known = [layer.ranks for layer in layers]
    try:
        for layer in layers:
            layer.ranks = ALONE
        yield
    finally:
        for layer, ranks in zip(layers, known, strict=True):
            layer.ranks = ranks


class _Total(torch.autograd.Function):
    """The sum over all processes. Each one's value is in every sum, so its gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.total(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.total(gradient), None


def _along_channels(row: Tensor, values: Tensor) -> Tensor:
    return row.view(1, -1, *[1] * (values.ndim - 2))
