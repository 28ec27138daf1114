"""Owns batches: the endless stream to train on, one sweep over all images, and images one by one to measure on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.data.dataset import Sample, SegmentationDataset, Size
from calseg_cli.data.labels import read_image_size
from calseg_cli.data.ordered import check_wanted, read_ahead
from calseg_cli.data.rare_classes import RareClassSampler
from calseg_cli.data.transforms import Augmentation, augment
from calseg_cli.errors import DataError

EvaluationSample = tuple[str, Tensor, NDArray[np.uint8] | None, Size]
_SOURCE, _TARGET, _HELD_OUT = 0, 1, 2
_ORDER, _CHANGES = 0, 1  # what a random stream is for


@dataclass
class Batch:
    """Images (B,3,H,W) float32 RGB in [0,1] and labels (B,H,W) int64; None where the work has no such domain.

    `target_labels` are pseudo-labels, 255 where none is believed; never what was annotated. `held_out_images` come
    from a third domain, with the labels that were annotated: source images kept back from training.
    """

    step: int
    source_images: Tensor | None
    source_labels: Tensor | None
    target_images: Tensor | None
    source_ids: tuple[str, ...]
    target_ids: tuple[str, ...]
    target_labels: Tensor | None = None
    held_out_images: Tensor | None = None
    held_out_labels: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on a device."""
        return replace(
            self,
            source_images=_moved(self.source_images, device),
            source_labels=_moved(self.source_labels, device),
            target_images=_moved(self.target_images, device),
            target_labels=_moved(self.target_labels, device),
            held_out_images=_moved(self.held_out_images, device),
            held_out_labels=_moved(self.held_out_labels, device),
        )


@dataclass(frozen=True)
class TrainStream:
    """Endless training batches that follow from the seed and the step alone.

    Images come in a fresh order every epoch, drawn from (seed, domain, epoch), and without a gap between epochs;
    fewer images than a batch holds repeat. Augmentation is drawn from (seed, domain, step, slot). So neither the
    number of workers nor the step one starts at changes a bit: `batches(k, n)` is the tail of `batches(0, n)`.

    With a `sampler`, which must have been made from `source`, source images are what it draws from (seed, step,
    slot) and there are no epochs of them. `held_out` is a third domain of labelled images under the same rules, with
    its own augmentation if it is given one. No domain's images depend on whether there is another.

    With `slots` a batch holds these of its `batch_size` slots alone: a process's share of a batch that several train
    on together, whose images and changes are those of one process with all slots.
    """

    source: SegmentationDataset | None
    target: SegmentationDataset | None
    batch_size: int
    augmentation: Augmentation
    seed: int
    workers: int = 0
    sampler: RareClassSampler | None = None
    held_out: SegmentationDataset | None = None
    held_out_augmentation: Augmentation | None = None
    slots: range | None = None

    def __post_init__(self) -> None:
        for dataset in (self.source, self.target, self.held_out):
            if dataset is not None and not len(dataset):
                raise DataError("there are no images to train on", "check the domain's root and splits")
        if self.source is not None and not self.source.with_labels:
            raise ValueError("the source of training needs labels")
        if self.held_out is not None and not self.held_out.with_labels:
            raise ValueError("images that are held out need labels")
        if self.sampler is not None and (self.source is None or len(self.source) != self.sampler.num_images):
            raise ValueError("the sampler was made from other images than the source's")

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the steps `start_step` to `stop_step - 1`.

        Raises DataError when a file cannot be read or when the images of a batch differ in size.
        """
        return read_ahead(self.batch, range(start_step, stop_step), self.workers)

    def batch(self, step: int) -> Batch:
        """The batch of one step; raises as `batches`."""
        source = self._samples(self.source, _SOURCE, step)
        target = self._samples(self.target, _TARGET, step)
        held_out = self._samples(self.held_out, _HELD_OUT, step)
        if self.slots is not None:
            for domain, dataset in ((_SOURCE, self.source), (_TARGET, self.target), (_HELD_OUT, self.held_out)):
                self._check_whole_batch(dataset, domain, step)
        return Batch(
            step,
            _images(source),
            _labels(source),
            _images(target),
            tuple(sample.id for sample in source),
            tuple(sample.id for sample in target),
            _labels(target) if self.target is not None and self.target.pseudo else None,
            _images(held_out),
            _labels(held_out),
        )

    def _samples(self, dataset: SegmentationDataset | None, domain: int, step: int) -> list[Sample]:
        if dataset is None:
            return []
        augmentation = self._augmentation(domain)
        samples = []
        for slot in range(self.batch_size) if self.slots is None else self.slots:
            check_wanted()
            sample = dataset.read(self._index(len(dataset), domain, step, slot))
            rng = np.random.default_rng((self.seed, _CHANGES, domain, step, slot))
            image, label = augment(sample.image, sample.label, augmentation, rng)
            samples.append(replace(sample, image=image, label=label))
        return samples

    def _check_whole_batch(self, dataset: SegmentationDataset | None, domain: int, step: int) -> None:
        """Raise what one process with all slots would raise: images may differ in size between shares alone.

        Of other processes' images the file's own word on its size is enough, and each is asked once.
        """
        if dataset is None or dataset.size is not None or self._augmentation(domain).crop is not None:
            return
        places = (self._index(len(dataset), domain, step, slot) for slot in range(self.batch_size))
        _check_sizes([(item.id, _size_in_file(item.image)) for item in (dataset.items[place] for place in places)])

    def _augmentation(self, domain: int) -> Augmentation:
        return (self.held_out_augmentation if domain == _HELD_OUT else None) or self.augmentation

    def _index(self, count: int, domain: int, step: int, slot: int) -> int:
        """Which of a domain's `count` images a slot of a step shows."""
        if domain == _SOURCE and self.sampler is not None:
            return self.sampler.draw(self.seed, step, slot)[0]
        epoch, place = divmod(step * self.batch_size + slot, count)
        return int(_permutation(self.seed, domain, epoch, count)[place])


