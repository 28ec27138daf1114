"""Which part of a network trains, and in which mode the rest stays."""

import pytest
import torch
from torch import nn

from calseg_cli.engine.trainable_parts import set_mode, train_only
from calseg_cli.errors import ConfigError


class Small(nn.Module):
    name = "small"

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, images):
        return self.head(self.encoder(images))


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("all", {"encoder.0", "encoder.1", "head.0", "head.1", "head.2"}),
        ("head", {"head.0", "head.1", "head.2"}),
        ("batch-norm", {"encoder.1", "head.1"}),
    ],
)
def test_gradients_reach_that_part_alone(part, wanted):
    network = Small()
    train_only(network, part)
    network(torch.rand(2, 3, 4, 4)).sum().backward()
    reached = {name.rpartition(".")[0] for name, one in network.named_parameters() if one.grad is not None}
    assert reached == wanted


@pytest.mark.parametrize(
    ("part", "training"),
    [
        ("all", {"encoder.1", "encoder.2", "head.1"}),
        ("head", {"head.1"}),
        ("batch-norm", {"encoder.1", "head.1"}),
    ],
)
def test_what_is_frozen_stays_in_evaluation_mode(part, training):
    network = Small()
    set_mode(network, part, training=True)
    leaves = {name for name, one in network.named_modules() if not list(one.children()) and one.training}
    assert {name for name in leaves if name in ("encoder.1", "encoder.2", "head.1")} == training
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.rand(2, 3, 4, 4))
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name.rpartition(".")[0] for name in moved} == training - {"encoder.2"}
    set_mode(network, part, training=False)
    assert not any(one.training for one in network.modules())


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="has no batch-norm"):
        train_only(nn.Conv2d(3, 3, 1), "batch-norm")
    with pytest.raises(ConfigError, match="has no head"):
        train_only(nn.Conv2d(3, 3, 1), "head")


def test_choosing_again_forgets_the_choice_before():
    network = Small()
    train_only(network, "head")
    train_only(network, "all")
    assert all(one.requires_grad for one in network.parameters())
