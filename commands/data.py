"""calseg data: whether the datasets are what they should be."""

from typing import TYPE_CHECKING, Any

from calseg_cli.commands._options import Domain, Split
from calseg_cli.commands._session import Session
from calseg_cli.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console


def check(session: Session, *, domain: Domain = None, split: Split = None) -> None:
    """List what is wrong with the images and labels, with counts, and how often each class occurs.

    Reads every image and every label of the splits that exist; exits with 4 when something is wrong.

    Example: calseg data check
    """
    resolved = session.load()
    from calseg_cli.stages.data_check import check_domains

    checked = check_domains(resolved, domain=domain, split=split, progress=session.progress)
    session.result({"splits": checked.documents, "ok": checked.ok}, lambda console: _show(console, checked))
    if not checked.ok:
        raise DataError(
            f"{checked.problems} kinds of problem were found", "the lines above name the first files of each kind"
        )


def _show(console: "Console", checked: Any) -> None:
    from calseg_cli.commands._terminal import show_table

    for title, headers, rows in checked.tables:
        show_table(console, title, headers, rows)
        console.print()
    for line in checked.lines:
        console.print(line, markup=False, soft_wrap=True)
