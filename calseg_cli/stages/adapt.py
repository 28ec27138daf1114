"""Owns `calseg adapt`: a trained network and unlabelled target images become an adapted network."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.digests import list_digest
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Resolved
from calseg_cli.config.self_training import on_frame, sections_of
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.distributed import ALONE, Ranks, process_group
from calseg_cli.engine.interrupt import stop_on_signals
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Progress, Silent
from calseg_cli.engine.shared_batch_norm import share_batch_norm
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods import ADAPTATIONS, PLUGINS, adaptation_kind, build_adaptation
from calseg_cli.methods.round_self_training import RoundSelfTraining
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.stages.adapt_dry_run import conclude, tried, try_round
from calseg_cli.stages.adapt_rounds import Rounds
from calseg_cli.stages.corrections import Loaded, check_fit, warn_of_another_network
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.logit_anchors import ROLE as ANCHORS
from calseg_cli.stages.logit_anchors import Anchors, read_anchors
from calseg_cli.stages.memory_advice import adapt_advice, input_size
from calseg_cli.stages.networks import LoadedNetwork, load_network
from calseg_cli.stages.pretrain import Trained
from calseg_cli.stages.probe import Estimate, Probe
from calseg_cli.stages.round_pass import target_road
from calseg_cli.stages.run_folder import (
    LOG,
    NETWORK,
    claim,
    find_network,
    release,
    run_folder,
    sole_writer,
    source_network,
)
from calseg_cli.stages.self_training import SourceImages, build_method, open_source, train_on_both
from calseg_cli.stages.target_training import Setting, remeasure, show_all, train_on_target
from calseg_cli.stages.training import StageFolder, facts_of
from calseg_cli.stages.training_oracle import Labelled, open_labelled
from calseg_cli.stages.value_nets import VALUE_NET, LoadedValueNet, load_value_net

_MAY_CHANGE = (
    *("pretrain.", "target.root", "adapt.self_training.visualize", "adapt.blda.anchors"),
    *(f"adapt.{name}.grad_checkpoint" for name in ("tent", "cbst", "calsfda", "self_training")),
)


def adapt(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    value_net: Path | None = None,
    resume: bool,
    force: bool,
    progress: Progress,
) -> Trained:
    """Adapt the run's source network (or `checkpoint`) to the target's images; no label of the target is opened.

    But for the curves of self-training that `oracle` asks for, which are measured beside it, and stamped. Corrections
    act on the logits that pseudo-labels are made of. Raises ConfigError for what the method cannot use.

    The processes that torchrun started adapt one network together, each on its share of every batch; the main one alone
    writes and tells, and all return the same. Raises ConfigError where they cannot share a batch equally.
    """
    with process_group(resolved.config.device) as ranks:
        adapted = _adapt(
            resolved,
            corrections,
            ranks,
            checkpoint=checkpoint,
            value_net=value_net,
            resume=resume,
            force=force,
            progress=progress if ranks.is_main else Silent(),
        )
        trained = ranks.share(adapted)
    assert trained is not None  # the main process's
    return trained


def plan_adaptation(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    value_net: Path | None = None,
    resume: bool,
    progress: Progress,
) -> Estimate:
    """What `adapt` would do and take, from a few of its steps in memory; writes nothing."""
    refuse_torchrun("--dry-run")
    probe = Probe(resolved, progress, resume=resume)
    trial = partial(_adapt, tried(resolved), corrections, ALONE, resume=False, force=False, progress=probe)
    trial(checkpoint=checkpoint, value_net=value_net, probe=probe)
    assert probe.estimate is not None
    return probe.estimate


def _adapt(
    resolved: Resolved,
    corrections: Sequence[Loaded],
    ranks: Ranks,
    *,
    checkpoint: str | None,
    value_net: Path | None,
    resume: bool,
    force: bool,
    progress: Progress,
    probe: Probe | None = None,
) -> Trained | None:
    """What the main process finished; None in the others, and where a `probe` only tries it."""
    config = resolved.config
    name = config.adapt.method
    kind = _kind(name)
    _check_use(kind, corrections, value_net, resolved)
    run = run_folder(resolved)
    start = ranks.main_answers(lambda: find_network(run, checkpoint) if checkpoint else source_network(run))
    device = ranks.device(choose_device(config.device))
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    loaded = load_network(start, device, resolved)
    share_batch_norm(loaded.network, ranks)
    domain = open_domain(resolved, config.adapt.domain, loaded.class_names)
    anchors = _anchors(resolved, loaded)
    method = _build(resolved, loaded, corrections, anchors, progress)
    guide = _guide(value_net or run.valuenet / VALUE_NET, loaded, device) if _guided(resolved) else None
    images = domain.dataset(config.adapt.split, with_labels=False)
    source = None
    if isinstance(method, SelfTraining) and not method.frame.source_free:
        source = open_source(resolved, loaded.class_names, images, needs_held_out=method.needs_held_out)
    labelled = open_labelled(resolved, domain)
    folder = run.adapt(name)
    others = {one.role: (one.digest, one.path) for one in corrections}
    if guide is not None:
        others["value_net"] = (guide.digest, guide.path)
    if anchors is not None:
        others[ANCHORS] = (anchors.digest, anchors.path)
    facts = {
        **facts_of(f"adapt-{name}", resolved, loaded, folder, others=others, device=device),
        **_used_for(labelled, anchors),
        **({"processes": ranks.world} if ranks.world > 1 else {}),
        "images": list_digest([item.id for item in images.items] + ([] if source is None else [source.digest])),
    }
    stage = StageFolder(
        folder,
        facts,
        resolved,
        may_change=(*_MAY_CHANGE, "source." if source is None else "source.root"),
        must_stay=("target.", "pretrain.channels_last", *(() if source is None else ("pretrain.class_weights",))),
    )
    given = _Given(corrections, guide, source, labelled)
    if probe is not None:
        setting = Setting(resolved, loaded, images, device, probe, probe.stop, ranks)
        with _memory(resolved, images, ranks):
            probe.run(stage, device, partial(_work, setting, method, given, tries=True))
            conclude(probe, setting, method)
        return None
    writer = sole_writer(folder) if ranks.is_main else nullcontext()
    with writer, stop_on_signals() as stop, _memory(resolved, images, ranks):
        if ranks.share(ranks.is_main and _is_finished(stage, progress, resume=resume, force=force)):
            return _finished(folder) if ranks.is_main else None
        _note_layers(method, loaded, progress)
        setting = Setting(resolved, loaded, images, device, progress, stop, ranks)
        _work(setting, method, given, stage, resume=resume)
        if not ranks.is_main:
            return None
        release(folder)
    return _finished(folder)


@dataclass(frozen=True)
class _Given:
    """What a method gets beside the network and the images."""

    corrections: Sequence[Loaded]
    guide: LoadedValueNet | None
    source: SourceImages | None
    labelled: Labelled | None


def _work(
    setting: Setting, method: Method, given: _Given, stage: StageFolder, *, resume: bool = False, tries: bool = False
) -> None:
    """The method's work in the stage's folder, or what stands for it where it is only tried."""
    for one in given.corrections:
        check_fit(one, setting.loaded.class_names, target_road(setting).protocol)
        warn_of_another_network(one, setting.loaded.digest)
    if method.sweeps:
        _sweep(setting, method, stage)
    elif isinstance(method, RoundSelfTraining) and tries:
        try_round(setting, stage)
    elif isinstance(method, RoundSelfTraining):
        own = _own_options(setting.resolved)
        Rounds(setting, stage, own, guide=given.guide, corrections=given.corrections).run(resume=resume)
    elif isinstance(method, SelfTraining):
        train_on_both(setting, stage, method, given.source, given.labelled, resume=resume)
    else:
        _train(setting, method, stage, resume=resume)


def _memory(resolved: Resolved, images: SegmentationDataset, ranks: Ranks) -> AbstractContextManager[None]:
    return memory_errors(lambda: adapt_advice(resolved, input_size(images), world=ranks.world))


def _is_finished(stage: StageFolder, progress: Progress, *, resume: bool, force: bool) -> bool:
    """Whether nothing is left to do; else the folder is ready to be written."""
    if not claim(stage.path, resume=resume, force=force):
        return False
    stage.check_finished()
    progress.note(f"{stage.path} is finished already; nothing to do")
    return True


def _sweep(setting: Setting, method: Method, stage: StageFolder) -> None:
    """Show the method every image, `passes` times, each pass in an order of its own."""
    seed, options = setting.resolved.config.seed, setting.options
    if setting.ranks.is_main:
        stage.begin(resume=False)
    method.work_with(setting.ranks)
    seeds = [seed + number if options.shuffle else None for number in range(options.passes)]
    show_all(setting, method, f"adapting ({method.name})", seeds)
    if setting.stop:
        raise setting.stop.error(f"stopped before the end of {method.name}; no network was written", "run it again")
    network = method.deployed()
    if setting.ranks.is_main:
        stage.log({"event": "adapted", "method": method.name, "images": len(setting.images), "step": 0})
        stage.finish(0, network, None)


def _train(setting: Setting, method: Method, stage: StageFolder, *, resume: bool) -> None:
    """The method's steps, one after another, and the statistics again at the end."""
    seed = setting.resolved.config.seed

    def conclude() -> None:
        if method.remeasures:
            remeasure(setting, "measuring the statistics again")

    train_on_target(setting, stage, method, setting.images, seed=seed, resume=resume, conclude=conclude)


