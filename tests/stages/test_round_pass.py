"""One look at the target: errors expected without a second look, and trusted as far as they proved right."""

import copy

import numpy as np
import pytest
import torch

from calseg_cli.methods.value_net import ValueNet, warm_up_statistics
from calseg_cli.stages.round_pass import PooledFeatures, drawn_together
from calseg_cli.stages.value_nets import LoadedValueNet


@pytest.fixture
def guide(tmp_path):
    torch.manual_seed(0)
    net = ValueNet(6, width=5, grid=2).eval()
    net.norm.running_mean.uniform_(-1, 1)
    net.norm.running_var.uniform_(0.5, 2)
    return LoadedValueNet(net, tmp_path / "v.safetensors", "sha256:x", {"value_net": {"range": [0.0, 1.0]}})


def features(count=5, size=(7, 9)):
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(1, 6, *size, generator=generator) + place for place in range(count)]


@pytest.mark.parametrize("pooling", ["average", "bilinear"])
@pytest.mark.parametrize("size", [(7, 9), (4, 4), (1, 3)])
def test_pooled_features_are_enough_for_cold_statistics(guide, tmp_path, pooling, size):
    guide.net.pooling = pooling
    kept = PooledFeatures(tmp_path, guide)
    maps = features(size=size)
    for place, one in enumerate(maps):
        kept.add(place, one)
    with torch.no_grad():
        expected = [float(guide.net(one)) for one in maps]
    assert kept.expected(warm=False) == pytest.approx(expected, abs=1e-6)


def test_warm_statistics_are_those_of_all_images_together(guide, tmp_path):
    kept, maps = PooledFeatures(tmp_path, guide), features()
    for place, one in enumerate(maps):
        kept.add(place, one)
    before = copy.deepcopy(guide.net.state_dict())
    warmed = copy.deepcopy(guide.net)
    warm_up_statistics(warmed, maps)
    with torch.no_grad():
        expected = [float(warmed.eval()(one)) for one in maps]
    assert kept.expected(warm=True) == pytest.approx(expected, abs=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in guide.net.state_dict().items())
    assert kept.expected(warm=True) != pytest.approx(kept.expected(warm=False), abs=1e-3)


def test_no_error_is_expected_beyond_what_was_ever_seen(guide, tmp_path):
    guide = LoadedValueNet(guide.net, guide.path, guide.digest, {"value_net": {"range": [0.49, 0.51]}})
    kept = PooledFeatures(tmp_path, guide)
    for place, one in enumerate(features()):
        kept.add(place, 10 * one)
    assert all(0.49 <= error <= 0.51 for error in kept.expected(warm=False))
    assert len(set(kept.expected(warm=False))) > 1


@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0])
def test_errors_keep_their_mean_and_lose_the_spread_that_is_not_trusted(trust):
    errors = np.random.default_rng(0).uniform(0, 0.2, 50)
    moved = np.array(drawn_together(errors.tolist(), trust))
    assert moved.mean() == pytest.approx(errors.mean())
    assert moved.std() == pytest.approx(trust * errors.std(), abs=1e-12)
    if trust:
        assert (moved.argsort() == errors.argsort()).all()


@pytest.mark.parametrize(("pearson", "skill"), [(0.5, 0.25), (-0.5, 0.0), (float("nan"), 0.0), (None, 0.0), (1.0, 1.0)])
def test_a_value_net_is_trusted_as_far_as_it_proved_right(guide, pearson, skill):
    scores = {"all together": {"value net": {"pearson": pearson}}}
    told = {"value_net": {**guide.facts["value_net"], "scores": scores}}
    assert LoadedValueNet(guide.net, guide.path, guide.digest, told).skill == pytest.approx(skill)
    assert guide.skill == 0  # nothing was measured
