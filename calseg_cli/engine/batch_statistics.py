"""Owns batch-norm statistics measured over a whole domain: pooled mean and variance in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calseg_cli.engine.distributed import Ranks
from calseg_cli.errors import DataError


@contextmanager
def too_small_for_batch_norm() -> Iterator[None]:
    """Turn torch's complaint about a batch with one value a channel into one line."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            "a batch is too small for batch normalisation: one of its layers sees a single value a channel",
            "use larger images (size) or more of them together (batch_size)",
        ) from error


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The layers of `network` that keep running statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


@contextmanager
def own_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch-norm layers normalise with the batch at hand, and no buffer of theirs changes.

    Running statistics and the count of batches stay as they are; everything but these layers keeps its mode.
    """
    layers = batch_norms(network).values()
    modes = [(layer, layer.training) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False  # torch neither reads nor moves its buffers then
        yield
    finally:
        for layer, training in modes:
            layer.training, layer.track_running_stats = training, True


@contextmanager
def predicting(network: nn.Module) -> Iterator[None]:
    """Inside, all is as in evaluation mode but batch norm, which uses the batch at hand and keeps its buffers."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with own_statistics(network):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


class PooledStatistics(nn.Module):
    """Sums of what enters each batch-norm layer, as buffers: float64, so that order and number do not matter.

    Used as a context manager around forward passes. Inside it the layers normalise with the statistics of the batch
    at hand (training mode) but leave their running statistics alone; the pooled mean and variance over everything
    that was seen take their place when `write` is called.

    The variance is that of all pixels of all images together, so between-batch differences of brightness count; the
    mean of the batches' variances, which a moving average tends to, would leave them out. What enters a layer depends
    on the statistics used by the layers before it, and so on the batch size and on who shares a batch.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._layers = batch_norms(network)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._modes: list[tuple[_BatchNorm, bool, float | None, Tensor | None]] = []
        for number, layer in enumerate(self._layers.values()):
            features = layer.num_features
            self.register_buffer(f"count_{number}", torch.zeros((), dtype=torch.int64))
            self.register_buffer(f"sum_{number}", torch.zeros(features, dtype=torch.float64))
            self.register_buffer(f"squares_{number}", torch.zeros(features, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> Self:
        for number, layer in enumerate(self._layers.values()):
            seen = layer.num_batches_tracked
            self._modes.append((layer, layer.training, layer.momentum, None if seen is None else seen.clone()))
            layer.train()
            layer.momentum = 0.0  # running statistics stay as they are
            self._hooks.append(layer.register_forward_pre_hook(self._collector(number)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer, training, momentum, seen in self._modes:
            layer.train(training)
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and seen is not None:
                layer.num_batches_tracked.copy_(seen)
        self._hooks, self._modes = [], []

    def _collector(self, number: int) -> "_Collector":
        return _Collector(self, number)

    def add(self, number: int, entering: Tensor) -> None:
        """Add what enters layer `number`, (B,F,...) of any float type."""
        values = entering.detach().transpose(0, 1).flatten(1).double()  # (F, B*...)
        self.get_buffer(f"count_{number}").add_(values.shape[1])
        self.get_buffer(f"sum_{number}").add_(values.sum(dim=1))
        self.get_buffer(f"squares_{number}").add_(values.square().sum(dim=1))

    def add_up(self, ranks: Ranks) -> None:
        """Let the sums be those of all processes, each of which saw other batches."""
        for buffer in self.buffers():
            buffer.copy_(ranks.total(buffer))

    def pooled(self, number: int) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance (F,) in float64 of all that entered layer `number`."""
        count = self.get_buffer(f"count_{number}").double()
        mean = self.get_buffer(f"sum_{number}") / count
        variance = (self.get_buffer(f"squares_{number}") / count - mean.square()).clamp_min(0)
        return mean, variance * count / (count - 1).clamp_min(1)

    def write(self, *, momentum: float = 1.0) -> None:
        """Move the layers' running statistics to the pooled ones: all the way at `momentum` 1, part of it below.

        Mixing is that of two distributions' moments: the variance of the mixture includes the distance of the means.
        """
        for number, layer in enumerate(self._layers.values()):
            if layer.running_mean is None or layer.running_var is None or not int(self.get_buffer(f"count_{number}")):
                continue
            mean, variance = self.pooled(number)
            old_mean, old_variance = layer.running_mean.double(), layer.running_var.double()
            mixed_mean = (1 - momentum) * old_mean + momentum * mean
            mixed_variance = (
                (1 - momentum) * old_variance
                + momentum * variance
                + momentum * (1 - momentum) * (mean - old_mean).square()
            )
            layer.running_mean.copy_(mixed_mean)
            layer.running_var.copy_(mixed_variance)


class _Collector:
    """A forward pre-hook that can be pickled and deep-copied with its module."""

    def __init__(self, statistics: PooledStatistics, number: int) -> None:
        self._statistics = statistics
        self._number = number

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._statistics.add(self._number, inputs[0])
