"""calseg train-valuenet: train a net that expects an image's calibration error."""

from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._estimate import show_estimate
from calseg_cli.commands._options import (
    Checkpoint,
    Compile,
    Deterministic,
    Device,
    DryRun,
    Force,
    Name,
    Resume,
    Seed,
    Workers,
)
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console

PANEL = "Training"


def train_valuenet(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", rich_help_panel=PANEL)] = None,
    target: Annotated[
        str | None, typer.Option(help="What it expects: image (its ECE), or class.", rich_help_panel=PANEL)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of AdamW.", rich_help_panel=PANEL)] = None,
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    compiled: Compile = None,
    deterministic: Deterministic = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train a small net that expects an image's calibration error, on labelled source images. The network stays.

    Example: calseg train-valuenet --steps 300
    """
    resolved = session.load(
        {
            "valuenet.steps": steps,
            "valuenet.target": target,
            "valuenet.lr": lr,
            "name": name,
            "seed": seed,
            "device": device,
            "workers": workers,
            "compile": compiled,
            "deterministic": deterministic,
        }
    )
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.train_valuenet import plan_value_net
    from calseg_cli.stages.train_valuenet import train_valuenet as stage

    if dry_run:
        estimate = plan_value_net(resolved, checkpoint=checkpoint, resume=resume, progress=session.progress)
        show_estimate(session, estimate)
        return
    done = stage(resolved, checkpoint=checkpoint, resume=resume, force=force, progress=session.progress)

    def show(console: "Console") -> None:
        for title, headers, rows in done.measured.tables() if done.measured is not None else []:
            show_table(console, title, headers, rows)
            console.print()

    session.result(done.document(), show)
    session.progress.note(f"value net: {done.path}")
    session.next("calseg adapt --method calsfda")
