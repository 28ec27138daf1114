"""Pooled batch-norm statistics against float64 brute force, and what they must leave alone."""

import copy

import pytest
import torch
from torch import nn

from calseg_cli.engine.batch_statistics import PooledStatistics, batch_norms, own_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 5, 1),
        nn.BatchNorm2d(5),
    ).eval()


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def batches(sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    # A brightness of its own for every image: the variance between images must count.
    return [
        torch.randn(size, 3, 6, 7, generator=generator) + 5 * torch.randn(size, 1, 1, 1, generator=generator)
        for size in sizes
    ]


def estimate(net, images, momentum=1.0):
    statistics = PooledStatistics(net)
    with torch.no_grad(), statistics:
        for batch in images:
            net(batch)
    statistics.write(momentum=momentum)
    return statistics


@pytest.mark.parametrize("sizes", [(4, 4), (3, 4, 1), (8,)])
def test_first_layer_has_the_pooled_mean_and_variance(sizes):
    net, images = network(), batches(sizes)
    expected = torch.cat([net[0](batch).detach().double() for batch in images]).transpose(0, 1).flatten(1)
    estimate(net, images)
    torch.testing.assert_close(net[1].running_mean.double(), expected.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(net[1].running_var.double(), expected.var(1), rtol=1e-6, atol=1e-6)


def test_first_layer_does_not_depend_on_batches_but_deeper_ones_do():
    images = torch.cat(batches((8,)))
    by_two, by_four = network(), network()
    estimate(by_two, images.split(2))
    estimate(by_four, images.split(4))
    torch.testing.assert_close(by_two[1].running_var, by_four[1].running_var)
    assert not torch.allclose(by_two[5].running_var, by_four[5].running_var, rtol=1e-3)


def test_moving_average_would_give_something_else():
    images = batches((2, 2, 2, 2))
    pooled, moving = network(), network().train()
    estimate(pooled, images)
    with torch.no_grad():
        for batch in images:
            moving(batch)
    assert not torch.allclose(pooled[1].running_var, moving[1].running_var, rtol=0.1)


def test_everything_else_is_left_alone():
    net = network()
    before = copy.deepcopy(net.state_dict())
    statistics = PooledStatistics(net)
    with torch.no_grad(), statistics:
        net(batches((4,))[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(layer.momentum == 0.1 and not layer.training for layer in batch_norms(net).values())
    statistics.write()
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}


def test_modes_come_back_after_an_exception():
    net = network()
    with pytest.raises(RuntimeError), PooledStatistics(net):
        raise RuntimeError
    assert not any(layer.training for layer in net.modules())
    assert all(layer.momentum == 0.1 for layer in batch_norms(net).values())


def test_dropout_is_off_and_the_result_repeats():
    first, second = network(), network()
    torch.manual_seed(3)
    estimate(first, batches((4, 4)))
    torch.manual_seed(4)
    estimate(second, batches((4, 4)))
    assert same(first, second)


def test_momentum_mixes_two_distributions():
    net, images = network(), batches((6,))
    layer = net[1]
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    old_mean, old_var = layer.running_mean.double().clone(), layer.running_var.double().clone()
    statistics = PooledStatistics(net)
    with torch.no_grad(), statistics:
        net(images[0])
    mean, var = statistics.pooled(0)
    statistics.write(momentum=0.25)
    second_moment = 0.75 * (old_var + old_mean**2) + 0.25 * (var + mean**2)
    expected = 0.75 * old_mean + 0.25 * mean
    torch.testing.assert_close(layer.running_mean.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), second_moment - expected**2, rtol=1e-5, atol=1e-6)


def test_sums_are_buffers_and_can_be_continued():
    images = batches((4, 4))
    whole = estimate(network(), images)
    net = network()
    half = PooledStatistics(net)
    with torch.no_grad(), half:
        net(images[0])
    rest = PooledStatistics(net)
    rest.load_state_dict(half.state_dict())
    with torch.no_grad(), rest:
        net(images[1])
    assert same(whole, rest)


def test_no_image_changes_nothing():
    net = network()
    before = copy.deepcopy(net.state_dict())
    PooledStatistics(net).write()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def flags(net):
    return [(module.training, getattr(module, "track_running_stats", None)) for module in net.modules()]


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_own_statistics_of_the_batch_and_nothing_changes(mode):
    net, (images,) = network(), batches((4,))
    expected_of = copy.deepcopy(net)
    for layer in batch_norms(expected_of).values():
        layer.train()
    net.train(mode == "train")
    net[3].eval()  # dropout would draw
    net[5].train(mode != "eval")
    before, modes = copy.deepcopy(net.state_dict()), flags(net)
    buffers = {name: (value, value._version) for name, value in net.named_buffers()}
    with own_statistics(net):
        logits = net(images)
        assert not net[3].training
        logits.sum().backward()
    assert torch.equal(logits, expected_of(images))
    assert flags(net) == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(
        value is kept and value._version == version
        for (kept, version), value in zip(buffers.values(), net.buffers(), strict=True)
    )
    assert not torch.equal(logits, net.eval()(images))


def test_own_statistics_by_hand():
    net, (images,) = network(), batches((3,))
    with torch.no_grad(), own_statistics(net):
        entering = net[0](images)
        normal = net[1](entering)
    mean = entering.double().mean((0, 2, 3), keepdim=True)
    variance = entering.double().var((0, 2, 3), keepdim=True, correction=0)
    expected = (entering.double() - mean) / (variance + net[1].eps).sqrt()
    torch.testing.assert_close(normal.double(), expected, rtol=1e-4, atol=1e-5)


def test_own_statistics_nested_and_after_an_exception():
    net = network()
    net[1].train()
    before = flags(net)
    with pytest.raises(RuntimeError), own_statistics(net):
        with own_statistics(net):
            net(batches((2,))[0])
        assert all(layer.training and not layer.track_running_stats for layer in (net[1], net[5]))
        raise RuntimeError
    assert flags(net) == before


def test_own_statistics_leave_instance_norm_and_bare_layers_alone():
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)).eval()
    before = flags(net)
    with own_statistics(net):
        assert flags(net) == before
    assert flags(net) == before
