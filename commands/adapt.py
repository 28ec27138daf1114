"""calseg adapt: move a trained network to the unlabelled target domain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calseg_cli.commands._options import (
    INPUT,
    Calibrator,
    Device,
    Force,
    Name,
    Prototypes,
    Resume,
    Seed,
    Split,
    Workers,
)
from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from calseg_cli.config import Resolved

TRAINING, ROUNDS, CALSFDA, ADABN = "Training", "Methods: cbst, calsfda", "Method: calsfda", "Method: adabn"


def adapt(
    session: Session,
    *,
    method: Annotated[str | None, typer.Option(help="How to adapt: adabn, tent, cbst or calsfda.")] = None,
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
    head_lr: Annotated[float | None, typer.Option(help="Head's learning rate.", rich_help_panel=ROUNDS)] = None,
    momentum: Annotated[
        float | None, typer.Option(help="1 replaces the source's statistics, less mixes them.", rich_help_panel=ADABN)
    ] = None,
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
    valuenet: Annotated[
        Path | None, typer.Option(help="The value net; the run's own without it.", rich_help_panel=INPUT)
    ] = None,
    prototypes: Prototypes = None,
    calibrator: Calibrator = None,
    name: Name = None,
    seed: Seed = None,
    device: Device = None,
    workers: Workers = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Adapt a trained network to the target's unlabelled images. No label of the target is opened.

    Example: calseg adapt --method calsfda
    """
    common = {
        "adapt.method": method,
        "adapt.split": split,
        "name": name,
        "seed": seed,
        "device": device,
        "workers": workers,
    }
    chosen = {
        "batch_size": batch_size,
        "steps": steps,
        "lr": lr,
        "head_lr": head_lr,
        "momentum": momentum,
        "rounds": rounds,
        "portion": portion,
        "average": average,
        "train": train,
        "choose": choose,
        "guidance": guidance,
    }
    resolved = session.load(common)
    resolved = session.load({**common, **_of_method(resolved, chosen)})
    from calseg_cli.stages.adapt import adapt as stage
    from calseg_cli.stages.corrections import load_corrections

    trained = stage(
        resolved,
        load_corrections(prototypes, calibrator),
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
    """The options under the key of the method they are for. Raises ConfigError for one that it does not have."""
    from calseg_cli.errors import ConfigError

    method = resolved.config.adapt.method
    section = getattr(resolved.config.adapt, method, None)
    known = type(section).model_fields if section is not None else chosen
    own = {"momentum"} - ({"momentum"} if method == "adabn" else set())  # sgd's momentum is another thing
    given = {name: value for name, value in chosen.items() if value is not None}
    for name in given:
        if name not in known or name in own:
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect with --method {method}",
                "calseg adapt --help says which does",
            )
    return {f"adapt.{method}.{name}": value for name, value in given.items()}
