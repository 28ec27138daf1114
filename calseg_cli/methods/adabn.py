"""Owns AdaBN: the source network with the target's batch-norm statistics. Li et al. 2016, arXiv 1603.04779."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.batch_statistics import PooledStatistics, batch_norms, too_small_for_batch_norm
from calseg_cli.engine.method import Method
from calseg_cli.errors import ConfigError


class AdaBN(Method):
    """Batch-norm statistics re-estimated over all unlabelled target images; no weight moves, no label is read.

    Mean and variance are pooled over every pixel of every image in float64 (`PooledStatistics`), so they are the
    statistics of the whole domain and not the moving average that the last batches happened to leave. While they are
    measured, each layer normalises with the batch at hand, so a deeper layer's statistics depend on the batch size and
    on which images share a batch; the result is deterministic for a seed and a batch size.
    `momentum` 1 replaces the source's statistics; below 1 they are mixed, which helps where target images are few.
    """

    name: ClassVar[str] = "adabn"
    requires: ClassVar[frozenset[str]] = frozenset({"target"})
    sweeps: ClassVar[bool] = True

    def __init__(self, network: nn.Module, *, momentum: float = 1.0) -> None:
        super().__init__(network)
        if not batch_norms(network):
            raise ConfigError(
                f"adabn: the network {getattr(network, 'name', '')!r} has no batch-norm layer with running statistics",
                "use a network with batch normalisation (tiny, efficientnet-lite0, deeplabv2), or another method",
            )
        self.momentum = momentum
        self.statistics = PooledStatistics(network)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """No loss term: the sums of `statistics` grow."""
        assert batch.target_images is not None
        self.network.eval()
        with torch.no_grad(), too_small_for_batch_norm(), self.statistics:
            self.network(batch.target_images)
        return {}

    def end_of_sweep(self) -> None:
        """The sums become those of all processes."""
        self.statistics.add_up(self.ranks)

    def deployed(self) -> nn.Module:
        """The network with the pooled statistics in place."""
        self.statistics.write(momentum=self.momentum)
        return self.network
