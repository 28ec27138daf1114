"""Every other calibrator: vector scaling against scipy, Meta-Cal and PseudoCal against brute force, what all owe."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.methods.aligned_quantiles import pooled_anchors, quantile_table
from calseg_cli.methods.balanced_prediction import BalancedPrediction
from calseg_cli.methods.calibrators import BALANCING, CALIBRATORS, FOR_TARGET, LABEL_FREE
from calseg_cli.methods.dacal_calibrator import DACalCalibrator
from calseg_cli.methods.local_temperature import LocalTemperature, TemperatureTree, train_tree
from calseg_cli.methods.logit_adjustment import LogitAdjustment
from calseg_cli.methods.metacal import BINS, EntropyCounts, MetaCal, count_entropies, entropy_steps, fit_metacal
from calseg_cli.methods.pseudocal import PseudoCal, mixed, mixed_label, mixing_pairs
from calseg_cli.methods.scenes import Scene
from calseg_cli.methods.selective_scaling import (
    SelectiveScaling,
    fit_wrong_temperature,
    new_judge,
    train_judge,
)
from calseg_cli.methods.temperature import Temperature, find_temperature, fit_temperature, sums_at
from calseg_cli.methods.temperature_network import TemperatureNetwork
from calseg_cli.methods.vector_scaling import VectorScaling, VectorSums, find_vector, fit_vector, vector_sums
from calseg_cli.metrics.grid import bilinear_grid
from calseg_cli.metrics.logit_histograms import count_logits

CLASSES = 4


def scene(number, *, classes=CLASSES, void=True, sharp=2.5):
    """An image whose labels follow its own logits, softened; some pixels are void."""
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(classes, 6, 8, generator=generator) * sharp
    grid = bilinear_grid((6, 8), (24, 32))
    full = torch.nn.functional.interpolate(logits[None], size=(24, 32), mode="bilinear")[0]
    p = (full / 1.6).softmax(dim=0).flatten(1).T
    label = torch.multinomial(p, 1, generator=generator).reshape(24, 32)
    if void:
        label[torch.rand(24, 32, generator=generator) < 0.1] = 255
    image = torch.rand(3, 24, 32, generator=generator)
    return Scene(f"street/{number}", logits, label.to(torch.uint8), lambda placed: (placed, grid), image=image)


def scenes():
    return [scene(number) for number in range(4)]


def pixels(several=None):
    """All labelled pixels of the scenes: logits (N,C) float64 and labels (N,)."""
    pairs = [block for one in several or scenes() for block in one.blocks()]
    return torch.cat([z for z, _ in pairs], dim=1).double().numpy().T, torch.cat([y for _, y in pairs]).numpy()


def mean_loss(z, y):
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y]))


def temperatures():
    """A temperature network that is not at its start."""
    network = TemperatureNetwork(CLASSES, width=4).requires_grad_(False)
    network.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    network.level.fill_(0.3)
    return network


def offsets():
    """A table by the scenes' labels."""
    z, y = pixels()
    cells = count_logits(torch.from_numpy(z.T.copy()), torch.from_numpy(y))
    return quantile_table(cells, pooled_anchors(cells))


MADE = {
    "temperature": lambda: Temperature(1.7),
    "pseudocal": lambda: PseudoCal(0.8),
    "vector": lambda: VectorScaling(np.linspace(0.5, 1.5, CLASSES), np.linspace(-1, 1, CLASSES)),
    "meta": lambda: MetaCal(40000, 1.3),
    "selective": lambda: SelectiveScaling(train_judge(scenes, epochs=1, lr=1e-2, seed=0), 5.0),
    "local": lambda: LocalTemperature(TemperatureTree(CLASSES, seed=3).requires_grad_(False)),
    "dacal": lambda: DACalCalibrator(temperatures()),
    "blda": lambda: BalancedPrediction(offsets(), 0.6),
    "logit-adjustment": lambda: LogitAdjustment(np.array([0.5, 0.3, 0.2, 0.0]), 0.6),
}


# What all of them owe


def test_every_calibrator_is_made_here():
    assert set(MADE) == set(CALIBRATORS)
    assert set(CALIBRATORS) >= FOR_TARGET > LABEL_FREE | BALANCING


@pytest.mark.parametrize("name", MADE)
def test_it_comes_back_from_its_arrays(name):
    made = MADE[name]()
    assert made.kind == "calibrator"
    again = CALIBRATORS[name].from_artifact(made.to_arrays(), made.facts())
    one = scene(9)
    assert torch.equal(again(one.logits, one.image), made(one.logits, one.image))
    assert again.facts() == made.facts()
    assert again.facts()["method"] == name
    assert again.describe() == made.describe()
    assert "\n" not in made.describe()


