"""The temperature network: bounds, its start at 1, what it may not see, its optimiser's and its average's memory."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.engine.checkpoint import read_checkpoint, tensors_digest, write_checkpoint
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.methods.temperature_network import (
    LEAST,
    AveragedTemperature,
    MetaOptimizer,
    TemperatureNetwork,
    calibrated,
    temperature_statistics,
)


def shaken(classes=5, *, scale=1.0, seed=3, **options):
    """A network far from its start."""
    network = TemperatureNetwork(classes, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def some_logits(shape=(2, 5, 6, 7), *, seed=0, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(shape=(2, 5, 6, 7), *, seed=0):
    """Logits whose largest is unique with room: neighbours in float32 may become equal when they are divided."""
    ranks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).argsort(1).float()
    return 0.01 * ranks - 3


# The temperature


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("bound", [1.5, 3.0, 5.0])
@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize("inputs", ["log-probs", "centred"])
def test_temperatures_stay_within_the_bounds(classes, bound, width, inputs):
    kinds = {
        "large": 1e4 * torch.randn(2, classes, 4, 5).sign(),
        "constant": torch.full((2, classes, 4, 5), 7.0),
        "one pixel": torch.randn(2, classes, 1, 1),
    }
    for seed in range(3):
        network = shaken(classes, scale=10.0, seed=seed, bound=bound, width=width, inputs=inputs)
        for logits in kinds.values():
            temperatures = network(logits).detach()
            assert temperatures.shape == (2, 1, *logits.shape[2:])
            assert float(temperatures.min()) >= np.float32(1 / bound)
            assert float(temperatures.max()) <= np.float32(bound)


def test_softplus_has_a_floor_and_no_ceiling():
    network = TemperatureNetwork(3, form="softplus")
    raw = torch.tensor([-1e4, -100.0, -5.0, 0.0, 5.0, 29.0, 31.0, 100.0, 1e4])
    temperatures = network.temperature_of(raw).detach()
    offset = math.log(math.expm1(1 - LEAST))
    expected = LEAST + nn.functional.softplus(raw.double() + offset)
    torch.testing.assert_close(temperatures.double(), expected, rtol=1e-5, atol=0)
    assert float(temperatures.min()) >= np.float32(LEAST)
    steep = raw.clone().requires_grad_()
    network.log_temperature_of(steep).sum().backward()
    assert bool(steep.grad.isfinite().all())


@pytest.mark.parametrize("form", ["tanh", "softplus"])
@pytest.mark.parametrize("width", [0, 32])
def test_a_fresh_network_changes_no_bit(form, width):
    network = TemperatureNetwork(5, form=form, width=width)
    logits = some_logits(scale=20.0)
    assert torch.equal(network(logits), torch.ones(2, 1, 6, 7))
    assert torch.equal(network.log_temperature_of(network.raw(logits)), torch.zeros(2, 1, 6, 7))
    assert torch.equal(calibrated(logits, network(logits)).softmax(1), logits.softmax(1))


def test_the_log_temperature_is_that_of_the_formula():
    network = shaken(bound=4.0, width=6, scale=0.15).double()
    logits = some_logits(scale=2.0).double()
    x = logits.log_softmax(1)
    for layer in network.layers[:2]:
        x = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), layer.weight, layer.bias).relu()
    raw = nn.functional.conv2d(x, network.layers[2].weight, network.layers[2].bias) + network.level
    torch.testing.assert_close(network.raw(logits), raw)
    assert 0.1 < float(raw.detach().abs().median()) < 3
    torch.testing.assert_close(network(logits).log(), math.log(4) * raw.tanh())


def test_its_size_and_that_its_seed_alone_starts_it():
    assert sum(p.numel() for p in TemperatureNetwork(19).parameters()) == 14_786
    assert sum(p.numel() for p in TemperatureNetwork(19, width=0).parameters()) == 1
    before = torch.get_rng_state()
    one = TemperatureNetwork(5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert tensors_digest(TemperatureNetwork(5, seed=1).state_dict()) == tensors_digest(one.state_dict())
    assert tensors_digest(TemperatureNetwork(5, seed=2).state_dict()) != tensors_digest(one.state_dict())


def test_the_last_layer_learns_at_once_and_the_rest_from_the_second_step():
    network = TemperatureNetwork(5)
    optimizer = MetaOptimizer(network)
    start = copy.deepcopy(network.state_dict())
    moved = []
    for _ in range(2):
        optimizer.descend(network.log_temperature_of(network.raw(some_logits())), torch.ones(2, 1, 6, 7))
        moved.append({name for name, tensor in network.state_dict().items() if not torch.equal(tensor, start[name])})
    assert moved == [{"layers.2.weight", "layers.2.bias", "level"}, set(start)]


def test_the_level_is_the_same_for_all_pixels_and_has_a_rate_of_its_own():
    network = TemperatureNetwork(5)
    raised = copy.deepcopy(network)
    with torch.no_grad():
        raised.level.fill_(0.5)
    logits = some_logits()
    torch.testing.assert_close(raised(logits), torch.full((2, 1, 6, 7), 3.0 ** math.tanh(0.5)))
    for level_lr, moved in ((0.2, 0.2), (None, 1e-3)):
        again = copy.deepcopy(network)
        MetaOptimizer(again, lr=1e-3, level_lr=level_lr).descend(again.raw(logits), torch.ones(2, 1, 6, 7))
        assert float(again.level.detach()) == pytest.approx(
            -moved, rel=1e-4
        )  # Adam's first step is as long as its rate
        assert float(again.layers[2].bias.detach()) == pytest.approx(-1e-3, rel=1e-4)


@pytest.mark.parametrize("inputs", ["log-probs", "centred"])
def test_a_constant_added_to_a_pixels_logits_changes_nothing(inputs):
    network = shaken(scale=0.3, inputs=inputs).double()
    logits = some_logits().double()
    shift = 50 * torch.randn(2, 1, 6, 7, dtype=torch.float64)
    temperatures = network(logits).detach()
    assert float(temperatures.std()) > 0.1
    torch.testing.assert_close(network(logits + shift), temperatures)
    labels = calibrated(logits, temperatures).softmax(1)
    torch.testing.assert_close(calibrated(logits + shift, temperatures).softmax(1), labels)


def test_equal_logits_everywhere_have_one_temperature():
    logits = some_logits((1, 5, 1, 1)).expand(1, 5, 9, 11)
    temperatures = shaken(scale=0.3)(logits).detach()
    torch.testing.assert_close(temperatures, temperatures[..., :1, :1].expand_as(temperatures), rtol=1e-5, atol=0)
    assert abs(float(temperatures[0, 0, 0, 0]) - 1) > 0.05


def test_no_gradient_reaches_the_logits_through_the_network():
    logits = some_logits().requires_grad_()
    temperatures = shaken()(logits)
    temperatures.sum().backward()
    assert logits.grad is None


def test_half_precision_is_left_at_once():
    network = shaken(scale=0.3)
    logits = some_logits().bfloat16()
    expected = network(logits.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(logits), expected)
        assert calibrated(logits, expected).dtype == torch.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="5 classes"):
        TemperatureNetwork(5)(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="bound"):
        TemperatureNetwork(5, bound=1.0)
    with pytest.raises(ValueError, match="decay"):
        AveragedTemperature(TemperatureNetwork(5), decay=1.0)


# The labels


@pytest.mark.parametrize("seed", range(5))
def test_division_keeps_the_class(seed):
    logits = apart((3, 19, 16, 16), seed=seed)
    temperatures = torch.exp(torch.empty(3, 1, 16, 16).uniform_(-math.log(3), math.log(3)))
    labels = calibrated(logits, temperatures)
    assert torch.equal(labels.argmax(1), logits.argmax(1))
    assert torch.equal(labels.softmax(1).argmax(1), logits.argmax(1))
    torch.testing.assert_close(labels.softmax(1).sum(1), torch.ones(3, 16, 16))


def test_enlarged_first_and_divided_then_the_class_stays():
    native = apart((2, 7, 8, 8)) * 100
    geometry = Geometry(in_hw=(32, 32), out_hw=(32, 32), pad=(0, 0), stride=4, align_corners=False)
    network = shaken(7, scale=0.3)
    dense = upsample_logits(native, geometry)
    temperatures = network.temperature_of(upsample_logits(network.raw(native), geometry))
    room = dense.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 1e-3
    assert float(room.float().mean()) > 0.99
    same = calibrated(dense, temperatures).argmax(1) == dense.argmax(1)
    assert bool(same[room].all())
    coarse = upsample_logits(calibrated(native, network(native)), geometry)
    assert not torch.equal(coarse.argmax(1), dense.argmax(1))  # the other order does not keep it


def test_confidence_falls_and_entropy_rises_with_the_temperature():
    logits = apart().double() * 100
    labels = [calibrated(logits, torch.full((2, 1, 6, 7), t)).softmax(1) for t in (1e-3, 1 / 3, 0.7, 1.0, 1.8, 3.0)]
    for sharper, softer in itertools.pairwise(labels):
        assert bool((sharper.amax(1) > softer.amax(1)).all())
        entropies = [-(q * q.clamp_min(1e-300).log()).sum(1) for q in (sharper, softer)]
        assert bool((entropies[0] < entropies[1]).all())
    hard = nn.functional.one_hot(logits.argmax(1), 5).permute(0, 3, 1, 2).double()
    torch.testing.assert_close(labels[0], hard)


# The figures for the log


def test_statistics_of_temperatures():
    log_temperatures = torch.linspace(-1, 1, 1001, dtype=torch.float64) * math.log(3)
    told = temperature_statistics(log_temperatures.exp().view(1, 1, 7, 143), 3.0)
    assert told["q50"] == pytest.approx(1.0)
    assert told["q05"] == pytest.approx(3**-0.9)
    assert told["q95"] == pytest.approx(3**0.9)
    assert told["mean"] == pytest.approx((3 - 1 / 3) / (2 * math.log(3)), rel=1e-3)
    assert told["at_bound"] == pytest.approx(22 / 1001)  # |log T| of 0.98 log 3 and more, at both ends
    assert "at_bound" not in TemperatureNetwork(3, form="softplus").statistics(torch.ones(4))
    assert TemperatureNetwork(3).statistics(torch.ones(4))["at_bound"] == 0
    assert temperature_statistics(torch.ones(0), 3.0) == {}


# The optimiser


class Learner(nn.Module):
    """What a method has: the network, its optimiser, its average."""

    def __init__(self, *, rule="unit", seed=0):
        super().__init__()
        self.temperature = TemperatureNetwork(5, width=6, seed=seed)
        self.optimizer = MetaOptimizer(self.temperature, lr=1e-2, level_lr=3e-2, rule=rule)
        self.average = AveragedTemperature(self.temperature, decay=0.9)

    def learn(self, first, last):
        for step in range(first, last):
            logits = some_logits(seed=step)
            wish = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(100 + step))
            self.optimizer.descend(self.temperature.log_temperature_of(self.temperature.raw(logits)), wish)
            self.average.update(self.temperature)


FACTS = {
    "network": {"name": "none", "options": {}, "num_classes": 1},
    "classes": {"names": ["one"], "palette": [[0, 0, 0]]},
    "config": {},
}


def digest(module):
    return tensors_digest({name: t for name, t in module.state_dict().items() if torch.is_tensor(t)})


@pytest.mark.parametrize("broken_off", [0, 1, 4])
def test_a_run_goes_on_bit_for_bit_through_a_checkpoint(tmp_path, broken_off):
    whole, half, rest = Learner(), Learner(), Learner(seed=7)
    whole.learn(0, 8)
    half.learn(0, broken_off)
    write_checkpoint(tmp_path / "half.safetensors", {}, FACTS, {"method": dict(half.state_dict())})
    rest.load_state_dict(read_checkpoint(tmp_path / "half.safetensors").state["method"])
    rest.learn(broken_off, 8)
    assert digest(rest) == digest(whole)
    assert rest.average.updates == 8
    moments = [module.optimizer.get_extra_state()["moments"] for module in (rest, whole)]
    for one, other in zip(*(state.values() for state in moments), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_the_moments_it_would_go_on_differently():
    whole, rest = Learner(), Learner()
    whole.learn(0, 8)
    rest.learn(0, 4)
    rest.optimizer = MetaOptimizer(rest.temperature, lr=1e-2, level_lr=3e-2)
    rest.learn(4, 8)
    assert digest(rest) != digest(whole)


def test_a_copy_of_the_whole_learns_by_itself():
    one = Learner()
    one.learn(0, 2)
    other = copy.deepcopy(one)
    before = digest(one)
    other.learn(2, 3)
    assert digest(one) == before
    assert digest(other) != before
    one.learn(2, 3)
    assert digest(other) == digest(one)


@pytest.mark.parametrize("length", [1e-9, 0.5, 1e3])
def test_gradient_rules(length):
    """Adam's first moment after one step from rest is a tenth of the gradient that it got."""
    network = shaken(width=3)
    gradients = [torch.randn(p.shape) for p in network.parameters()]
    size = torch.cat([g.flatten() for g in gradients]).norm()
    gradients = [g * (length / size) for g in gradients]
    got = {}
    for rule in ("none", "unit", "clip"):
        optimizer = MetaOptimizer(copy.deepcopy(network), rule=rule)
        assert float(optimizer.step(gradients)) == pytest.approx(length, rel=1e-5)
        moments = [state["exp_avg"].flatten() for state in optimizer.get_extra_state()["moments"].values()]
        got[rule] = float(torch.cat(moments).norm()) * 10
    assert got == pytest.approx({"none": length, "unit": 1.0, "clip": min(length, 1.0)}, rel=1e-4)


