"""DeepLabV2: the public key names, the geometry, and ResNet against another implementation."""

import copy
import functools
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calseg_cli.networks.build import build_network
from calseg_cli.networks.deeplab import DeepLabV2, DilatedResNet
from calseg_cli.networks.network import Network
from calseg_cli.networks.weights import load_weights


def deeplab(seed: int = 0, **options: object) -> Network:
    return build_network("deeplabv2", 4, options={"depth": 50} | options, seed=seed)


@pytest.fixture
def network() -> Network:
    """ResNet-50 with random weights."""
    return copy.deepcopy(_built(0))


@pytest.fixture
def original() -> Network:
    """Another draw of them: what the checkpoint was made from."""
    return copy.deepcopy(_built(1))


@functools.cache
def _built(seed: int) -> Network:
    return deeplab(seed)


def literature(network: Network, classifier: str, prefix: str = "") -> dict[str, Tensor]:
    """The network's weights under the names of the domain adaptation checkpoints."""
    names = {
        name: re.sub(r"^head\.", f"{classifier}.", re.sub(r"^encoder\.", "", name)) for name in network.state_dict()
    }
    return {prefix + names[name]: tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("edge", "cells"), [(513, 65), (512, 65), (1024, 129)])
def test_known_grids(edge: int, cells: int) -> None:
    with torch.device("meta"):
        network = deeplab()
        assert network(torch.empty(1, 3, edge, 65)).shape[-2:] == (cells, 9)
    assert network.grid(edge, 65) == (cells, 9)
    assert network.align_corners


@pytest.mark.parametrize(
    ("prefix", "classifier"), [("", "layer5"), ("module.", "layer6"), ("Scale.", "layer5"), ("module.Scale.", "layer6")]
)
def test_checkpoints_of_the_literature_load_whole(
    prefix: str, classifier: str, original: Network, network: Network
) -> None:
    report = load_weights(network, literature(original, classifier, prefix), "file")
    assert report.parts == ("encoder", "head")
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), network.parameters(), strict=True))


def test_the_names_are_those_of_the_literature(network: Network) -> None:
    names = set(literature(network, "layer5"))
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer1.0.downsample.1.weight",
        "layer4.2.bn3.bias",
        "layer5.conv2d_list.0.weight",
        "layer5.conv2d_list.3.bias",
    } <= names


def test_of_two_classifiers_the_last_stage_s_is_taken(original: Network, network: Network) -> None:
    auxiliary = {f"layer5.conv2d_list.{n}.weight": torch.zeros(4, 1024, 3, 3) for n in range(4)}
    report = load_weights(network, literature(original, "layer6") | auxiliary, "file")
    assert set(report.unexpected) == auxiliary.keys()
    assert torch.equal(
        network.head.get_parameter("conv2d_list.0.weight"), original.head.get_parameter("conv2d_list.0.weight")
    )


def test_two_rates_take_two_of_four_branches(original: Network) -> None:
    report = load_weights(deeplab(rates=[6, 12]), literature(original, "layer6"), "file")
    assert report.parts == ("encoder", "head")
    assert len(report.unexpected) == 4


def test_torchvision_s_names_load_the_encoder_and_a_likely_mistake_is_said(
    original: Network, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    state = {name: t for name, t in literature(original, "layer5").items() if not name.startswith("layer5")}
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    with caplog.at_level(logging.WARNING):
        assert load_weights(network, state, "resnet50.pth").parts == ("encoder",)
    assert "preprocessing: torchvision" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_weights(deeplab(preprocessing="torchvision", stride_in_3x3=True), state, "resnet50.pth")
    assert caplog.text == ""


def test_a_shallower_checkpoint_loads_only_in_part_and_says_so(
    original: Network, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    state = {name: t for name, t in literature(original, "layer5").items() if not name.startswith("layer3.5")}
    with caplog.at_level(logging.WARNING):
        report = load_weights(network, state, "file")
    assert report.parts == ("head",)
    assert "left at random: encoder.layer3.5.conv1.weight" in caplog.text


def test_caffe_input_is_bgr_in_bytes_and_torchvision_input_is_rgb(network: Network) -> None:
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 1.0
    caffe = network.normalize(red).flatten()
    torch.testing.assert_close(caffe, torch.tensor([-104.00698793, -116.66876762, 255 - 122.67891434]))
    rgb = deeplab(preprocessing="torchvision").normalize(red).flatten()
    assert rgb[0] > 2
    assert rgb[1] < -2


def test_logits_are_the_sum_of_the_branches(network: Network) -> None:
    network.eval()
    assert isinstance(network, DeepLabV2)
    features = torch.rand(1, 2048, 5, 7)
    total = sum(conv(features) for conv in network.head.conv2d_list)
    torch.testing.assert_close(network.classify(features), total)
    assert [conv.dilation for conv in network.head.conv2d_list] == [(6, 6), (12, 12), (18, 18), (24, 24)]


@pytest.mark.parametrize("stride_in_3x3", [False, True])
def test_the_stages_before_dilation_agree_with_another_implementation(stride_in_3x3: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.ResNetConfig(depths=[3, 4, 1, 1], downsample_in_bottleneck=not stride_in_3x3)
    torch.manual_seed(0)
    theirs, ours = transformers.ResNetModel(settings).eval(), DilatedResNet(50, stride_in_3x3=stride_in_3x3).eval()
    state = theirs.state_dict()
    for name in state:  # norms that do something
        if name.endswith(("running_mean", "normalization.bias")):
            state[name] = torch.randn_like(state[name]) * 0.1
    theirs.load_state_dict(state)
    ours.load_state_dict({_our_name(name): tensor for name, tensor in state.items()}, strict=False)
    images = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True).hidden_states[2]
        found = ours.layer2(ours.layer1(ours.maxpool(ours.relu(ours.bn1(ours.conv1(images))))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _our_name(name: str) -> str:
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    name = re.sub(r"encoder\.stages\.(\d)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}", name)
    name = re.sub(r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}", name)
    return name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
