"""The value net: its size and shape, what it taps, its warm-up, and that it learns what varies without moving else."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.checkpoint import tensors_digest
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.losses.soft_ece import class_conditional_ece, image_ece
from calseg_cli.methods.value_net import Tap, ValueNet, warm_up_statistics
from calseg_cli.methods.value_net_training import ExpectedError, Recipe, look, plain_numbers
from calseg_cli.metrics.agreement import ranks

PLAIN_IMAGES = Recipe(probability=0.0)


# The net (T16)


@pytest.mark.parametrize("pooling", ["average", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (4, 4), (9, 13)])
def test_any_map_becomes_one_number_between_0_and_1(pooling, size):
    net = ValueNet(6, pooling=pooling).eval()
    expected = net(torch.randn(3, 6, *size) * 3)
    assert expected.shape == (3,)
    assert bool(((expected > 0) & (expected < 1)).all())


def test_its_size_is_the_papers():
    assert sum(parameter.numel() for parameter in ValueNet(2048).parameters()) == 268_289
    bound = (6 / (2048 + 128)) ** 0.5
    weights = ValueNet(2048).reduce.weight.detach()
    assert 0.95 * bound < float(weights.abs().max()) <= bound


def test_it_is_the_function_that_is_described():
    """Against float64 by hand: batch norm, 1x1 convolution, means of a 4x4 grid, one linear unit, sigmoid."""
    torch.manual_seed(0)
    net = ValueNet(5, width=7).double().eval()
    net.norm.running_mean.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 5, 8, 12, dtype=torch.float64)
    x = (features - net.norm.running_mean[:, None, None]) / (net.norm.running_var[:, None, None] + 1e-5).sqrt()
    x = torch.einsum("oc,bchw->bohw", net.reduce.weight[:, :, 0, 0], x)
    x = x.reshape(2, 7, 4, 2, 4, 3).mean((3, 5)).flatten(1)
    expected = 1 / (1 + torch.exp(-(x @ net.linear.weight[0] + net.linear.bias)))
    torch.testing.assert_close(net(features), expected)


def test_bilinear_looks_at_points_and_average_at_all():
    torch.manual_seed(0)
    features = torch.zeros(1, 3, 16, 16)
    features[:, :, 0, 0] = 5.0  # bilinear from 16 to 4 reads rows 1 and 2 of each four
    for pooling, sees in (("average", True), ("bilinear", False)):
        net = ValueNet(3, pooling=pooling).eval()
        assert (net(features) != net(torch.zeros_like(features))).item() is sees


def test_features_of_another_width_are_refused():
    with pytest.raises(ConfigError, match="reads 6 channels"):
        ValueNet(6)(torch.zeros(1, 5, 4, 4))


# The tap


class TwoMaps(nn.Module):
    """An encoder of several maps and a head that writes into its input."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.forward = lambda images: [images, images[:, :2, ::2, ::2] * 2]
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, images):
        deepest = self.encoder(images)[-1]
        return self.head(deepest.zero_())


class Plugin(nn.Module):
    """As networks.plugin has them: the whole module as encoder, and the path of its head."""

    def __init__(self, head_path):
        super().__init__()
        self.name, self.head_path = "mine:net", head_path
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.__dict__["head"] = self.encoder[2]

    def forward(self, images):
        return self.encoder(images)


def test_the_deepest_map_is_kept_as_it_was():
    images = torch.rand(2, 3, 6, 8)
    network = TwoMaps()
    with Tap(network) as tap:
        network(images)
        torch.testing.assert_close(tap.features, images[:, :2, ::2, ::2] * 2)
        network(images * 2)
        torch.testing.assert_close(tap.features, images[:, :2, ::2, ::2] * 4)
        assert tap.features.dtype == torch.float32
        assert not tap.features.requires_grad
    network(images)
    torch.testing.assert_close(tap.features, images[:, :2, ::2, ::2] * 4)


def test_a_plugin_is_tapped_before_its_head():
    network = Plugin("2")
    images = torch.rand(1, 3, 5, 5)
    with Tap(network) as tap:
        network(images)
    torch.testing.assert_close(tap.features, F.relu(network.encoder[0](images)).detach())


@pytest.mark.parametrize("network", [Plugin(None), nn.Conv2d(3, 2, 1)])
def test_no_place_to_tap_is_said(network):
    with pytest.raises(ConfigError, match="features"):
        Tap(network)


def test_maps_that_are_no_maps_are_said():
    network = nn.Sequential()
    network.encoder = nn.Flatten()
    with Tap(network), pytest.raises(ConfigError, match=r"Tensor\(1, 12\)"):
        network.encoder(torch.zeros(1, 3, 2, 2))


