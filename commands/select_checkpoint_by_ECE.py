"""calseg select-checkpoint-by-ECE: choose one checkpoint of several."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._options import INPUT, Device, Force, MaxItems, Name, Resume, Seed, Split, Workers
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console

PANEL = "How it is chosen"


def select_checkpoint(
    session: Session,
    *,
    by: Annotated[
        str | None,
        typer.Option(
            help="ece, ece-image-mean, nll, miou (labels of the source); entropy, snd, value-net (no label).",
            rich_help_panel=PANEL,
        ),
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Refuse an mIoU so far below the best one.", rich_help_panel=PANEL)
    ] = None,
    intervals: Annotated[
        int | None, typer.Option(help="Resamples for 95 % intervals; 0 for none.", rich_help_panel=PANEL)
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="By labels of the target: a bound, not a result.", rich_help_panel=PANEL)
    ] = False,
    checkpoints: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|STAGE", help="Whose checkpoints; pretrain's without it.", rich_help_panel=INPUT),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|STAGE", help="entropy, snd, value-net: what they started from.", rich_help_panel=INPUT
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure all anew, also where counts were kept.", rich_help_panel=INPUT)
    ] = False,
    split: Split = None,
    max_items: MaxItems = None,
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.", rich_help_panel="Output")
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Choose the checkpoint with the lowest calibration error on the source's validation labels, or by no label at all.

    Example: calseg select-checkpoint-by-ECE

    Example: calseg select-checkpoint-by-ece --by entropy --checkpoints adapt-adabn
    """
    resolved = session.load(
        {
            "select.by": by,
            "select.floor": floor,
            "select.intervals": intervals,
            "select.oracle": oracle or None,
            "select.split": split,
            "select.max_items": max_items,
            "name": name,
            "seed": seed,
            "device": device,
            "workers": workers,
        }
    )
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.select_checkpoint import select_checkpoint as stage

    done = stage(
        resolved,
        checkpoints=checkpoints,
        start=start,
        measure=measure,
        out=out,
        resume=resume,
        force=force,
        progress=session.progress,
    )

    def show(console: "Console") -> None:
        for title, headers, rows in done.tables():
            show_table(console, title, headers, rows)
        for line in done.explanation():
            console.print(line, style="dim", markup=False, soft_wrap=True)

    session.result(done.document(), show)
    session.progress.note(f"chosen: {done.winner.name}, {done.network}")
    if checkpoints is None and out is None and not done.oracle:
        session.next("calseg adapt --method adabn")
    else:
        session.next(f"calseg evaluate --checkpoint {shlex.quote(str(done.network))}")
