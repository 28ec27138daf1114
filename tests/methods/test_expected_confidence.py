"""Confidence brought to where it is expected to be right: temperatures against float64, and logits divided for good."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from calseg_cli.methods import expected_confidence
from calseg_cli.methods.expected_confidence import (
    ConfidenceSample,
    divide_logits,
    image_temperature,
    softening_temperature,
)
from calseg_cli.networks.build import build_network


def mean_confidence(logits, temperature=1.0):
    return float((logits.double() / temperature).softmax(dim=0).amax(dim=0).mean())


def images(count=4):
    generator = torch.Generator().manual_seed(2)
    return [3 * torch.randn(5, 8, 9 + place, generator=generator) for place in range(count)]


@pytest.mark.parametrize("share", [0.99, 0.9, 0.6])
def test_an_images_mean_confidence_comes_where_it_is_wanted(share):
    logits = images()[0]
    wanted = share * mean_confidence(logits)
    found = image_temperature(logits, wanted)
    assert found > 1
    assert mean_confidence(logits, found) == pytest.approx(wanted, abs=1e-4)


def test_nothing_is_made_surer_and_what_cannot_be_reached_is_bounded():
    assert image_temperature(torch.randn(3, 4, 4), 0.999) == 1.0
    assert image_temperature(torch.randn(3, 4, 4), 0.1) == pytest.approx(100.0)
    assert np.isfinite(image_temperature(torch.zeros(3, 4, 4), 0.2))


def test_every_image_weighs_the_same():
    sample = ConfidenceSample(4)
    for one in images():
        sample.add(one.half())
    expected = np.mean([mean_confidence(one.half(), 1.7) for one in images()])
    assert sample.mean(1.7) == pytest.approx(expected, abs=1e-6)
    found = softening_temperature(sample.mean, 0.9 * sample.mean())
    assert sample.mean(found) == pytest.approx(0.9 * sample.mean(), abs=1e-4)
    assert np.isnan(ConfidenceSample(0).mean())


def test_large_images_are_sampled(monkeypatch):
    monkeypatch.setattr(expected_confidence, "SAMPLED", 4 * 100)
    sample = ConfidenceSample(4)
    logits = torch.randn(3, 60, 70, generator=torch.Generator().manual_seed(0))
    sample.add(logits)
    assert sum(part.shape[1] for part in sample._kept) <= 110
    assert sample.mean() == pytest.approx(mean_confidence(logits), abs=0.05)


@pytest.mark.parametrize("name", ["tiny", "deeplabv2"])
def test_logits_are_divided_for_good(name):
    torch.manual_seed(0)
    network = build_network(name, 4, init="none", options={"depth": 50} if name == "deeplabv2" else {}).eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = network(pictures)
        assert divide_logits(network, 1.6)
        torch.testing.assert_close(network(pictures), before / 1.6, rtol=1e-4, atol=float(1e-4 * before.abs().max()))


class Bent(nn.Module):
    """A network whose last layer is not linear."""

    num_classes, stride, divisor, align_corners = 3, 1, 1, False

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 3, 1))

    def forward(self, pictures):
        return self.head(pictures)


def test_what_cannot_be_divided_is_left_as_it_was():
    network = Bent()
    before = copy.deepcopy(network.state_dict())
    assert not divide_logits(network, 2.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_plug_ins_head_may_be_the_layer():
    class Plug(Bent):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)

    network = Plug()
    picture = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = network(picture)
        assert divide_logits(network, 2.0)
        torch.testing.assert_close(network(picture), before / 2)