def sweep(
    dataset: SegmentationDataset,
    batch_size: int,
    *,
    workers: int = 0,
    shuffle_seed: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Every image once, unchanged, as `target_images`; sorted, or in the order that `shuffle_seed` gives.

    The last batch may be smaller. Images of another size than those before them begin a new batch. With a `share` (k,
    n) only every n-th batch from the k-th on: what processes do that look at whole batches each.
    """
    order = range(len(dataset)) if shuffle_seed is None else _permutation(shuffle_seed, _TARGET, 0, len(dataset))
    keys = [int(index) for index in order]
    first, every = share
    if dataset.size is None:  # only the images tell which of them may stand together
        images = read_ahead(partial(_bare_image, dataset), keys, workers)
        yield from islice(_grouped(images, batch_size), first, None, every)
        return
    own = [keys[place : place + batch_size] for place in range(0, len(keys), batch_size)][first::every]
    images = read_ahead(partial(_bare_image, dataset), [key for group in own for key in group], workers)
    for batch in _grouped(images, batch_size):
        yield replace(batch, step=first + batch.step * every)


def _grouped(images: Iterable[tuple[str, Tensor]], batch_size: int) -> Iterator[Batch]:
    step = 0
    group: list[tuple[str, Tensor]] = []
    for name, image in images:
        if group and (len(group) == batch_size or group[0][1].shape != image.shape):
            yield _target_batch(step, group)
            step, group = step + 1, []
        group.append((name, image))
    if group:
        yield _target_batch(step, group)


def evaluation_samples(
    dataset: SegmentationDataset, workers: int = 0, places: range | None = None
) -> Iterator[EvaluationSample]:
    """(id, image (1,3,H,W) float32 at the input size, label (H0,W0) or None, (H0, W0)) of every image, in order.

    Of the images at `places` alone, where these are given.
    """
    return read_ahead(partial(_evaluation_sample, dataset), range(len(dataset)) if places is None else places, workers)


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Pixels (H,W,3) as a tensor (3,H,W), float32 in [0,1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy(order="C")).float().div_(255)


def _bare_image(dataset: SegmentationDataset, index: int) -> tuple[str, Tensor]:
    sample = dataset.read_for_evaluation(index)
    return sample.id, image_tensor(sample.image)


def _evaluation_sample(dataset: SegmentationDataset, index: int) -> EvaluationSample:
    sample = dataset.read_for_evaluation(index)
    return sample.id, image_tensor(sample.image)[None], sample.label, sample.original_hw


def _target_batch(step: int, group: list[tuple[str, Tensor]]) -> Batch:
    return Batch(step, None, None, torch.stack([image for _, image in group]), (), tuple(name for name, _ in group))


@lru_cache(maxsize=8)
def _permutation(seed: int, domain: int, epoch: int, count: int) -> NDArray[np.int64]:
    order = np.random.default_rng((seed, _ORDER, domain, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def _images(samples: list[Sample]) -> Tensor | None:
    if not samples:
        return None
    _check_sizes([(sample.id, (sample.image.shape[0], sample.image.shape[1])) for sample in samples])
    return torch.stack([image_tensor(sample.image) for sample in samples])


def _check_sizes(images: Sequence[tuple[str, Size]]) -> None:
    """Raise DataError for images, each (id, (height, width)), that cannot stand in one batch."""
    first, size = images[0]
    for name, other in images:
        if other != size:
            raise DataError(
                f"images of one batch differ in size: {first} is {size[0]}x{size[1]} and "
                f"{name} is {other[0]}x{other[1]}",
                "set the domain's size, or pretrain.augment.crop",
            )


def _labels(samples: list[Sample]) -> Tensor | None:
    labels = [sample.label for sample in samples if sample.label is not None]
    return torch.from_numpy(np.stack(labels)).long() if labels else None


@lru_cache(maxsize=2**16)
def _size_in_file(path: Path) -> Size:
    return read_image_size(path)


def _moved(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
