"""Owns `calseg demo`: train on drawn streets by day, adapt to dusk in every way, and compare, in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.config import Resolved, load_config
from calseg_cli.engine.progress import Progress
from calseg_cli.stages.adapt import adapt
from calseg_cli.stages.calibrate_prototypes import calibrate_prototypes
from calseg_cli.stages.corrections import load_corrections
from calseg_cli.stages.evaluate import Evaluated, evaluate
from calseg_cli.stages.predict import predict
from calseg_cli.stages.pretrain import pretrain
from calseg_cli.stages.prototype_input import Asked
from calseg_cli.stages.sample_data import CONFIG, write_sample_folder
from calseg_cli.stages.train_valuenet import train_valuenet

Row = tuple[str, Evaluated]


@dataclass(frozen=True)
class Demonstrated:
    """The final table, the same as a document, and the files worth opening."""

    table: tuple[list[str], list[list[str]]]
    document: dict[str, Any]
    page: Path
    artifact: Path


@dataclass(frozen=True)
class _Demo:
    """A folder in which commands are run; every line that is noted is the command a user would type."""

    folder: Path
    steps: int | None
    force: bool
    progress: Progress

    def config(self, **flags: Any) -> Resolved:
        """The folder's configuration with flags, whose dots are written as two underscores."""
        given = {
            "pretrain.steps": self.steps,
            "evaluate.html": True,
            **{key.replace("__", "."): value for key, value in flags.items()},
        }
        return load_config(self.folder / CONFIG, flags=given)

    def note(self, command: str) -> None:
        """Tell which command comes now."""
        self.progress.note(f"$ calseg {command}")

    def adapt(self, method: str) -> Evaluated:
        """Adapt, with as many steps as the method's section says or as training has if that is fewer; and measure."""
        self.note(f"adapt --method {method}")
        resolved = self.config(adapt__method=method, **_fewer(method, self.steps))
        adapt(resolved, checkpoint=None, resume=False, force=self.force, progress=self.progress)
        return self.evaluate(f"adapt-{method}")

    def evaluate(self, stage: str, domain: str = "target", prototypes: Path | None = None) -> Evaluated:
        """Measure a stage's network on a test split, corrected by prototypes where some are given."""
        shown = "" if prototypes is None else f" --prototypes {self.inside(prototypes)}"
        self.note(f"evaluate --checkpoint {stage} --domain {domain}{shown} --html")
        return evaluate(
            self.config(evaluate__domain=domain),
            load_corrections(prototypes, None),
            checkpoint=stage,
            logits=None,
            out=None,
            progress=self.progress,
        )

    def inside(self, path: Path) -> Path:
        """A path as seen from the folder."""
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else path


def run_demo(folder: Path, *, steps: int | None, force: bool, progress: Progress) -> Demonstrated:
    """Run the main job on the embedded default in `folder`; every line it notes is the command a user would type."""
    demo = _Demo(folder, steps, force, progress)
    progress.note(f"$ calseg sample-data {folder}")
    write_sample_folder(folder, seed=0, force=force, progress=progress)
    demo.note("pretrain")
    pretrain(demo.config(), resume=False, force=force, progress=progress)
    rows = [
        ("day, as trained", demo.evaluate("pretrain", "source")),
        ("dusk, not adapted", demo.evaluate("pretrain")),
        ("dusk, after AdaBN", demo.adapt("adabn")),
    ]
    demo.note("predict --checkpoint adapt-adabn --png")
    predicted = predict(
        demo.config(predict__png=True),
        checkpoint="adapt-adabn",
        images=None,
        out=None,
        force=force,
        progress=progress,
    )
    rows.append(("dusk, AdaBN + prototypes", _with_prototypes(demo)))
    demo.note("train-valuenet")
    few = _few_value_steps(steps)
    train_valuenet(demo.config(**few), checkpoint=None, resume=False, force=force, progress=progress)
    rows.append(("dusk, Cal-SFDA", demo.adapt("calsfda")))
    rows.append(("dusk, DA-Cal", demo.adapt("dacal")))
    return Demonstrated(
        _table(rows),
        {name: done.document() for name, done in rows},
        rows[-1][1].folder / "report.html",
        demo.inside(predicted.artifact),
    )


def _with_prototypes(demo: _Demo) -> Evaluated:
    demo.note("calibrate-prototypes --checkpoint adapt-adabn")
    made = calibrate_prototypes(
        demo.config(predict__split="train"),
        Asked(None, "adapt-adabn", None, None),
        source=None,
        out=None,
        force=demo.force,
        progress=demo.progress,
    )
    return demo.evaluate("adapt-adabn", prototypes=made.artifact)


def _fewer(method: str, steps: int | None) -> dict[str, int]:
    """A quick demo is quick everywhere: no stage has more steps than were asked for training."""
    if steps is None or method == "adabn":
        return {}
    own = {"calsfda": ("adapt__calsfda__steps",), "dacal": ("adapt__self_training__steps",)}[method]
    return dict.fromkeys(own, steps)


def _few_value_steps(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"valuenet__steps": steps}


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    columns = {"mIoU": "miou", "mAcc": "macc", "ECE": "ece", "gap": "signed_gap", "NLL": "nll", "Brier": "brier"}
    cells = [[name, *(f"{float(getattr(done.scores, key)):.4f}" for key in columns.values())] for name, done in rows]
    return ["network on", *columns], cells
