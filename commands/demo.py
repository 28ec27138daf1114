"""calseg demo: the main job from beginning to end on the embedded default."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import Force
from calseg_cli.commands._session import Session


def demo(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Where to work.")] = Path("calseg-demo"),
    *,
    steps: Annotated[int | None, typer.Option(help="Fewer steps are quicker and worse.")] = None,
    force: Force = False,
) -> None:
    """Draw two street domains, train on one, adapt to the other in several ways, and compare what it did to trust.

    Takes about five minutes on two cores. Example: calseg demo
    """
    from calseg_cli.stages.demo import run_demo

    done = run_demo(folder, steps=steps, force=force, progress=session.progress)
    from calseg_cli.commands._terminal import show_table

    headers, rows = done.table
    session.result(done.document, lambda console: show_table(console, "", headers, rows))
    session.progress.note(f"report: {done.page}")
    session.next(f"cd {shlex.quote(str(folder))} && calseg inspect {shlex.quote(str(done.artifact))}")
