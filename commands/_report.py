"""Owns how an evaluation is shown on the terminal."""

from typing import TYPE_CHECKING

from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.stages.evaluate import Evaluated


def show_evaluation(session: Session, done: "Evaluated", report: str, *, csv: bool) -> None:
    """Print the tables of a report ("iou", "ece", "full" or "bias"), its CSV, or its JSON; then where the files are."""
    from calseg_cli.commands._terminal import show_table

    if csv and not session.as_json:
        session.write(done.csv())
    else:

        def show(console: "Console") -> None:
            for title, headers, rows in done.tables(report):
                show_table(console, title, headers, rows)
                console.print()
            for note in done.notes(report):
                console.print(note, style="dim")

        session.result({**done.document(), "folder": done.folder}, show)
    page = done.folder / "report.html"
    session.progress.note(f"report: {page if done.html else done.folder}")