@pytest.mark.parametrize("name", MADE)
def test_the_result_is_finite_float32_of_the_same_shape(name):
    one = scene(9)
    before = one.logits.clone()
    after = MADE[name]()(one.logits, one.image)
    assert after.shape == one.logits.shape
    assert after.dtype == torch.float32
    assert torch.isfinite(after).all()
    assert torch.equal(one.logits, before)
    assert not after.requires_grad


@pytest.mark.parametrize("name", [name for name, kind in CALIBRATORS.items() if kind.keeps_argmax])
def test_the_class_of_every_cell_is_kept(name):
    made = MADE[name]()
    for number in range(5):
        one = scene(number, sharp=8.0)
        after = made(one.logits, one.image)
        assert torch.equal(after.argmax(0), one.logits.argmax(0))
        assert not torch.equal(after, one.logits) or name == "selective"


def test_only_those_that_promise_it_keep_the_class():
    assert {name for name, kind in CALIBRATORS.items() if kind.keeps_argmax} == {
        "temperature", "pseudocal", "local", "selective", "dacal"
    }  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_broken_arrays_are_refused_in_one_line(name):
    made = MADE[name]()
    for key, array in made.to_arrays().items():
        for broken in (None, array[:0], np.full(array.shape, np.nan), array[None], np.array(["a"])):
            arrays = {**made.to_arrays(), key: broken}
            if broken is None:
                del arrays[key]
            with pytest.raises(ArtifactError) as caught:
                CALIBRATORS[name].from_artifact(arrays, made.facts())
            assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["vector", "selective", "local", "dacal", "blda", "logit-adjustment"])
def test_another_number_of_classes_is_refused(name):
    with pytest.raises(ArtifactError, match="classes"):
        MADE[name]()(torch.zeros(CLASSES + 1, 6, 8), torch.zeros(3, 24, 32))


FITS = {
    "vector": lambda given: fit_vector(given, 1e-3),
    "meta": lambda given: fit_metacal(given, miscoverage=0.1, target_accuracy=None),
    "selective": lambda given: train_judge(given, epochs=1, lr=1e-3, seed=0),
    "local": lambda given: train_tree(given, positive="softplus", epochs=1, lr=1e-3, seed=0),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=list(FITS))
def test_void_everywhere_and_no_image_are_refused(fit):
    void = scene(0)
    void.label.fill_(255)
    with pytest.raises(DataError, match="no pixel"):
        fit(lambda: [void])
    with pytest.raises(DataError, match="no image"):
        fit(list)


@pytest.mark.parametrize("fit", FITS.values(), ids=list(FITS))
def test_nan_is_refused_with_the_images_name(fit):
    broken = scene(3)
    broken.logits[0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="street/3"):
        fit(lambda: [scene(0), broken])


# Vector scaling


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_vector_is_scipys(penalty):
    z, y = pixels()

    def objective(at):
        w, b = at[:CLASSES], at[CLASSES:]
        return mean_loss(z * w + b, y) + penalty * (np.sum((w - 1) ** 2) + np.sum(b**2)) / 2

    best = minimize(objective, np.r_[np.ones(CLASSES), np.zeros(CLASSES)], method="BFGS", options={"gtol": 1e-8})
    found = fit_vector(scenes, penalty)
    np.testing.assert_allclose(np.r_[found.weights, found.offsets], best.x, atol=2e-5)
    assert objective(np.r_[found.weights, found.offsets]) <= best.fun + 1e-12
    assert found.pixels == len(y)
    assert found.nll == pytest.approx(mean_loss(z * found.weights + found.offsets, y), rel=1e-10)


def test_the_gradient_and_the_hessian_are_those_of_the_loss():
    z, y = pixels()
    logits, labels = torch.from_numpy(z.T[:, :300].copy()), torch.from_numpy(y[:300])
    generator = np.random.default_rng(0)
    at, h = generator.normal(1, 0.3, 2 * CLASSES), 1e-5
    here = vector_sums(at[:CLASSES], at[CLASSES:], logits, labels)
    for place in range(2 * CLASSES):
        step = np.zeros(2 * CLASSES)
        step[place] = h
        low, high = (vector_sums(x[:CLASSES], x[CLASSES:], logits, labels) for x in (at - step, at + step))
        assert here.gradient[place] == pytest.approx((high.loss - low.loss) / (2 * h), rel=1e-5, abs=1e-5)
        np.testing.assert_allclose(here.hessian[place], (high.gradient - low.gradient) / (2 * h), rtol=1e-4, atol=1e-4)


