"""Owns what looks on while self-training runs, without leaving a trace in it: pictures, and an oracle's curves."""

import shutil
from collections.abc import Callable
from dataclasses import replace

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.data.loader import TrainStream
from calseg_cli.engine.checkpoint import random_state, restore_random_state
from calseg_cli.engine.distributed import ALONE
from calseg_cli.engine.shared_batch_norm import apart
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.stages.run_folder import RESUME
from calseg_cli.stages.target_training import Setting
from calseg_cli.stages.training import StageFolder
from calseg_cli.stages.training_oracle import STAMP, Labelled, OracleCurves
from calseg_cli.stages.training_pictures import FOLDER, TrainingPictures


def watch(
    setting: Setting,
    stage: StageFolder,
    method: SelfTraining,
    stream: TrainStream,
    labelled: Labelled | None,
    *,
    resume: bool,
) -> None:
    """Let the method be looked at as its options ask; a fresh start forgets what an earlier one left in the folder.

    Of several processes the main one looks, as if it were alone, at whole batches; the others wait.
    """
    ranks = setting.ranks
    watchers: list[Callable[[int], None]] = []
    if ranks.is_main:
        if not (resume and (stage.path / RESUME).exists()):
            shutil.rmtree(stage.path / FOLDER, ignore_errors=True)
            (stage.path / STAMP).unlink(missing_ok=True)
        watchers = _watchers(replace(setting, ranks=ALONE), stage, method, replace(stream, slots=None), labelled)

    def alone(done: int) -> None:
        state = random_state()
        method.work_with(ALONE)
        with apart(method):
            for one in watchers:
                one(done)
        method.work_with(ranks)
        restore_random_state(state)

    def look(done: int) -> None:
        ranks.main_does(lambda: alone(done), setting.stop)

    method.watch = look if setting.options.visualize or labelled is not None else None


def _watchers(
    setting: Setting, stage: StageFolder, method: SelfTraining, stream: TrainStream, labelled: Labelled | None
) -> list[Callable[[int], None]]:
    watchers: list[Callable[[int], None]] = []
    if setting.options.visualize:
        folder = stage.path / FOLDER
        watchers.append(TrainingPictures(folder, method, stream, setting.loaded, setting.options, setting.device))
    if labelled is not None:
        write_whole(stage.path / STAMP, f"labels_used_for: {labelled.used_for}\n")
        setting.progress.note(labelled.warning)
        watchers.append(OracleCurves(setting, method, labelled, stage.log))
    return watchers
