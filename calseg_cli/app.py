"""Owns the table of commands in the order of data, and the one place where an error becomes an exit code."""

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from calseg_cli.commands import (
    adapt,
    artifact,
    calibrate,
    compare,
    config,
    data,
    demo,
    evaluate,
    init,
    inspect,
    predict,
    pretrain,
    results,
)
from calseg_cli.commands import calibrate_prototypes as prototypes_command
from calseg_cli.commands import logit_statistics as statistics_command
from calseg_cli.commands import pseudo_label as pseudo_label_command
from calseg_cli.commands import sample_data as sample_data_command
from calseg_cli.commands import select_checkpoint_by_ECE as select_command
from calseg_cli.commands import train_valuenet as valuenet_command
from calseg_cli.commands._artifact_export import export as artifact_export
from calseg_cli.commands._artifact_import import import_ as artifact_import
from calseg_cli.commands._session import ends, forget_stdout, is_first, told, with_session
from calseg_cli.commands._version import version_text
from calseg_cli.errors import CalsegError

EXIT_CODES = """Exit codes: 0 ok, 1 bug, 2 usage or configuration, 3 artifact or checkpoint, 4 data, 5 stopped but
resumable, 6 device or memory, 7 a --fail-if condition holds, 130 Ctrl-C, 143 SIGTERM."""

DATA, STAGES, LOOK = "Start here", "Stages, in the order of data", "Look at results"

COMMANDS: dict[str, tuple[Callable[..., None], str, str]] = {
    "demo": (demo.demo, DATA, "The main job from beginning to end on drawn streets."),
    "sample-data": (sample_data_command.sample_data, DATA, "Write two drawn street domains and a calseg.yaml."),
    "init": (init.init, DATA, "Write a commented calseg.yaml to start from."),
    "pretrain": (pretrain.pretrain, STAGES, "Train a network on the labelled source domain."),
    "select-checkpoint-by-ECE": (
        select_command.select_checkpoint,
        STAGES,
        "Choose the checkpoint with the lowest ECE.",
    ),
    "train-valuenet": (valuenet_command.train_valuenet, STAGES, "Train a net that expects its calibration error."),
    "adapt": (adapt.adapt, STAGES, "Adapt it to the unlabelled target domain."),
    "predict": (predict.predict, STAGES, "Write its logits as an artifact, and pictures."),
    "pseudo-label": (pseudo_label_command.pseudo_label, STAGES, "Labels from logits, ignored where not believed."),
    "calibrate-prototypes": (
        prototypes_command.calibrate_prototypes,
        STAGES,
        "Prototypes of soft labels, to label pixels anew.",
    ),
    "logit-statistics": (statistics_command.logit_statistics, STAGES, "Count its logits by label, for anchors."),
    "calibrate": (calibrate.calibrate, STAGES, "Fit a calibrator of its confidence."),
    "evaluate": (evaluate.evaluate, STAGES, "Measure accuracy and calibration (also: eval)."),
    "results": (results.results, LOOK, "All evaluations of a run in one table."),
    "compare": (compare.compare, LOOK, "Evaluations of the same images, with intervals."),
    "inspect": (inspect.inspect, LOOK, "What a file of calseg's holds."),
}
"""Each command in the order of data: its function, its panel, and its line in the list of commands."""
ALIASES = {
    "eval": "evaluate",
    "select-checkpoint-by-ece": "select-checkpoint-by-ECE",
    "select-checkpoint": "select-checkpoint-by-ECE",
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "data": ("Check the datasets.", {"check": data.check}),
    "artifact": (
        "Prove, compare, merge, repack artifacts.",
        {
            "verify": artifact.verify,
            "diff": artifact.diff,
            "merge": artifact.merge,
            "convert": artifact.convert,
            "import": artifact_import,
            "export": artifact_export,
        },
    ),
    "config": ("Look at the configuration.", {"show": config.show, "schema": config.schema}),
}
_USAGE: Any = typer.BadParameter.__base__  # typer has a click of its own, or shares one
CONTEXT = {"help_option_names": ["-h", "--help"]}


