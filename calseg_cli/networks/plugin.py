"""Owns networks from elsewhere: "package.module:callable" becomes a Network like any other."""

import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calseg_cli.errors import ConfigError
from calseg_cli.networks.network import IMAGENET_MEAN, IMAGENET_STD, Channels, Network

_PROBE = 64  # edge of the square image that measures the stride, made a multiple of the divisor
_OWN_OPTIONS = ("normalize_mean", "normalize_std", "divisor", "align_corners", "head")


class PluginNetwork(Network):
    """A foreign module with its normalisation, stride and output form settled.

    `encoder` is the whole module. `head_path` names the submodule in it whose input is what `features` returns and
    whose parameters train at the head's rate; without it, features are the logits themselves.
    """

    def __init__(
        self, module: nn.Module, *, name: str, num_classes: int, head_path: str | None, **options: Any
    ) -> None:
        super().__init__(
            name=name,
            num_classes=num_classes,
            feature_dim=num_classes,
            stride=1,
            encoder=module,
            head=nn.Identity(),
            **options,
        )
        self.head_path = head_path
        if head_path is not None:
            # A second name for a part of the encoder, not a second part: the state dict must hold it once.
            del self._modules["head"]
            self.__dict__["head"] = _submodule(module, head_path, name)

    def is_head(self, name: str) -> bool:
        """Whether a name of the state dict lies in the submodule called the head."""
        return self.head_path is not None and name.startswith(f"encoder.{self.head_path}.")

    def features(self, images: Tensor) -> Tensor:
        """What enters the head (B,D,h,w), or the logits where no head is named."""
        if self.head_path is None:
            return self.forward(images)
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.encoder(self.normalize(images))
        finally:
            hook.remove()
        return caught[-1]

    def classify(self, features: Tensor) -> Tensor:
        """The head's logits (B,C,h,w), or the features themselves where no head is named."""
        return features if self.head_path is None else logits_of(self.head(features), self.name)

    def forward(self, images: Tensor) -> Tensor:
        """The module's logits (B,C,h,w), whatever form it wraps them in."""
        return logits_of(self.encoder(self.normalize(images)), self.name)


def plugin_builder(name: str) -> Callable[..., Network]:
    """What builds the network called "package.module:callable", found with the working directory on the path.

    The callable gets `num_classes` and all options but normalize_mean, normalize_std, divisor, align_corners and
    head, which are calseg's own. Raises ConfigError: no such module or attribute, not callable.
    """
    make = _find(name)

    def build(num_classes: int, **options: Any) -> Network:
        own = {option: options.pop(option) for option in _OWN_OPTIONS if option in options}
        return _wrap(_call(name, make, num_classes, options), name, num_classes, own)

    return build


def logits_of(answer: Any, name: str) -> Tensor:
    """The logits in a module's answer: a tensor, a mapping with "out", or an object with `.logits`.

    Raises ConfigError for anything else.
    """
    if isinstance(answer, Tensor):
        return answer
    logits = answer.get("out") if isinstance(answer, Mapping) else None
    logits = getattr(answer, "logits", logits)
    if isinstance(logits, Tensor):
        return logits
    raise ConfigError(
        f"the network {name!r} returns {type(answer).__name__}, in which calseg finds no logits",
        'return a tensor (B,C,h,w), a dict with "out", or an object with .logits',
    )


def _find(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        needed = error.name or module_name
        if module_name == needed or module_name.startswith(f"{needed}."):
            raise ConfigError(
                f"the network {name!r}: there is no module {needed!r}",
                f"it is looked for in the working directory ({here}) and among the installed packages",
            ) from error
        raise ConfigError(
            f"the network {name!r}: {module_name} itself needs the module {needed!r}", f"pip install {needed}?"
        ) from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(f"the network {name!r}: {module_name} cannot be imported ({error})", "mend it") from error
    for part in attribute.split("."):
        if not part or not hasattr(found, part):
            public = [entry for entry in vars(found) if not entry.startswith("_") and callable(vars(found)[entry])]
            raise ConfigError(
                f"the network {name!r}: {module_name} has no {attribute!r}",
                f"it has: {', '.join(public[:8]) or 'nothing that can be called'}",
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(
            f"the network {name!r} is of type {type(found).__name__}, not a callable", "name a class or function"
        )
    made: Callable[..., Any] = found
    return made


def _call(name: str, make: Callable[..., Any], num_classes: int, options: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(make).bind(num_classes=num_classes, **options)
    except TypeError as error:
        raise ConfigError(
            f"the network {name!r} cannot be called with num_classes and network.options: {error}",
            f"its signature is {inspect.signature(make)}",
        ) from error
    except ValueError:  # a callable without a signature: calling it will tell
        pass
    module = make(num_classes=num_classes, **options)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"the network {name!r} made a {type(module).__name__}", "it must return a torch.nn.Module")
    return module


def _wrap(module: nn.Module, name: str, num_classes: int, own: dict[str, Any]) -> Network:
    divisor = own.get("divisor", 1)
    if not isinstance(divisor, int) or divisor < 1:
        raise ConfigError(f"network.options.divisor is {divisor!r}", "it must be a whole number of pixels, 1 or more")
    if isinstance(module, Network):
        return module
    network = PluginNetwork(
        module,
        name=name,
        num_classes=num_classes,
        head_path=own.get("head"),
        mean=_channels(own, "normalize_mean", IMAGENET_MEAN),
        std=_channels(own, "normalize_std", IMAGENET_STD),
        divisor=divisor,
        align_corners=bool(own.get("align_corners", False)),
    )
    _measure(network)
    return network


@torch.no_grad()
def _measure(network: PluginNetwork) -> None:
    """Find the stride and the features' width by one small image; refuse logits of an unexpected shape."""
    edge = max(_PROBE, 2 * network.divisor) // network.divisor * network.divisor
    was_training = network.training
    network.eval()
    probe = torch.zeros(1, 3, edge, edge, device=next(network.parameters(), torch.zeros(())).device)
    try:
        logits, features = network(probe), network.features(probe)
    except RuntimeError as error:
        raise ConfigError(
            f"the network {network.name!r} fails on an image of {edge}x{edge}: {str(error).splitlines()[0]}",
            "does it need sizes that are multiples of something? set network.options.divisor",
        ) from error
    finally:
        network.train(was_training)
    expected = (1, network.num_classes)
    if logits.ndim != 4 or tuple(logits.shape[:2]) != expected or not 1 <= logits.shape[2] <= edge:
        raise ConfigError(
            f"the network {network.name!r} answers {tuple(logits.shape)} to images (1, 3, {edge}, {edge})",
            f"logits must be (1, {network.num_classes}, {edge}/stride, {edge}/stride)",
        )
    network.stride = round(edge / logits.shape[2])
    network.feature_dim = int(features.shape[1])


def _channels(own: Mapping[str, Any], option: str, default: Channels) -> Channels:
    value = own.get(option, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(v, int | float) for v in value):
        raise ConfigError(f"network.options.{option} is {value!r}", "three numbers are needed, e.g. [0.5, 0.5, 0.5]")
    red, green, blue = (float(part) for part in value)
    return red, green, blue


def _submodule(module: nn.Module, path: str, name: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        children = ", ".join(child for child, _ in module.named_children())
        raise ConfigError(
            f"the network {name!r} has no submodule {path!r} (network.options.head)", f"it has: {children or 'none'}"
        ) from error
