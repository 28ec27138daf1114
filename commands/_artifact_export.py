"""calseg artifact export: an artifact as files for other programs and benchmark servers."""

from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import OUTPUT, Domain, Force
from calseg_cli.commands._session import Session

_LABELS = "Label files (--to png)"


def export(
    session: Session,
    file: Annotated[Path, typer.Argument(help="Logits or pseudo-labels (.h5), or the manifest (.json) of shards.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", rich_help_panel=OUTPUT)],
    to: Annotated[
        str,
        typer.Option(
            help="npz (everything of an image), npy (its logits) or png (its label at full size).",
            rich_help_panel=OUTPUT,
        ),
    ],
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="IDS",
            help="Values to write: train (class indices, the default), dataset (the official ones of the configured "
            "dataset), a layout such as cityscapes, a list 7,8,11,... in the order of classes, or a file of one.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    ignore_id: Annotated[
        int | None,
        typer.Option(
            help="Value of ignored pixels; 255, or 0 where the dataset ignores 0, as Cityscapes does.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    palette: Annotated[
        bool, typer.Option("--palette", help="Colour the files; the values stay.", rich_help_panel=_LABELS)
    ] = False,
    suffix: Annotated[
        str, typer.Option(help="Text behind each file's name, such as _labelIds.", rich_help_panel=OUTPUT)
    ] = "",
    flat: Annotated[
        bool,
        typer.Option("--flat", help="All files in one folder, by the last part of their ids.", rich_help_panel=OUTPUT),
    ] = False,
    domain: Domain = None,
    force: Force = False,
) -> None:
    """Write an artifact's images as files, one each, below a folder that appears when it is whole.

    Example: calseg artifact export logits.h5 -o results --to png --ids dataset
    """
    resolved = session.load({"predict.domain": domain}) if ids == "dataset" else None
    from calseg_cli.stages.exporting import ExportOptions, export_artifact

    options = ExportOptions(to, ids, ignore_id, palette, suffix, flat, domain)
    done = export_artifact(file, out, options, resolved=resolved, force=force, progress=session.progress)
    session.path(vars(done), out)
