"""Owns which images a step of self-training mixes: the source's into the target's, or the target's with each other."""

from collections.abc import Iterable

from torch import Tensor

from calseg_cli.data.loader import Batch
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.self_training_view import Plugin


def both_domains(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Source images (B,3,H,W), their labels (B,H,W), target images (B,3,H,W). Raises DataError for unlike sizes."""
    assert batch.source_images is not None
    assert batch.source_labels is not None
    source, target = batch.source_images, only_target(batch)
    check_sizes(tuple(source.shape[-2:]), tuple(target.shape[-2:]))
    return source, batch.source_labels, target


def only_target(batch: Batch) -> Tensor:
    """The target images (B,3,H,W)."""
    assert batch.target_images is not None
    return batch.target_images


def of_the_neighbour(values: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Each image of a batch gets what belongs to the one before it, (B,...); the first gets the last one's.

    Without source images this is what stands in the source's place. An image that is alone stands in its own. Where
    several `ranks` share a batch, neighbours are those of the whole batch.
    """
    return ranks.own(ranks.whole(values).roll(1, 0))


def check_sizes(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    """Raise DataError where images of these sizes (H,W) cannot be mixed."""
    if source != target:
        raise DataError(
            f"the domains are mixed, but their images are {source[0]}x{source[1]} and {target[0]}x{target[1]} "
            "(height x width)",
            "set source.size and target.size to the same, or adapt.self_training.augment.crop",
        )


def check_source_free(base: str, plugins: Iterable[Plugin]) -> None:
    """Raise ConfigError for what cannot be had without source images."""
    if base == "daformer":
        raise ConfigError(
            "base: daformer adds rare-class sampling and a feature distance, both of source images, and source_free "
            "has none",
            "--base dacs, or --base mic, whose masked images are the target's",
        )
    for plugin in plugins:
        plugin.check_source_free()
