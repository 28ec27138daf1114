"""Owns `calseg select-checkpoint-by-ECE`: one checkpoint of several is chosen and copied, with the reasons beside."""

import sys
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.checkpoint import write_checkpoint
from calseg_cli.engine.device import memory_errors, seed_everything
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.calibration import Convention
from calseg_cli.metrics.intervals import check_resamples
from calseg_cli.report.checkpoint_figure import checkpoint_figure
from calseg_cli.report.drawing import save_png
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.roads import classes_table
from calseg_cli.stages.run_folder import NETWORK, RunFolder, claim, release, run_folder, sole_writer
from calseg_cli.stages.select_checkpoint_candidates import find_folder
from calseg_cli.stages.select_checkpoint_election import CRITERIA, Election, Winner
from calseg_cli.stages.select_checkpoint_measure import LABEL_FREE, LABELLED
from calseg_cli.stages.select_checkpoint_result import ARTIFACT, ORACLE, PICTURE, Selected, read_selected

_OURS = {NETWORK, ARTIFACT, PICTURE}


def select_checkpoint(
    resolved: Resolved,
    *,
    checkpoints: str | None = None,
    start: str | None = None,
    measure: bool = False,
    out: Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress,
) -> Selected:
    """Choose one checkpoint of a folder by the configured criterion, and write it with the scores of all.

    `checkpoints` is a folder or a stage's short name, the run's pretraining without it; `start` the network that
    checkpoints are held against where no label is; `measure` passes over kept counts. Labels of the target are opened
    for an oracle alone. Raises ArtifactError where there is no checkpoint, or none that may be chosen.
    """
    config = resolved.config
    _check_options(resolved, start=start, measure=measure)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    run = run_folder(resolved)
    folder = find_folder(run, checkpoints)
    target = out or default_target(run, folder, oracle=config.select.oracle)
    _check_target(target, folder)
    with sole_writer(target), memory_errors(lambda: inference_advice(resolved)):
        finished = (target / NETWORK).exists() and not force and claim(target, resume=resume, force=False)
        election = Election(resolved, run, folder, target, start, progress)
        if finished:
            _check_finished(target, election)
            progress.note(f"{target} is finished already; nothing to do")
            return read_selected(target)
        if config.select.oracle:
            progress.note(ORACLE)
        winner = election.hold(anew=measure)
        # Only now: while it is measured, an earlier choice stays where later stages look for it.
        claim(target, resume=False, force=force)
        selected = _write(target, election, winner)
        release(target)
    return selected


def default_target(run: RunFolder, folder: Path, *, oracle: bool) -> Path:
    """Where the choice among a folder's checkpoints goes: never where another folder's choice is.

    The run's pretraining: 2-select. Another stage of the run: N-STAGE-selected. Elsewhere: FOLDER/select. An oracle's
    is where no later stage looks by itself: 2-select-oracle, 2-select-oracle-STAGE, FOLDER/select-oracle.
    """
    folder = folder.parent if folder.name == "checkpoints" else folder
    if folder.resolve().parent != run.root.resolve():
        return folder / ("select-oracle" if oracle else "select")
    if folder.resolve() == run.pretrain.resolve():
        return run.root / "2-select-oracle" if oracle else run.select
    stage = folder.name.partition("-")[2] or folder.name
    return run.root / (f"2-select-oracle-{stage}" if oracle else f"{folder.name}-selected")


def _check_options(resolved: Resolved, *, start: str | None, measure: bool) -> None:
    """An option that could have no effect is a misunderstanding. Raises ConfigError."""
    options = resolved.config.select
    if options.intervals:
        check_resamples(options.intervals)
    if options.oracle and options.by in LABEL_FREE:
        raise ConfigError(f"--by {options.by} needs no label, so it can be no oracle", "leave out --oracle")
    if start is not None and options.by in LABELLED:
        raise ConfigError(f"--start has no effect with --by {options.by}", f"{', '.join(LABEL_FREE)} use it")
    if measure and options.by in LABEL_FREE:
        raise ConfigError(f"--measure has no effect with --by {options.by}", "it is always measured")
    if resolved.sources.get("select.floor", "") == "--floor" and (options.by in LABEL_FREE or options.by == "miou"):
        raise ConfigError(f"--floor has no effect with --by {options.by}", "ece, ece-image-mean and nll use it")


