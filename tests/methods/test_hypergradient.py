"""The hypergradient: every route against central differences of the whole two-level problem, in float64."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from calseg_cli.engine.checkpoint import tensors_digest
from calseg_cli.methods.hypergradient import (
    Level,
    covariance_gradient,
    finite_difference_direction,
    last_layer_direction,
    soft_cross_entropy,
)
from calseg_cli.methods.temperature_network import MetaOptimizer, TemperatureNetwork

CLASSES, SIZE = 4, (6, 5)


class Smooth(nn.Module):
    """Differentiable without a kink; the last layer is linear."""

    def __init__(self, norm=None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm or nn.GroupNorm(2, 6), nn.GELU())
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, images):
        return self.head(self.encoder(images))


class Problem:
    """Two levels, teacher logits, and a temperature network away from its start; all in `dtype`."""

    def __init__(self, *, dtype=torch.float64, step_size=0.3, seed=0, network=None):
        self.generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.step_size = step_size
        self.network = (network or Smooth()).to(dtype)
        self.temperature = TemperatureNetwork(CLASSES, width=4, seed=seed).to(dtype)
        with torch.no_grad():
            for parameter in self.temperature.parameters():
                parameter.copy_(0.2 * self.randn(*parameter.shape))
        self.teacher = 3 * self.randn(2, CLASSES, *SIZE)
        self.is_source = torch.rand(2, *SIZE, generator=self.generator) < 0.4
        self.truth = self.one_hot(self.randn(2, CLASSES, *SIZE))
        self.inner_images, self.outer_images = self.randn(2, 3, *SIZE), self.randn(2, 3, *SIZE)
        self.inner_weights, self.outer_weights = self.weights(), self.weights()
        self.outer_targets = self.one_hot(self.randn(2, CLASSES, *SIZE))

    def randn(self, *shape):
        dtype = next(self.network.parameters()).dtype
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def weights(self):
        """In [0,1], a quarter of them 0."""
        drawn = torch.rand(2, *SIZE, generator=self.generator)
        return (drawn * (torch.rand(2, *SIZE, generator=self.generator) > 0.25)).to(self.teacher.dtype)

    def one_hot(self, scores):
        return nn.functional.one_hot(scores.argmax(1), CLASSES).permute(0, 3, 1, 2).to(scores.dtype)

    def targets(self, temperatures):
        soft = (self.teacher / temperatures).softmax(1)
        return torch.where(self.is_source[:, None], self.truth, soft)

    def outer_loss(self, temperatures, names=None):
        """L_out(theta'(phi)) through one gradient step of the parameters in `names`, differentiable twice."""
        own = {name: p.detach() for name, p in self.network.named_parameters()}
        moving = {n: p.clone().requires_grad_() for n, p in own.items() if names is None or n in names}
        inner = functional_call(self.network, {**own, **moving}, (self.inner_images,))
        loss = soft_cross_entropy(inner, self.targets(temperatures), self.inner_weights)
        grads = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
        moved = {name: p - self.step_size * grad for (name, p), grad in zip(moving.items(), grads, strict=True)}
        outer = functional_call(self.network, {**own, **moved}, (self.outer_images,))
        return soft_cross_entropy(outer, self.outer_targets, self.outer_weights)

    def pixel_gradient(self, direction, temperatures):
        """Source pixels keep their label, so no temperature matters there."""
        return covariance_gradient(direction, self.teacher, temperatures, self.inner_weights * ~self.is_source)

    def levels(self, temperatures):
        return {
            "inner_targets": self.targets(temperatures).detach(),
            "inner_weights": self.inner_weights,
            "outer_targets": self.outer_targets,
            "outer_weights": self.outer_weights,
        }

    def last_layer(self, temperatures, **changed):
        with torch.no_grad():
            features = [self.network.encoder(images) for images in (self.inner_images, self.outer_images)]
        given = {**self.levels(temperatures), "step_size": self.step_size, **changed}
        return last_layer_direction(*features, self.network.head.weight, self.network.head.bias, **given)

    def whole_network(self, temperatures, **options):
        inner = Level(self.inner_images, self.targets(temperatures).detach(), self.inner_weights)
        outer = Level(self.outer_images, self.outer_targets, self.outer_weights)
        return finite_difference_direction(
            self.network, inner, outer, **{"step_size": self.step_size, "relative_size": 1e-5, **options}
        )


HEAD = ("head.weight", "head.bias")
ROUTES = {"last layer": (Problem.last_layer, HEAD), "whole network": (Problem.whole_network, None)}


def double_backward(problem, names):
    """The reference: d L_out / d log T by autograd through the step."""
    temperatures = problem.temperature(problem.teacher).detach()
    log_temperatures = temperatures.log().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.outer_loss(log_temperatures.exp(), names), log_temperatures)
    return gradient


