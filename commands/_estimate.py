"""Owns how `--dry-run` is told: a plan and an estimate as lines, or with --json as a document."""

from typing import TYPE_CHECKING

from calseg_cli.commands._session import Session

if TYPE_CHECKING:
    from calseg_cli.stages.predict import Plan
    from calseg_cli.stages.probe import Estimate


def show_estimate(session: Session, estimate: "Estimate") -> None:
    """Print it on stdout, as lines or with --json as a document; and on stderr that it is one."""
    if session.as_json:
        session.result(estimate.document())
        return
    session.write("".join(f"{name}: {value}\n" for name, value in estimate.rows()))
    session.progress.note("estimates, from a few steps in memory; nothing was written")


def show_plan(session: Session, plan: "Plan") -> None:
    """Print what an artifact would hold, and how large it is before packing."""
    from calseg_cli.artifacts.disk import human

    rows = [
        ["to", f"{plan.target} ({plan.state})"],
        ["images", str(plan.images)],
        ["classes", str(plan.classes)],
        ["size before packing", human(plan.raw_bytes)],
        ["free on that disk", human(plan.free_bytes)],
    ]
    if session.as_json:
        session.result({**vars(plan), "dry_run": True})
    else:
        session.write("".join(f"{name}: {value}\n" for name, value in rows))