def _kind(name: str) -> type[Method]:
    kind = adaptation_kind(name)
    if kind is None:
        raise ConfigError(f"unknown method {name!r}", f"known: {', '.join([*ADAPTATIONS, *PLUGINS])}")
    return kind


def _anchors(resolved: Resolved, loaded: LoadedNetwork) -> Anchors | None:
    """Those that the options name, where the method has any."""
    options = resolved.config.adapt.blda
    if options.anchors is None or "blda" not in resolved.config.adapt.method.split("+"):
        return None
    return read_anchors(options.anchors, loaded.class_names, options.components, loaded.digest)


def _used_for(labelled: Labelled | None, anchors: Anchors | None) -> dict[str, str]:
    """What the result has to say of labels of the target, which an oracle opened."""
    told = [None if labelled is None else labelled.used_for, None if anchors is None else anchors.used_for]
    used = [text for text in told if text is not None]
    return {"labels_used_for": "; ".join(used)} if used else {}


def _build(
    resolved: Resolved,
    loaded: LoadedNetwork,
    corrections: Sequence[Loaded],
    anchors: Anchors | None,
    progress: Progress,
) -> Method:
    name = resolved.config.adapt.method
    if on_frame(name):
        return build_method(resolved, loaded, corrections, anchors, progress)
    return build_adaptation(name, loaded.network, **_own_options(resolved))


