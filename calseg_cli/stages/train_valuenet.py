"""Owns `calseg train-valuenet`: a small net learns, on labelled source images, how ill calibrated each answer will be.

The network whose answers they are stays bit for bit as it was; no file of the target is opened.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Pretrain, Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.distributed import ALONE, Ranks, process_group
from calseg_cli.engine.interrupt import stop_on_signals
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.progress import Progress, Silent
from calseg_cli.engine.shared_batch_norm import share_batch_norm
from calseg_cli.engine.train import Plan
from calseg_cli.errors import DataError
from calseg_cli.methods.corruption import KINDS
from calseg_cli.methods.value_net import Tap, ValueNet
from calseg_cli.methods.value_net_training import ExpectedError, Recipe
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.memory_advice import training_advice
from calseg_cli.stages.networks import LoadedNetwork, load_network
from calseg_cli.stages.probe import Estimate, Probe, Work
from calseg_cli.stages.run_folder import (
    LOG,
    RESUME,
    claim,
    find_network,
    release,
    run_folder,
    sole_writer,
    source_network,
)
from calseg_cli.stages.training import StageFolder, augmentation, facts_of, run_loop
from calseg_cli.stages.value_net_scores import ALL, CLEAN, Measured, measure_value_net, write_measured
from calseg_cli.stages.value_nets import KIND, VALUE_NET, check_value_net, write_value_net

ERRORS = {"image": "calibration error (ECE)", "class": "class-conditional calibration error"}
_FIRST = 25  # batches that batch norm's statistics and the first answer are measured on
_LEARNT_ELSEWHERE = tuple(f"pretrain.{name}" for name in Pretrain.model_fields if name != "augment")
_MAY_CHANGE = (
    *_LEARNT_ELSEWHERE,
    *("network.", "select.", "pseudo_label.", "prototypes.", "calibrate.", "adapt."),
    *("valuenet.steps", "valuenet.log_every", "valuenet.checkpoint_every"),
)


@dataclass(frozen=True)
class TrainedValueNet:
    """What train-valuenet leaves; `measured` is None where the work was done before."""

    path: Path
    facts: Mapping[str, Any]
    measured: Measured | None

    @property
    def value_net(self) -> Mapping[str, Any]:
        """What the file says of the value net."""
        told: Mapping[str, Any] = self.facts["value_net"]
        return told

    def document(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return {
            "value_net": self.path,
            "log": self.path.parent / LOG,
            "network": self.facts["provenance"]["parents"]["checkpoint"],
            "steps": self.facts["step"],
            **self.value_net,
        }


class _Folder(StageFolder):
    """A stage's folder whose result is a value net, and whose states belong to one network."""

    def check_finished(self, *, strict: tuple[str, ...] = ("valuenet.steps",)) -> None:
        """Raise ArtifactError where the value net at hand is not the one that is asked for."""
        file = self.path / VALUE_NET
        check_value_net(file, self._network)
        self._refuse_changes(read_facts(file)["config"], file, strict)

    def finish(self, step: int, network: nn.Module, scores: Mapping[str, Any] | None) -> Path:
        """Write the value net and remove the resumable state."""
        assert isinstance(network, ValueNet)
        path = self.path / VALUE_NET
        write_value_net(path, network, {**self.facts, "step": step}, scores or {})
        (self.path / RESUME).unlink(missing_ok=True)
        return path

    def finished(self, measured: Measured | None) -> TrainedValueNet:
        """The value net that the folder holds."""
        file = self.path / VALUE_NET
        return TrainedValueNet(file, read_facts(file), measured)

    @property
    def _network(self) -> str:
        return str(self.facts["provenance"]["parents"]["checkpoint"])


def train_valuenet(
    resolved: Resolved, *, checkpoint: str | None, resume: bool, force: bool, progress: Progress
) -> TrainedValueNet:
    """Train a value net for the run's source network (or `checkpoint`), and measure it on held-out source images.

    The processes that torchrun started train it together, each on its share of every batch; the main one alone writes
    and tells, and all return the same. Raises ConfigError where they cannot share a batch equally.
    """
    with process_group(resolved.config.device) as ranks:
        listener = progress if ranks.is_main else Silent()
        trained = ranks.share(_train(resolved, checkpoint, ranks, resume=resume, force=force, progress=listener))
    assert trained is not None  # the main process's
    return trained