def _check_target(target: Path, folder: Path) -> None:
    """Raise ArtifactError where writing there would take away something that is no result of this command."""
    if folder.resolve().is_relative_to(target.resolve()):
        raise ArtifactError(f"{target} holds the checkpoints to choose from", "name a new folder with --out")
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file", "name a folder with --out")
    names = sorted(path.name for path in target.glob("[!.]*"))
    strange = [name for name in names if name.removesuffix(".partial") not in _OURS]
    if strange:
        raise ArtifactError(
            f"{target} holds {strange[0]}, which is no part of a choice", "name a new folder with --out"
        )


def _check_finished(target: Path, election: Election) -> None:
    """Raise ArtifactError where the result in place was chosen among others, or otherwise."""
    with open_artifact(target / ARTIFACT, "selection") as artifact:
        differs = changes(artifact.meta.get("recipe", {}), election.recipe())
    if differs:
        raise ArtifactError(
            f"{target} is stale: {'; '.join(differs)}", "--force chooses anew, --out names another folder"
        )


def _write(target: Path, election: Election, winner: Winner) -> Selected:
    """Scores and picture first: where the network is, the result is whole."""
    protocol = _protocol(election, winner)
    selected = Selected(target, winner.rows, winner.place, protocol, "")
    origin = _provenance(target, election, winner)
    facts = winner.checkpoint.facts
    meta = {
        "classes": classes_table(winner.checkpoint.class_names, facts["classes"]["palette"], IGNORE),
        "protocol": protocol,
        "recipe": election.recipe(),
        "provenance": origin,
        "config": election.resolved.to_dict(),
    }
    writer = ArtifactWriter(target / ARTIFACT, "selection", meta=meta, force=True)
    with writer:
        for name, array in selected.to_arrays().items():
            writer.add_array(name, array)
    save_png(checkpoint_figure(selected.course()), target / PICTURE)
    told = {
        "by": protocol["by"],
        "from": protocol["chosen"],
        "step": winner.rows[winner.place].step,
        "stage": facts.get("stage"),
        "place": protocol["place"],
        "labels_used_for": protocol["labels_used_for"],
    }
    stage = "select-oracle" if selected.oracle else "select"
    described = {**facts, "stage": stage, "selected": told, "provenance": origin}
    write_checkpoint(target / NETWORK, winner.checkpoint.network, described)
    return Selected(target, winner.rows, winner.place, protocol, writer.digest)


def _protocol(election: Election, winner: Winner) -> dict[str, Any]:
    options, evaluate, place = election.resolved.config.select, election.resolved.config.evaluate, election.place
    used = "none" if not place.labels else f"{place}: oracle" if options.oracle else str(place)
    return {
        "by": options.by,
        "criterion": CRITERIA[options.by],
        "score": election.score,
        "place": str(place),
        "domain": place.domain,
        "split": place.split,
        "labels_used_for": used,
        "images": len(election.images()),
        "convention": Convention(evaluate.bins, evaluate.edges).describe() if place.labels else None,
        "floor": options.floor if election.least_miou() is not None else None,
        "least_miou": election.least_miou(),
        "kept_classes": None if place.labels else options.kept_classes,
        "most_moved": None if place.labels else options.most_moved,
        "start": election.start.name if election.start is not None else None,
        "intervals": options.intervals,
        "seed": election.resolved.config.seed,
        "chosen": winner.rows[winner.place].name,
        "refused": {row.name: row.refused for row in winner.rows if row.refused is not None},
    }


def _provenance(target: Path, election: Election, winner: Winner) -> dict[str, Any]:
    return provenance(
        sys.argv,
        seed=election.resolved.config.seed,
        config_digest=election.resolved.digest,
        parents={"checkpoint": winner.digest},
        files={"checkpoint": beside(winner.checkpoint.path, target)},
        device=str(election.bench.device),
    )
