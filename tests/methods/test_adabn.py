"""AdaBN as a method: what it asks, what it changes, what it refuses."""

import copy

import pytest
import torch
from torch import nn

from calseg_cli.engine.distributed import ALONE
from calseg_cli.engine.shared_batch_norm import apart, share_batch_norm
from calseg_cli.errors import ConfigError
from calseg_cli.methods import ADAPTATIONS, build_adaptation
from calseg_cli.methods.adabn import AdaBN
from tests.ranks import together


def test_only_running_statistics_move(network, make_batch):
    before = copy.deepcopy(network.state_dict())
    method = AdaBN(network)
    method.train()
    assert method(make_batch()) == {}
    deployed = method.deployed()
    changed = {name for name, value in deployed.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"encoder.1.running_mean", "encoder.1.running_var"}
    assert all(p.grad is None for p in network.parameters())


def test_it_looks_at_target_images_alone(network, make_batch):
    batch = make_batch()
    batch.source_images = batch.source_labels = None
    method = AdaBN(network)
    method(batch)
    entering = network.encoder[0](batch.target_images).detach().double().transpose(0, 1).flatten(1)
    method.deployed()
    torch.testing.assert_close(network.encoder[1].running_mean.double(), entering.mean(1), rtol=1e-5, atol=1e-6)


def test_statistics_end_where_the_domain_is(network, make_batch):
    """On the target the first layer's output is standardised after adaptation, and was not before."""
    images = torch.cat([make_batch(step).target_images for step in range(5)])
    layer = network.encoder[1]

    def spread():
        out = layer.eval()(network.encoder[0](images)).detach()
        return float(out.mean().abs()), float((out.std() - 1).abs())

    before = spread()
    method = AdaBN(network)
    for step in range(5):
        method(make_batch(step))
    method.deployed()
    assert max(spread()) < 1e-3 < min(before)


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(ConfigError, match="no batch-norm layer"):
        AdaBN(nn.Sequential(nn.Conv2d(3, 3, 1), nn.LayerNorm(3)))


def test_it_is_found_by_name(network):
    assert ADAPTATIONS["adabn"] is AdaBN
    assert isinstance(build_adaptation("adabn", network, momentum=0.5), AdaBN)
    assert AdaBN.requires == {"target"}


def test_processes_that_saw_different_batches_know_what_one_would(network, make_batch):
    """The second of two sees one batch of three, normalised by itself, and what they counted adds up."""

    def measured(places, ranks=None):
        own = copy.deepcopy(network)
        if ranks is not None:
            share_batch_norm(own, ranks)
        method = AdaBN(own)
        method.work_with(ranks or ALONE)
        with apart(method):
            for place in places:
                method(make_batch(place, size=4 if place else 3))
        method.end_of_sweep()
        return {name: value.clone() for name, value in method.deployed().state_dict().items()}

    whole = measured(range(3))
    ended = together(lambda ranks: measured(range(ranks.rank, 3, 2), ranks))
    assert [code for code, _ in ended] == [0, 0], ended
    for _, found in ended:
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=1e-7, rtol=1e-6)
    assert not torch.allclose(whole["encoder.1.running_mean"], network.encoder[1].running_mean)
