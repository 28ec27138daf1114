"""calseg artifact: prove, compare, merge and repack artifacts."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calseg_cli.commands._options import OUTPUT, Force, Resume
from calseg_cli.commands._session import Session
from calseg_cli.errors import ArtifactError, ThresholdError

if TYPE_CHECKING:
    from rich.console import Console

    from calseg_cli.artifacts.diff import Difference

File = Annotated[Path, typer.Argument(help="An artifact (.h5), or the manifest (.json) of its shards.")]
To = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", rich_help_panel=OUTPUT)]
_SHOWN = 10  # lines of each kind; --json has them all


def verify(
    session: Session,
    files: Annotated[list[Path], typer.Argument(help="Artifacts, or manifests of shards.")],
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Only the seal, the lists and the counts.")] = False,
) -> None:
    """Read every chunk and take every digest again; exits with 3 when anything is not what was written.

    Example: calseg artifact verify runs/sample/5-predict/pretrain-target-test.h5
    """
    documents = [_verified(session, path, quick=quick) for path in files]
    session.result(
        {"files": documents, "ok": all(document["ok"] for document in documents)},
        lambda console: _show_verified(console, documents),
    )
    broken = [document for document in documents if not document["ok"]]
    if broken:
        raise ArtifactError(
            f"{len(broken)} of {len(documents)} files are not what was written", "copy or write them again"
        )


def _verified(session: Session, path: Path, *, quick: bool) -> dict[str, Any]:
    from calseg_cli.artifacts.reader import open_artifact
    from calseg_cli.artifacts.verify import verify as verified

    try:
        with open_artifact(path) as artifact:
            problems = []
            session.progress.start(f"verifying {path.name}", len(artifact))
            for what, wrong in () if quick else verified(artifact):
                problems += [f"{what}: {wrong}"] if wrong else []
                session.progress.advance()
            session.progress.finish()
            facts = {"kind": artifact.kind.name, "items": len(artifact), "content_digest": artifact.digest}
    except ArtifactError as error:
        return {"file": path, "ok": False, "problems": [error.message]}
    return {"file": path, "ok": not problems, "checked": "quick" if quick else "all", **facts, "problems": problems}


def _show_verified(console: "Console", documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["ok"]:
            line = (
                f"{document['file']}: ok, {document['kind']}, {document['items']} items, {document['content_digest']}"
            )
            console.print(line, markup=False, soft_wrap=True)
            continue
        for problem in document["problems"][:_SHOWN]:
            console.print(f"{document['file']}: {problem}", markup=False, soft_wrap=True)
        if len(document["problems"]) > _SHOWN:
            console.print(f"... and {len(document['problems']) - _SHOWN} more (--json lists all)")


def diff(
    session: Session,
    first: File,
    second: File,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Take the digests as they are written.")] = False,
) -> None:
    """Compare two artifacts by content, not by bytes; exits with 7 when they differ, with 3 when one is damaged.

    Example: calseg artifact diff a.h5 b.h5
    """
    from calseg_cli.artifacts.diff import diff as compared
    from calseg_cli.artifacts.reader import open_artifact

    with open_artifact(first) as one, open_artifact(second) as other:
        found = compared(one, other, quick=quick)
        same_digest = one.digest == other.digest
    document = {
        **vars(found),
        "changed": [vars(item) for item in found.changed],
        "equal": found.equal,
        "content_digests_equal": same_digest,
    }
    session.result(document, lambda console: _show_difference(console, found))
    if not found.equal:
        raise ThresholdError(f"{first} and {second} differ")


def _show_difference(console: "Console", found: "Difference") -> None:
    changed = [
        f"{item.id}: {item.how}, {item.differing} of {item.values} values"
        + (f", by at most {item.largest:.6g}" if item.largest is not None else "")
        for item in found.changed
    ]
    lines = {
        "description": found.tables,
        "only in the first": found.only_first,
        "only in the second": found.only_second,
        "changed": changed,
        "arrays": found.arrays,
    }
    for title, entries in lines.items():
        if entries:
            console.print(f"{title} ({len(entries)}):", markup=False)
        for entry in entries[:_SHOWN]:
            console.print(f"  {entry}", markup=False, soft_wrap=True)
        if len(entries) > _SHOWN:
            console.print(f"  ... and {len(entries) - _SHOWN} more (--json lists all)")
    if found.order:
        console.print("the images are in another order")
    if found.equal:
        console.print("the contents are equal")


def merge(
    session: Session,
    files: Annotated[list[Path], typer.Argument(help="Artifacts of one kind, or manifests of shards.")],
    *,
    out: To,
    force: Force = False,
) -> None:
    """Make one file of shards or of several artifacts, without packing their chunks again; metrics are added up.

    Example: calseg artifact merge logits.manifest.json -o logits.h5
    """
    from calseg_cli.stages.merging import merge_artifacts

    session.progress.start("merging", 0)
    digest = merge_artifacts(files, out, command=sys.argv, force=force, told=session.progress.advance)
    session.progress.finish()
    session.path({"artifact": out, "digest": digest}, out)
    session.next(f"calseg inspect {shlex.quote(str(out))}")


def convert(
    session: Session,
    file: File,
    *,
    out: To,
    compression: Annotated[str, typer.Option(help="gzip, none, zstd or bitshuffle.")] = "gzip",
    dtype: Annotated[str | None, typer.Option(help="Store logits as float16 or float32.")] = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Pack an artifact otherwise, seal again one that another program rewrote, or make one file of shards.

    The content is read and proved on the way; its digest stays, unless --dtype changes the type of the values.

    Example: calseg artifact convert logits.h5 -o fast.h5 --compression none
    """
    from calseg_cli.stages.merging import convert_artifact

    digest = convert_artifact(
        file, out, compression=compression, dtype=dtype, resume=resume, force=force, progress=session.progress
    )
    session.path({"artifact": out, "digest": digest}, out)
    session.next(f"calseg inspect {shlex.quote(str(out))}")