def plan_value_net(resolved: Resolved, *, checkpoint: str | None, resume: bool, progress: Progress) -> Estimate:
    """What `train_valuenet` would do and take, from a few of its steps in memory; writes nothing."""
    refuse_torchrun("--dry-run")
    probe = Probe(resolved, progress, resume=resume)
    _train(resolved, checkpoint, ALONE, resume=False, force=False, progress=probe, probe=probe)
    assert probe.estimate is not None
    return probe.estimate


def _train(
    resolved: Resolved,
    checkpoint: str | None,
    ranks: Ranks,
    *,
    resume: bool,
    force: bool,
    progress: Progress,
    probe: Probe | None = None,
) -> TrainedValueNet | None:
    """What the main process finished; None in the others, and where a `probe` only tries it."""
    config, run = resolved.config, run_folder(resolved)
    slots = ranks.slots(config.valuenet.batch_size, "valuenet.batch_size")
    device = ranks.device(choose_device(config.device))
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    path = ranks.main_answers(lambda: find_network(run, checkpoint) if checkpoint else source_network(run))
    loaded = load_network(path, device, resolved)
    images = _images(resolved, loaded, slots)
    facts = {
        **facts_of("train-valuenet", resolved, loaded, run.valuenet, others={}, device=device),
        "kind": KIND,
        **({"processes": ranks.world} if ranks.world > 1 else {}),
    }
    folder = _Folder(run.valuenet, facts, resolved, may_change=_MAY_CHANGE, must_stay=("valuenet.",))
    writer = sole_writer(folder.path) if ranks.is_main else nullcontext()
    advice = partial(training_advice, resolved, "valuenet", world=ranks.world)
    if probe is not None:
        with memory_errors(advice):
            _try(probe, folder, loaded, images, device)
        return None
    with writer, stop_on_signals() as stop, memory_errors(advice):
        if ranks.share(ranks.is_main and _is_finished(folder, progress, resume=resume, force=force)):
            return folder.finished(None) if ranks.is_main else None
        progress.note(images.told())
        goes_on = ranks.main_answers(lambda: resume and (folder.path / RESUME).exists())
        method = _method(resolved, loaded, images.stream, device, ranks, resume=goes_on)
        report = _Report(resolved, loaded, images, method, folder, device, progress, ranks)
        run_loop(
            folder,
            method,
            images.stream,
            _plan(resolved),
            resume=resume,
            device=device,
            validate=report,
            keep_all=False,
            progress=progress,
            stop=stop,
            ranks=ranks,
        )
        if not ranks.is_main:
            return None
        release(folder.path)
    return folder.finished(report.measured)


def _try(probe: Probe, stage: _Folder, loaded: LoadedNetwork, images: "_Images", device: torch.device) -> None:
    """A few steps, and a few looks at held-out images; the estimate is the probe's."""
    resolved, options = probe.resolved, probe.resolved.config.valuenet
    method = _method(resolved, loaded, images.stream, device, ALONE, resume=False)
    loop = partial(run_loop, resume=False, device=device, validate=None, keep_all=False, progress=probe)
    probe.run(
        stage,
        device,
        lambda folder: loop(folder, method, images.stream, _plan(resolved), stop=probe.stop),
        finished=VALUE_NET,
    )
    probe.look(loaded.network, images.held_out, labelled=True)
    changes = 1 + (len(KINDS) if options.measure_strength > 0 else 0)
    work = Work(
        images=len(images.stream.source or ()),
        classes=len(loaded.class_names),
        batch=options.batch_size,
        steps=options.steps,
        looks=changes * len(images.held_out),
        networks=1,
    )
    probe.conclude(work, method.value_net)


def _is_finished(folder: _Folder, progress: Progress, *, resume: bool, force: bool) -> bool:
    """Whether nothing is left to do; else the folder is ready to be written."""
    if not claim(folder.path, resume=resume, force=force, finished=VALUE_NET):
        return False
    folder.check_finished()
    progress.note(f"{folder.path} is finished already; nothing to do")
    return True


@dataclass(frozen=True)
class _Images:
    """What is learnt on, and what is held out from it."""

    stream: TrainStream
    held_out: SegmentationDataset
    fit: str
    measured_on: str

    def told(self) -> str:
        """One line for a person."""
        return f"learning on {self.fit}; measuring on {self.measured_on}"


