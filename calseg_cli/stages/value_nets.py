"""Owns the way from a file to a value net on a device, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.value_net import ValueNet

KIND = "value-net"
VALUE_NET = "valuenet.safetensors"
"""The file's name in the run's folder of the stage."""
TOGETHER = "all together"
"""The row of its scores that is over all held-out images, as they are and changed."""
_TRAIN = "calseg train-valuenet makes one"


@dataclass(frozen=True)
class LoadedValueNet:
    """A value net in evaluation mode on its device, and the file that it came from.

    `facts["value_net"]` says what it is: channels, width, grid, pooling; target and bins, which define the error that
    it expects; `range`, the smallest and the largest such error that it was trained on; and its scores.
    """

    net: ValueNet
    path: Path
    digest: str
    facts: Mapping[str, Any]

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest error that it was trained on: beyond them it only guesses."""
        low, high = self.facts["value_net"]["range"]
        return float(low), float(high)

    @property
    def skill(self) -> float:
        """The share of the held-out images' variance of error that it can tell, in [0,1]: its correlation, squared.

        0 where nothing was measured or the correlation is not positive.
        """
        scores = self.facts["value_net"].get("scores") or {}
        pearson = scores.get(TOGETHER, {}).get("value net", {}).get("pearson")
        return float(pearson) ** 2 if pearson is not None and pearson > 0 else 0.0


def load_value_net(path: Path, network_digest: str | None, device: torch.device) -> LoadedValueNet:
    """The value net of a file; `network_digest` is that of the network whose features it shall read, None for any.

    Raises ArtifactError: no such file, broken, of another kind, or made for another network.
    """
    check_value_net(path, network_digest)
    checkpoint = read_checkpoint(path)
    told = checkpoint.facts["value_net"]
    try:
        net = ValueNet(int(told["channels"]), width=int(told["width"]), grid=int(told["grid"]), pooling=told["pooling"])
        net.load_state_dict(checkpoint.network)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path}: its weights are not those of the value net that it describes: {str(error).splitlines()[-1]}",
            _TRAIN,
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.network.values()):
        raise ArtifactError(f"{path} holds weights that are not finite", "train it again, with a lower --lr")
    return LoadedValueNet(net.to(device).eval(), path, file_digest(path), checkpoint.facts)


def check_value_net(path: Path, network_digest: str | None) -> dict[str, Any]:
    """What a value net's file says of itself, without its weights; raises as `load_value_net`."""
    if not path.exists():
        raise ArtifactError(f"there is no value net {path}", _TRAIN)
    facts = read_facts(path)
    if facts.get("kind") != KIND or not isinstance(facts.get("value_net"), dict):
        raise ArtifactError(f"{path} holds a {facts.get('kind')}, not a value net", _TRAIN)
    parent = facts.get("provenance", {}).get("parents", {}).get("checkpoint")
    if network_digest is not None and parent != network_digest:
        raise ArtifactError(
            f"{path} was made for another network: {str(parent)[:19]}, and this one is {network_digest[:19]}",
            "train a value net for this one: calseg train-valuenet --force",
        )
    return facts


def write_value_net(path: Path, net: ValueNet, facts: Mapping[str, Any], value_net: Mapping[str, Any]) -> None:
    """Write a value net; `facts` are those of the segmentation network and the provenance, whose parents name it."""
    told = {
        "channels": net.channels,
        "width": net.reduce.out_channels,
        "grid": net.grid,
        "pooling": net.pooling,
        **value_net,
    }
    write_checkpoint(path, net.state_dict(), {**facts, "kind": KIND, "value_net": told})