def _check_use(kind: type[Method], corrections: Sequence[Loaded], value_net: Path | None, resolved: Resolved) -> None:
    if corrections and not issubclass(kind, RoundSelfTraining | SelfTraining):
        raise ConfigError(
            f"{corrections[0].path}: {kind.name} makes no pseudo-labels that it could correct",
            "--prototypes and --calibrator are for cbst, calsfda and self-training; predict and evaluate take them "
            "after any method",
        )
    if value_net is not None and not _guided(resolved):
        raise ConfigError(f"--valuenet {value_net}: nothing asks it", "it guides --method calsfda --guidance value-net")


def _guided(resolved: Resolved) -> bool:
    adapt = resolved.config.adapt
    return getattr(getattr(adapt, sections_of(adapt.method)[0]), "guidance", "none") == "value-net"


def _guide(path: Path, loaded: LoadedNetwork, device: torch.device) -> LoadedValueNet:
    """The value net of this network, or of the one that it was adapted from. Raises ArtifactError."""
    if not path.exists():
        raise ArtifactError(
            f"there is no value net {path}", "calseg train-valuenet makes one; --guidance none adapts without"
        )
    parent = loaded.checkpoint.facts.get("provenance", {}).get("parents", {}).get("checkpoint")
    made_for = read_facts(path).get("provenance", {}).get("parents", {}).get("checkpoint")
    known = parent is not None and made_for == parent
    return load_value_net(path, parent if known else loaded.digest, device)


def _own_options(resolved: Resolved) -> dict[str, Any]:
    """The options of its section that the method itself takes; the others say how it is fed."""
    adapt = resolved.config.adapt
    takes = signature(ADAPTATIONS[adapt.method]).parameters
    return {key: value for key, value in getattr(adapt, adapt.method).model_dump().items() if key in takes}


def _note_layers(method: Method, loaded: LoadedNetwork, progress: Progress) -> None:
    layers = batch_norms(loaded.network)
    inside = sum(name.startswith("encoder") for name in layers)
    if not inside and "source" not in method.requires:
        progress.note(
            f"{method.name}: batch norm stands in the head only ({len(layers)} layer); the encoder of "
            f"{loaded.network.name} has no statistics to adapt, so expect little"
        )


def _finished(folder: Path) -> Trained:
    facts = read_facts(folder / NETWORK)
    return Trained(folder / NETWORK, folder / LOG, facts.get("scores") or {}, int(facts["step"]))
