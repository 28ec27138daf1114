"""calseg sample-data: the embedded default, two drawn street domains and a calseg.yaml."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import Force
from calseg_cli.commands._session import Session


def sample_data(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Where to write; made where it is missing.")] = Path(),
    *,
    seed: Annotated[int, typer.Option(help="Another seed draws other streets.")] = 0,
    force: Force = False,
) -> None:
    """Write two small drawn street domains, by day and through a worse camera at dusk, and a calseg.yaml.

    Nothing is downloaded. Example: calseg sample-data streets
    """
    from calseg_cli.stages.sample_data import write_sample_folder

    made = write_sample_folder(folder, seed=seed, force=force, progress=session.progress)
    session.path(made, folder)
    session.next(f"{f'cd {shlex.quote(str(folder))} && ' if folder != Path() else ''}calseg pretrain")
