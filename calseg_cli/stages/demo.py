"""Owns `calseg demo`: sample-data, pretrain, evaluate, adapt, predict, evaluate, in one go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.config import Resolved, load_config
from calseg_cli.engine.progress import Progress
from calseg_cli.stages.adapt import adapt
from calseg_cli.stages.evaluate import Evaluated, evaluate
from calseg_cli.stages.predict import predict
from calseg_cli.stages.pretrain import pretrain
from calseg_cli.stages.sample_data import CONFIG, write_sample_folder

Row = tuple[str, Evaluated]


@dataclass(frozen=True)
class Demonstrated:
    """The final table, the same as a document, and the files worth opening."""

    table: tuple[list[str], list[list[str]]]
    document: dict[str, Any]
    page: Path
    artifact: Path


def run_demo(folder: Path, *, steps: int | None, force: bool, progress: Progress) -> Demonstrated:
    """Run the main job on the embedded default in `folder`; every line it notes is the command a user would type."""

    def load(**flags: Any) -> Resolved:
        given = {
            "pretrain.steps": steps,
            "evaluate.html": True,
            **{key.replace("__", "."): value for key, value in flags.items()},
        }
        return load_config(folder / CONFIG, flags=given)

    progress.note(f"$ calseg sample-data {folder}")
    write_sample_folder(folder, seed=0, force=force, progress=progress)
    progress.note("$ calseg pretrain")
    pretrain(load(), resume=False, force=force, progress=progress)
    rows = [
        ("day, as trained", _evaluate(load(evaluate__domain="source"), "pretrain", progress)),
        ("dusk, not adapted", _evaluate(load(), "pretrain", progress)),
    ]
    progress.note("$ calseg adapt --method adabn")
    adapt(load(), checkpoint=None, resume=False, force=force, progress=progress)
    progress.note("$ calseg predict --png")
    predicted = predict(
        load(predict__png=True), checkpoint="adapt-adabn", images=None, out=None, force=force, progress=progress
    )
    rows.append(("dusk, after AdaBN", _evaluate(load(), "adapt-adabn", progress)))
    return Demonstrated(
        _table(rows),
        {name: done.document() for name, done in rows},
        rows[-1][1].folder / "report.html",
        predicted.artifact.relative_to(folder) if predicted.artifact.is_relative_to(folder) else predicted.artifact,
    )


def _evaluate(resolved: Resolved, stage: str, progress: Progress) -> Evaluated:
    domain = resolved.config.evaluate.domain
    progress.note(f"$ calseg evaluate --checkpoint {stage} --domain {domain} --html")
    return evaluate(resolved, checkpoint=stage, logits=None, out=None, progress=progress)


def _table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    columns = {"mIoU": "miou", "mAcc": "macc", "ECE": "ece", "gap": "signed_gap", "NLL": "nll", "Brier": "brier"}
    cells = [[name, *(f"{float(getattr(done.scores, key)):.4f}" for key in columns.values())] for name, done in rows]
    return ["network on", *columns], cells
