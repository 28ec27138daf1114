"""calseg init: a commented calseg.yaml to start from."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from calseg_cli.commands._options import Force
from calseg_cli.commands._session import Session
from calseg_cli.errors import ConfigError


def init(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Where to write calseg.yaml.")] = Path(),
    *,
    sample: Annotated[
        str | None, typer.Option(help="One of the shipped configurations, such as camvid_day_to_dusk.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Every key, with its meaning and default.")] = False,
    force: Force = False,
) -> None:
    """Write a commented calseg.yaml to start from, or one of the shipped ones.

    Example: calseg init --sample gta5_to_cityscapes
    """
    from calseg_cli.artifacts.whole_file import write_whole
    from calseg_cli.config import write_template

    if full and sample is not None:
        raise ConfigError("--full and --sample exclude each other", "--sample writes a shipped file as it is")
    path = folder / "calseg.yaml"
    if path.exists() and not force:
        raise ConfigError(f"{path} exists already", "--force replaces it")
    if sample is None:
        write_template(path, "full" if full else "start")
    else:
        write_whole(path, _sample(sample))
    session.path({"config": path}, path)
    session.next("edit source and target in it, then calseg data check")


def _sample(name: str) -> str:
    folder = resources.files("calseg_cli.sample_configs")
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise ConfigError(f"there is no sample configuration {name!r}", f"known: {', '.join(known)}")
    return folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