def test_nothing_is_kept_before_the_first_pass(network):
    with Tap(network) as tap, pytest.raises(ValueError, match="not been asked"):
        _ = tap.features


# Warm-up (T19, T20)


def batches_of(order, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pool = [torch.randn(2, 6, 3, 4, generator=generator) * (n + 1) + n for n in range(5)]
    return [pool[n] for n in order]


def test_only_running_statistics_change():
    net = ValueNet(6)
    net.add_module("drop", nn.Dropout(0.5))
    net.linear.eval()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    for momentum in (None, 0.1):
        warm_up_statistics(net, batches_of(range(5)), momentum=momentum)
        changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
        assert {"norm.running_mean", "norm.running_var"} <= changed
        assert changed <= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert [module.training for module in net.modules()] == modes
        assert net.norm.momentum == 0.1
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.norm.running_mean.requires_grad


def test_without_momentum_they_are_the_true_mean_and_variance_in_any_order():
    first, second = ValueNet(6), ValueNet(6)
    second.load_state_dict(first.state_dict())
    warm_up_statistics(first, batches_of([0, 1, 2, 3, 4]))
    warm_up_statistics(second, batches_of([3, 0, 4, 2, 1]))
    everything = torch.cat(batches_of(range(5))).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(first.norm.running_mean.double(), everything.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.norm.running_var.double(), everything.var(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first.norm.running_mean, second.norm.running_mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(first.norm.running_var, second.norm.running_var, rtol=1e-6, atol=1e-7)


def test_with_momentum_they_move_by_that_share():
    net = ValueNet(6)
    (batch,) = batches_of([2])
    warm_up_statistics(net, [batch], momentum=0.3)
    torch.testing.assert_close(net.norm.running_mean, 0.3 * batch.mean((0, 2, 3)))


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_modes_come_back_after_an_error_too(momentum):
    net = ValueNet(6).train()
    with pytest.raises(DataError, match="single value a channel"):
        warm_up_statistics(net, [torch.zeros(1, 6, 1, 1)], momentum=momentum)
    assert net.training
    assert net.norm.training
    assert net.norm.momentum == 0.1


# What is learnt


class Sure(nn.Module):
    """Answers class 0 with probability 0.9 everywhere; its features are the image. Has norms whose buffers may move."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.stride, self.divisor, self.align_corners, self.name = 2, 1, 1, False, "sure"
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 2, 1)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.tensor([0.9 / 0.1, 1.0]).log()

    def forward(self, images):
        return self.head(self.encoder(images))


def sure_batch(step, size=8):
    """The brighter an image, the more of its pixels are of class 1, which the network never says."""
    generator = torch.Generator().manual_seed(step)
    brightness = torch.rand(size, 1, 1, 1, generator=generator)
    images = (brightness + 0.05 * torch.randn(size, 3, 12, 12, generator=generator)).clamp(0, 1)
    labels = (torch.rand(size, 12, 12, generator=generator) < 0.1 + 0.8 * brightness[:, 0]).long()
    return Batch(step, images, labels, None, (), ())


def learnt(recipe, steps=120, lr=3e-3):
    torch.manual_seed(0)
    frozen = Sure()
    method = ExpectedError(frozen, ValueNet(8, width=16), recipe)
    method.prepare(sure_batch(step) for step in range(10))
    optimizer = torch.optim.AdamW([p for group in method.parameter_groups() for p in group.parameters], lr=lr)
    for step in range(steps):
        method.train()
        optimizer.zero_grad()
        sum(method(sure_batch(step)).values()).backward()
        optimizer.step()
    return frozen, method


@pytest.mark.parametrize("loss", ["squared", "logit"])
@pytest.mark.parametrize("statistics", ["pooled", "batch"])
def test_it_learns_an_error_that_varies_and_the_network_stays(loss, statistics):
    """T17 and T18: rank correlation on new images, and a frozen network that is bit for bit what it was."""
    torch.manual_seed(0)
    before = tensors_digest(Sure().state_dict())
    frozen, method = learnt(Recipe(probability=0.0, loss=loss, statistics=statistics))
    assert tensors_digest(frozen.state_dict()) == before
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.training
    method.value_net.eval()
    seen = method.look(sure_batch(10_000, size=40))
    assert not seen.errors.requires_grad
    assert not seen.features.requires_grad
    with torch.no_grad():
        expected = method.value_net(seen.features)
    correlation = np.corrcoef(ranks(expected.double().numpy()), ranks(seen.errors.double().numpy()))[0, 1]
    assert correlation > 0.8


def test_its_memory_holds_no_frozen_network():
    method = ExpectedError(Sure(), ValueNet(8), Recipe())
    assert all(name.startswith(("network.", "value_net.")) or "." not in name for name in method.state_dict())
    trained = [p for group in method.parameter_groups() for p in group.parameters]
    assert {id(p) for p in trained} == {id(p) for p in method.value_net.parameters()}
    assert method.deployed() is method.value_net


def test_the_first_answer_is_the_mean_error():
    torch.manual_seed(0)
    method = ExpectedError(Sure(), ValueNet(8), PLAIN_IMAGES)
    batches = [sure_batch(step) for step in range(6)]
    method.prepare(batches)
    mean = torch.cat([method.look(batch).errors for batch in batches]).mean()
    torch.testing.assert_close(method.value_net.linear.bias.sigmoid()[0], mean, rtol=1e-5, atol=1e-6)


def test_pooled_statistics_stay_while_it_trains():
    _, method = learnt(PLAIN_IMAGES, steps=3)
    before = method.value_net.norm.running_mean.clone()
    method.train()
    method(sure_batch(0))
    assert torch.equal(before, method.value_net.norm.running_mean)
    _, other = learnt(Recipe(probability=0.0, statistics="batch"), steps=3)
    assert not torch.equal(before, other.value_net.norm.running_mean)


def test_plain_lines_are_least_squares_over_all_that_was_seen():
    _, method = learnt(PLAIN_IMAGES, steps=15)
    seen = [method.look(sure_batch(step)) for step in range(15)]
    errors, plain = torch.cat([s.errors for s in seen]).double(), torch.cat([s.plain for s in seen]).double()
    lines = method.plain_lines()
    assert lines["mean"] == pytest.approx((float(errors.mean()), 0.0), rel=1e-6)
    assert method.seen_range() == pytest.approx((float(errors.min()), float(errors.max())), rel=1e-6)
    # This network is equally sure of all images: a line through one point is flat.
    assert float(plain.std(0).max()) < 1e-6
    assert lines["entropy"] == pytest.approx((float(errors.mean()), 0.0), abs=1e-6)


def test_plain_lines_with_something_to_go_by():
    generator = np.random.default_rng(0)
    x, noise = generator.random(40), generator.normal(0, 0.01, 40)
    method = ExpectedError(Sure(), ValueNet(8), PLAIN_IMAGES)
    y = 0.02 + 0.3 * x + noise
    sums = torch.tensor([40, x.sum(), y.sum(), (x * x).sum(), (x * y).sum()], dtype=torch.float64)
    method.get_buffer("moments").copy_(sums.expand(2, 5))
    slope, offset = np.polyfit(x, y, 1)
    assert method.plain_lines()["doubt"] == pytest.approx((offset, slope), rel=1e-9)


def test_images_without_a_label_teach_nothing():
    torch.manual_seed(0)
    method = ExpectedError(Sure(), ValueNet(8), PLAIN_IMAGES)
    batch = sure_batch(0, size=3)
    bare = Batch(0, batch.source_images, torch.full_like(batch.source_labels, 255), None, (), ())
    method.prepare([bare])
    loss = method(bare)["squared"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert method.seen_range() == (0.0, 1.0)
    some = batch.source_labels.clone()
    some[1:] = 255
    method.eval()
    first = Batch(0, batch.source_images[:1], batch.source_labels[:1], None, (), ())
    torch.testing.assert_close(
        method(Batch(0, batch.source_images, some, None, (), ()))["squared"], method(first)["squared"]
    )


@pytest.mark.parametrize(("target", "measure"), [("image", image_ece), ("class", class_conditional_ece)])
def test_the_target_is_the_error_of_the_answers_at_the_labels_size(network, make_batch, target, measure):
    batch = make_batch()
    labels = batch.source_labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    network.eval()
    seen = look(network, batch.source_images, labels, target=target, bins=10, size=labels.shape[-2:])
    with torch.no_grad():
        logits = F.interpolate(network(batch.source_images), labels.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen.errors, measure(logits, labels))
    torch.testing.assert_close(seen.features, network.encoder(batch.source_images).detach())


def test_plain_numbers_are_entropy_and_doubt():
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    entropy = -(p * p.log()).sum(1).mean()
    expected = torch.stack([entropy, 1 - p.max(1).values.mean()]).float()[None]
    torch.testing.assert_close(plain_numbers(p.log().T.reshape(1, 3, 1, 2).float()), expected)
