"""Supervised training: the loss against torch's own, weights, ignored pixels."""

import copy

import pytest
import torch
import torch.nn.functional as F

from calseg_cli.engine.forward import dense_logits
from calseg_cli.losses.soft_ece import class_conditional_ece, image_ece
from calseg_cli.methods.source import CalibrationTerm, Source, inverse_frequency_weights


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs_mean_cross_entropy(network, make_batch, weights, smoothing):
    network.eval()
    batch = make_batch()
    loss = Source(network, class_weights=weights, label_smoothing=smoothing)(batch)["ce"]
    expected = F.cross_entropy(
        dense_logits(network, batch.source_images),
        batch.source_labels,
        weight=weights,
        ignore_index=255,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_labels_is_zero_and_teaches_nothing(network, make_batch):
    loss = Source(network)(make_batch(ignore=2.0))["ce"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in network.parameters() if p.grad is not None)


def test_ignored_pixels_change_nothing(network, make_batch):
    network.eval()
    batch = make_batch(ignore=0.5)
    before = float(Source(network)(batch)["ce"].detach())
    logits = dense_logits(network, batch.source_images)
    kept = batch.source_labels != 255
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[kept], batch.source_labels[kept])
    assert before == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_weights_are_inverse_to_frequency_with_mean_one(power):
    weights = inverse_frequency_weights(torch.tensor([1000, 10, 0, 100]), power=power)
    assert weights[2] == 0
    assert float(weights[[0, 1, 3]].mean()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx(100**power, rel=1e-4)


# The calibration error as a term


TERMS = [
    {"over": "class"},
    {"over": "class", "absent": "skip", "bins": 15},
    {"over": "image"},
    {"over": "class", "binning": "soft"},
    {"over": "image", "temperature": 0.05},
]


def gradient(method, batch, names=("ce", "ece")):
    """The network's gradient of the sum of these terms."""
    terms = method(batch)
    parameters = list(method.network.parameters())
    return torch.autograd.grad(torch.stack([terms[name] for name in names]).sum(), parameters)


@pytest.mark.parametrize("options", TERMS)
@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (torch.tensor([0.5, 1.0, 4.0]), 0.0), (None, 0.1)])
def test_the_gradient_is_that_of_both_terms_alone(network, make_batch, options, weights, smoothing):
    network.eval()
    batch = make_batch()
    plain = Source(network, class_weights=weights, label_smoothing=smoothing)
    both = Source(network, class_weights=weights, label_smoothing=smoothing, ece=CalibrationTerm(weight=0.7, **options))
    found = both(batch)
    torch.testing.assert_close(found["ce"], plain(batch)["ce"])
    over = options.pop("over")
    logits = dense_logits(network, batch.source_images)
    error = (image_ece if over == "image" else class_conditional_ece)(logits, batch.source_labels, **options).mean()
    options["over"] = over
    torch.testing.assert_close(found["ece"], 0.7 * error)
    alone = torch.autograd.grad(error, list(network.parameters()))
    for sum_, ce, ece in zip(gradient(both, batch), gradient(plain, batch, ("ce",)), alone, strict=True):
        torch.testing.assert_close(sum_, ce + 0.7 * ece, rtol=1e-4, atol=1e-7)


def test_without_weight_it_is_todays_loss_bit_for_bit(network, make_batch, monkeypatch):
    batch = make_batch()
    network.eval()
    before = Source(network)(batch)
    monkeypatch.setattr("calseg_cli.methods.source.pixel_confidence", None)  # nothing is calculated for it
    after = Source(network, ece=CalibrationTerm(weight=0.0))(batch)
    assert after.keys() == before.keys() == {"ce"}
    assert torch.equal(after["ce"], before["ce"])


def test_it_begins_at_its_step(network, make_batch):
    method = Source(network, ece=CalibrationTerm(weight=1.0, start_step=3))
    told = []
    for step in (0, 2, 3, 4, 1):  # the last as after going back to an earlier state
        batch = make_batch(step)
        method.before_step(batch, step)
        told.append(set(method(batch)))
    assert told == [{"ce"}, {"ce"}, {"ce", "ece"}, {"ce", "ece"}, {"ce"}]


def test_a_batch_without_labels_has_no_calibration_error(network, make_batch):
    terms = Source(network, ece=CalibrationTerm(weight=1.0))(make_batch(ignore=2.0))
    torch.stack(list(terms.values())).sum().backward()
    assert {name: float(term.detach()) for name, term in terms.items()} == {"ce": 0, "ece": 0}
    assert all(float(p.grad.abs().sum()) == 0 for p in network.parameters() if p.grad is not None)


def test_under_mixed_precision_it_is_float32(network, make_batch):
    method = Source(network, ece=CalibrationTerm(weight=1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method(make_batch())
    assert terms["ce"].dtype == terms["ece"].dtype == torch.float32
    assert bool(torch.isfinite(terms["ece"]))


def noisy_batch(make_batch, step, size):
    """A batch of which 4 labels in 10 are drawn at random: no network can be sure and right."""
    batch = make_batch(step, size=size, ignore=0.0)
    generator = torch.Generator().manual_seed(step)
    wrong = torch.rand(batch.source_labels.shape, generator=generator) < 0.4
    batch.source_labels[wrong] = torch.randint(0, 3, (int(wrong.sum()),), generator=generator)
    return batch


def trained_scores(network, make_batch, weight, seed):
    """ECE and accuracy on fresh images, after training with smoothed labels: those make a network unsure."""
    term = CalibrationTerm(weight=weight, over="image")
    method = Source(copy.deepcopy(network), label_smoothing=0.3, ece=term)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        torch.stack(list(method(noisy_batch(make_batch, 100 * seed + step, 4)).values())).sum().backward()
        optimizer.step()
    fresh = noisy_batch(make_batch, 10_000 + seed, 16)
    logits = dense_logits(method.network.eval(), fresh.source_images).detach()
    right = (logits.argmax(dim=1) == fresh.source_labels).float().mean()
    return float(image_ece(logits, fresh.source_labels).mean()), float(right)


def test_training_with_it_ends_with_less_of_it(network, make_batch):
    for seed in range(3):
        (plain, before), (joint, after) = (trained_scores(network, make_batch, weight, seed) for weight in (0.0, 1.0))
        assert joint < 0.85 * plain
        assert after > before - 0.02
