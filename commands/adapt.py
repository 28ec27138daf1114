"""calseg adapt: move a trained network to the unlabelled target domain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calseg_cli.commands._estimate import show_estimate
from calseg_cli.commands._options import (
    INPUT,
    Calibrator,
    Compile,
    Deterministic,
    Device,
    DryRun,
    Force,
    GradCheckpoint,
    Name,
    Resume,
    Seed,
    Split,
    Tensorboard,
    Workers,
)
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from calseg_cli.config import Resolved

TRAINING, ROUNDS, CALSFDA, ADABN = "Training", "Methods: cbst, calsfda", "Method: calsfda", "Method: adabn"
FRAME = "Methods: self-training, dacal, blda"
BLDA = "Method: blda"
ONLINE = "online"


def adapt(
    session: Session,
    *,
    method: Annotated[
        str | None,
        typer.Option(help="How to adapt: adabn, tent, cbst, calsfda, self-training, dacal, blda; or dacal+blda."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|STAGE",
            help="A checkpoint, or a stage of the run such as adapt-adabn; the source network without it.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    split: Split = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, and images normalised together.", rich_help_panel=TRAINING)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, of a round.", rich_help_panel=TRAINING)] = None,
    lr: Annotated[float | None, typer.Option(help="Encoder's learning rate.", rich_help_panel=TRAINING)] = None,
    head_lr: Annotated[
        float | None, typer.Option(help="Head's learning rate; not of tent.", rich_help_panel=TRAINING)
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="1 replaces the source's statistics, less mixes them.", rich_help_panel=ADABN)
    ] = None,
    grad_checkpoint: GradCheckpoint = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of labelling and training.", rich_help_panel=ROUNDS)
    ] = None,
    portion: Annotated[
        float | None, typer.Option(help="Share of each class's pixels believed in round 1.", rich_help_panel=ROUNDS)
    ] = None,
    average: Annotated[
        float | None, typer.Option(help="Trained weights' share in a round's result.", rich_help_panel=ROUNDS)
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="What trains: all, head or batch-norm.", rich_help_panel=ROUNDS)
    ] = None,
    choose: Annotated[
        str | None, typer.Option(help="Round to keep: entropy, expected-error or last.", rich_help_panel=ROUNDS)
    ] = None,
    guidance: Annotated[
        str | None, typer.Option(help="Who expects an image's error: value-net or none.", rich_help_panel=CALSFDA)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What self-training is: dacs, daformer or mic.", rich_help_panel=FRAME)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="What target pixels are taught: hard, soft or sampled.", rich_help_panel=FRAME)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of the teacher's moving average.", rich_help_panel=FRAME)
    ] = None,
    quality: Annotated[
        str | None, typer.Option(help="Weight of target pixels: batch, image or one.", rich_help_panel=FRAME)
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Network to keep: student or teacher.", rich_help_panel=FRAME)
    ] = None,
    visualize: Annotated[
        int | None, typer.Option(help="Draw pictures of so many target images as it trains.", rich_help_panel=FRAME)
    ] = None,
    oracle: Annotated[
        bool,
        typer.Option("--oracle", help="For study: curves by labels of the target; stamped.", rich_help_panel=FRAME),
    ] = False,
    settle: Annotated[
        bool,
        typer.Option("--settle", help="Divide the result's logits by DA-Cal's temperature.", rich_help_panel=FRAME),
    ] = False,
    source_free: Annotated[
        bool, typer.Option("--source-free", help="Mix target images with each other; no source.", rich_help_panel=FRAME)
    ] = False,
    tau: Annotated[float | None, typer.Option(help="Strength of the offsets.", rich_help_panel=BLDA)] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(help="Anchors of these logit-statistics; learned without it.", rich_help_panel=BLDA),
    ] = None,
    valuenet: Annotated[
        Path | None, typer.Option(help="The value net; the run's own without it.", rich_help_panel=INPUT)
    ] = None,
    prototypes: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH|online",
            help="Label by the nearest of these prototypes, or online: of prototypes counted as it trains.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    calibrator: Calibrator = None,
    tensorboard: Tensorboard = False,
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
    """Adapt a trained network to the target's unlabelled images. No label of the target is opened but by --oracle.

    Example: calseg adapt --method calsfda
    """
    common = {
        "adapt.method": method,
        "adapt.split": split,
        "tensorboard": tensorboard or None,
        "name": name,
        "seed": seed,
        "device": device,
        "workers": workers,
        "compile": compiled,
        "deterministic": deterministic,
    }
    online = prototypes == Path(ONLINE)
    chosen = {
        "batch_size": batch_size,
        "steps": steps,
        "lr": lr,
        "head_lr": head_lr,
        "momentum": momentum,
        "grad_checkpoint": grad_checkpoint,
        "rounds": rounds,
        "portion": portion,
        "average": average,
        "train": train,
        "choose": choose,
        "guidance": guidance,
        "base": base,
        "labels": labels,
        "ema": ema,
        "quality": quality,
        "keep": keep,
        "visualize": visualize,
        "oracle": oracle or None,
        "settle": settle or None,
        "source_free": source_free or None,
        "tau": tau,
        "anchors": anchors,
        "prototypes": ONLINE if online else None,
    }
    resolved = session.load(common)
    resolved = session.load({**common, **_of_method(resolved, chosen)})
    from calseg_cli.stages.adapt import adapt as stage
    from calseg_cli.stages.adapt import plan_adaptation
    from calseg_cli.stages.corrections import load_corrections

    corrections = load_corrections(None if online else prototypes, calibrator)
    if dry_run:
        estimate = plan_adaptation(
            resolved,
            corrections,
            checkpoint=checkpoint,
            value_net=valuenet,
            resume=resume,
            progress=session.progress,
        )
        show_estimate(session, estimate)
        return
    trained = stage(
        resolved,
        corrections,
        checkpoint=checkpoint,
        value_net=valuenet,
        resume=resume,
        force=force,
        progress=session.progress,
    )
    document = {"network": trained.network, "log": trained.log, "steps": trained.steps, "scores": trained.scores}
    session.path(document, trained.network)
    session.next("calseg evaluate")


def _of_method(resolved: "Resolved", chosen: dict[str, Any]) -> dict[str, Any]:
    """The options under the keys of the sections that the method reads. Raises ConfigError for one that none has."""
    from calseg_cli.config.self_training import sections_of
    from calseg_cli.errors import ConfigError

    method, adapt = resolved.config.adapt.method, resolved.config.adapt
    names = [name for name in sections_of(method) if hasattr(getattr(adapt, name, None), "model_fields")]
    known = {name: section for section in reversed(names) for name in type(getattr(adapt, section)).model_fields}
    if not names:
        return {}  # the stage names the methods that there are
    if method != "adabn":
        known.pop("momentum", None)  # sgd's momentum is another thing
    given = {name: value for name, value in chosen.items() if value is not None}
    for name in given:
        if name not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect with --method {method}",
                "calseg adapt --help says which does",
            )
    return {f"adapt.{known[name]}.{name}": value for name, value in given.items()}
