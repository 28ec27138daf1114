"""The balanced prediction as a calibrator: equation 13 in float64, what stays, what is refused, if it balances."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.aligned_quantiles import pooled_anchors, quantile_table
from calseg_cli.methods.balanced_prediction import BalancedPrediction
from calseg_cli.methods.logit_alignment import AlignmentTable
from calseg_cli.metrics.logit_histograms import count_logits

CLASSES, PIXELS = 6, 4000


def world(seed=0, classes=CLASSES):
    """Independent Gaussian logits (C,N), float64, of labels (N,), some channels of which shout (the specification)."""
    drawn = np.random.default_rng(seed)
    labels = torch.arange(classes).repeat_interleave(PIXELS)
    logits = torch.from_numpy(drawn.normal(0, 1.2, (classes, len(labels))) + np.linspace(-1, 1, classes)[:, None])
    logits[labels, torch.arange(len(labels))] += 3.0
    return logits, labels


def fitted(logits, named, anchors_of=None):
    """The table of logits (C,N) by the labels (N,) that stand for the truth; anchors by others, if given."""
    cells = count_logits(logits, named)
    anchors = cells if anchors_of is None else count_logits(logits, anchors_of)
    return quantile_table(cells, pooled_anchors(anchors), tail_quantile=1e-3)


def made(tau=0.5, seed=0, classes=3):
    logits, labels = world(seed, classes)
    return BalancedPrediction(fitted(logits, labels), tau)


def picture(classes=3, seed=5):
    return 4 * torch.randn(classes, 6, 8, generator=torch.Generator().manual_seed(seed))


def by_hand(table, logits, tau):
    """The log p (C,N) float64 of logits (C,N): each hypothesis and channel by numpy's interpolation."""
    offsets, low, step = (part.double().numpy() for part in (table.offsets, table.low, table.step))
    classes, _, nodes = offsets.shape
    z = logits.double().numpy()
    scores = np.empty_like(z)
    for c in range(classes):
        moved = [
            z[k] + tau * np.interp(z[k], low[c, k] + step[c, k] * np.arange(nodes), offsets[c, k])
            for k in range(classes)
        ]
        scores[c] = moved[c] - np.logaddexp.reduce(moved, axis=0)
    return scores - np.logaddexp.reduce(scores, axis=0)


@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_it_is_equation_13(tau):
    one, logits = made(tau), picture()
    found = one(logits)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.flatten(1), by_hand(one.table, logits.flatten(1), tau), atol=2e-4)
    torch.testing.assert_close(found.exp().sum(dim=0), torch.ones(6, 8))


def test_at_tau_0_nothing_changes_not_even_ties():
    logits = picture()
    logits[1] = logits[0]
    assert torch.equal(made(0.0)(logits), logits)
    assert torch.equal(made(0.7).classes(logits.flatten(1), (0.0,))[0], logits.flatten(1).argmax(0))


def test_equal_distributions_change_nothing_at_any_strength():
    drawn = np.random.default_rng(0)
    own, other = drawn.normal(3, 1, 5000), drawn.normal(-2, 2, 5000)
    rows = [np.stack([own if c == k else other for k in range(3)]) for c in range(3)]
    labels = torch.arange(3).repeat_interleave(5000)
    cells = count_logits(torch.from_numpy(np.concatenate(rows, axis=1)), labels)
    table = quantile_table(cells, pooled_anchors(cells))
    for tau in (0.1, 1.0):
        logits = picture()
        torch.testing.assert_close(
            BalancedPrediction(table, tau)(logits), logits.log_softmax(dim=0), atol=1e-4, rtol=1e-4
        )


def test_a_common_shift_of_the_logits_anchors_changes_no_prediction():
    logits, labels = world(0, 3)
    table = fitted(logits, labels)
    moved = AlignmentTable(table.offsets + 7, table.low, table.step)
    for tau in (0.3, 1.0):
        one, other = (BalancedPrediction(part, tau)(picture()) for part in (table, moved))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_renaming_classes_renames_the_prediction():
    logits, labels = world(0, 3)
    order = torch.tensor([2, 0, 1])
    renamed = torch.argsort(order)[labels]
    one = BalancedPrediction(fitted(logits, labels), 0.8)(picture())
    other = BalancedPrediction(fitted(logits[order], renamed), 0.8)(picture()[order])
    torch.testing.assert_close(other, one[order], atol=1e-4, rtol=1e-4)


