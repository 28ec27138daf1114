"""Supervised training: the loss against torch's own, weights, ignored pixels."""

import pytest
import torch
import torch.nn.functional as F

from calseg_cli.engine.forward import dense_logits
from calseg_cli.methods.source import Source, inverse_frequency_weights


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
