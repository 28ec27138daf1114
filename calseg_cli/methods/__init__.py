"""Owns the papers: one file each, none imports another."""

from collections.abc import Callable
from typing import Any

from torch import nn

from calseg_cli.engine.method import Method
from calseg_cli.methods.adabn import AdaBN
from calseg_cli.methods.blda import build_blda
from calseg_cli.methods.calsfda import CalSFDA
from calseg_cli.methods.cbst import CBST
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_view import Plugin
from calseg_cli.methods.tent import Tent

ADAPTATIONS: dict[str, type[Method]] = {kind.name: kind for kind in (AdaBN, Tent, CBST, CalSFDA, SelfTraining)}
"""What `calseg adapt --method` takes."""


PLUGINS: dict[str, Callable[..., Plugin]] = {"dacal": build_dacal, "blda": build_blda}
"""What builds on self-training: `--method` takes these names too, and several joined by "+". Each is called with the
network, `seed` and the options of its section."""


def adaptation_kind(name: str) -> type[Method] | None:
    """The class behind a method's name; None for a name that is unknown."""
    if name in ADAPTATIONS:
        return ADAPTATIONS[name]
    return SelfTraining if all(part in PLUGINS for part in name.split("+")) else None


def build_adaptation(name: str, network: nn.Module, **options: Any) -> Method:
    """The adaptation method of that name around a network; `options` are its own.

    What builds on self-training gets its plugins with default options unless `plugins` are given.
    """
    if name in ADAPTATIONS:
        return ADAPTATIONS[name](network, **options)
    if "plugins" not in options:
        options["plugins"] = [PLUGINS[part](network) for part in name.split("+")]
    return SelfTraining(network, **options)
