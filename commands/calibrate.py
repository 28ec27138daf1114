"""calseg calibrate: fit a calibrator of a network's confidence."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._options import INPUT, Checkpoint, Device, Force, MaxItems, Name, Out, Seed, Split, Workers
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console

PANEL = "How it is fitted"
BALANCE = "How classes are balanced: blda, logit-adjustment"


def calibrate(
    session: Session,
    *,
    method: Annotated[
        str | None,
        typer.Option(help="temperature, vector, local, selective, pseudocal, meta, dacal, blda or logit-adjustment."),
    ] = None,
    checkpoint: Checkpoint = None,
    logits: Annotated[
        Path | None, typer.Option(help="Fit on a logits artifact in place of a network.", rich_help_panel=INPUT)
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from", help="A calibrator made before, with another --tau; nothing is fitted.", rich_help_panel=BALANCE
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Whose labels: source, or target as an oracle. pseudocal, dacal, blda: images.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Split = None,
    max_items: MaxItems = None,
    penalty: Annotated[float | None, typer.Option(help="vector: pull to no change.", rich_help_panel=PANEL)] = None,
    mix: Annotated[
        float | None, typer.Option(help="pseudocal: the first image's share.", rich_help_panel=PANEL)
    ] = None,
    miscoverage: Annotated[
        float | None, typer.Option(help="meta: share of right pixels that may be given up.", rich_help_panel=PANEL)
    ] = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="meta: instead, the accuracy of what is kept.", rich_help_panel=PANEL)
    ] = None,
    wrong_temperature: Annotated[
        float | None, typer.Option(help="selective: T where judged wrong; fitted without it.", rich_help_panel=PANEL)
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="local: softplus, or relu as in the paper.", rich_help_panel=PANEL)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="local, selective: passes over the images.", rich_help_panel=PANEL)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="local, selective: learning rate.", rich_help_panel=PANEL)] = None,
    steps: Annotated[
        int | None, typer.Option(help="dacal: steps of the temperature network.", rich_help_panel=PANEL)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="dacal: images of each domain a step.", rich_help_panel=PANEL)
    ] = None,
    statistics: Annotated[
        str | None, typer.Option(help="dacal: batch norm of mixes: batch or running.", rich_help_panel=PANEL)
    ] = None,
    tau: Annotated[
        str | None, typer.Option(help="Strength: a number at least 0, or auto.", rich_help_panel=BALANCE)
    ] = None,
    tau_for: Annotated[
        str | None, typer.Option(help="auto: best for miou, or macc (class accuracy).", rich_help_panel=BALANCE)
    ] = None,
    tau_by: Annotated[
        str | None,
        typer.Option(help="auto: judged by source labels, or as expected on the target.", rich_help_panel=BALANCE),
    ] = None,
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Fit a calibrator of a network's confidence on labels of the source; pseudocal needs no label.

    blda and logit-adjustment even out how often classes are predicted.

    Example: calseg calibrate --method temperature

    Example: calseg calibrate --method blda --tau-for macc

    Example: calseg calibrate --from runs/sample/5-calibrate/pretrain-blda-target-train.h5 --tau 0.6
    """
    resolved = session.load(
        {
            "calibrate.method": method,
            "calibrate.on": on,
            "calibrate.split": split,
            "calibrate.max_items": max_items,
            "calibrate.penalty": penalty,
            "calibrate.mix": mix,
            "calibrate.miscoverage": miscoverage,
            "calibrate.target_accuracy": target_accuracy,
            "calibrate.wrong_temperature": wrong_temperature,
            "calibrate.positive": positive,
            "calibrate.epochs": epochs,
            "calibrate.lr": lr,
            "calibrate.steps": steps,
            "calibrate.batch_size": batch_size,
            "calibrate.statistics": statistics,
            "calibrate.tau": _number(tau),
            "calibrate.tau_for": tau_for,
            "calibrate.tau_by": tau_by,
            "name": name,
            "seed": seed,
            "device": device,
            "workers": workers,
        }
    )
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.calibrate import calibrate as stage
    from calseg_cli.stages.strength import with_strength

    made = partial(stage, resolved) if start is None else partial(with_strength, resolved, start)
    done = made(checkpoint=checkpoint, logits=logits, out=out, force=force, progress=session.progress)

    def show(console: "Console") -> None:
        for title, headers, rows in done.tables():
            show_table(console, title, headers, rows)
            console.print()

    session.result(done.document(), show)
    session.progress.note(f"calibrator: {done.artifact}")
    chosen = f" --checkpoint {shlex.quote(checkpoint)}" if checkpoint else ""
    session.next(f"calseg evaluate --calibrator {shlex.quote(str(done.artifact))}{chosen}")


def _number(text: str | None) -> float | str | None:
    """As a number where it is one; what it may be the configuration says."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
