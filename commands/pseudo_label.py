"""calseg pseudo-label: labels from logits, ignored wherever they are not believed."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._estimate import show_plan
from calseg_cli.commands._options import Calibrator, DryRun, Force, Name, Out, Prototypes, Resume
from calseg_cli.commands._session import Session

PANEL = "What is believed"


def pseudo_label(
    session: Session,
    *,
    logits: Annotated[
        Path | None,
        typer.Option(help="A logits artifact; without it, the run's newest of the target.", rich_help_panel="Input"),
    ] = None,
    prototypes: Prototypes = None,
    calibrator: Calibrator = None,
    threshold: Annotated[
        str | None, typer.Option(help="none, global or class-balanced.", rich_help_panel=PANEL)
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="global: believed from this confidence on.", rich_help_panel=PANEL)
    ] = None,
    portion: Annotated[
        float | None,
        typer.Option(help="class-balanced: the most confident share of each class.", rich_help_panel=PANEL),
    ] = None,
    ceiling: Annotated[
        float | None, typer.Option(help="class-balanced: no threshold above this.", rich_help_panel=PANEL)
    ] = None,
    keep_confidence: Annotated[
        str | None, typer.Option(help="Store confidence too: none, u8 or f16.", rich_help_panel="Output")
    ] = None,
    png: Annotated[
        bool | None,
        typer.Option("--png", help="Also write label, overlay and ignored-pixel pictures.", rich_help_panel="Output"),
    ] = None,
    name: Name = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Turn logits into labels that are 255, ignored, wherever they are not believed. No label is opened.

    Example: calseg pseudo-label --portion 0.3 --png
    """
    resolved = session.load(
        {
            "pseudo_label.threshold": threshold,
            "pseudo_label.confidence": confidence,
            "pseudo_label.portion": portion,
            "pseudo_label.ceiling": ceiling,
            "pseudo_label.keep_confidence": keep_confidence,
            "pseudo_label.png": png,
            "name": name,
        }
    )
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.corrections import load_corrections
    from calseg_cli.stages.pseudo_label import plan_pseudo_labels
    from calseg_cli.stages.pseudo_label import pseudo_label as stage

    corrections = load_corrections(prototypes, calibrator)
    if dry_run:
        show_plan(session, plan_pseudo_labels(resolved, corrections, logits=logits, out=out, progress=session.progress))
        return
    done = stage(resolved, corrections, logits=logits, out=out, resume=resume, force=force, progress=session.progress)
    session.result(done.document(), lambda console: show_table(console, *done.table()))
    session.progress.note(f"labels: {done.artifact}")
    if done.pictures is not None:
        session.progress.note(f"pictures: {done.pictures}")
    if not session.as_json:
        # `inspect` reads no configuration, so the options of this run are not for it.
        session.progress.note(f"next: calseg inspect {shlex.quote(str(done.artifact))}")
