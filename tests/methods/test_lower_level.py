"""The lower level, solved: against other solvers, and its derivative against differences and unrolled steps."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import nn

from calseg_cli.methods.hypergradient import covariance_gradient
from calseg_cli.methods.lower_level import (
    Regression,
    Whitening,
    conjugate_gradients,
    implicit_direction,
    outer_loss,
    solve,
)

PIXELS, FEATURES, CLASSES = 120, 5, 4
TIGHT = {"tolerance": 1e-11, "most": 60, "passes": 200}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_weights(count=PIXELS, *, seed=0):
    """In [0,1], a quarter of them 0."""
    generator = torch.Generator().manual_seed(100 + seed)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return drawn * (torch.rand(count, generator=generator) > 0.25)


def make(*, ridge=1e-2, seed=0, targets=None):
    """Correlated features of uneven scale, whitened; soft targets that features tell something of."""
    mixing = randn(FEATURES, FEATURES, seed=seed) * torch.logspace(-1, 1, FEATURES, dtype=torch.float64)
    plain = randn(PIXELS, FEATURES, seed=seed + 1) @ mixing + 3
    weights = some_weights(seed=seed)
    features = Whitening.of(plain, weights)(plain)
    if targets is None:
        truth = randn(CLASSES, FEATURES + 1, seed=seed + 2)
        targets = (features @ truth.T + randn(PIXELS, CLASSES, seed=seed + 3)).softmax(1)
    return Regression(features, targets, weights, 0.3 * randn(CLASSES, FEATURES + 1, seed=seed + 4), ridge)


def outer_of(problem, *, seed=0):
    """Other features with labels of their own, and the outer loss of a layer on them."""
    features = torch.cat([randn(60, FEATURES, seed=seed + 50), torch.ones(60, 1, dtype=torch.float64)], 1)
    targets = nn.functional.one_hot(randn(60, CLASSES, seed=seed + 51).argmax(1), CLASSES).double()
    return features, targets, some_weights(60, seed=seed + 52)


# Whitening


def test_whitened_features_are_uncorrelated_and_the_layer_gives_the_same_logits():
    plain = randn(400, FEATURES) @ randn(FEATURES, FEATURES, seed=1) * 7 + 3
    weights = some_weights(400)
    whiten = Whitening.of(plain, weights, damping=0.0)
    white = whiten(plain)
    second = (white * weights[:, None]).T @ white / weights.sum()
    torch.testing.assert_close(second, torch.eye(FEATURES + 1, dtype=torch.float64), atol=1e-9, rtol=0)
    for damping in (0.0, 1e-2, 1.0):
        whiten = Whitening.of(plain, weights, damping=damping)
        weight, bias = randn(CLASSES, FEATURES, seed=2), randn(CLASSES, seed=3)
        torch.testing.assert_close(whiten(plain) @ whiten.layer(weight, bias).T, plain @ weight.T + bias)
        covariance = np.cov(plain.T.numpy(), aweights=weights.numpy(), bias=True)
        level = damping * covariance.diagonal().mean()
        expected = torch.from_numpy(covariance + level * np.eye(FEATURES))
        torch.testing.assert_close(whiten.factor @ whiten.factor.T, expected)


def test_whitening_survives_what_is_degenerate():
    """A dead feature, one feature twice, the same pixel everywhere, no weight at all."""
    dead = randn(50, 3).float()
    dead[:, 1], dead[:, 2] = 0, dead[:, 0]
    one = torch.ones(50)
    for plain, weights in ((dead, one), (dead[:1].expand(50, 3), one), (dead, 0 * one), (1e4 * dead, one)):
        whiten = Whitening.of(plain, weights)
        assert bool(whiten(plain).isfinite().all())
        assert bool(whiten.layer(torch.ones(2, 3), torch.ones(2)).isfinite().all())


# The objective


def test_gradient_and_curvature_are_autograds():
    problem = make()
    layer = randn(CLASSES, FEATURES + 1, seed=9).requires_grad_()
    (expected,) = torch.autograd.grad(problem.loss(layer), layer, create_graph=True)
    gradient, probs = problem.gradient(layer.detach())
    torch.testing.assert_close(gradient, expected.detach())
    direction = randn(CLASSES, FEATURES + 1, seed=10)
    (bent,) = torch.autograd.grad((expected * direction).sum(), layer)
    torch.testing.assert_close(problem.curvature(probs, direction), bent)


def test_the_objective_is_the_weighted_mean_cross_entropy():
    problem = make(ridge=0.0)
    layer = randn(CLASSES, FEATURES + 1, seed=9)
    expected = nn.functional.cross_entropy(problem.features @ layer.T, problem.targets, reduction="none")
    torch.testing.assert_close(problem.loss(layer), (expected * problem.weights).sum() / problem.weights.sum())
    ridge = dataclasses.replace(problem, ridge=0.2)
    torch.testing.assert_close(ridge.loss(layer) - problem.loss(layer), 0.1 * (layer - problem.start).square().sum())


def test_conjugate_gradients_solve_the_linear_system():
    problem = make()
    _, probs = problem.gradient(problem.start)
    size = CLASSES * (FEATURES + 1)
    basis = torch.eye(size, dtype=torch.float64).view(size, CLASSES, FEATURES + 1)
    hessian = torch.stack([problem.curvature(probs, one).flatten() for one in basis], dim=1)
    torch.testing.assert_close(hessian, hessian.T)
    assert float(torch.linalg.eigvalsh(hessian).min()) >= problem.ridge * (1 - 1e-9)
    right = randn(CLASSES, FEATURES + 1, seed=11)
    found = conjugate_gradients(problem, probs, right, tolerance=1e-12, most=200)
    expected = torch.linalg.solve(hessian, right.flatten()).view_as(right)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    rough = conjugate_gradients(problem, probs, right, tolerance=1e-2)
    assert float((problem.curvature(probs, rough) - right).norm() / right.norm()) <= 1.01e-2
    assert not conjugate_gradients(problem, probs, 0 * right).any()


# The solution


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_solution_is_scipys(ridge, seed):
    problem = make(ridge=ridge, seed=seed)

    def objective(flat):
        layer = torch.from_numpy(flat).view_as(problem.start).requires_grad_()
        loss = problem.loss(layer)
        loss.backward()
        return float(loss.detach()), layer.grad.numpy().ravel()

    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-16, "gtol": 1e-10}
    found = minimize(objective, problem.start.numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    solution = solve(problem, **TIGHT)
    expected = torch.from_numpy(found.x).view_as(problem.start)
    torch.testing.assert_close(solution.layer, expected, rtol=1e-5, atol=1e-5)
    assert float(problem.loss(solution.layer)) <= found.fun + 1e-13
    torch.testing.assert_close(solution.probs, (problem.features @ solution.layer.T).softmax(1))


def test_the_solution_is_scikit_learns():
    """Hard labels and a ridge towards zero: plain logistic regression, its constant among the features."""
    problem = make(ridge=0.05)
    labels = problem.targets.argmax(1)
    hard = nn.functional.one_hot(labels, CLASSES).double()
    problem = dataclasses.replace(problem, targets=hard, start=torch.zeros_like(problem.start))
    strength = 1 / (problem.ridge * float(problem.total))
    model = LogisticRegression(C=strength, fit_intercept=False, tol=1e-10, max_iter=5000)
    model.fit(problem.features.numpy(), labels.numpy(), sample_weight=problem.weights.numpy())
    torch.testing.assert_close(solve(problem, **TIGHT).layer, torch.from_numpy(model.coef_), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("far", [1.0, 30.0])
def test_it_ends_below_where_it_began(seed, ridge, far):
    """Also from a start whose probabilities are all but hard, where plain Newton steps overshoot."""
    problem = make(ridge=ridge, seed=seed)
    problem = dataclasses.replace(problem, start=far * problem.start)
    solution = solve(problem)
    before, after = float(problem.loss(problem.start)), float(problem.loss(solution.layer))
    assert after < before or (after == before and ridge == 0 and far > 1)  # there no Newton step may be short enough
    gradient, _ = problem.gradient(solution.layer)
    assert solution.residual == pytest.approx(float(gradient.norm()))
    assert solution.steps <= 10


@pytest.mark.parametrize("seed", range(4))
def test_the_default_effort_comes_close(seed):
    problem = make(seed=seed)
    exact, rough = solve(problem, **TIGHT), solve(problem)
    first = float(problem.gradient(problem.start)[0].norm())
    assert rough.residual <= 1e-3 * first
    excess = float(problem.loss(rough.layer) - problem.loss(exact.layer))
    assert 0 <= excess + 1e-15 < 1e-4 * float(problem.loss(problem.start) - problem.loss(exact.layer))


def test_sharper_labels_make_a_sharper_layer():
    """What one small step does not give: between sharp and soft labels there is something to choose."""
    problem = make(ridge=1e-3)
    logits = problem.targets.log()
    confidences = []
    for temperature in (1 / 3, 1.0, 3.0):
        solved = solve(dataclasses.replace(problem, targets=(logits / temperature).softmax(1)), **TIGHT)
        confidences.append(float((solved.probs.amax(1) * problem.weights).sum()))
    assert confidences == sorted(confidences, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_that_cannot_be_told_wrong_do_not_run_away_with_a_ridge(dtype):
    problem = make(ridge=1e-3)
    separable = nn.functional.one_hot((problem.features[:, 0] > 0).long(), CLASSES)
    fields = {name: getattr(problem, name).to(dtype) for name in ("features", "weights", "start")}
    problem = Regression(**fields, targets=separable.to(dtype), ridge=1e-3)
    solution = solve(problem)
    assert bool(solution.layer.isfinite().all())
    assert float(problem.loss(solution.layer)) < float(problem.loss(problem.start))


def test_at_the_solution_there_is_nothing_to_do():
    problem = make()
    fitted = dataclasses.replace(problem, targets=(problem.features @ problem.start.T).softmax(1))
    solution = solve(fitted, tolerance=1e-3)
    torch.testing.assert_close(solution.layer, problem.start, rtol=0, atol=1e-12)
    nothing = dataclasses.replace(problem, weights=torch.zeros_like(problem.weights))
    assert torch.equal(solve(nothing).layer, problem.start)
    assert not implicit_direction(nothing, solve(nothing), torch.zeros_like(problem.start)).any()


def test_a_large_ridge_holds_it_where_it_is():
    problem = make(ridge=1e6)
    torch.testing.assert_close(solve(problem, **TIGHT).layer, problem.start, rtol=0, atol=1e-5)


def test_pixels_without_weight_do_not_matter():
    problem = make()
    silent = problem.weights == 0
    features, targets = problem.features.clone(), problem.targets.clone()
    features[silent] = 100 * randn(int(silent.sum()), FEATURES + 1)
    targets[silent] = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    changed = dataclasses.replace(problem, features=features, targets=targets)
    outer = randn(CLASSES, FEATURES + 1, seed=12)
    one, other = solve(problem), solve(changed)
    torch.testing.assert_close(one.layer, other.layer)
    directions = [implicit_direction(*pair, outer)[~silent] for pair in ((problem, one), (changed, other))]
    torch.testing.assert_close(*directions)
    plain = randn(PIXELS, FEATURES)
    else_where = torch.where(silent[:, None], 1e3, plain)
    mean = Whitening.of(plain, problem.weights), Whitening.of(else_where, problem.weights)
    torch.testing.assert_close(mean[0].factor, mean[1].factor)


def test_nothing_is_kept_for_autograd():
    problem = make()
    start = problem.start.requires_grad_()
    problem.targets.requires_grad_()
    solution = solve(problem)
    loss, gradient = outer_loss(solution.layer, *outer_of(problem))
    direction = implicit_direction(problem, solution, gradient)
    assert not any(tensor.requires_grad for tensor in (solution.layer, solution.probs, gradient, direction))
    assert start.grad is None
    assert isinstance(loss, float)


# The outer loss


def test_the_outer_loss_and_its_gradient_are_autograds():
    problem = make()
    features, targets, weights = outer_of(problem)
    layer = problem.start.clone().requires_grad_()
    expected = nn.functional.cross_entropy(features @ layer.T, targets, reduction="none")
    expected = (expected * weights).sum() / weights.sum()
    expected.backward()
    loss, gradient = outer_loss(layer.detach(), features, targets, weights)
    assert loss == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(gradient, layer.grad)


# The derivative (implicit function theorem)


def outer_gradient(problem, solution, outer):
    """By the implicit function theorem d outer / d target (N,C), centred over classes."""
    _, gradient = outer_loss(solution.layer, *outer)
    direction = implicit_direction(problem, solution, gradient, tolerance=1e-12)
    found = problem.weights[:, None] / problem.total * direction
    return found - found.mean(1, keepdim=True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_the_derivative_by_a_label_is_the_difference_of_solved_problems(seed, ridge):
    problem = make(ridge=ridge, seed=seed)
    outer = outer_of(problem, seed=seed)
    found = outer_gradient(problem, solve(problem, **TIGHT), outer)
    scale = float(found.abs().max())
    for pixel in range(0, PIXELS, 17):
        exchange = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64).roll(pixel % CLASSES)
        values = []
        for step in (1e-3, -1e-3):
            targets = problem.targets.clone()
            targets[pixel] += step * exchange
            moved = solve(dataclasses.replace(problem, targets=targets), **TIGHT)
            values.append(outer_loss(moved.layer, *outer)[0])
        measured = (values[0] - values[1]) / 2e-3
        assert float(found[pixel] @ exchange) == pytest.approx(measured, rel=1e-4, abs=1e-6 * scale)


def test_the_derivative_is_that_through_many_gradient_steps():
    problem = make(ridge=0.1)
    outer = features, targets, weights = outer_of(problem)
    labels = problem.targets.clone().requires_grad_()
    layer = problem.start
    for _ in range(400):
        probs = (problem.features @ layer.T).softmax(1)
        residual = (probs - labels) * problem.weights[:, None]
        layer = layer - (residual.T @ problem.features / problem.total + problem.ridge * (layer - problem.start))
    losses = nn.functional.cross_entropy(features @ layer.T, targets, reduction="none")
    ((losses * weights).sum() / weights.sum()).backward()
    expected = labels.grad - labels.grad.mean(1, keepdim=True)
    solution = solve(problem, **TIGHT)
    torch.testing.assert_close(solution.layer, layer.detach(), rtol=1e-7, atol=1e-9)
    found = outer_gradient(problem, solution, outer)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_derivative_by_a_temperature_is_the_difference_of_solved_problems(seed):
    """The whole chain: log T, labels, solved layer, outer loss; a direction in all pixels at once."""
    problem = make(seed=seed)
    logits, outer = 3 * randn(PIXELS, CLASSES, seed=seed + 20), outer_of(problem, seed=seed)
    log_temperatures, along = 0.4 * randn(PIXELS, 1, seed=seed + 21), randn(PIXELS, 1, seed=seed + 22)

    def solved(log_t):
        with_labels = dataclasses.replace(problem, targets=(logits / log_t.exp()).softmax(1))
        return with_labels, solve(with_labels, **TIGHT)

    values = [outer_loss(solved(log_temperatures + step * along)[1].layer, *outer)[0] for step in (1e-4, -1e-4)]
    labelled, solution = solved(log_temperatures)
    _, gradient = outer_loss(solution.layer, *outer)
    direction = implicit_direction(labelled, solution, gradient, tolerance=1e-12)
    found = covariance_gradient(direction, logits, log_temperatures.exp(), problem.weights, total=problem.total)
    assert float((found * along).sum()) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)
    assert not found[problem.weights == 0].any()


def test_the_default_effort_gives_the_derivative_to_a_few_per_cent():
    problem = make()
    outer = outer_of(problem)
    exact = outer_gradient(problem, solve(problem, **TIGHT), outer)
    solution = solve(problem)
    _, gradient = outer_loss(solution.layer, *outer)
    rough = problem.weights[:, None] / problem.total * implicit_direction(problem, solution, gradient)
    rough = rough - rough.mean(1, keepdim=True)
    assert float((rough - exact).norm() / exact.norm()) < 0.05
