"""DA-Cal on a network that stays as it is: what it finds, what it may not touch, and its calibrator."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from calseg_cli.data.loader import Batch
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.infer import predict
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.methods.dacal_calibrator import DACalCalibrator
from calseg_cli.methods.dacal_frozen import FrozenDACal, FrozenOptions
from calseg_cli.methods.temperature_learning import Learning
from calseg_cli.methods.temperature_network import TemperatureNetwork
from calseg_cli.networks.build import build_network

CLASSES, NOISE, PATCH = 3, 0.35, 2
PLAIN = StrongAugmentation(color=0.0, blur=0.0)


class Right(nn.Module):
    """Cells of 2x2 pixels whose colour tells the class through noise, and the posterior of it: calibrated by Bayes."""

    num_classes, stride, divisor, align_corners, name = CLASSES, PATCH, PATCH, False, "right"

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(3, affine=False)  # its running mean 0 and variance 1 change nothing
        self.head = nn.Conv2d(3, CLASSES, 1)
        variance = NOISE**2 / PATCH**2
        with torch.no_grad():
            self.head.weight.copy_(sharpness * torch.eye(CLASSES).view(CLASSES, 3, 1, 1) * 0.5 / variance)
            self.head.bias.zero_()
        self.eval()

    def features(self, images):
        return self.scale(nn.functional.avg_pool2d(images, PATCH))

    def forward(self, images):
        return self.head(self.features(images))


def images_of(generator, count=4, size=(24, 32)):
    """Images 0.25 + 0.5 onehot(class) + noise, and their labels (B,H,W); blocks of 4x4 cells show one class each."""
    block = 4 * PATCH
    labels = torch.randint(CLASSES, (count, size[0] // block, size[1] // block), generator=generator)
    labels = labels.repeat_interleave(block, 1).repeat_interleave(block, 2)
    clean = 0.25 + 0.5 * nn.functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2)
    return clean + NOISE * torch.randn(clean.shape, generator=generator), labels


def batch_of(step, **options):
    generator = torch.Generator().manual_seed(step)
    (source, labels), (target, _), (held, judging) = (images_of(generator, **options) for _ in range(3))
    ids = tuple("abcd")
    return Batch(step, source, labels, target, ids, ids, held_out_images=held, held_out_labels=judging)


def learned(network, *, steps=40, seed=0, learning=None, statistics="running", **options):
    frozen = FrozenDACal(
        network,
        FrozenOptions(
            learning=learning or Learning(width=0),
            augmentation=PLAIN,
            dtype="float32",
            statistics=statistics,
            **options,
        ),
        seed=seed,
    )
    for step in range(steps):
        frozen.step(batch_of(step))
    return frozen


def temperature(frozen):
    """The mean T of target cells."""
    logits = frozen.network(batch_of(99).target_images)
    return float(frozen.temperatures(logits).mean())


# What is found


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 2.0])
def test_the_temperature_is_that_which_makes_the_network_right(sharpness):
    """The logits of a network that is right by construction, times a number: T is that number, but for the sample."""
    found = temperature(learned(Right(sharpness), steps=25, learning=Learning(width=0, ridge=1e-3, level_lr=0.05)))
    assert found == pytest.approx(sharpness, rel=0.25)


def test_a_network_twice_as_sure_gets_a_higher_temperature():
    for learning in (Learning(width=0), Learning(lr=1e-3)):
        plain, sure = (temperature(learned(Right(s), steps=15, learning=learning)) for s in (1.0, 2.0))
        assert sure > plain * 1.05


@pytest.mark.parametrize("outer", ["held-out", "held-out+hard", "source", "source+hard"])
@pytest.mark.parametrize("mask", ["complementary", "same", "own"])
def test_every_outer_mix_is_learned_from(outer, mask):
    frozen = learned(Right(2.0), steps=2, outer=outer, mask=mask, strong=True, statistics="batch")
    assert temperature(frozen) != 1
    assert frozen.needs_held_out == outer.startswith("held-out")


@pytest.mark.parametrize("route", ["last-layer", "network"])
def test_the_routes_of_one_step_run(route):
    assert temperature(learned(Right(2.0), steps=2, learning=Learning(route=route, width=0))) != 1


def test_labels_of_images_that_judge_decide():
    """With labels turned round in the judging images the network is sure and wrong: T goes up, and not with theirs."""
    options = FrozenOptions(learning=Learning(width=0), augmentation=PLAIN, statistics="running")
    frozen = [FrozenDACal(Right(), options) for _ in range(2)]
    for step in range(10):
        batch = batch_of(step)
        frozen[0].step(batch)
        batch.held_out_labels = (batch.held_out_labels + 1) % CLASSES
        frozen[1].step(batch)
    assert temperature(frozen[1]) > temperature(frozen[0]) + 0.1


# The mixes


def test_each_pixel_of_the_source_and_of_the_target_is_where_it_belongs():
    frozen = FrozenDACal(Right(), FrozenOptions(augmentation=PLAIN))
    batch = batch_of(0)
    batch.source_labels[:, :6, :6] = 255
    seen = frozen._look(batch)
    inner, outer = frozen._inner(seen), frozen._outer(seen)
    pasted = seen.masks[:, 0, ::2, ::2]  # patches of the labels cover whole cells
    source = batch.source_labels[:, ::2, ::2]
    assert torch.equal(inner.labels, torch.where(pasted, source, torch.full_like(source, 255)))
    assert torch.equal(inner.weights > 0, ~pasted | (source != 255))
    judging = batch.held_out_labels[:, ::2, ::2]
    assert torch.equal(outer.labels, torch.where(pasted, torch.full_like(source, 255), judging))
    assert torch.equal(outer.weights > 0, ~pasted)
    shown = torch.where(seen.masks, batch.source_images, batch.target_images)
    torch.testing.assert_close(inner.features, frozen.network.features(shown))


def test_cells_of_the_padding_count_nothing():
    network = Right()
    network.divisor = 16
    frozen = FrozenDACal(network, FrozenOptions(augmentation=PLAIN, outer="held-out+hard"))
    seen = frozen._look(batch_of(0, size=(24, 40)))  # grid 16x24 after padding to 32x48, of which 12x20 is image
    for mix in (frozen._inner(seen), frozen._outer(seen)):
        assert mix.weights.shape == (4, 16, 24)
        assert not mix.weights[:, 12:].any()
        assert not mix.weights[:, :, 20:].any()
        assert (mix.labels[:, 12:] == 255).all()


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_target_is_labelled_as_predict_does_it(amp):
    network, batch = build_network("tiny", CLASSES, init="none", seed=0).eval(), batch_of(0)
    frozen = FrozenDACal(network, FrozenOptions(amp=amp))
    logits, _ = frozen._predicted(batch.target_images)
    samples = [("x", image[None], None, (24, 32)) for image in batch.target_images]
    expected = [one.logits for one in predict(network, samples, device=torch.device("cpu"), amp=amp)]
    assert all(torch.equal(found.half(), one) for found, one in zip(logits, expected, strict=True))


# What may not be touched


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_the_network_and_the_random_state_stay(statistics):
    network = build_network("tiny", CLASSES, init="none", seed=0).eval()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    for route in ("solved", "network"):
        learning = Learning(route=route, width=4)
        frozen = FrozenDACal(network, FrozenOptions(learning=learning, statistics=statistics))
        for step in range(2):
            frozen.step(batch_of(step))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_whose_statistics_are_used_matters_to_the_mixes_alone():
    networks = [build_network("tiny", CLASSES, init="none", seed=0).eval() for _ in range(2)]
    kinds = [
        FrozenDACal(network, FrozenOptions(statistics=statistics))
        for network, statistics in zip(networks, ("running", "batch"), strict=True)
    ]
    looks = [kind._look(batch_of(0)) for kind in kinds]
    assert torch.equal(looks[0].logits, looks[1].logits)
    features = []
    for kind, seen in zip(kinds, looks, strict=True):
        with kind._as_student():
            features.append(kind._inner(seen).features)
    assert not torch.allclose(*features)


def test_the_same_seed_gives_the_same_temperatures_and_another_seed_others():
    learning = Learning(width=4)
    one, again, other = (
        learned(Right(), steps=3, seed=seed, learning=learning).temperatures.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["level"], other["level"])


# What is refused


def test_a_network_that_ends_otherwise_needs_the_route_network():
    network = Right()
    network.head = nn.Conv2d(3, CLASSES, 3, padding=1)
    with pytest.raises(ConfigError, match="'right' does not end in a 1x1 convolution") as caught:
        FrozenDACal(network)
    assert "route: network" in caught.value.hint
    frozen = FrozenDACal(network, FrozenOptions(learning=Learning(route="network", width=0)))
    frozen.step(batch_of(0))


def test_images_of_different_size_are_refused():
    frozen, batch = FrozenDACal(Right()), batch_of(0)
    batch.held_out_images = batch.held_out_images[..., :16]
    with pytest.raises(DataError, match="24x16 and 24x32"):
        frozen.step(batch)


# The calibrator


def shaken(**options):
    network = TemperatureNetwork(CLASSES, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network.eval().requires_grad_(False)


def test_before_the_first_step_no_bit_changes():
    logits = torch.randn(CLASSES, 5, 6)
    assert torch.equal(DACalCalibrator(FrozenDACal(Right()).temperatures)(logits), logits)


@pytest.mark.parametrize("options", [{"width": 0}, {"width": 4, "bound": 5.0}, {"width": 8, "inputs": "centred"}])
def test_it_comes_back_with_its_shape(options):
    made = DACalCalibrator(shaken(**options), {"fitted_on": "target train, 5 images", "labels": "source"})
    again = DACalCalibrator.from_artifact(made.to_arrays(), made.facts())
    logits = 5 * torch.randn(CLASSES, 5, 6)
    assert torch.equal(again(logits), made(logits))
    assert torch.equal(made(logits), logits / made.network(logits[None])[0])
    assert again.describe() == made.describe()
    assert (again.facts(), again.oracle) == (made.facts(), False)


@pytest.mark.parametrize(
    ("arrays", "facts", "match"),
    [
        ({}, {"inputs": "pixels"}, "inputs 'pixels'"),
        ({}, {"inputs": None}, "inputs None"),
        ({"classes": np.array([4])}, {}, "its weights are for 3"),
        ({"classes": np.array([3.5])}, {}, "classes"),
        ({"bound": np.array([0.9])}, {}, "bound"),
        ({"first_weight": np.zeros((4, 3, 5, 5))}, {}, "not the weights of a temperature network"),
        ({"second_weight": np.zeros((5, 5, 3, 3))}, {}, "not the weights of a temperature network"),
        ({"last_bias": np.array([1e300])}, {}, "too large"),
    ],
)
def test_damaged_arrays_are_refused_in_one_line(arrays, facts, match):
    made = DACalCalibrator(shaken(width=4))
    with pytest.raises(ArtifactError, match=match) as caught:
        DACalCalibrator.from_artifact({**made.to_arrays(), **arrays}, {**made.facts(), **facts})
    assert "\n" not in caught.value.message
