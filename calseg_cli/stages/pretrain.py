"""Owns `calseg pretrain`: a labelled source folder becomes a network, with its calibration measured on the way."""

import math
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Pretrain, Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream, evaluation_samples
from calseg_cli.engine.compiling import compile_network
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.distributed import ALONE, Ranks, process_group
from calseg_cli.engine.infer import predict
from calseg_cli.engine.interrupt import stop_on_signals
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.progress import Progress, Silent
from calseg_cli.engine.shared_batch_norm import share_batch_norm
from calseg_cli.engine.train import Plan
from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.methods.source import CalibrationTerm, Source
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import merge
from calseg_cli.networks.build import build_network
from calseg_cli.stages.class_weights import class_weights
from calseg_cli.stages.domains import open_domain, source_classes
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.memory_advice import inference_advice, input_size, training_advice
from calseg_cli.stages.networks import LoadedNetwork, load_network, network_facts
from calseg_cli.stages.probe import Estimate, Probe, Work
from calseg_cli.stages.roads import views_of
from calseg_cli.stages.run_folder import (
    LOG,
    NETWORK,
    RunFolder,
    claim,
    find_network,
    release,
    run_folder,
    sole_writer,
    source_network,
)
from calseg_cli.stages.tally_file import write_tally
from calseg_cli.stages.training import StageFolder, augmentation, run_loop

START = "start"
"""The role among a network's parents of the one whose weights it started from. Not "checkpoint": by that an adapted
network names the one whose value net it may use."""

_TOLD = {"miou": "mIoU", "ece": "ECE", "nll": "NLL"}
_MAY_CHANGE = (
    "pretrain.steps",
    "pretrain.log_every",
    "pretrain.validate_every",
    "pretrain.checkpoint_every",
    "pretrain.keep",
    "pretrain.grad_checkpoint",
    "adapt.",
)


@dataclass(frozen=True)
class Trained:
    """What a training stage leaves: its network, and the scores of the last validation."""

    network: Path
    log: Path
    scores: Mapping[str, Any]
    steps: int


def pretrain(resolved: Resolved, *, resume: bool, force: bool, progress: Progress) -> Trained:
    """Train the configured network on the source's train split.

    Validates on the source's val split where there is one. Every error a user can cause is raised before the first
    step where it can be known then. With `from_checkpoint` it starts from that network, head and all.

    The processes that torchrun started train together, each on its share of every batch; the main one alone writes
    and tells, and all return the same. Raises ConfigError where they cannot share a batch equally.
    """
    with process_group(resolved.config.device) as ranks:
        listener = progress if ranks.is_main else Silent()
        trained = ranks.share(_pretrain(resolved, ranks, resume=resume, force=force, progress=listener))
    assert trained is not None  # the main process's
    return trained


def plan_pretraining(resolved: Resolved, *, resume: bool, progress: Progress) -> Estimate:
    """What `pretrain` would do and take, from a few of its steps in memory; writes nothing."""
    refuse_torchrun("--dry-run")
    probe = Probe(resolved, progress, resume=resume)
    _pretrain(resolved, ALONE, resume=False, force=False, progress=probe, probe=probe)
    assert probe.estimate is not None
    return probe.estimate