# The routes (spec: exact closed form)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_network_learns_by_the_central_difference_of_the_whole_problem(route, seed):
    problem = Problem(seed=seed)
    directions, names = ROUTES[route]
    network = problem.temperature
    log_temperatures = network.log_temperature_of(network.raw(problem.teacher))
    temperatures = log_temperatures.detach().exp()
    pixels = problem.pixel_gradient(directions(problem, temperatures), temperatures)
    parameters = list(network.parameters())
    found = torch.cat([g.flatten() for g in torch.autograd.grad(log_temperatures, parameters, pixels)])

    start = torch.nn.utils.parameters_to_vector(parameters).detach()
    measured = torch.zeros_like(start)
    for number in range(0, len(start), 5):
        values = []
        for step in (1e-6, -1e-6):  # short: no ReLU of the temperature network may switch
            moved = start.clone()
            moved[number] += step
            torch.nn.utils.vector_to_parameters(moved, parameters)
            values.append(float(problem.outer_loss(network(problem.teacher).detach(), names).detach()))
        measured[number] = (values[0] - values[1]) / 2e-6
    chosen = slice(0, len(start), 5)
    scale = float(found.abs().max())
    assert scale > 0
    torch.testing.assert_close(found[chosen], measured[chosen], rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(("route", "rtol"), [("last layer", 1e-10), ("whole network", 1e-6)])
@pytest.mark.parametrize("seed", range(4))
def test_the_routes_equal_double_backward(route, rtol, seed):
    problem = Problem(seed=seed)
    directions, names = ROUTES[route]
    temperatures = problem.temperature(problem.teacher).detach()
    found = problem.pixel_gradient(directions(problem, temperatures), temperatures)
    expected = double_backward(problem, names)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def test_the_whole_network_reduced_to_its_head_is_the_last_layer():
    problem = Problem()
    problem.network.encoder.requires_grad_(False)
    problem.outer_targets[:, :, 0] = 0  # a target that is no distribution
    temperatures = problem.temperature(problem.teacher).detach()
    torch.testing.assert_close(problem.whole_network(temperatures), problem.last_layer(temperatures), rtol=1e-8, atol=0)


@pytest.mark.parametrize("relative_size", [1e-5, 1e-4])
def test_float32_and_relu_lose_little(relative_size):
    """One to four per cent are told for kinks; a sum over pixels, as the network learns from, loses less."""
    exact = Problem(network=Smooth())
    exact.network.encoder[2] = nn.ReLU()
    rough = Problem(network=copy.deepcopy(exact.network), dtype=torch.float32)
    for name in ("teacher", "inner_images", "outer_images", "inner_weights", "outer_weights", "outer_targets", "truth"):
        setattr(rough, name, getattr(exact, name).float())
    rough.is_source = exact.is_source
    ones = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    expected = exact.whole_network(ones, relative_size=1e-9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rough.whole_network(ones.float(), relative_size=relative_size)
    assert found.dtype == torch.float32
    assert float((found.double() - expected).norm() / expected.norm()) < 0.1


def test_the_last_layer_takes_pixels_maps_and_no_bias():
    problem = Problem()
    temperatures = problem.temperature(problem.teacher).detach()
    maps = problem.last_layer(temperatures)
    with torch.no_grad():
        inner, outer = (rows(problem.network.encoder(x)) for x in (problem.inner_images, problem.outer_images))
    head = problem.network.head
    flattened = {n: rows(x) if x.ndim == 4 else x.flatten() for n, x in problem.levels(temperatures).items()}
    given = {**flattened, "step_size": problem.step_size}
    flat = last_layer_direction(inner, outer, head.weight.flatten(1), head.bias, **given)
    torch.testing.assert_close(flat, rows(maps), rtol=1e-12, atol=1e-15)
    ones = torch.cat([inner, torch.ones(len(inner), 1)], 1), torch.cat([outer, torch.ones(len(outer), 1)], 1)
    layer = torch.cat([head.weight.flatten(1), head.bias[:, None]], 1)
    torch.testing.assert_close(last_layer_direction(*ones, layer, None, **given), flat, rtol=1e-12, atol=1e-15)


def rows(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def test_logits_may_be_taken_on_another_grid():
    class Coarse(Smooth):
        def forward(self, images):
            return super().forward(images)[..., ::2, ::2]

    problem = Problem(network=Coarse())
    temperatures = problem.temperature(problem.teacher).detach()
    own = problem.network.forward

    def enlarged(images):
        return nn.functional.interpolate(own(images), size=SIZE, mode="bilinear")

    found = problem.whole_network(temperatures, logits_of=lambda _, images: enlarged(images))
    assert found.shape == problem.teacher.shape
    problem.network.forward = enlarged
    expected = double_backward(problem, None)
    torch.testing.assert_close(problem.pixel_gradient(found, temperatures), expected, rtol=1e-6, atol=1e-10)


# The covariance


@pytest.mark.parametrize("pixels", [False, True])
def test_the_covariance_is_the_derivative_of_the_labels(pixels):
    problem = Problem()
    u, z, weights = problem.randn(2, CLASSES, *SIZE), problem.teacher * 30, problem.weights()
    log_temperatures = (0.5 * problem.randn(2, 1, *SIZE)).requires_grad_()
    labels = (z / log_temperatures.exp()).softmax(1)
    ((labels * u).sum(1) * weights / weights.numel()).sum().backward()
    expected, temperatures = log_temperatures.grad, log_temperatures.detach().exp()
    if pixels:
        u, z, temperatures, expected, weights = *map(rows, (u, z, temperatures, expected)), weights.flatten()
    found = covariance_gradient(u, z, temperatures, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-16)
    scaled = covariance_gradient(u, z, temperatures, weights, total=weights.sum())
    torch.testing.assert_close(scaled * weights.sum(), found * weights.numel())


def test_where_sharp_labels_would_raise_the_outer_loss_they_become_softer():
    z = Problem().teacher
    ones = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    assert bool((covariance_gradient(0.1 * z, z, ones, ones[:, 0]) < 0).all())  # descent raises T
    assert bool((covariance_gradient(-0.1 * z, z, ones, ones[:, 0]) > 0).all())


def test_a_constant_over_classes_changes_nothing():
    problem = Problem()
    u, ones = problem.randn(2, CLASSES, *SIZE), torch.ones(2, 1, *SIZE, dtype=torch.float64)
    found = covariance_gradient(u, problem.teacher, ones, problem.inner_weights)
    shifted = covariance_gradient(u + problem.randn(2, 1, *SIZE), problem.teacher + 7, ones, problem.inner_weights)
    torch.testing.assert_close(found, shifted)


def test_extreme_logits_give_finite_gradients():
    z = 1e4 * torch.randn(3, 2, 4, 4)
    found = covariance_gradient(torch.randn_like(z), z, torch.full((3, 1, 4, 4), 1 / 3), torch.ones(3, 4, 4))
    assert bool(found.isfinite().all())


def test_temperatures_must_have_one_class():
    with pytest.raises(ValueError, match="do not fit"):
        covariance_gradient(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4), torch.ones(2, 4, 4))


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_comes_from_pixels_without_weight(route):
    problem = Problem()
    temperatures = problem.temperature(problem.teacher).detach()
    direction = ROUTES[route][0](problem, temperatures)
    gradient = problem.pixel_gradient(direction, temperatures)
    silent = (problem.inner_weights == 0) | problem.is_source
    assert not gradient[silent[:, None]].any()
    assert bool(gradient[~silent[:, None]].all())
    # Nor does it matter what the labels are where the weight is 0, on either level.
    for weights, targets in ((problem.inner_weights, problem.truth), (problem.outer_weights, problem.outer_targets)):
        targets[(weights == 0)[:, None].expand_as(targets)] = 0.25
    problem.teacher[(problem.inner_weights == 0)[:, None].expand_as(problem.teacher)] = 0.0
    again = problem.pixel_gradient(ROUTES[route][0](problem, temperatures), temperatures)
    torch.testing.assert_close(again, gradient, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("route", ROUTES)
def test_with_source_alone_there_is_nothing_to_learn(route):
    problem = Problem()
    problem.is_source[:] = True
    temperatures = problem.temperature(problem.teacher).detach()
    assert not problem.pixel_gradient(ROUTES[route][0](problem, temperatures), temperatures).any()


def test_linear_in_the_weight():
    problem = Problem()
    u, ones = problem.randn(2, CLASSES, *SIZE), torch.ones(2, 1, *SIZE, dtype=torch.float64)
    one, two = problem.weights(), problem.weights()
    parts = [covariance_gradient(u, problem.teacher, ones, w) for w in (one, two, one + 3 * two)]
    torch.testing.assert_close(parts[2], parts[0] + 3 * parts[1])


@pytest.mark.parametrize("route", ROUTES)
def test_step_size(route):
    """None: nothing. A short one: in proportion to it."""
    problem = Problem()
    directions = ROUTES[route][0]
    temperatures = problem.temperature(problem.teacher).detach()
    assert not directions(problem, temperatures, step_size=0.0).any()
    short, double = (directions(problem, temperatures, step_size=size) for size in (1e-6, 2e-6))
    torch.testing.assert_close(double, 2 * short, rtol=1e-4, atol=1e-5 * float(double.abs().max()))


def test_an_outer_loss_of_no_weight_has_no_direction():
    problem = Problem()
    problem.outer_weights[:] = 0
    ones = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    for directions, _ in ROUTES.values():
        assert not directions(problem, ones).any()


# The loss


def test_soft_cross_entropy_is_torchs_and_its_gradient_is_p_minus_q():
    problem = Problem()
    logits = problem.randn(2, CLASSES, *SIZE).requires_grad_()
    targets = problem.teacher.softmax(1)
    weights = problem.inner_weights
    loss = soft_cross_entropy(logits, targets, weights)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none") * weights
    torch.testing.assert_close(loss, expected.sum() / weights.numel())
    (gradient,) = torch.autograd.grad(loss, logits)
    by_hand = weights[:, None] * (logits.detach().softmax(1) - targets) / weights.numel()
    torch.testing.assert_close(gradient, by_hand)
    flat = soft_cross_entropy(rows(logits), rows(targets), weights.flatten())
    torch.testing.assert_close(flat, loss)
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            soft_cross_entropy(half, targets, weights), soft_cross_entropy(half.float(), targets, weights)
        )


def test_soft_labels_are_the_mean_of_labels_drawn_from_them():
    problem = Problem()
    logits, targets = problem.randn(1, CLASSES, 1, 1), problem.teacher[:1, :, :1, :1].softmax(1)
    weights = torch.ones(1, 1, 1, dtype=torch.float64)
    torch.manual_seed(0)
    drawn = torch.multinomial(targets.flatten(), 40_000, replacement=True)
    hard = nn.functional.cross_entropy(logits.flatten().expand(len(drawn), -1), drawn, reduction="none")
    error = float(hard.std()) / math.sqrt(len(drawn))
    assert abs(float(hard.mean() - soft_cross_entropy(logits, targets, weights))) < 4 * error


# What a meta-step leaves alone


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("training", [True, False])
def test_the_meta_step_leaves_everything_else_as_it_was(route, training):
    layers = nn.Sequential(nn.BatchNorm2d(6), nn.Dropout2d(0.5))
    problem = Problem(network=Smooth(layers), dtype=torch.float32)
    network = problem.network.train(training)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    if route == "last layer":
        network.eval()  # the caller's own features are its own affair
    before = everything(network)
    meta = MetaOptimizer(problem.temperature)
    log_temperatures = problem.temperature.log_temperature_of(problem.temperature.raw(problem.teacher))
    temperatures = log_temperatures.detach().exp()
    direction = ROUTES[route][0](problem, temperatures)
    start = tensors_digest(problem.temperature.state_dict())
    meta.descend(log_temperatures, problem.pixel_gradient(direction, temperatures))
    assert everything(network) == before
    assert tensors_digest(problem.temperature.state_dict()) != start
    assert not direction.requires_grad


def everything(network):
    grads = {f"{name}.grad": p.grad for name, p in network.named_parameters()}
    digest = tensors_digest({**network.state_dict(), **grads, "random": torch.get_rng_state()})
    modes = [module.training for module in network.modules()]
    flags = [parameter.requires_grad for parameter in network.parameters()]
    return digest, modes, flags


def test_random_layers_draw_the_same_for_both_ends_of_the_difference():
    """Otherwise the difference of two dropout masks, divided by a tiny length, would drown the answer."""
    problem = Problem(network=Smooth(nn.Dropout2d(0.5)))
    problem.network.train()
    ones = torch.ones(2, 1, *SIZE, dtype=torch.float64)
    torch.manual_seed(5)
    one = problem.whole_network(ones, relative_size=1e-5)
    torch.manual_seed(5)
    other = problem.whole_network(ones, relative_size=1e-6)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert float(one.abs().max()) < 1
