"""Owns the papers: one file each, none imports another."""

from collections.abc import Callable
from typing import Any

from torch import nn

from calseg_cli.engine.method import Method
from calseg_cli.methods.adabn import AdaBN

ADAPTATIONS: dict[str, Callable[..., Method]] = {AdaBN.name: AdaBN}
"""What `calseg adapt --method` takes."""


def build_adaptation(name: str, network: nn.Module, **options: Any) -> Method:
    """The adaptation method of that name around a network; `options` are its own."""
    return ADAPTATIONS[name](network, **options)
