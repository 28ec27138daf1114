"""Owns measuring a stream of predictions against labels."""

from collections.abc import Iterable, Iterator
from itertools import chain

from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Progress
from calseg_cli.metrics.fine_histogram import Edges
from calseg_cli.metrics.tally import Tally, merge, tally_image


def measure(
    predictions: Iterable[Prediction], num_images: int, num_classes: int, *, edges: Edges, progress: Progress
) -> Tally:
    """One pass: every labelled pixel of every image counted once, at the label's own size."""
    progress.start("measuring", num_images)
    tally = merge(chain([Tally.zeros(num_classes, edges)], _tallies(predictions, edges, progress)))
    progress.finish()
    return tally


def _tallies(predictions: Iterable[Prediction], edges: Edges, progress: Progress) -> Iterator[Tally]:
    for prediction in predictions:
        if prediction.label is None:
            raise ValueError(f"{prediction.id} has no label to measure against")
        yield tally_image(
            upsample_logits(prediction.logits, prediction.geometry),
            prediction.label,
            image_id=prediction.id,
            ignore=IGNORE,
            edges=edges,
        )
        progress.advance()
