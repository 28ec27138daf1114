"""A process's share of a batch: the shares together are the batch of one process, bit for bit."""

import numpy as np
import pytest
import torch

from calseg_cli.data.loader import TrainStream, evaluation_samples, sweep
from calseg_cli.data.transforms import PLAIN, Augmentation
from calseg_cli.errors import DataError
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


@pytest.mark.parametrize("size", [None, (24, 32)], ids=["sizes of their own", "one size"])
def test_shares_of_a_sweep_are_its_batches(many, size):
    dataset = opened(many, with_labels=False)
    dataset.size = size
    whole = list(sweep(dataset, 2, shuffle_seed=2))
    shares = [list(sweep(dataset, 2, shuffle_seed=2, share=(k, 2))) for k in range(2)]
    assert len(whole) > 2
    for k in range(2):
        for batch, own in zip(whole[k::2], shares[k], strict=True):
            assert (batch.step, batch.target_ids) == (own.step, own.target_ids)
            assert torch.equal(batch.target_images, own.target_images)
    assert list(sweep(dataset, len(dataset), share=(1, 2))) == [], "more processes than batches"


DOMAINS = ["source", "target", "held_out"]


def with_one_larger(many, save_png, make_picture):
    """The same images but for one, which is larger."""
    save_png(many / "train/images/3.png", make_picture((14, 16)))
    save_png(many / "train/labels/3.png", np.zeros((14, 16), np.uint8))
    return opened(many)


def stream_of(domain, dataset, slots, **options):
    given = dict.fromkeys(("source", "target"), None) | {domain: dataset}
    return TrainStream(**given, batch_size=5, seed=0, slots=slots, **{"augmentation": PLAIN, **options})


def refusal(stream):
    with pytest.raises(DataError) as caught:
        list(stream.batches(0, 1))
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_share_refuses_images_of_unlike_size_in_the_words_of_one_process(
    many, save_png, make_picture, domain, workers
):
    dataset = with_one_larger(many, save_png, make_picture)
    alone = refusal(stream_of(domain, dataset, None))
    assert "14x16" in alone[0]
    for place in range(5):  # most shares hold but alike images, or one
        assert refusal(stream_of(domain, dataset, range(place, place + 1), workers=workers)) == alone


@pytest.mark.parametrize("domain", DOMAINS)
def test_shares_of_unlike_images_that_a_size_or_a_crop_makes_alike(many, save_png, make_picture, domain):
    dataset = with_one_larger(many, save_png, make_picture)
    cropped = Augmentation(crop=(10, 12))
    options = {"held_out_augmentation": cropped} if domain == "held_out" else {"augmentation": cropped}
    for place in range(5):
        assert list(stream_of(domain, dataset, range(place, place + 1), **options).batches(0, 1))
    dataset.size = (10, 12)
    for place in range(5):
        assert list(stream_of(domain, dataset, range(place, place + 1)).batches(0, 1))
