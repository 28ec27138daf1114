"""Owns the contract between the loop and a paper: the loop owns time, the paper owns loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from calseg_cli.data.loader import Batch
from calseg_cli.engine.distributed import ALONE, Ranks


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a role: "encoder" and "head" have learning rates of their own; `decay` says whether
    weight decay applies.
    """

    name: str
    role: str
    parameters: list[nn.Parameter]
    decay: bool


class Method(nn.Module):
    """What a paper owes the loop. All its memory lives in parameters and buffers, so that checkpoints hold it.

    A method never prints, opens a file, names a device or steps the loop's optimiser.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset()
    """What a batch must carry, of {"source", "target", "labels", "pseudo_labels"}; checked before anything is loaded.
    """
    sweeps: ClassVar[bool] = False
    """True for a method that looks once at every target image, unaugmented, in place of a number of random steps."""
    remeasures: ClassVar[bool] = False
    """True where the running statistics of what is deployed are measured again over all target images at the end."""
    ranks: Ranks = ALONE
    """The processes that share every batch: terms are this one's part of the whole batch's, and gradients add up."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def work_with(self, ranks: Ranks) -> None:
        """Share every batch with these processes; its network's batch norm must do so already."""
        self.ranks = ranks

    def before_step(self, batch: Batch, step: int) -> None:
        """An outer optimiser of the paper's own may act here; the loop does not look."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Weighted loss terms by name; the loop sums them and goes backward once. No term: nothing to learn here."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def after_step(self, step: int) -> None:
        """Teachers move and running statistics are updated here, after the optimiser."""

    def end_of_sweep(self) -> None:
        """Every image was shown, each process its part of them: what was counted is to be added up here."""

    def report(self) -> dict[str, float]:
        """What the log should tell of the last step beside its terms; looked at only when a step is logged."""
        return {}

    def parameter_groups(self) -> list[ParameterGroup]:
        """What the optimiser moves."""
        return parameter_groups(self.network)

    def deployed(self) -> nn.Module:
        """The network to keep when the work is done."""
        return self.network


def parameter_groups(network: nn.Module) -> list[ParameterGroup]:
    """The network's trainable parameters as encoder and head, each with and without weight decay.

    Biases and the scales of normalisation layers get no decay: it would only fight the normalisation. A parameter
    outside `network.head` counts as encoder.
    """
    head = {id(parameter) for parameter in getattr(network, "head", nn.Module()).parameters()}
    plain = {
        id(parameter)
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm) or name == "bias"
    }
    groups = []
    for role in ("encoder", "head"):
        for decay in (True, False):
            members = [
                parameter
                for parameter in network.parameters()
                if parameter.requires_grad
                and (id(parameter) in head) == (role == "head")
                and (id(parameter) not in plain) == decay
            ]
            if members:
                groups.append(ParameterGroup(f"{role}{'' if decay else ' (no decay)'}", role, members, decay))
    return groups
