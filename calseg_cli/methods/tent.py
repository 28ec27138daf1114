"""Owns TENT: entropy minimised through the scales and shifts of batch norm. Wang et al. 2021, arXiv 2006.10726."""

from typing import ClassVar

from torch import Tensor, nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.engine.forward import native_logits
from calseg_cli.engine.method import Method
from calseg_cli.engine.trainable_parts import set_mode, train_only
from calseg_cli.errors import ConfigError
from calseg_cli.losses.entropy import normalized_entropy


class Tent(Method):
    """The mean Shannon entropy of the predictions on target images falls; only batch norm's scales and shifts move.

    Layers normalise with the batch at hand, as in the paper. The paper goes on doing so when it predicts; here an image
    is predicted alone, so running statistics are measured again over all target images at the end (`remeasures`).
    The entropy is taken on the network's own grid and divided by log C, so that one learning rate fits any number of
    classes.
    """

    name: ClassVar[str] = "tent"
    requires: ClassVar[frozenset[str]] = frozenset({"target"})
    remeasures: ClassVar[bool] = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        if not batch_norms(network):
            raise ConfigError(
                f"tent: the network {getattr(network, 'name', '')!r} has no batch-norm layer with running statistics",
                "use a network with batch normalisation (tiny, efficientnet-lite0, deeplabv2), or another method",
            )
        train_only(network, "batch-norm")

    def train(self, mode: bool = True) -> "Tent":
        """Batch norm in training mode, everything else as it predicts."""
        super().train(mode)
        set_mode(self.network, "batch-norm", training=mode)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The term "entropy", in [0,1]."""
        assert batch.target_images is not None
        logits, _ = native_logits(self.network, batch.target_images)  # type: ignore[arg-type]
        return {"entropy": normalized_entropy(logits).mean() / self.ranks.world}
