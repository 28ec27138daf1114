"""Networks from elsewhere: what is accepted, what is measured, what is refused in one line."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from calseg_cli.errors import ConfigError
from calseg_cli.networks.build import build_network
from calseg_cli.networks.weights import load_weights

SOURCE = """
import torch
from torch import nn

NUMBER = 3

class Plain(nn.Module):
    def __init__(self, num_classes, width=6, stride=2):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Conv2d(width, num_classes, 1)
    def forward(self, images):
        return self.last(self.body(images))

class Dictionary(Plain):
    def forward(self, images):
        return {"out": super().forward(images), "aux": None}

class Answer:
    def __init__(self, logits):
        self.logits = logits

class Attribute(Plain):
    def forward(self, images):
        return Answer(super().forward(images))

class Tuple(Plain):
    def forward(self, images):
        return (super().forward(images),)

class Flat(Plain):
    def forward(self, images):
        return super().forward(images).mean(dim=(2, 3))

class Picky(Plain):
    def forward(self, images):
        assert_ = images.shape[-1] % 40
        if assert_:
            raise RuntimeError("size must be a multiple of 40\\nsecond line")
        return super().forward(images)

def wrong_classes(num_classes):
    return Plain(num_classes + 1)

def no_module(num_classes):
    return "a string"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of networks in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "broken_nets.py").write_text("import no_such_package\n")
    (tmp_path / "garbled_nets.py").write_text("def f(:\n")
    yield tmp_path
    for name in ("my_nets", "broken_nets", "garbled_nets"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ["Plain", "Dictionary", "Attribute"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_form_of_answer_and_stride(kind: str, stride: int) -> None:
    network = build_network(f"my_nets:{kind}", 5, options={"stride": stride, "width": 7}, seed=0)
    assert (network.name, network.num_classes, network.stride) == (f"my_nets:{kind}", 5, stride)
    assert network(torch.rand(2, 3, 33, 47)).shape == (2, 5, *network.grid(33, 47))
    assert network.encoder.get_submodule("last").in_channels == 7
    assert network.training


def test_features_of_a_named_head_are_what_enters_it() -> None:
    network = build_network("my_nets:Plain", 5, options={"head": "last"}, seed=0).eval()
    images = torch.rand(1, 3, 32, 32)
    features = network.features(images)
    assert network.feature_dim == features.shape[1] == 6
    torch.testing.assert_close(network.classify(features), network(images))
    assert {id(p) for p in network.head.parameters()} == {
        id(p) for p in network.encoder.get_submodule("last").parameters()
    }


def test_without_a_named_head_features_are_the_logits() -> None:
    network = build_network("my_nets:Plain", 5, seed=0).eval()
    images = torch.rand(1, 3, 32, 32)
    assert network.feature_dim == 5
    torch.testing.assert_close(network.classify(network.features(images)), network(images))


def test_a_copy_s_head_is_its_own_and_the_state_holds_each_tensor_once() -> None:
    network = build_network("my_nets:Plain", 5, options={"head": "last"}, seed=0)
    copied = copy.deepcopy(network)
    assert copied.head is copied.encoder.get_submodule("last")
    assert copied.head is not network.head
    assert len(network.state_dict()) == len(network.encoder.state_dict())
    assert copied.features(torch.rand(2, 3, 32, 32)).shape[1] == 6


def test_options_of_calseg_s_own_do_not_reach_the_plug_in() -> None:
    options = {"normalize_mean": [0, 0, 0], "normalize_std": [1, 1, 1], "divisor": 4, "align_corners": True}
    network = build_network("my_nets:Plain", 5, options=options)
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(network.normalize(images), images)
    assert (network.divisor, network.align_corners) == (4, True)


def test_the_probe_leaves_norms_as_they_were_and_a_divisor_sizes_it() -> None:
    network = build_network("my_nets:Picky", 5, options={"divisor": 40})
    assert network.encoder.get_submodule("body.1").num_batches_tracked == 0
    assert network.stride == 2


def test_weights_load_under_the_plug_in_s_own_names_but_for_the_classifier() -> None:
    network = build_network("my_nets:Plain", 5, options={"head": "last"}, seed=0)
    other = build_network("my_nets:Plain", 4, options={"head": "last"}, seed=1)
    report = load_weights(network, other.encoder.state_dict(), "file")
    assert report.mismatched == ("encoder.last.weight", "encoder.last.bias")
    assert report.parts == ("encoder",)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere:Plain", {}, "no module 'nowhere'"),
        ("nowhere.at.all:Plain", {}, "no module 'nowhere'"),
        ("broken_nets:Plain", {}, "needs the module 'no_such_package'"),
        ("garbled_nets:f", {}, "cannot be imported"),
        ("my_nets:Plane", {}, "has no 'Plane'"),
        ("my_nets:", {}, "has no ''"),
        ("my_nets:NUMBER", {}, "is of type int, not a callable"),
        ("my_nets:Plain", {"depth": 3}, "depth"),
        ("my_nets:no_module", {}, "made a str"),
        ("my_nets:wrong_classes", {}, "answers (1, 4, 32, 32)"),
        ("my_nets:Flat", {}, "answers (1, 3)"),
        ("my_nets:Tuple", {}, "returns tuple"),
        ("my_nets:Picky", {}, "fails on an image of 64x64: size must be a multiple of 40"),
        ("my_nets:Plain", {"head": "lost"}, "no submodule 'lost'"),
        ("my_nets:Plain", {"divisor": 0}, "divisor is 0"),
        ("my_nets:Plain", {"normalize_std": 1}, "normalize_std is 1"),
        ("my_nets:Plain", {"normalize_mean": [0.5, 0.5]}, "normalize_mean is [0.5, 0.5]"),
    ],
)
def test_a_mistake_gets_one_line(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, 3, options=options)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_a_plug_in_has_no_imagenet_weights() -> None:
    with pytest.raises(ConfigError, match="no ImageNet weights"):
        build_network("my_nets:Plain", 3, init="imagenet")
