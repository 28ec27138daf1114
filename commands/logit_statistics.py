"""calseg logit-statistics: a network's logits counted by label and channel, for BLDA's anchors."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import (
    INPUT,
    Checkpoint,
    Device,
    Domain,
    Force,
    MaxItems,
    Name,
    Out,
    Split,
    Workers,
)
from calseg_cli.commands._session import Session


def logit_statistics(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    logits: Annotated[
        Path | None, typer.Option(help="A logits artifact in place of a network.", rich_help_panel=INPUT)
    ] = None,
    domain: Domain = None,
    split: Split = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="true, or pseudo: the largest logit; true of the source, pseudo of the target without it.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    max_items: MaxItems = None,
    name: Name = None,
    device: Device = None,
    workers: Workers = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Count a network's logits by label and channel, exactly: of the source's training images unless said otherwise.

    BLDA takes its anchors from the file (adapt --anchors), so that it can adapt without the source. Labels of the
    target are opened by --domain target --labels true alone, as an oracle.

    Example: calseg logit-statistics --checkpoint pretrain
    """
    resolved = session.load(
        {
            "logit_statistics.domain": domain,
            "logit_statistics.split": split,
            "logit_statistics.labels": labels,
            "logit_statistics.max_items": max_items,
            "name": name,
            "device": device,
            "workers": workers,
        }
    )
    from calseg_cli.commands._terminal import show_table
    from calseg_cli.stages.logit_statistics import logit_statistics as stage

    done = stage(resolved, checkpoint=checkpoint, logits=logits, out=out, force=force, progress=session.progress)
    session.result(done.document(), lambda console: show_table(console, *done.table()))
    session.progress.note(f"statistics: {done.artifact}")
    if done.domain == "source":
        session.next(f"calseg adapt --method blda --anchors {shlex.quote(str(done.artifact))}")