def test_vector_sums_of_parts_add_up():
    z, y = pixels()
    logits, labels = torch.from_numpy(z.T.copy()), torch.from_numpy(y)
    w, b = np.full(CLASSES, 1.1), np.arange(CLASSES) * 0.1
    whole = vector_sums(w, b, logits, labels)
    parts = [vector_sums(w, b, logits[:, first::3], labels[first::3]) for first in (2, 0, 1)]
    total = parts[0] + parts[1] + parts[2]
    assert isinstance(total, VectorSums)
    assert total.pixels == whole.pixels
    for name in ("loss", "gradient", "hessian"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-10, atol=1e-9)


def test_a_class_that_no_pixel_has_and_separable_data_get_finite_numbers():
    labels = torch.arange(60) % 2
    logits = torch.nn.functional.one_hot(labels, 3).T.float() * 9
    found = find_vector(lambda w, b: vector_sums(w, b, logits, labels), 3, 1e-4)
    assert np.isfinite(found.weights).all()
    assert np.isfinite(found.offsets).all()
    assert found.offsets[2] < 0
    assert found.nll < mean_loss(logits.numpy().T, labels.numpy())


def test_a_great_penalty_changes_nothing():
    found = fit_vector(scenes, 1e6)
    np.testing.assert_allclose(found.weights, 1, atol=1e-5)
    np.testing.assert_allclose(found.offsets, 0, atol=1e-5)


def test_scaling_before_or_after_the_enlargement_is_the_same():
    made, one = MADE["vector"](), scene(2)
    _, grid = one.lay(one.logits)
    from calseg_cli.metrics.grid import enlarge

    torch.testing.assert_close(enlarge(made(one.logits), grid), made(enlarge(one.logits, grid)), atol=1e-5, rtol=1e-5)


# Meta-Cal


def entropies(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1) / np.log(z.shape[1])


def test_the_entropy_is_that_of_the_softmax():
    z, _ = pixels()
    steps = entropy_steps(torch.from_numpy(z.T.copy())).numpy()
    assert np.abs(steps - entropies(z) * BINS).max() <= 1.0001
    assert entropy_steps(torch.zeros(3, 1)).tolist() == [BINS - 1]
    assert entropy_steps(torch.tensor([[1000.0], [0.0]])).tolist() == [0]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_threshold_of_miscoverage_is_that_of_sorting(share):
    z, y = pixels()
    found = count_entropies(scenes).steps_for_miscoverage(share)
    right = np.sort(entropies(z)[z.argmax(axis=1) == y])[::-1]
    allowed = int(np.floor(share * len(right) + 1e-9))
    rejected = int(np.sum(right * BINS >= found))
    assert rejected <= allowed
    if allowed < len(right):  # one step lower would reject too many
        assert np.sum(right * BINS >= found - 1 - 1e-6) > allowed
    else:
        assert found == 0


@pytest.mark.parametrize("target", [0.75, 0.9])
def test_the_threshold_of_accuracy_is_that_of_sorting(target):
    z, y = pixels()
    found = count_entropies(scenes).steps_for_accuracy(target)
    steps = np.minimum((entropies(z) * BINS).astype(int), BINS - 1)
    right = z.argmax(axis=1) == y
    assert right[steps < found].mean() >= target - 1e-4
    for more in range(found + 1, BINS + 1, 997):
        assert right[steps < more].mean() < target + 1e-4


def test_an_accuracy_out_of_reach_is_refused():
    wrong = np.zeros(BINS, np.int64)
    wrong[0] = 1
    with pytest.raises(DataError, match="accuracy"):
        EntropyCounts(np.zeros(BINS, np.int64), wrong).steps_for_accuracy(0.5)


def test_metacal_fits_the_temperature_on_what_it_keeps():
    z, y = pixels()
    found = fit_metacal(scenes, miscoverage=0.2, target_accuracy=None)
    steps = entropy_steps(torch.from_numpy(z.T.copy())).numpy()
    kept = steps < found.steps
    expected = find_temperature(lambda beta: sums_at(beta, torch.from_numpy(z[kept].T), torch.from_numpy(y[kept])))
    right = z.argmax(axis=1) == y
    assert found.fit.temperature == pytest.approx(expected.temperature, rel=1e-6)
    assert found.kept == pytest.approx(kept.mean())
    assert found.accuracy_kept == pytest.approx(right[kept].mean())
    assert found.right_rejected == pytest.approx((right & ~kept).sum() / right.sum())
    assert found.right_rejected <= 0.2


