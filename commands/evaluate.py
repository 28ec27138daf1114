"""calseg evaluate: accuracy and calibration on labelled images."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._estimate import show_estimate
from calseg_cli.commands._options import (
    Calibrator,
    Checkpoint,
    Compile,
    Device,
    Domain,
    DryRun,
    MaxItems,
    Name,
    Out,
    Prototypes,
    Split,
    Workers,
)
from calseg_cli.commands._session import Session
from calseg_cli.errors import ThresholdError

PANEL = "Report"


def evaluate(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    logits: Annotated[
        Path | None, typer.Option(help="Measure a logits artifact in place of a network.", rich_help_panel="Input")
    ] = None,
    prototypes: Prototypes = None,
    calibrator: Calibrator = None,
    domain: Domain = None,
    split: Split = None,
    max_items: MaxItems = None,
    report: Annotated[str | None, typer.Option(help="ece, iou, full or bias.", rich_help_panel=PANEL)] = None,
    bins: Annotated[int | None, typer.Option(help="Bins of the ECE.", rich_help_panel=PANEL)] = None,
    edges: Annotated[
        str | None, typer.Option(help="right: bins (lo,hi]; left: [lo,hi).", rich_help_panel=PANEL)
    ] = None,
    eval_classes: Annotated[
        int | None, typer.Option(help="13, 16 or 19 of the Cityscapes classes.", rich_help_panel=PANEL)
    ] = None,
    intervals: Annotated[
        int | None,
        typer.Option(help="Draw the images anew this often for 95 % intervals.", rich_help_panel=PANEL),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Also the ECE by a convention: guo15, calsfda, lts, torchmetrics, netcal, monai.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    classwise: Annotated[
        bool, typer.Option("--classwise", help="Also the class-wise ECE; takes longer.", rich_help_panel=PANEL)
    ] = False,
    region: Annotated[
        list[str] | None,
        typer.Option(help="Also apart: boundary, fg-true or fg-pred; may be repeated.", rich_help_panel=PANEL),
    ] = None,
    boundary_band: Annotated[
        int | None, typer.Option(help="Pixels from a boundary that belong to it.", rich_help_panel=PANEL)
    ] = None,
    background: Annotated[
        str | None, typer.Option(help="The class that is no foreground.", rich_help_panel=PANEL)
    ] = None,
    html: Annotated[
        bool, typer.Option("--html", help="Also write report.html, one self-contained page.", rich_help_panel=PANEL)
    ] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV in place of the table.", rich_help_panel=PANEL)] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 7 if it holds, such as 'ece>0.1'.", rich_help_panel=PANEL),
    ] = None,
    name: Name = None,
    device: Device = None,
    workers: Workers = None,
    compiled: Compile = None,
    out: Out = None,
    dry_run: DryRun = False,
) -> None:
    """Measure accuracy and calibration on labelled images, from a network or from a logits artifact.

    Example: calseg eval --report ece
    """
    resolved = session.load(
        {
            "evaluate.domain": domain,
            "evaluate.split": split,
            "evaluate.max_items": max_items,
            "evaluate.report": report,
            "evaluate.bins": bins,
            "evaluate.edges": edges,
            "evaluate.eval_classes": eval_classes,
            "evaluate.fail_if": fail_if or None,
            "evaluate.intervals": intervals,
            "evaluate.preset": preset,
            "evaluate.classwise": classwise or None,
            "evaluate.regions": region or None,
            "evaluate.boundary_band": boundary_band,
            "evaluate.background": background,
            "evaluate.html": html or None,
            "name": name,
            "device": device,
            "workers": workers,
            "compile": compiled,
        }
    )
    from calseg_cli.commands._report import show_evaluation
    from calseg_cli.stages.corrections import load_corrections
    from calseg_cli.stages.evaluate import evaluate as stage
    from calseg_cli.stages.evaluate import plan_evaluation

    corrections = load_corrections(prototypes, calibrator)
    if dry_run:
        plan = partial(plan_evaluation, checkpoint=checkpoint, logits=logits, out=out, progress=session.progress)
        show_estimate(session, plan(resolved, corrections))
        return
    done = stage(resolved, corrections, checkpoint=checkpoint, logits=logits, out=out, progress=session.progress)
    show_evaluation(session, done, resolved.config.evaluate.report, csv=csv)
    if done.failed:
        raise ThresholdError("; ".join(done.failed))
