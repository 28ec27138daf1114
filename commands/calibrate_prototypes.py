"""calseg calibrate-prototypes: soft-label prototypes of the target, by which pixels are labelled anew."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._options import INPUT, OUTPUT, Checkpoint, Device, Domain, Force, MaxItems, Name, Out, Split
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.config import Resolved
    from calseg_cli.stages.changed_labels import ChangedLabels
    from calseg_cli.stages.prototype_input import Asked

Table = tuple[str, list[str], list[list[str]]]

COUNTED, NEAREST, ONLINE = "What is counted", "What is nearest", "Online"


def calibrate_prototypes(
    session: Session,
    *,
    logits: Annotated[
        Path | None,
        typer.Option(help="A logits artifact; the run's newest of the target without it.", rich_help_panel=INPUT),
    ] = None,
    checkpoint: Checkpoint = None,
    images: Annotated[
        Path | None, typer.Option(help="With a network: any folder of images, not a split.", rich_help_panel=INPUT)
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="A picture, 0 where no image counts, such as on the own car.", rich_help_panel=COUNTED),
    ] = None,
    domain: Domain = None,
    split: Split = None,
    max_items: MaxItems = None,
    weight_power: Annotated[
        float | None, typer.Option(help="A pixel weighs its confidence to this power.", rich_help_panel=COUNTED)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the softmax; above 1 softens.", rich_help_panel=COUNTED)
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(help="Only pixels that are so sure count.", rich_help_panel=COUNTED)
    ] = None,
    top_frac: Annotated[
        float | None, typer.Option(help="Only this surest share of each class counts.", rich_help_panel=COUNTED)
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="How often pixels are assigned and counted.", rich_help_panel=COUNTED)
    ] = None,
    min_pixels: Annotated[
        int | None, typer.Option(help="A class of fewer pixels has no prototype.", rich_help_panel=COUNTED)
    ] = None,
    prior: Annotated[
        float | None, typer.Option(help="Pixels of a one-hot label that classes begin with.", rich_help_panel=COUNTED)
    ] = None,
    prior_from: Annotated[
        Path | None,
        typer.Option(help="Begin with these prototypes, of the source; tell the shift.", rich_help_panel=COUNTED),
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(help="No prototype: mask, onehot, source or error.", rich_help_panel=NEAREST),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="unseen source: prototypes of the source.", rich_help_panel=NEAREST)
    ] = None,
    shrink: Annotated[
        float | None, typer.Option(help="0: the paper, 1: changes nothing.", rich_help_panel=NEAREST)
    ] = None,
    distance: Annotated[str | None, typer.Option(help="l2, cosine, hellinger or kl.", rich_help_panel=NEAREST)] = None,
    per_image: Annotated[
        float | None,
        typer.Option(help="Mix in the image's own; pixels that the common ones weigh.", rich_help_panel=NEAREST),
    ] = None,
    confidence: Annotated[
        str | None, typer.Option(help="max (kept) or distance (not the paper).", rich_help_panel=NEAREST)
    ] = None,
    tau: Annotated[float | None, typer.Option(help="distance: its temperature.", rich_help_panel=NEAREST)] = None,
    online: Annotated[
        str | None, typer.Option(help="Correct while counting: causal or inclusive.", rich_help_panel=ONLINE)
    ] = None,
    forget: Annotated[
        float | None, typer.Option(help="Share that each image keeps of the earlier.", rich_help_panel=ONLINE)
    ] = None,
    png: Annotated[
        bool | None, typer.Option("--png", help="Also draw which pixels change.", rich_help_panel=OUTPUT)
    ] = None,
    changed_by: Annotated[
        Path | None,
        typer.Option(help="Count nothing: report what this file changes.", rich_help_panel=INPUT),
    ] = None,
    name: Name = None,
    device: Device = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Count the soft labels of the target's images: prototypes, by which its pixels are labelled. No label is opened.

    Bohdal et al. 2023, arXiv 2307.10842.

    Example: calseg calibrate-prototypes
    """
    resolved = session.load(
        {
            "predict.domain": domain,
            "predict.split": split or ("train" if checkpoint else None),
            "predict.max_items": max_items,
            "prototypes.weight_power": weight_power,
            "prototypes.temperature": temperature,
            "prototypes.min_confidence": min_confidence,
            "prototypes.top_frac": top_frac,
            "prototypes.iterations": iterations,
            "prototypes.min_pixels": min_pixels,
            "prototypes.prior": prior,
            "prototypes.prior_from": prior_from,
            "prototypes.unseen": unseen,
            "prototypes.shrink": shrink,
            "prototypes.distance": distance,
            "prototypes.per_image": per_image,
            "prototypes.confidence": confidence,
            "prototypes.tau": tau,
            "prototypes.online": online,
            "prototypes.forget": forget,
            "prototypes.png": png,
            "name": name,
            "device": device,
        }
    )
    from calseg_cli.stages.prototype_input import Asked

    asked = Asked(logits, checkpoint, images, mask)
    if changed_by is not None:
        _report(session, resolved, asked, changed_by, out)
    elif resolved.config.prototypes.online != "off":
        _online(session, resolved, asked, out, force=force)
    else:
        _count(session, resolved, asked, source, out, force=force)


def _count(
    session: Session, resolved: "Resolved", asked: "Asked", source: Path | None, out: Path | None, *, force: bool
) -> None:
    from calseg_cli.stages.calibrate_prototypes import calibrate_prototypes as stage

    done = stage(resolved, asked, source=source, out=out, force=force, progress=session.progress)
    tables = [done.table(), *(more.table() for more in (done.shift, done.changed) if more is not None)]
    session.result(done.document(), lambda console: _show(console, tables))
    for note in done.prototypes.notes():
        session.progress.note(note)
    session.progress.note(f"prototypes: {done.artifact}")
    _say_pictures(session, done.changed)
    session.next(f"calseg evaluate --prototypes {shlex.quote(str(done.artifact))}")


def _online(session: Session, resolved: "Resolved", asked: "Asked", out: Path | None, *, force: bool) -> None:
    from calseg_cli.stages.online_prototypes import correct_online as stage

    done = stage(resolved, asked, out=out, force=force, progress=session.progress)
    session.progress.note(f"{done.changed} of {done.pixels} cells of the logits change class")
    session.path(done.document(), done.artifact)
    step = "pseudo-label" if done.split == "train" else "evaluate"
    session.next(f"calseg {step} --logits {shlex.quote(str(done.artifact))}")


def _report(session: Session, resolved: "Resolved", asked: "Asked", prototypes: Path, out: Path | None) -> None:
    from calseg_cli.stages.calibrate_prototypes import report_changed

    found = report_changed(resolved, prototypes, asked, out=out, progress=session.progress)
    session.result(found.document(), lambda console: _show(console, [found.table()]))
    _say_pictures(session, found)


def _show(console: "Console", tables: list[Table]) -> None:
    from calseg_cli.commands._terminal import show_table

    for title, headers, rows in tables:
        show_table(console, title, headers, rows)


def _say_pictures(session: Session, changed: "ChangedLabels | None") -> None:
    if changed is not None and changed.pictures is not None:
        session.progress.note(f"pictures: {changed.pictures}")