def test_rejected_cells_are_uniform_and_the_others_keep_their_class():
    one = scene(1)
    steps = entropy_steps(one.logits)
    threshold = int(steps.float().median())
    after = MetaCal(threshold, 2.0)(one.logits)
    rejected = steps >= threshold
    assert 0 < int(rejected.sum()) < rejected.numel()
    assert torch.equal(after[:, rejected].softmax(0), torch.full((CLASSES, int(rejected.sum())), 1 / CLASSES))
    assert torch.equal(after[:, ~rejected], one.logits[:, ~rejected] / 2)
    assert torch.equal(MetaCal(BINS, 2.0)(one.logits), one.logits / 2)


# PseudoCal


def test_labels_of_a_mix_are_those_of_the_paper_pixel_by_pixel():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 5, (2, 7, 9))
    share = 0.65
    expected = np.full((7, 9), 255)
    for row, column in itertools.product(range(7), range(9)):
        a, b = np.eye(5)[first[row, column]], np.eye(5)[second[row, column]]
        if first[row, column] != second[row, column]:
            expected[row, column] = np.argmax(share * a + (1 - share) * b)
    found = mixed_label(torch.from_numpy(first), torch.from_numpy(second))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_mix_is_the_weighted_mean():
    generator = np.random.default_rng(1)
    first, second = generator.random((2, 3, 4, 5))
    made = mixed(torch.from_numpy(first), torch.from_numpy(second), 0.65)
    np.testing.assert_allclose(made.numpy(), 0.65 * first + 0.35 * second, rtol=1e-14)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_each_image_is_once_the_larger_and_once_the_smaller_part(count):
    pairs = mixing_pairs([(4, 4)] * count, seed=0)
    assert all(i != j for i, j in pairs)
    assert [i for i, _ in pairs] == list(range(count))
    assert sorted(j for _, j in pairs) == list(range(count))
    assert pairs == mixing_pairs([(4, 4)] * count, seed=0)


def test_only_images_of_one_size_are_mixed():
    sizes = [(4, 4), (8, 4), (4, 4), (8, 4), (2, 2)]
    pairs = mixing_pairs(sizes, seed=1)
    assert {place for pair in pairs for place in pair} == {0, 1, 2, 3}
    assert all(sizes[i] == sizes[j] for i, j in pairs)
    with pytest.raises(ConfigError, match="size"):
        mixing_pairs([(4, 4), (8, 4)], seed=0)


def test_another_seed_pairs_otherwise():
    assert mixing_pairs([(4, 4)] * 20, seed=0) != mixing_pairs([(4, 4)] * 20, seed=1)


# Selective scaling


def test_the_judge_learns_who_is_wrong():
    several = [scene(number, sharp=4.0) for number in range(6)]
    judge = train_judge(lambda: several, epochs=60, lr=1e-2, seed=0)
    z, y = pixels([scene(number, sharp=4.0) for number in range(20, 24)])
    with torch.no_grad():
        score = judge(torch.from_numpy(z.T.copy())).numpy()
    wrong = z.argmax(axis=1) != y
    assert score[wrong].mean() > score[~wrong].mean() + 0.5


def test_the_same_seed_trains_the_same_judge():
    one, two, other = (train_judge(scenes, epochs=2, lr=1e-2, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), two.tensors(), strict=True))
    assert not torch.equal(one.hidden, other.hidden)


def test_only_pixels_that_are_judged_wrong_get_the_temperature():
    judge = new_judge(CLASSES, seed=0)
    judge = type(judge)(*(tensor.detach() for tensor in judge.tensors()))
    one = scene(5)
    after = SelectiveScaling(judge, 4.0)(one.logits)
    wrong = judge(one.logits.flatten(1)).reshape(6, 8) > 0
    assert 0 < int(wrong.sum()) < wrong.numel()
    assert torch.equal(after[:, wrong], one.logits[:, wrong] / 4)
    assert torch.equal(after[:, ~wrong], one.logits[:, ~wrong])


