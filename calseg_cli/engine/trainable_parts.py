"""Owns which part of a network an adaptation trains, and in which mode the rest of it stays meanwhile."""

from typing import Literal

from torch import nn

from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.errors import ConfigError

Part = Literal["all", "head", "batch-norm"]


def train_only(network: nn.Module, part: Part) -> None:
    """Let gradients reach `part` alone: everything, the head, or the scales and shifts of batch-norm layers.

    Raises ConfigError where the network has no such part.
    """
    chosen = {id(parameter) for parameter in _members(network, part)}
    if not chosen:
        raise ConfigError(
            f"the network {getattr(network, 'name', '')!r} has no {part} to train", "train: all works with any network"
        )
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def set_mode(network: nn.Module, part: Part, *, training: bool) -> None:
    """Training mode for the part that is trained, evaluation mode for what is frozen: frozen statistics stay put.

    With "batch-norm" every such layer normalises with the batch at hand and nothing else is in training mode.
    """
    network.train(training and part == "all")
    if training and part == "head":
        getattr(network, "head", nn.Module()).train()
    elif training and part == "batch-norm":
        for layer in batch_norms(network).values():
            layer.train()


def _members(network: nn.Module, part: Part) -> list[nn.Parameter]:
    if part == "all":
        return list(network.parameters())
    if part == "head":
        return list(getattr(network, "head", nn.Module()).parameters())
    return [parameter for layer in batch_norms(network).values() for parameter in layer.parameters()]
