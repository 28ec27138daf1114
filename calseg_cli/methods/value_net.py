"""Owns the value net of Cal-SFDA (Wang et al., ACM MM 2023, arXiv 2308.03003): what it is, what it reads, its warm-up.

A value net expects an image's calibration error from features of a network that stays as it is.
"""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calseg_cli.engine.batch_statistics import PooledStatistics, batch_norms, too_small_for_batch_norm
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.errors import ConfigError

Pooling = Literal["average", "bilinear"]


class ValueNet(nn.Module):
    """Batch norm, a 1x1 convolution to `width` channels, a `grid` x `grid` map, one linear unit, a sigmoid.

    268,289 parameters at 2048 channels. "average" pools the whole map; "bilinear" looks at a few points of it, as the
    authors' code does.
    """

    def __init__(self, channels: int, *, width: int = 128, grid: int = 4, pooling: Pooling = "average") -> None:
        super().__init__()
        self.channels, self.grid, self.pooling = channels, grid, pooling
        self.norm = nn.BatchNorm2d(channels)
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.linear = nn.Linear(width * grid * grid, 1)
        nn.init.xavier_uniform_(self.reduce.weight)

    def forward(self, features: Tensor) -> Tensor:
        """The expected calibration error (B,) in (0,1) from features (B,`channels`,h,w) of any size.

        Raises ConfigError for features with another number of channels.
        """
        return self.score(features).sigmoid()

    def score(self, features: Tensor) -> Tensor:
        """The same before the sigmoid (B,): the logit of the expected error."""
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise ConfigError(
                f"the value net reads {self.channels} channels, these features are {tuple(features.shape)}",
                "train it for this network: calseg train-valuenet",
            )
        pooled = self.pool(self.reduce(self.norm(features)))
        score: Tensor = self.linear(pooled.flatten(1))
        return score.squeeze(1)

    def pool(self, maps: Tensor) -> Tensor:
        """Maps (B,any,h,w) as (B,any,`grid`,`grid`)."""
        if self.pooling == "average":
            return F.adaptive_avg_pool2d(maps, self.grid)
        return F.interpolate(maps, size=(self.grid, self.grid), mode="bilinear", align_corners=False)


class Tap:
    """A context manager that keeps what a network's encoder gave in its last forward pass.

    `features` is the encoder's deepest map (B,D,h,w), detached, float32, on the network's device; for a plug-in
    network it is what enters the submodule named as its head. Where a prediction is made of several views, it is the
    last view's. Raises ConfigError for a network that has no place to tap.
    """

    def __init__(self, network: nn.Module) -> None:
        self._module, self._enters_head = _place(network)
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        self._features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """Those of the last forward pass; ValueError where there was none."""
        if self._features is None:
            raise ValueError("the network has not been asked within the tap's block")
        return self._features

    def __enter__(self) -> Self:
        if self._enters_head:
            self._hook = self._module.register_forward_pre_hook(lambda _, inputs: self._keep(inputs[0]))
        else:
            self._hook = self._module.register_forward_hook(lambda _, inputs, answer: self._keep(answer))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _keep(self, answer: Any) -> None:
        deepest = answer[-1] if isinstance(answer, Sequence) else answer
        if not isinstance(deepest, Tensor) or deepest.ndim != 4:
            raise ConfigError(
                f"the value net needs a map (B,D,h,w); the network's encoder gave {type(deepest).__name__}"
                f"{tuple(deepest.shape) if isinstance(deepest, Tensor) else ''}",
                "name the submodule of the plug-in that a map enters: network.options.head",
            )
        # A copy: what follows in the network may write into its input.
        self._features = deepest.detach().to(torch.float32, copy=True)


def _place(network: nn.Module) -> tuple[nn.Module, bool]:
    """The module to listen to, and whether to what enters it rather than to what leaves it."""
    name = getattr(network, "name", type(network).__name__)
    if hasattr(network, "head_path"):
        head = getattr(network, "head", None)
        if network.head_path is None or not isinstance(head, nn.Module):
            raise ConfigError(
                f"the network {name!r} does not say where its features are, which the value net reads",
                "name the submodule that makes logits of them: network.options.head",
            )
        return head, True
    encoder = getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"the network {name!r} has no encoder whose features a value net could read", None)
    return encoder, False


def warm_up_statistics(
    net: nn.Module, batches: Iterable[Tensor], *, momentum: float | None = None, ranks: Ranks = ALONE
) -> None:
    """Measure the running statistics of `net`'s batch-norm layers anew on `batches` of what enters `net`.

    Without `momentum` they become the mean and variance over everything seen, whatever its order; with it (0 to 1) they
    move by that share at every batch, and the order counts. Nothing else changes: no parameter, no mode, no gradient.
    The whole of `net` but those layers stays in evaluation mode. Raises DataError for a batch of one value a channel.

    Where several `ranks` share the batches, the mean and variance are over what all of them see; not with `momentum`.
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        if momentum is None:
            _measure(net, batches, ranks)
        else:
            _move(net, batches, momentum)
    finally:
        for module, training in modes.items():
            module.training = training


def _measure(net: nn.Module, batches: Iterable[Tensor], ranks: Ranks) -> None:
    statistics = PooledStatistics(net)
    statistics.to(next(net.parameters(), torch.zeros(())).device)
    with statistics:
        _show(net, batches)
    for sums in statistics.buffers():
        sums.copy_(ranks.total(sums))
    statistics.write()


def _move(net: nn.Module, batches: Iterable[Tensor], momentum: float) -> None:
    layers = list(batch_norms(net).values())
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = momentum
            layer.train()
        _show(net, batches)
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.momentum = old


def _show(net: nn.Module, batches: Iterable[Tensor]) -> None:
    for batch in batches:
        with torch.no_grad(), too_small_for_batch_norm():
            net(batch)
