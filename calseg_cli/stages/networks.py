"""Owns the way from a configuration or a checkpoint to a network on a device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import Layout
from calseg_cli.engine.checkpoint import Checkpoint, read_checkpoint
from calseg_cli.engine.compiling import compile_network
from calseg_cli.engine.device import memory_errors
from calseg_cli.errors import ArtifactError
from calseg_cli.networks.build import build_network
from calseg_cli.networks.network import Network
from calseg_cli.stages.domains import domain_layout


@dataclass(frozen=True)
class LoadedNetwork:
    """A network in evaluation mode on its device, and the checkpoint it came from."""

    network: Network
    checkpoint: Checkpoint
    digest: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the outputs stand for."""
        return tuple(self.checkpoint.class_names)

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """One colour a class."""
        return tuple((int(r), int(g), int(b)) for r, g, b in self.checkpoint.facts["classes"]["palette"])


def network_facts(name: str, options: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What a checkpoint must say so that `load_network` can build the same network."""
    return {
        "network": {"name": name, "options": options, "num_classes": len(layout.class_names)},
        "classes": {"names": list(layout.class_names), "palette": [list(color) for color in layout.palette]},
    }


def load_network(path: Path, device: torch.device, resolved: Resolved) -> LoadedNetwork:
    """Build a checkpoint's network and load its weights.

    Raises ArtifactError when the file is broken, when its weights do not fit the network it names, or when the source
    of the configuration lists other classes.
    """
    checkpoint = read_checkpoint(path)
    check_classes(checkpoint, resolved)
    described = checkpoint.facts["network"]
    network = build_network(described["name"], int(described["num_classes"]), init="none", options=described["options"])
    try:
        network.load_state_dict(checkpoint.network)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path}: its weights do not fit the network {described['name']!r}: {str(error).splitlines()[-1].strip()}",
            "was network.options or the plug-in's code changed since?",
        ) from error
    with memory_errors("the network alone is too large for what is left: does another process use the device?"):
        network.to(device)
    compile_network(network, wanted=resolved.config.compile)
    return LoadedNetwork(network.eval(), checkpoint, file_digest(path))


def check_classes(checkpoint: Checkpoint, resolved: Resolved) -> None:
    """Refuse a checkpoint whose class list is not that of the configured source."""
    if resolved.config.source is None:
        return
    expected, found = list(domain_layout(resolved.config, "source").class_names), checkpoint.class_names
    if not expected or expected == found:
        return
    first = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    where = (
        f"class {first} is {found[first]!r} there and {expected[first]!r} in the configuration"
        if first is not None
        else f"it has {len(found)} classes, the configuration {len(expected)}"
    )
    raise ArtifactError(
        f"{checkpoint.path} was trained for another class list: {where}",
        "use the configuration it was trained with, or train again",
    )