class Terminated(BaseException):
    """SIGTERM arrived while nothing was collecting it; cleanup runs on the way out."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _ends_already)
    raise Terminated


def _ends_already(signum: int, frame: FrameType | None) -> None:
    """Ignore it: a scheduler's SIGTERM and torchrun's own, which follows, end a command once."""


UNCONFIGURED = (
    "demo",
    "sample-data",
    "init",
    "inspect",
    "artifact verify",
    "artifact diff",
    "artifact merge",
    "artifact convert",
)


def guarded(function: Callable[..., None], *, configured: bool = True) -> Callable[..., None]:
    """The command with every user's error turned into one line on stderr and its exit code."""
    command = with_session(function, configured=configured)

    @functools.wraps(command, assigned=("__name__", "__doc__", "__annotations__"))
    def run(**options: Any) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            command(**options)
        except CalsegError as error:
            if options.get("debug") or os.environ.get("CALSEG_DEBUG"):
                raise
            raise typer.Exit(tell(function.__name__, error.exit_code, functools.partial(report, error))) from error
        except KeyboardInterrupt as error:
            said = "\nerror: interrupted; no unfinished result was left under a final name\n"
            raise typer.Exit(tell(function.__name__, 130, functools.partial(sys.stderr.write, said))) from error
        except Terminated as error:
            said = "error: terminated; no unfinished result was left under a final name\n"
            raise typer.Exit(tell(function.__name__, 143, functools.partial(sys.stderr.write, said))) from error

    run.__signature__ = command.__signature__  # type: ignore[attr-defined]
    del run.__wrapped__
    return run


def tell(command: str, code: int, say: Callable[[], object]) -> int:
    """Say what ends the command, unless another process of it under torchrun does; the exit code of all of them."""
    speaks, code = ends(command, code)
    if speaks:
        say()
        sys.stderr.flush()
        told(command)
    return code


def report(error: CalsegError) -> None:
    """Print an error: what and where, then what to do."""
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"  hint: {error.hint}\n")


def asks_for_the_list(words: Sequence[str]) -> bool:
    """Whether a command line wants no more than the list of commands."""
    return list(words) in ([], ["-h"], ["--help"])


def _listed(function: Callable[..., None], *, configured: bool) -> Callable[..., None]:
    """A command that is only to be listed: reading its options would take longer than all the rest."""

    def listed() -> None:
        """Stand for the command."""

    return listed


@contextmanager
def _said_once() -> Iterator[None]:
    """Leave what is wrong with the words to the first of torchrun's processes: all have the same words."""
    try:
        yield
    except _USAGE as error:
        if is_first():
            raise
        raise typer.Exit(2) from error


class _Commands(TyperGroup):
    """The commands; a mistake in the words is told once under torchrun."""

    def make_context(self, *words: Any, **named: Any) -> Any:
        """Read the words before the command."""
        with _said_once():
            return super().make_context(*words, **named)

    def invoke(self, ctx: Any) -> Any:
        """Read the words behind it, and run it."""
        with _said_once():
            return super().invoke(ctx)


def build(*, plain: bool = False) -> typer.Typer:
    """The whole command line. `plain` help has no frames: drawing them would double the time of `calseg --help`."""
    app = typer.Typer(
        name="calseg",
        cls=_Commands,
        help="Carry a segmentation model to an unlabelled domain, and trust its confidence there.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        context_settings=CONTEXT,
        pretty_exceptions_show_locals=False,
        rich_markup_mode=None if plain else "rich",
    )
    app.callback()(_root)
    guard = _listed if plain else guarded
    for name, (function, panel, line) in COMMANDS.items():
        app.command(name, rich_help_panel=panel, short_help=line)(guard(function, configured=name not in UNCONFIGURED))
    for alias, name in ALIASES.items():
        app.command(alias, hidden=True)(guard(COMMANDS[name][0], configured=True))
    for name, (text, functions) in GROUPS.items():
        group = typer.Typer(help=text, no_args_is_help=True, context_settings=CONTEXT)
        for sub, function in functions.items():
            group.command(sub)(guard(function, configured=f"{name} {sub}" not in UNCONFIGURED))
        app.add_typer(group, name=name, rich_help_panel=DATA if name == "data" else LOOK)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(version_text())
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Hold the options that stand before a command."""


def main() -> None:
    """The entry point of `calseg` and `python -m calseg_cli`."""
    if sys.stdout is None:  # closed by the caller, as `>&-` does
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    try:
        build(plain=asks_for_the_list(sys.argv[1:]))(prog_name="calseg")
    except BrokenPipeError:
        # `calseg ... | head` closed the pipe: stop quietly, as other tools do.
        forget_stdout()
        sys.exit(0)
