"""calseg adapt: move a trained network to the unlabelled target domain."""

from typing import Annotated

import typer

from calseg_cli.commands._options import Checkpoint, Device, Force, Name, Resume, Seed, Split, Workers
from calseg_cli.commands._session import Session


def adapt(
    session: Session,
    *,
    method: Annotated[str | None, typer.Option(help="How to adapt: adabn.")] = None,
    checkpoint: Checkpoint = None,
    split: Split = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images normalised together while statistics are measured.", rich_help_panel="Method: adabn"),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(help="1 replaces the source's statistics, less mixes them.", rich_help_panel="Method: adabn"),
    ] = None,
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Adapt a trained network to the target's unlabelled images. No label of the target is opened.

    Example: calseg adapt --method adabn
    """
    resolved = session.load(
        {
            "adapt.method": method,
            "adapt.split": split,
            "adapt.adabn.batch_size": batch_size,
            "adapt.adabn.momentum": momentum,
            "name": name,
            "seed": seed,
            "device": device,
            "workers": workers,
        }
    )
    from calseg_cli.stages.adapt import adapt as stage

    trained = stage(resolved, checkpoint=checkpoint, resume=resume, force=force, progress=session.progress)
    session.path({"network": trained.network, "log": trained.log}, trained.network)
    session.next("calseg evaluate")
