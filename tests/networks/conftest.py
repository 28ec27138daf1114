"""The networks under the contract, and what feeds them."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calseg_cli.networks.build import build_network
from calseg_cli.networks.network import Network

OPTIONS = {
    "tiny": {},
    "efficientnet-lite0": {},
    "deeplabv2": {"depth": 50},
    "segformer": {"drop_path": 0.0, "dropout": 0.0},
}


@pytest.fixture
def images() -> Tensor:
    """Two images of odd size, not square, in [0,1]."""
    return torch.rand(2, 3, 45, 67, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A small variant of each network, deterministic but for `seed`, without weights from anywhere."""

    def make(name: str, num_classes: int = 5, *, seed: int = 0) -> Network:
        return copy.deepcopy(_built(name, num_classes, seed))

    return make


@functools.cache
def _built(name: str, num_classes: int, seed: int) -> Network:
    """Built once a run: drawing 25 million random numbers takes longer than most tests."""
    return build_network(name, num_classes, init="none", options=OPTIONS[name], seed=seed)