def test_the_temperature_of_the_wrong_is_fitted_on_them():
    judge = new_judge(CLASSES, seed=0)
    judge = type(judge)(*(tensor.detach() for tensor in judge.tensors()))
    z, y = pixels()
    wrong = (judge(torch.from_numpy(z.T.copy()).float()) > 0).numpy()
    expected = find_temperature(lambda beta: sums_at(beta, torch.from_numpy(z[wrong].T), torch.from_numpy(y[wrong])))
    found = fit_wrong_temperature(judge, scenes)
    assert found.pixels == wrong.sum()
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-6)


# Local temperature scaling


def test_the_tree_has_the_papers_number_of_weights():
    assert sum(p.numel() for p in TemperatureTree(12).parameters()) == 2484


@pytest.mark.parametrize(("positive", "start"), [("softplus", 1.0), ("relu", 2.0)])
def test_it_begins_with_one_temperature(positive, start):
    one = scene(0, sharp=1.0)
    with torch.no_grad():
        found = TemperatureTree(CLASSES, positive)(one.logits, one.image)
    assert found.shape == (6, 8)
    torch.testing.assert_close(found, torch.full((6, 8), start), atol=0.05, rtol=0)


def test_softplus_is_never_0_where_the_papers_rule_is():
    trees = {positive: TemperatureTree(CLASSES, positive) for positive in ("softplus", "relu")}
    one = scene(0)
    for tree in trees.values():
        tree.of_logits.bias.data[:4] = -1e4
    with torch.no_grad():
        found = {name: tree(one.logits, one.image * 0).min() for name, tree in trees.items()}
    assert float(found["softplus"]) == pytest.approx(0.01)
    assert float(found["relu"]) == pytest.approx(1e-8)


def test_training_lowers_the_loss_and_is_the_same_for_one_seed():
    several = scenes()
    trained = [train_tree(lambda: several, positive="softplus", epochs=15, lr=1e-2, seed=0) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(trained[0].parameters(), trained[1].parameters(), strict=True))
    made = LocalTemperature(trained[0])

    def loss(change):
        blocks = [block for one in several for block in one.blocks(change(one))]
        z, y = torch.cat([z for z, _ in blocks], dim=1), torch.cat([y for _, y in blocks])
        return float(torch.nn.functional.cross_entropy(z.T, y))

    assert loss(lambda one: made(one.logits, one.image)) < loss(lambda one: one.logits) - 0.005


def test_it_looks_at_the_image():
    tree = TemperatureTree(CLASSES)
    tree.of_image.weight.data.fill_(0.05)
    made, one = LocalTemperature(tree.requires_grad_(False)), scene(0)
    assert made.needs_image
    assert not torch.equal(made(one.logits, one.image), made(one.logits, one.image * 0))
    with pytest.raises(ValueError, match="image"):
        made(one.logits)


def test_a_grid_smaller_than_the_kernel_is_no_hindrance():
    made = LocalTemperature(TemperatureTree(CLASSES).requires_grad_(False))
    assert made(torch.randn(CLASSES, 1, 2), torch.rand(3, 5, 6)).shape == (CLASSES, 1, 2)


def test_a_rule_that_is_unknown_is_refused():
    made = MADE["local"]()
    with pytest.raises(ArtifactError, match="rule"):
        LocalTemperature.from_artifact(made.to_arrays(), {"positive": "exp"})


def test_a_training_that_diverges_is_told_from_logits_that_are_broken():
    with pytest.raises(DataError, match="diverged"):
        train_tree(scenes, positive="softplus", epochs=30, lr=1e36, seed=0)


# Memory and documents


@pytest.mark.parametrize("fit", [fit_temperature, *FITS.values()], ids=["temperature", *FITS])
def test_no_more_than_one_image_is_held(fit):
    """An image and what comes before the next; a list of all would hold twelve."""

    def streamed():
        alive = []
        for number in range(12):
            one = scene(number)
            alive.append(weakref.ref(one.logits))
            assert sum(ref() is not None for ref in alive) <= 2
            yield one

    fit(streamed)


@pytest.mark.parametrize("name", MADE)
def test_every_method_and_its_arrays_are_documented(name, repository):
    text = (repository / "docs/calibrators.md").read_text(encoding="utf-8")
    kind = CALIBRATORS[name]
    row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert row.endswith("| yes |") or "yes, of each" in row if kind.keeps_argmax else "yes" not in row
    assert ("| none |" in row) == (name in LABEL_FREE)
    arrays = text.partition("| method | arrays |")[2]
    assert all(f"`{array}`" in arrays for array in MADE[name]().to_arrays())
