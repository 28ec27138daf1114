"""Owns measuring a stream of predictions against labels."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from calseg_cli.config import Evaluate
from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.fine_histogram import Edges
from calseg_cli.metrics.regions import Regions
from calseg_cli.metrics.tally import Tally, merge, tally_image
from calseg_cli.stages.label_grid import label_grid


def measure(
    predictions: Iterable[Prediction],
    num_images: int,
    num_classes: int,
    *,
    edges: Edges,
    progress: Progress,
    extra: Extra | None = None,
) -> Tally:
    """One pass: every labelled pixel of every image counted once, at the label's own size, and `extra` counts."""
    progress.start("measuring", num_images)
    tally = merge(chain([Tally.zeros(num_classes, edges, extra)], _tallies(predictions, edges, extra, progress)))
    progress.finish()
    return tally


def extra_counts(options: Evaluate, class_names: Sequence[str]) -> Extra:
    """What the options ask to be counted besides. Raises ConfigError where the background is none of the classes."""
    rule = None
    if options.regions:
        if options.background is not None and options.background not in class_names:
            raise ConfigError(
                f"evaluate.background: the network knows no class {options.background!r}",
                f"its classes: {', '.join(class_names)}",
            )
        rule = Regions(
            options.regions,
            class_names.index(options.background) if options.background is not None else None,
            options.boundary_band,
            options.boundary_distance,
            options.boundary_void,
        )
    return Extra(options.classwise, rule, options.preset, logits=options.report == "bias")


def _tallies(
    predictions: Iterable[Prediction], edges: Edges, extra: Extra | None, progress: Progress
) -> Iterator[Tally]:
    for prediction in predictions:
        if prediction.label is None:
            raise ValueError(f"{prediction.id} has no label to measure against")
        logits, grid = label_grid(prediction.logits, prediction.geometry)
        yield tally_image(
            logits,
            prediction.label,
            image_id=prediction.id,
            ignore=IGNORE,
            edges=edges,
            extra=extra,
            grid=grid,
        )
        progress.advance()
