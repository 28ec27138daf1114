"""A process's share of a batch: the shares together are the batch of one process, bit for bit."""

import pytest
import torch

from calseg_cli.data.loader import TrainStream, evaluation_samples
from tests.data.test_loader import WILD, opened


@pytest.mark.parametrize("workers", [0, 1])
def test_shares_of_slots_make_the_batch(many, workers):
    def batches(slots):
        source, target = opened(many), opened(many, with_labels=False)
        stream = TrainStream(source, target, batch_size=4, augmentation=WILD, seed=3, workers=workers, slots=slots)
        return list(stream.batches(2, 5))

    for whole, first, second in zip(batches(None), batches(range(1)), batches(range(1, 4)), strict=True):
        assert whole.source_ids == first.source_ids + second.source_ids
        assert whole.target_ids == first.target_ids + second.target_ids
        for name in ("source_images", "source_labels", "target_images"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(first, name), getattr(second, name)]))


def test_places_of_measured_images_make_all_of_them(many):
    dataset = opened(many)
    names = [sample[0] for sample in evaluation_samples(dataset)]
    shares = [[sample[0] for sample in evaluation_samples(dataset, 0, range(n, len(dataset), 3))] for n in range(3)]
    assert sorted(name for share in shares for name in share) == names
    assert shares[1] == names[1::3]
