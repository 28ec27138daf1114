"""calseg compare: evaluations of the same images side by side, with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._options import OUTPUT, Name
from calseg_cli.commands._session import Session
from calseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.stages.compare import Comparison

PANEL = "Intervals"


def compare(
    session: Session,
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="A metrics.h5, a folder that holds one, or an evaluation of the run; each is compared with the first.",
        ),
    ],
    *,
    name: Name = None,
    classes: Annotated[bool, typer.Option("--classes", help="Also the IoU of each class.")] = False,
    bins: Annotated[int, typer.Option(help="Bins of the ECE.", rich_help_panel=PANEL)] = 15,
    eval_classes: Annotated[
        int | None, typer.Option(help="13, 16 or 19 of the Cityscapes classes.", rich_help_panel=PANEL)
    ] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.", rich_help_panel=PANEL)] = 0.95,
    resamples: Annotated[int, typer.Option(help="How often images are drawn anew.", rich_help_panel=PANEL)] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.", rich_help_panel=PANEL)] = 0,
    interval: Annotated[
        str, typer.Option(help="percentile, or basic: mirrored at the measured value.", rich_help_panel=PANEL)
    ] = "percentile",
    by: Annotated[str, typer.Option(help="Draw by image or by sequence.", rich_help_panel=PANEL)] = "image",
    sequence_pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="What names the sequence in an image's id; the folder without it. Implies --by sequence.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the reliability curves; FILE ends in .png.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Compare evaluations on the images they share: scores, differences, bootstrap intervals over images.

    Example: calseg compare pretrain adapt-adabn
    """
    if png is not None and png.suffix.lower() != ".png":
        raise ConfigError(f"--png {png} does not end in .png", "name a picture")
    from calseg_cli.stages.compare import CompareOptions
    from calseg_cli.stages.compare import compare as stage
    from calseg_cli.stages.compared_files import find_metrics

    options = CompareOptions(level, resamples, seed, by, sequence_pattern, interval, bins, eval_classes)
    paths = [find_metrics(word, lambda: session.load({"name": name})) for word in results]
    found = stage(paths, options)
    from calseg_cli.stages.compare_tables import document

    session.result(document(found), lambda console: _show(console, found, classes=classes))
    if png is not None:
        found.draw(png)
        session.progress.note(f"reliability curves: {png}")


def _show(console: "Console", found: "Comparison", *, classes: bool) -> None:
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.compare_tables import explanation, tables

    for title, headers, rows in tables(found, classes=classes):
        show_table(console, title, headers, rows)
        console.print()
    for line in explanation(found):
        console.print(line, style="dim", markup=False, soft_wrap=True)
