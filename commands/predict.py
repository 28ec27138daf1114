"""calseg predict: write a network's logits as an artifact."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._estimate import show_plan
from calseg_cli.commands._options import (
    RUNTIME,
    Calibrator,
    Checkpoint,
    Compile,
    Device,
    Domain,
    DryRun,
    Force,
    MaxItems,
    Name,
    Out,
    Prototypes,
    Resume,
    Split,
    Workers,
)
from calseg_cli.commands._session import Session


def predict(
    session: Session,
    images: Annotated[
        Path | None, typer.Argument(help="An image or any folder of images, in place of a split of the configuration.")
    ] = None,
    *,
    checkpoint: Checkpoint = None,
    domain: Domain = None,
    split: Split = None,
    max_items: MaxItems = None,
    png: Annotated[
        bool | None, typer.Option("--png", help="Also write label, overlay and confidence pictures.")
    ] = None,
    flip: Annotated[bool | None, typer.Option("--flip", help="Average with the mirrored image.")] = None,
    scales: Annotated[str | None, typer.Option(help="Average over scales, such as 0.75,1,1.25.")] = None,
    logits_dtype: Annotated[str | None, typer.Option(help="float16 or float32.")] = None,
    compression: Annotated[str | None, typer.Option(help="gzip, none, zstd or bitshuffle.")] = None,
    prototypes: Prototypes = None,
    calibrator: Calibrator = None,
    name: Name = None,
    device: Device = None,
    workers: Workers = None,
    compiled: Compile = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="RANK/RANKS",
            help="Only this part, such as 0/8; torchrun sets it. The last part writes the manifest.",
            rich_help_panel=RUNTIME,
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Write the logits of a split, or of any folder of images, at the network's own stride. No label is opened.

    Example: calseg predict --png
    """
    resolved = session.load(
        {
            "predict.domain": domain,
            "predict.split": split,
            "predict.max_items": max_items,
            "predict.png": png,
            "predict.flip": flip,
            "predict.scales": _numbers(scales) if scales else None,
            "predict.logits_dtype": logits_dtype,
            "predict.compression": compression,
            "name": name,
            "device": device,
            "workers": workers,
            "compile": compiled,
        }
    )
    from calseg_cli.stages.corrections import load_corrections
    from calseg_cli.stages.predict import plan_prediction
    from calseg_cli.stages.predict import predict as stage

    corrections = load_corrections(prototypes, calibrator)
    if dry_run:
        show_plan(session, plan_prediction(resolved, corrections, checkpoint=checkpoint, images=images, out=out))
        return
    done = stage(
        resolved,
        corrections,
        checkpoint=checkpoint,
        images=images,
        out=out,
        shard=shard,
        resume=resume,
        force=force,
        progress=session.progress,
    )
    if done.pictures is not None:
        session.progress.note(f"pictures: {done.pictures}")
    session.path(
        {"artifact": done.artifact, "pictures": done.pictures, "images": done.images, "digest": done.digest},
        done.artifact,
    )
    if done.digest is None:
        return
    step = "pseudo-label" if resolved.config.predict.split == "train" and images is None else "evaluate"
    session.next(f"calseg {step} --logits {shlex.quote(str(done.artifact))}")


def _numbers(text: str) -> list[float | str]:
    """The parts between commas; what is no number stays text, for the configuration to complain about."""
    return [_number(part.strip()) for part in text.split(",")]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
