"""Owns checkpoints: one safetensors file of tensors and JSON, written whole or not at all, read without pickle."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from calseg_cli.artifacts.tensors_file import CHECKPOINT_FORMAT, CHECKPOINT_SCHEMA, FACTS, read_facts, text_digest
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.errors import ArtifactError

_NETWORK = "network."
_STATE = "state"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: facts (plain JSON), the network's tensors, and, in a resumable one, all state."""

    path: Path
    facts: dict[str, Any]
    network: dict[str, Tensor]
    state: dict[str, Any] | None

    @property
    def class_names(self) -> list[str]:
        """The classes that the network's outputs stand for, in order."""
        return [str(name) for name in self.facts["classes"]["names"]]


def write_checkpoint(
    path: Path, network: Mapping[str, Tensor], facts: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint under its final name in one step.

    `network` is a state dict; `state` may nest dicts, lists, numbers, text and tensors. The same content gives the
    same bytes.
    """
    tensors = {_NETWORK + name: tensor for name, tensor in network.items()}
    plain = _flatten(state, _STATE, tensors) if state is not None else None
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = {
        "format": CHECKPOINT_FORMAT,
        "schema": f"{CHECKPOINT_SCHEMA[0]}.{CHECKPOINT_SCHEMA[1]}",
        **facts,
        "state": plain,
        "tensors_sha256": tensors_digest(ready),
    }
    text = json.dumps(described, sort_keys=True)
    write_whole(path, save(ready, {FACTS: f"{text_digest(text)}\n{text}"}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises ArtifactError: missing, cut short, not calseg's, or newer."""
    facts = read_facts(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error})", "write or copy it again") from error
    if facts.pop("tensors_sha256") != tensors_digest(tensors):
        raise ArtifactError(f"{path} is damaged: its tensors are not those that were written", "write or copy it again")
    plain = facts.pop("state", None)
    network = {name.removeprefix(_NETWORK): t for name, t in tensors.items() if name.startswith(_NETWORK)}
    return Checkpoint(path, facts, network, _unflatten(plain, tensors) if plain is not None else None)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes; safetensors itself notices no flipped bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; its tensors move to `tensors` under dotted names. Dicts keep keys that are not text."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} at {name}")


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "list" in value:
        return [_unflatten(item, tensors) for item in value["list"]]
    return {key: _unflatten(item, tensors) for key, item in value["map"]}


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Continue the generators where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
