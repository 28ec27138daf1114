"""calseg pretrain: train a network on the labelled source domain."""

from typing import Annotated

import typer

from calseg_cli.commands._estimate import show_estimate
from calseg_cli.commands._options import (
    Compile,
    Deterministic,
    Device,
    DryRun,
    Force,
    GradCheckpoint,
    Name,
    Resume,
    Seed,
    Tensorboard,
    Workers,
)
from calseg_cli.commands._session import Session

PANEL = "Training"


def pretrain(
    session: Session,
    *,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.", rich_help_panel=PANEL)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", rich_help_panel=PANEL)] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches whose gradients are summed for one step.", rich_help_panel=PANEL)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Encoder's learning rate.", rich_help_panel=PANEL)] = None,
    head_lr: Annotated[float | None, typer.Option(help="Head's learning rate.", rich_help_panel=PANEL)] = None,
    amp: Annotated[str | None, typer.Option(help="off, bf16 or fp16.", rich_help_panel=PANEL)] = None,
    grad_checkpoint: GradCheckpoint = None,
    network: Annotated[
        str | None, typer.Option(help="tiny, efficientnet-lite0, deeplabv2, segformer or package.module:callable.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="default, none, imagenet, or a file of weights.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="Trained network to start from: a checkpoint, a run, or RUN/STAGE such as a/select."
        ),
    ] = None,
    ece_weight: Annotated[
        float | None, typer.Option(help="Weight of the calibration error in the loss.", rich_help_panel=PANEL)
    ] = None,
    ece_start_step: Annotated[
        int | None, typer.Option(help="Step from which it counts.", rich_help_panel=PANEL)
    ] = None,
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
    """Train a network on the labelled source domain, and measure its calibration on the way.

    Example: calseg pretrain --steps 600
    """
    resolved = session.load(
        {
            "pretrain.steps": steps,
            "pretrain.batch_size": batch_size,
            "pretrain.accumulate": accumulate,
            "pretrain.lr": lr,
            "pretrain.head_lr": head_lr,
            "pretrain.amp": amp,
            "pretrain.grad_checkpoint": grad_checkpoint,
            "pretrain.from_checkpoint": start,
            "pretrain.ece.weight": ece_weight,
            "pretrain.ece.start_step": ece_start_step,
            "network.name": network,
            "network.init": init,
            "tensorboard": tensorboard or None,
            "name": name,
            "seed": seed,
            "device": device,
            "workers": workers,
            "compile": compiled,
            "deterministic": deterministic,
        }
    )
    from calseg_cli.stages.pretrain import plan_pretraining
    from calseg_cli.stages.pretrain import pretrain as stage

    if dry_run:
        show_estimate(session, plan_pretraining(resolved, resume=resume, progress=session.progress))
        return
    trained = stage(resolved, resume=resume, force=force, progress=session.progress)
    session.path(
        {"network": trained.network, "log": trained.log, "steps": trained.steps, "scores": trained.scores},
        trained.network,
    )
    session.next("calseg adapt --method adabn")
