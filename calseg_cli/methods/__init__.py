"""Owns the papers: one file each, none imports another."""

from typing import Any

from torch import nn

from calseg_cli.engine.method import Method
from calseg_cli.methods.adabn import AdaBN
from calseg_cli.methods.calsfda import CalSFDA
from calseg_cli.methods.cbst import CBST
from calseg_cli.methods.tent import Tent

ADAPTATIONS: dict[str, type[Method]] = {kind.name: kind for kind in (AdaBN, Tent, CBST, CalSFDA)}
"""What `calseg adapt --method` takes."""


def build_adaptation(name: str, network: nn.Module, **options: Any) -> Method:
    """The adaptation method of that name around a network; `options` are its own."""
    return ADAPTATIONS[name](network, **options)
