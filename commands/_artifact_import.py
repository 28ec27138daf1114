"""calseg artifact import: other tools' logits and labels as an artifact."""

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calseg_cli.commands._options import INPUT, OUTPUT, Domain, Force, Resume, Split
from calseg_cli.commands._session import Session
from calseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from calseg_cli.config import Resolved

_GEOMETRY = "Where the grid lies"
_SIZE = re.compile(r"(\d{1,5})[xX,](\d{1,5})")


def import_(
    session: Session,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A folder of .npy, .npz or label PNG files, one such file, or an .npz with one array an image.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The artifact to write.", rich_help_panel=OUTPUT)],
    kind: Annotated[
        str | None, typer.Option(help="logits or pseudo-labels; by file type without it.", rich_help_panel=INPUT)
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="The image's array in .npz files that hold several.", rich_help_panel=INPUT)
    ] = None,
    axes: Annotated[
        str | None,
        typer.Option(help="chw (the default) or hwc: which axis is the classes'.", rich_help_panel=INPUT),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            help="logits (the default), probabilities or log-probabilities; both of the latter are checked.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...|FILE",
            help="Class names in the order of their indices; the configured source's without it.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="IDS",
            help="What label values mean: train (class indices, the default), dataset (the domain's own), a layout "
            "such as cityscapes, a list 7=0,8=sidewalk,9=ignore, or a file of one.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    domain: Domain = None,
    split: Split = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pixels between two values of the grid; what fits without it.", rich_help_panel=_GEOMETRY
        ),
    ] = None,
    pad: Annotated[
        str | None,
        typer.Option(
            metavar="BOTTOM,RIGHT",
            help="Pixels added to the network's input; 0,0 without it.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    align_corners: Annotated[
        bool | None,
        typer.Option("--align-corners", help="The network enlarges with aligned corners.", rich_help_panel=_GEOMETRY),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="The size the network saw, before padding; the full size without it.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    out_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="The labels' full size; without it that of the configured images, which ids are matched to.",
            rich_help_panel=_GEOMETRY,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Store logits as float16 or float32; as they are without it.", rich_help_panel=OUTPUT),
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Make an artifact of another tool's logits or label files, so that evaluate and all that follows takes them.

    Nothing is unpickled, and no label of a dataset is opened.

    Example: calseg artifact import logits/ -o logits.h5 --stride 4
    """
    in_hw = _pair(input_size, "--input-size", "HxW such as 512x1024")
    out_hw = _pair(out_size, "--out-size", "HxW such as 1024x2048")
    added = _pair(pad, "--pad", "BOTTOM,RIGHT such as 0,16")
    resolved = _configuration(session, domain, split)
    from calseg_cli.artifacts.foreign_values import Place
    from calseg_cli.stages.import_plan import ImportOptions
    from calseg_cli.stages.importing import import_artifact

    place = Place(in_hw, out_hw, added, stride, align_corners)
    options = ImportOptions(kind, key, axes, values, dtype, classes, ids, domain, split, place)
    done = import_artifact(resolved, source, out, options, resume=resume, force=force, progress=session.progress)
    session.path(vars(done), out)
    # A split to train on mostly has no labels to measure against.
    step = "pseudo-label" if done.domain and split == "train" else "evaluate"
    step = f"{step} --logits" if done.kind == "logits" and done.domain else "inspect"
    session.next(f"calseg {step} {shlex.quote(str(out))}")


def _configuration(session: Session, domain: str | None, split: str | None) -> "Resolved | None":
    """The configuration where there is one; an import can do without."""
    from calseg_cli.config.loading import FILE_NAME

    if session.config or session.sets or os.environ.get("CALSEG_CONFIG") or Path(FILE_NAME).exists():
        return session.load({"predict.domain": domain, "predict.split": split})
    if domain is not None or split is not None:
        raise ConfigError(f"--domain and --split need a configuration, and there is no {FILE_NAME}", "-c names one")
    return None


def _pair(text: str | None, option: str, form: str) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{option} {text} is no pair of whole numbers", f"it is {form}")
    return int(found[1]), int(found[2])