def _pretrain(
    resolved: Resolved, ranks: Ranks, *, resume: bool, force: bool, progress: Progress, probe: Probe | None = None
) -> Trained | None:
    """What the main process finished; None in the others, and where a `probe` only tries it."""
    config, options = resolved.config, resolved.config.pretrain
    slots = ranks.slots(options.batch_size, "pretrain.batch_size")
    folder = run_folder(resolved).pretrain
    layout = source_classes(resolved)
    domain = open_domain(resolved, "source")
    training = domain.dataset("train", with_labels=True)
    _check_labels(training)
    validation = _validation(domain.dataset, progress, ranks)
    device = ranks.device(choose_device(config.device))
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    start = _start(resolved, folder, ranks)
    network = start.network if start is not None else _new_network(resolved, len(layout.class_names))
    if options.sync_batch_norm:
        share_batch_norm(network, ranks)
    compile_network(network, wanted=config.compile)
    method = Source(
        network,
        class_weights=class_weights(options.class_weights, training, "pretrain.class_weights"),
        label_smoothing=options.label_smoothing,
        ece=CalibrationTerm(**{**options.ece.model_dump(), **({} if probe is None else {"start_step": 0})}),
        ranks=ranks,
    )
    stream = TrainStream(
        training,
        None,
        batch_size=options.batch_size,
        augmentation=augmentation(options.augment),
        seed=config.seed,
        workers=config.workers,
        slots=slots,
    )
    stage = StageFolder(
        folder,
        {
            "stage": "pretrain",
            **({"processes": ranks.world} if ranks.world > 1 else {}),
            **network_facts(config.network.name, config.network.options, layout),
            "config": resolved.to_dict(),
            "provenance": provenance(
                sys.argv,
                seed=config.seed,
                config_digest=resolved.digest,
                parents={} if start is None else {START: start.digest},
                files={} if start is None else {START: beside(start.checkpoint.path, folder)},
                device=str(device),
            ),
        },
        resolved,
        may_change=_MAY_CHANGE,
    )
    writer = sole_writer(folder) if ranks.is_main else nullcontext()
    advice = partial(training_advice, resolved, "pretrain", world=ranks.world)
    if probe is not None:
        with memory_errors(lambda: advice(input_size(training))):
            _try(probe, stage, method, stream, device, validation)
        return None
    with writer, stop_on_signals() as stop, memory_errors(lambda: advice(input_size(training))):
        if ranks.share(ranks.is_main and _is_finished(stage, progress, resume=resume, force=force)):
            return _finished(folder) if ranks.is_main else None
        run_loop(
            stage,
            method,
            stream,
            plan(options),
            resume=resume,
            device=device,
            validate=None if validation is None else _validator(validation, stage, device, resolved, progress, ranks),
            keep_all=options.keep == "all",
            progress=progress,
            stop=stop,
            ranks=ranks,
        )
        if not ranks.is_main:
            return None
        release(folder)
    return _finished(folder)


def _try(
    probe: Probe,
    stage: StageFolder,
    method: Source,
    stream: TrainStream,
    device: torch.device,
    validation: SegmentationDataset | None,
) -> None:
    """A few steps, and a few looks at images for validation; the estimate is the probe's."""
    options = probe.resolved.config.pretrain
    loop = partial(run_loop, resume=False, device=device, validate=None, keep_all=False, progress=probe)
    probe.run(stage, device, lambda folder: loop(folder, method, stream, plan(options), stop=probe.stop))
    times = (options.steps - 1) // options.validate_every + 1 if options.validate_every else 1
    images = 0 if validation is None else len(validation)
    if validation is not None:
        probe.look(method.network, validation, labelled=True)
    kept = times if options.keep == "all" else 0
    work = Work(
        images=len(stream.source or ()),
        classes=len(stage.facts["classes"]["names"]),
        batch=options.batch_size * options.accumulate,
        steps=options.steps,
        looks=times * images,
        networks=1 + kept,
        counts=kept if images else 0,
        counted=images,
    )
    probe.conclude(work, method.deployed())


def _is_finished(stage: StageFolder, progress: Progress, *, resume: bool, force: bool) -> bool:
    """Whether nothing is left to do; else the folder is ready to be written."""
    if not claim(stage.path, resume=resume, force=force):
        return False
    stage.check_finished(strict=("pretrain.steps",))
    progress.note(f"{stage.path} is finished already; nothing to do")
    return True


def _new_network(resolved: Resolved, classes: int) -> nn.Module:
    wanted = resolved.config.network
    return build_network(wanted.name, classes, init=wanted.init, options=wanted.options)


def _start(resolved: Resolved, folder: Path, ranks: Ranks) -> LoadedNetwork | None:
    """The trained network to begin with, where one is named. Raises ArtifactError: not there, or not of this kind."""
    asked = resolved.config.pretrain.from_checkpoint
    if asked is None:
        return None
    path = ranks.main_answers(lambda: _find_start(asked, resolved))
    if path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{path} is what this command would replace", "--name starts a run of its own from it, and keeps both"
        )
    loaded = load_network(path, torch.device("cpu"), resolved)
    _check_start(loaded, resolved)
    return loaded


def _find_start(asked: str, resolved: Resolved) -> Path:
    """A path; a run beside this one, or a stage of it as RUN/STAGE; else a stage of this run."""
    name, _, stage = asked.partition("/")
    other = RunFolder(resolved.config.runs / name)
    is_path = Path(asked).is_file() or (Path(asked) / NETWORK).is_file()
    if name and not is_path and other.root.is_dir():
        return find_network(other, stage) if stage else source_network(other)
    return find_network(run_folder(resolved), asked)