def _images(resolved: Resolved, loaded: LoadedNetwork, slots: range | None) -> _Images:
    config, options = resolved.config, resolved.config.valuenet
    domain = open_domain(resolved, "source", loaded.class_names)
    val = domain.dataset("val", with_labels=True)
    first = 0
    if options.fit_split == "val":
        first = len(val) - max(1, round(options.hold_out * len(val)))
        if first < 1:
            raise DataError(
                f"the source's val has {len(val)} labelled image(s): none would be left to learn on",
                "valuenet.fit_split=train learns on the source's train split",
            )
        fit = val.subset(range(first))
    else:
        fit = domain.dataset("train", with_labels=True)
    held_out = val.subset(range(first, len(val))[: options.max_items])
    stream = TrainStream(
        fit,
        None,
        options.batch_size,
        augmentation(config.pretrain.augment),
        seed=config.seed,
        workers=config.workers,
        slots=slots,
    )
    return _Images(stream, held_out, _described(options.fit_split, fit), _described("val", held_out))


def _described(split: str, dataset: SegmentationDataset) -> str:
    """The split and its images, which follow each other in their order."""
    if not len(dataset):
        raise DataError(f"there are no labelled images in source {split}", "check the source's root and splits")
    return f"source {split}, {len(dataset)} images ({dataset.items[0].id} to {dataset.items[-1].id})"


def _method(
    resolved: Resolved, loaded: LoadedNetwork, stream: TrainStream, device: torch.device, ranks: Ranks, *, resume: bool
) -> ExpectedError:
    """A value net before its first step; one that goes on gets all of that from its state."""
    options = resolved.config.valuenet
    frozen = loaded.network
    recipe = Recipe(
        target=options.target,
        bins=options.bins,
        loss=options.loss,
        statistics=options.statistics,
        probability=options.corrupt.probability,
        strength=options.corrupt.strength,
        seed=resolved.config.seed,
    )
    first = stream.batch(0).to(device)
    assert first.source_images is not None
    with torch.no_grad(), Tap(frozen) as tap:
        frozen(first.source_images[:1])
    value_net = ValueNet(tap.features.shape[1], pooling=options.pooling)
    share_batch_norm(value_net, ranks)
    method = ExpectedError(frozen, value_net, recipe, ranks).to(device)
    if not resume:
        method.prepare(batch.to(device) for batch in stream.batches(0, min(_FIRST, options.steps)))
    return method


def _plan(resolved: Resolved) -> Plan:
    options = resolved.config.valuenet
    return Plan(
        steps=options.steps,
        lr=options.lr,
        head_lr=options.lr,
        weight_decay=options.weight_decay,
        log_every=options.log_every,
        checkpoint_every=options.checkpoint_every,
    )


@dataclass
class _Report:
    """What is done after the last step: the value net is measured, and the rows are written beside it."""

    resolved: Resolved
    loaded: LoadedNetwork
    images: _Images
    method: ExpectedError
    folder: _Folder
    device: torch.device
    progress: Progress
    ranks: Ranks
    measured: Measured | None = None

    def __call__(self, network: nn.Module, step: int) -> Mapping[str, Any]:
        """All that the value net's file tells of it."""
        options = self.resolved.config.valuenet
        lines = self.method.plain_lines()
        self.measured = measure_value_net(
            self.loaded.network,
            self.method.value_net,
            self.images.held_out,
            lines,
            self.method.recipe,
            strength=options.measure_strength,
            workers=self.resolved.config.workers,
            device=self.device,
            progress=self.progress,
            ranks=self.ranks,
        )
        told = {
            "target": options.target,
            "bins": options.bins,
            "fitted_on": self.images.fit,
            "measured_on": self.images.measured_on,
            "held_out_ids": [item.id for item in self.images.held_out.items],
            "range": list(self.method.seen_range()),
            "plain_lines": {name: list(line) for name, line in lines.items()},
        }
        if self.ranks.is_main:
            self._write(told)
            self._say()
        return {**told, "scores": self.measured.document()}

    def _write(self, told: Mapping[str, Any]) -> None:
        assert self.measured is not None
        meta = {
            "classes": {**self.folder.facts["classes"], "ignore": IGNORE},
            "protocol": {"domain": "source", "split": "val", "labels_used_for": "fitting: source", **told},
            "provenance": self.folder.facts["provenance"],
            "config": self.resolved.to_dict(),
        }
        write_measured(self.folder.path, self.measured, meta, ERRORS[self.resolved.config.valuenet.target])

    def _say(self) -> None:
        """Where a plain predictor is as good, one line says so."""
        assert self.measured is not None
        beaten = self.measured.beaten_by()
        places = [f"images {change}: {', '.join(beaten[change])}" for change in (CLEAN, ALL) if change in beaten]
        if places:
            self.progress.note(f"the value net is no better, by squared error, than ({'; '.join(places)})")
