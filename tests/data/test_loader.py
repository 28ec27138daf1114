"""Batches: they follow from seed and step alone, and every image comes as often as it should."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from calseg_cli.data.catalog import find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import Batch, TrainStream, evaluation_samples, sweep
from calseg_cli.data.rare_classes import RareClassSampler
from calseg_cli.data.transforms import PLAIN, Augmentation, augment
from calseg_cli.errors import DataError

LAYOUT = make_layout(find_layout("folders"), classes=["a", "b", "c"])
WILD = Augmentation((0.5, 2.0), (10, 12), 0.5, color=0.7, blur=0.3)


def opened(root, *, size=None, with_labels=True):
    items = find_items(LAYOUT, root, "train", with_labels=with_labels)
    return SegmentationDataset(items, LAYOUT, size=size, with_labels=with_labels)


def stream(root, *, batch_size=2, augmentation=WILD, seed=0, workers=0, domains="st", **options):
    source = opened(root) if "s" in domains else None
    target = opened(root, with_labels=False) if "t" in domains else None
    return TrainStream(
        source, target, batch_size=batch_size, augmentation=augmentation, seed=seed, workers=workers, **options
    )


def same(first: Batch, second: Batch) -> bool:
    tensors = ("source_images", "source_labels", "target_images")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors) and (
        (first.step, first.source_ids, first.target_ids) == (second.step, second.source_ids, second.target_ids)
    )


def test_shapes_types_and_ranges(many):
    (batch,) = stream(many).batches(0, 1)
    assert batch.source_images.shape == batch.target_images.shape == (2, 3, 10, 12)
    assert batch.source_images.dtype == torch.float32
    assert 0 <= batch.source_images.min() < batch.source_images.max() <= 1
    assert batch.source_labels.shape == (2, 10, 12)
    assert batch.source_labels.dtype == torch.int64
    moved = batch.to("meta")
    assert moved.source_images.device.type == moved.source_labels.device.type == "meta"
    assert (moved.source_ids, moved.step) == (batch.source_ids, 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3, 7])
def test_resuming_is_the_tail(many, workers, start):
    whole = list(stream(many).batches(0, 9))
    tail = list(stream(many, workers=workers).batches(start, 9))
    assert len(tail) == 9 - start
    assert all(same(one, other) for one, other in zip(whole[start:], tail, strict=True))


def test_seeds_differ_and_so_do_domains(many):
    (one,), (other,) = stream(many).batches(0, 1), stream(many, seed=1).batches(0, 1)
    assert not torch.equal(one.source_images, other.source_images)
    orders = [[batch.source_ids for batch in stream(many, seed=seed).batches(0, 5)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    batches = list(stream(many).batches(0, 5))
    assert [batch.source_ids for batch in batches] != [batch.target_ids for batch in batches]


def test_the_other_domain_changes_nothing(many):
    """A method that needs the source alone trains on the same images as one that needs both."""
    for both, alone in zip(stream(many).batches(0, 4), stream(many, domains="s").batches(0, 4), strict=True):
        assert torch.equal(both.source_images, alone.source_images)
        assert alone.target_images is None
        assert alone.target_ids == ()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_every_image_once_an_epoch(many, batch_size):
    ids = [
        name
        for batch in stream(many, batch_size=batch_size, domains="s").batches(0, -(-15 // batch_size))
        for name in batch.source_ids
    ]
    epochs = [ids[first : first + 5] for first in (0, 5, 10)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_an_image_is_changed_anew_each_time(many):
    setting = Augmentation(crop=(5, 5))
    images = [batch.source_images[0] for batch in stream(many, batch_size=1, augmentation=setting).batches(0, 20)]
    assert all(not torch.equal(one, other) for one, other in pairwise(images))


def test_labels_belong_to_their_images(many):
    """The red channel is the label times 100."""
    for batch in stream(many, augmentation=Augmentation(crop=(8, 8))).batches(0, 6):
        assert torch.equal((batch.source_images[:, 0] * 255).round().long(), batch.source_labels * 100)


def test_target_labels_are_never_opened(many, touched):
    training = stream(many, domains="t")
    touched.clear()
    list(training.batches(0, 5))
    list(sweep(opened(many, with_labels=False), 2))
    list(evaluation_samples(opened(many, with_labels=False)))
    assert any("/images" in path for path in touched)
    assert not any("/labels" in path for path in touched)


def test_images_of_different_size_need_a_size(many, save_png, make_picture):
    save_png(many / "train/images/3.png", make_picture((14, 16)))
    save_png(many / "train/labels/3.png", np.zeros((14, 16), np.uint8))
    with pytest.raises(DataError, match=r"differ in size: .* 14x16") as caught:
        list(stream(many, batch_size=5, augmentation=PLAIN).batches(0, 1))
    assert "size" in caught.value.hint
    assert "crop" in caught.value.hint
    assert len(list(stream(many, batch_size=5).batches(0, 1))) == 1


def test_nothing_to_train_on(many):
    empty = opened(many).subset([])
    with pytest.raises(DataError, match="no images"):
        TrainStream(empty, None, batch_size=1, augmentation=PLAIN, seed=0)
    with pytest.raises(ValueError, match="labels"):
        TrainStream(opened(many, with_labels=False), None, batch_size=1, augmentation=PLAIN, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_line(many, workers):
    (many / "train/images/2.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(stream(many, workers=workers).batches(0, 9))
    assert str(many / "train/images/2.png") in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("seed", "batch_size"), [(None, 2), (3, 2), (3, 5), (None, 9)])
def test_a_sweep_sees_every_image_once(many, workers, seed, batch_size):
    dataset = opened(many, size=(6, 8), with_labels=False)
    batches = list(sweep(dataset, batch_size, workers=workers, shuffle_seed=seed))
    assert [batch.step for batch in batches] == list(range(-(-5 // batch_size)))
    names = [name for batch in batches for name in batch.target_ids]
    assert Counter(names) == Counter("01234")
    assert (names == sorted(names)) == (seed is None)
    for batch in batches:
        assert batch.target_images.shape[1:] == (3, 6, 8)
        assert batch.source_images is None
        for name, image in zip(batch.target_ids, batch.target_images, strict=True):
            expected = dataset.read(int(name)).image
            np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0), expected)


def test_a_sweep_parts_images_of_different_size(many, save_png, make_picture):
    save_png(many / "train/images/2.png", make_picture((14, 16)))
    batches = list(sweep(opened(many, with_labels=False), 3))
    assert [batch.target_ids for batch in batches] == [("0", "1"), ("2",), ("3", "4")]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_in_order_with_whole_labels(many, workers):
    dataset = opened(many, size=(6, 8))
    samples = list(evaluation_samples(dataset, workers))
    assert [name for name, *_ in samples] == list("01234")
    for index, (_, image, label, original_hw) in enumerate(samples):
        assert image.shape == (1, 3, 6, 8)
        assert image.dtype == torch.float32
        np.testing.assert_array_equal(label, dataset.read_label(index))
        assert label.shape == original_hw == (12, 16)


def test_the_bits_of_a_stream_are_fixed(many):
    """Written out once more: a run that was started with an older version goes on with the same batches."""
    dataset = opened(many)
    for step, batch in enumerate(stream(many, batch_size=3, seed=7).batches(0, 4)):
        for slot in range(3):
            epoch, place = divmod(3 * step + slot, 5)
            for domain, image in enumerate((batch.source_images[slot], batch.target_images[slot])):
                sample = dataset.read(int(np.random.default_rng((7, 0, domain, epoch)).permutation(5)[place]))
                rng = np.random.default_rng((7, 1, domain, step, slot))
                pixels, label = augment(sample.image, sample.label, WILD, rng)
                np.testing.assert_array_equal((image * 255).round().byte().permute(1, 2, 0), pixels)
                if domain == 0:
                    np.testing.assert_array_equal(batch.source_labels[slot], label)


def test_held_out_images_are_a_third_domain(many):
    """Their own order and draws, their own augmentation; the other domains are what they were without them."""
    held_out = opened(many).subset([0, 3, 4])
    with_them = stream(many, held_out=held_out, held_out_augmentation=PLAIN)
    batches = list(with_them.batches(0, 6))
    for batch, without in zip(batches, stream(many).batches(0, 6), strict=True):
        assert same(batch, without)
        assert without.held_out_images is without.held_out_labels is None
        assert batch.held_out_images.shape == (2, 3, 12, 16)
        assert batch.held_out_labels.dtype == torch.int64
        assert torch.equal((batch.held_out_images[:, 0] * 255).round().long(), batch.held_out_labels * 100)
    whole = {name: opened(many).read(name).label.tobytes() for name in (0, 3, 4)}
    seen = [label.byte().numpy().tobytes() for batch in batches for label in batch.held_out_labels]
    assert all(set(seen[first : first + 3]) == set(whole.values()) for first in range(0, 12, 3))
    tail = list(stream(many, held_out=held_out, held_out_augmentation=PLAIN, workers=2).batches(4, 6))
    assert all(torch.equal(a.held_out_images, b.held_out_images) for a, b in zip(batches[4:], tail, strict=True))
    moved = batches[0].to("meta")
    assert moved.held_out_images.device.type == moved.held_out_labels.device.type == "meta"


def test_held_out_images_share_the_augmentation_unless_told(many):
    held_out = opened(many)
    (batch,) = stream(many, held_out=held_out).batches(0, 1)
    assert batch.held_out_images.shape == batch.source_images.shape == (2, 3, 10, 12)
    assert not torch.equal(batch.held_out_images, batch.source_images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_chooses_the_source_alone(many, workers):
    sampler = RareClassSampler(opened(many), temperature=0.3, min_pixels=1)
    held_out = opened(many).subset([1, 2])
    drawn = list(stream(many, sampler=sampler, held_out=held_out, workers=workers, seed=2).batches(3, 9))
    plain = list(stream(many, held_out=held_out, seed=2).batches(3, 9))
    for batch, without in zip(drawn, plain, strict=True):
        assert batch.source_ids == tuple(str(sampler.draw(2, batch.step, slot)[0]) for slot in range(2))
        for name in ("target_images", "held_out_images", "held_out_labels"):
            assert torch.equal(getattr(batch, name), getattr(without, name))
        assert batch.target_ids == without.target_ids
    assert [batch.source_ids for batch in drawn] != [batch.source_ids for batch in plain]


def test_options_that_do_not_fit(many):
    dataset = opened(many)
    with pytest.raises(DataError, match="no images"):
        stream(many, held_out=dataset.subset([]))
    with pytest.raises(ValueError, match="held out need labels"):
        stream(many, held_out=opened(many, with_labels=False))
    sampler = RareClassSampler(dataset.subset([0, 1]))
    for domains in ("st", "t"):
        with pytest.raises(ValueError, match="sampler"):
            stream(many, sampler=sampler, domains=domains)


@pytest.mark.real
def test_real_scenes(real_data):
    layout = make_layout(find_layout("folders"), classes=[f"c{n}" for n in range(11)])
    root = real_data / "camvid_day_to_dusk"
    source = SegmentationDataset(
        find_items(layout, root / "source", "train", with_labels=True), layout, size=(240, 320), with_labels=True
    )
    dusk = make_layout(layout, splits={"train": "adapt"})
    target = SegmentationDataset(
        find_items(dusk, root / "target", "train", with_labels=False), dusk, size=(240, 320), with_labels=False
    )
    training = TrainStream(source, target, batch_size=4, augmentation=Augmentation(), seed=0)
    means = [(float(b.source_images.mean()), float(b.target_images.mean())) for b in training.batches(0, 4)]
    assert all(day > dusk_ for day, dusk_ in means)
    assert sum(len(batch.target_ids) for batch in sweep(target, 16)) == 62