@pytest.mark.parametrize("rule", ["none", "unit", "clip"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_no_gradient_or_a_broken_one_moves_nothing(rule, value):
    network = shaken(width=3)
    before = digest(network)
    optimizer = MetaOptimizer(network, rule=rule)
    optimizer.step([torch.full(p.shape, value) for p in network.parameters()])
    assert digest(network) == before
    assert all(bool(s["exp_avg"].isfinite().all()) for s in optimizer.get_extra_state()["moments"].values())


def test_it_is_adam_and_leaves_no_grad():
    network = shaken(width=3)
    twin = copy.deepcopy(network)
    optimizer, adam = MetaOptimizer(network, lr=1e-2, rule="none"), torch.optim.Adam(twin.parameters(), lr=1e-2)
    logits, wish = some_logits(), torch.randn(2, 1, 6, 7)
    for _ in range(3):
        optimizer.descend(network.log_temperature_of(network.raw(logits)), wish)
        adam.zero_grad()
        (twin.log_temperature_of(twin.raw(logits)) * wish).sum().backward()
        adam.step()
    assert digest(network) == digest(twin)
    assert all(parameter.grad is None for parameter in network.parameters())


# The average


def test_the_average_is_the_weighted_mean_of_the_steps():
    network = shaken(width=3).double()
    average = AveragedTemperature(network, decay=0.9)
    passed = []
    for seed in range(6):
        network.load_state_dict(shaken(width=3, seed=seed).double().state_dict())
        average.update(network)
        passed.append(torch.cat([p.detach().flatten() for p in network.parameters()]).clone())
        shares = torch.tensor([0.9 ** (seed - k) for k in range(seed + 1)], dtype=torch.float64)
        expected = (shares / shares.sum()) @ torch.stack(passed)
        torch.testing.assert_close(torch.cat([p.flatten() for p in average.network.parameters()]), expected)


def test_the_first_update_takes_the_network_as_it_is():
    network = shaken(width=3)
    average = AveragedTemperature(TemperatureNetwork(5, width=3))
    logits = some_logits()
    assert torch.equal(average(logits), torch.ones(2, 1, 6, 7))
    average.update(network)
    assert torch.equal(average(logits), network(logits))
    assert not average(logits).requires_grad
