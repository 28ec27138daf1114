"""Owns the way from a file of weights into a network: read without pickle, matched by name, reported."""

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calseg_cli.errors import ArtifactError
from calseg_cli.networks.network import Network

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model", "model_state", "network", "weights")
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.", "backbone.", "Scale.")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """Which names of a network were found in a file: `mismatched` ones had another shape and stayed as they were.

    `parts` are those of "encoder" and "head" that were found whole.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    parts: tuple[str, ...]

    def __str__(self) -> str:
        kept = [name for name in self.missing if not name.endswith(_COUNTER)]
        words = [f"{self.source}: {len(self.loaded)} tensors loaded ({' and '.join(self.parts) or 'no part'} whole)"]
        words += [f"not in it and left at random: {_some(kept)}"] if kept else []
        words += [f"of another shape and left at random: {_some(list(self.mismatched))}"] if self.mismatched else []
        words += [f"in it but of no use here: {_some(list(self.unexpected), 1)}"] if self.unexpected else []
        return "; ".join(words)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file by name, on the CPU.

    Raises ArtifactError when the file is missing, damaged, or would need pickle to run code.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no file of weights at {path}", "network.init must be a file, or a known name")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrap(content)
    if not state:
        raise ArtifactError(f"{path} holds no state dict", "save model.state_dict() and name that file")
    return state


def load_weights(network: Network, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy what fits from `state` into `network` and say what did not; names may carry common prefixes.

    A last layer for another number of classes is left as it was. Raises ArtifactError when no name fits, or when a
    tensor of the encoder has another shape: then the file belongs to another variant.
    """
    own = network.state_dict()
    stripped = {_strip(name): tensor for name, tensor in state.items()}
    found = max((network.translate(names) for names in (state, stripped)), key=lambda named: len(own.keys() & named))
    fitting = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    _check_fit(network, source, state, found, fitting)
    network.load_state_dict(fitting, strict=False)
    report = LoadReport(
        source=source,
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in found),
        unexpected=tuple(name for name in found if name not in own),
        mismatched=tuple(name for name in found if name in own and name not in fitting),
        parts=_whole_parts(network, own, fitting),
    )
    network.load_report = report
    for remark in network.remarks(state):
        log.warning("%s", remark)
    log.log(logging.INFO if "encoder" in report.parts else logging.WARNING, "%s", report)
    return report


def _check_fit(
    network: Network,
    source: str,
    state: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
) -> None:
    if not any(not name.endswith(_COUNTER) for name in fitting):
        raise ArtifactError(
            f"{source}: none of its {len(state)} tensors ({_some(list(state))}) fits the network {network.name!r}",
            "name weights of the same architecture and variant",
        )
    own = network.state_dict()
    foreign = next((n for n in found if n in own and n not in fitting and not network.is_head(n)), None)
    if foreign is not None:
        raise ArtifactError(
            f"{source}: {foreign} is {tuple(found[foreign].shape)} there and {tuple(own[foreign].shape)} in "
            f"{network.name!r}",
            "is it of another variant? see network.options",
        )


def _whole_parts(network: Network, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = [name for name in own if not name.endswith(_COUNTER)]
    parts = {
        part: [name for name in names if network.is_head(name) == (part == "head")] for part in ("encoder", "head")
    }
    return tuple(part for part, members in parts.items() if members and all(name in found for name in members))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no safetensors file, or damaged ({error})", "copy it again") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} is damaged, or holds more than tensors: calseg does not run code from a file of weights",
            "if you trust it, load it once in Python and save its state_dict() alone",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__})", "copy it again"
        ) from error


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors by name of a state dict, or of one inside a training checkpoint."""
    if not isinstance(content, Mapping):
        return {}
    inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
    if inner is not None:
        return _unwrap(inner)
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _strip(name: str) -> str:
    stripped = name
    while (prefix := next((p for p in _PREFIXES if stripped.startswith(p)), None)) is not None:
        stripped = stripped.removeprefix(prefix)
    return stripped


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
