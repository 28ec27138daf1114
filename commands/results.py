"""calseg results: the evaluations of a run side by side."""

from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import Name
from calseg_cli.commands._session import Session

COLUMNS = {
    "miou": "mIoU",
    "macc": "mAcc",
    "ece": "ECE",
    "ece_image": "ECE/image",
    "signed_gap": "gap",
    "nll": "NLL",
    "brier": "Brier",
}


def results(
    session: Session,
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; the configuration's own run without them.")
    ] = None,
    *,
    name: Name = None,
) -> None:
    """Show all evaluations of one or more runs in one table, the oldest first.

    Example: calseg results
    """
    from calseg_cli.stages.results import read_results

    folders = runs or [_own_run(session, name)]
    rows = [row for folder in folders for row in read_results(folder)]
    from calseg_cli.commands._terminal import show_table

    drawn = [
        [str(row["name"]), *(_number(row["scores"].get(key)) for key in COLUMNS), str(row["images"])] for row in rows
    ]
    session.result(
        {"results": rows},
        lambda console: show_table(console, "", ["evaluation", *COLUMNS.values(), "images"], drawn),
    )


def _own_run(session: Session, name: str | None) -> Path:
    config = session.load({"name": name}).config
    return config.runs / config.name


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "n/a"
