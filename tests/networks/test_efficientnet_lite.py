"""The encoder against its published weights, and its padding against a plain count."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from calseg_cli.data.street import draw_street
from calseg_cli.networks.build import build_network
from calseg_cli.networks.efficientnet_lite import EfficientNetLite0, SameConv2d, imagenet_weights
from calseg_cli.networks.weights import read_weights


@pytest.fixture(scope="module")
def imagenet() -> EfficientNetLite0:
    encoder = EfficientNetLite0(num_labels=1000)
    encoder.load_state_dict(read_weights(imagenet_weights()), strict=True)
    return encoder.eval()


def test_parameters_with_the_classifier_are_those_published() -> None:
    assert sum(parameter.numel() for parameter in EfficientNetLite0(num_labels=1000).parameters()) == 4_652_008


def test_only_the_classifier_s_tensors_go_unused() -> None:
    report = build_network("efficientnet-lite0", 11, init="imagenet").load_report
    assert report is not None
    assert {name.split(".")[0] for name in report.unexpected} == {"_conv_head", "_bn1", "_fc"}
    assert all(name.startswith("head.") for name in report.missing)
    assert report.mismatched == ()


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 9), (7, 10), (5, 5)])
def test_padding_is_tensorflow_s(kernel: int, stride: int, size: tuple[int, int]) -> None:
    conv = SameConv2d(1, 1, kernel, stride, bias=False).double()
    image = torch.rand(*size, dtype=torch.float64)
    answer = conv(image[None, None])[0, 0]
    weight = conv.weight[0, 0]
    rows, columns = (-(-edge // stride) for edge in size)
    above, left = (max((-(-edge // stride) - 1) * stride + kernel - edge, 0) // 2 for edge in size)
    assert answer.shape == (rows, columns)
    for row in range(rows):
        for column in range(columns):
            expected = torch.zeros((), dtype=torch.float64)
            for i in range(kernel):
                for j in range(kernel):
                    y, x = row * stride + i - above, column * stride + j - left
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        expected = expected + weight[i, j] * image[y, x]
            torch.testing.assert_close(answer[row, column], expected)


def test_maps_lie_at_five_strides() -> None:
    maps = EfficientNetLite0()(torch.rand(1, 3, 65, 100))
    assert [tuple(level.shape[1:]) for level in maps] == [
        (16, 33, 50),
        (24, 17, 25),
        (40, 9, 13),
        (112, 5, 7),
        (320, 3, 4),
    ]


def test_imagenet_logits_barely_move_with_a_mirrored_image(imagenet: EfficientNetLite0) -> None:
    """A network trained with flips answers alike to both; one with wrongly wired blocks does not."""
    colors = np.stack([draw_street(np.random.default_rng(seed)).colors for seed in range(4)])
    streets = (torch.from_numpy(colors).permute(0, 3, 1, 2) - 127) / 128
    images = F.interpolate(streets, size=(224, 320), mode="bicubic")
    with torch.no_grad():
        logits, mirrored = imagenet.label_logits(images), imagenet.label_logits(images.flip(-1))
    together = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(logits, mirrored, strict=True)])
    apart = torch.corrcoef(logits).triu(1).sum() / 6
    assert together.min() > 0.95
    assert together.min() > apart + 0.1


def _drift(encoder: EfficientNetLite0, images: Tensor) -> float:
    """How far what enters the norms lies from what they saw in training, in units of its spread."""
    distances: list[float] = []

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean = inputs[0].mean(dim=(0, 2, 3))
        distances.append(
            float(((mean - layer.running_mean).square() / layer.running_var.clamp_min(1e-3)).mean().sqrt())
        )

    hooks = [m.register_forward_pre_hook(measure) for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        encoder.label_logits(images)
    for hook in hooks:
        hook.remove()
    return sum(distances) / len(distances)


@pytest.mark.real
def test_the_normalisation_is_the_one_of_training(imagenet: EfficientNetLite0, real_data: Path) -> None:
    """On photographs, the norms see what they saw in training only under the right input range."""
    files = sorted((real_data / "camvid_day_to_dusk" / "source" / "train" / "images").iterdir())[::40]
    bytes_ = np.stack([np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files])
    images = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 255
    network = build_network("efficientnet-lite0", 2, init="none")
    ours = _drift(imagenet, network.normalize(images))
    red_green_blue = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225])
    others = [
        _drift(imagenet, images),
        _drift(imagenet, images * 255 - 127),
        _drift(imagenet, (images - red_green_blue[0]) / red_green_blue[1].view(1, 3, 1, 1)),
    ]
    assert ours < 0.9 * min(others)