def _check_start(loaded: LoadedNetwork, resolved: Resolved) -> None:
    wanted, found = resolved.config.network, loaded.checkpoint.facts["network"]
    pairs = (("name", found["name"], wanted.name), ("options", found["options"], wanted.options))
    for key, there, here in pairs:
        if there != here:
            raise ArtifactError(
                f"{loaded.checkpoint.path} does not fit network.{key}: {there!r} there, {here!r} in the configuration",
                f"set network.{key} to the checkpoint's, or leave --from out",
            )


def plan(options: Pretrain) -> Plan:
    """The loop's plan from the configuration's section."""
    return Plan(
        steps=options.steps,
        optimizer=options.optimizer,
        lr=options.lr,
        head_lr=options.head_lr,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        schedule=options.schedule,
        power=options.power,
        warmup_steps=options.warmup_steps,
        clip_norm=options.clip_norm,
        accumulate=options.accumulate,
        amp=options.amp,
        channels_last=options.channels_last,
        grad_checkpoint=options.grad_checkpoint,
        log_every=options.log_every,
        validate_every=options.validate_every,
        checkpoint_every=options.checkpoint_every,
    )


def _check_labels(training: SegmentationDataset) -> None:
    """A few labels from all over the split: training on nothing looks like a loss of zero."""
    places = range(0, len(training), max(1, len(training) // 16))
    labels = [training.read_label(place) for place in places]
    if all(label is None or bool((label == IGNORE).all()) for label in labels):
        raise DataError(
            f"none of {len(labels)} training labels holds a single pixel of a class",
            "calseg data check counts the classes; ids and ignore say what the values mean",
        )


def _validation(dataset: Any, progress: Progress, ranks: Ranks) -> SegmentationDataset | None:
    """The images to validate on, where the main process finds some. Raises DataError where it alone does."""
    found: SegmentationDataset | DataError
    try:
        found = dataset("val", with_labels=True)
    except DataError as error:
        found = error
    told = ranks.share(found.message if isinstance(found, DataError) else None)
    if told is not None:
        progress.note(f"no validation while training: {told}")
        return None
    if isinstance(found, DataError):
        raise found
    return found


def _validator(
    dataset: SegmentationDataset,
    stage: StageFolder,
    device: torch.device,
    resolved: Resolved,
    progress: Progress,
    ranks: Ranks,
) -> Any:
    """Measure on the labelled source validation split, and keep the counts beside the step's checkpoint.

    Each process measures some of the images; counts add exactly, so their number changes no score.
    """
    options = resolved.config.evaluate
    places = ranks.places(len(dataset))

    def validate(network: nn.Module, step: int) -> Mapping[str, Any]:
        network.eval()
        predictions = predict(
            network,  # type: ignore[arg-type]
            evaluation_samples(dataset, resolved.config.workers, places),
            device=device,
            views=views_of(resolved.config.predict, plain=True),
            dtype=resolved.config.predict.logits_dtype,
            amp=resolved.config.predict.amp,
        )
        with memory_errors(lambda: inference_advice(resolved, "source", input_size(dataset))):
            own = measure(predictions, len(places), dataset.num_classes, edges=options.edges, progress=progress)
        tally = merge(ranks.gather(own))
        scores = read_scores(tally, bins=options.bins, class_names=dataset.layout.class_names)
        if resolved.config.pretrain.keep == "all" and ranks.is_main:
            meta = {
                "classes": {**stage.facts["classes"], "ignore": IGNORE},
                "protocol": {"domain": "source", "split": "val", "step": step, "edges": options.edges},
                "provenance": stage.facts["provenance"],
            }
            write_tally(stage.path / "checkpoints" / f"step-{step:06d}.h5", tally, meta, force=True)
        shown = {name: getattr(scores, name) for name in ("miou", "macc", "ece", "signed_gap", "nll")}
        told = [f"{label} {shown[name]:.4f}" for name, label in _TOLD.items() if not math.isnan(shown[name])]
        progress.note(f"step {step}: source val {', '.join(told) or 'holds no labelled pixel'}")
        return shown

    return validate


def _finished(folder: Path) -> Trained:
    facts = read_facts(folder / NETWORK)
    return Trained(folder / NETWORK, folder / LOG, facts.get("scores", {}), int(facts["step"]))