def test_pixels_stand_alone():
    one, logits = made(), picture()
    mixed = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    shuffled = one(logits.flatten(1)[:, mixed].reshape(3, 4, 12))
    torch.testing.assert_close(shuffled.flatten(1), one(logits).flatten(1)[:, mixed], atol=1e-6, rtol=0)
    wide = picture(seed=1).repeat(1, 4, 40)  # several blocks
    torch.testing.assert_close(one(wide)[:, :6, :8], one(picture(seed=1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_decides_as_it_corrects(classes):
    one, logits = made(0.4, classes=classes), picture(classes)
    found = one.classes(logits.flatten(1), (0.0, 0.4, 1.0))
    assert torch.equal(found[1], one(logits).flatten(1).argmax(0))
    assert torch.equal(found[2], BalancedPrediction(one.table, 1.0)(logits).flatten(1).argmax(0))


@pytest.mark.parametrize("scale", [0.0, 1e30, 3e38])
def test_extreme_logits_stay_finite(scale):
    logits = picture().sign() * scale
    assert torch.isfinite(made(1.0)(logits)).all()


def scores(logits, labels, table, tau):
    """Greatest absolute bias, spread of class accuracies, mean accuracy."""
    chosen = BalancedPrediction(table, tau).classes(logits, (tau,))[0]
    confusion = torch.zeros(CLASSES, CLASSES).index_put_((labels, chosen), torch.ones(len(labels)), accumulate=True)
    shares = confusion / confusion.sum(dim=1, keepdim=True)
    accuracy = shares.diagonal()
    return float((shares.mean(0) - 1 / CLASSES).abs().max()), float(accuracy.std()), float(accuracy.mean())


def test_it_balances_and_less_so_with_pseudo_labels():
    logits, labels = world()
    oracle, pseudo = fitted(logits, labels), fitted(logits, logits.argmax(0), labels)
    raw = scores(logits, labels, oracle, 0.0)
    curve = [scores(logits, labels, oracle, tau) for tau in (0.1, 0.2, 0.5, 1.0)]
    assert curve[-1][0] < raw[0] / 10
    assert curve[-1][1] < raw[1] / 10
    assert all(later[2] > earlier[2] - 1e-3 for earlier, later in zip([raw, *curve], curve, strict=False))
    guessed = scores(logits, labels, pseudo, 1.0)
    assert curve[-1][1] < guessed[1] < raw[1]
    assert 0.25 < (guessed[2] - raw[2]) / (curve[-1][2] - raw[2]) < 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"offsets": np.zeros((3, 2, 8))}, "no table"),
        ({"low": np.zeros((2, 2))}, "no table"),
        ({"offsets": np.zeros((3, 3, 1))}, "no table"),
        ({"step": np.zeros((3, 3))}, "range"),
        ({"step": np.full((3, 3), -1.0)}, "range"),
        ({"offsets": np.full((3, 3, 8), 1e39)}, "range"),
        ({"offsets": np.tile(-10.0 * np.arange(8), (3, 3, 1))}, "order"),
        ({"tau": np.array([-0.1])}, "tau"),
    ],
)
def test_what_is_no_table_is_refused(change, told):
    one = made()
    with pytest.raises(ArtifactError, match=told):
        BalancedPrediction.from_artifact({**one.to_arrays(), **change}, one.facts())


def test_an_unknown_tail_is_refused():
    one = made()
    for facts in ({}, {"tail": "dog"}):
        with pytest.raises(ArtifactError, match="tail"):
            BalancedPrediction.from_artifact(one.to_arrays(), facts)


def test_it_is_stored_compactly():
    arrays = made().to_arrays()
    assert {name: array.dtype for name, array in arrays.items()} == {
        "offsets": np.float32,
        "low": np.float32,
        "step": np.float32,
        "tau": np.float64,
    }
    assert arrays["offsets"].shape == (3, 3, 256)
