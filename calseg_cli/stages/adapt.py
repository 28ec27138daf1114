"""Owns `calseg adapt`: a trained network and unlabelled target images become an adapted network."""

import sys
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Resolved
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import sweep as sweep_images
from calseg_cli.engine.batch_statistics import batch_norms
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Progress
from calseg_cli.engine.train import sweep
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods import ADAPTATIONS, build_adaptation
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.networks import LoadedNetwork, load_network
from calseg_cli.stages.pretrain import Trained
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
from calseg_cli.stages.training import StageFolder

OUT_OF_MEMORY = "lower adapt.METHOD.batch_size, or set a smaller target.size"


def adapt(resolved: Resolved, *, checkpoint: str | None, resume: bool, force: bool, progress: Progress) -> Trained:
    """Adapt the run's source network (or `checkpoint`) to the target's images; no label of the target is opened."""
    config = resolved.config
    name = config.adapt.method
    if name not in ADAPTATIONS:
        raise ConfigError(f"unknown method {name!r}", f"known: {', '.join(ADAPTATIONS)}")
    run = run_folder(resolved)
    start = find_network(run, checkpoint) if checkpoint else source_network(run)
    device = choose_device(config.device)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    loaded = load_network(start, device, resolved)
    domain = open_domain(resolved, config.adapt.domain, loaded.class_names)
    method = build_adaptation(name, loaded.network, **_network_options(config.adapt, name))
    images = domain.dataset(config.adapt.split, with_labels=False)
    folder = run.adapt(name)
    stage = StageFolder(
        folder, _facts(resolved, loaded, name, str(device), folder), resolved, may_change=("pretrain.",)
    )
    with sole_writer(folder), stop_on_signals() as stop, memory_errors(OUT_OF_MEMORY):
        if claim(folder, resume=resume, force=force):
            stage.check_finished()
            _check_start(folder / NETWORK, loaded)
            progress.note(f"{folder} is finished already; nothing to do")
            return _finished(folder)
        _note_layers(method, loaded, progress)
        stage.begin(resume=False)
        _sweep(method, images, resolved, device, progress, stop)
        stage.log({"event": "adapted", "method": name, "images": len(images), "step": 0})
        stage.finish(0, method.deployed(), None)
        release(folder)
    return _finished(folder)


def _sweep(
    method: Method,
    images: SegmentationDataset,
    resolved: Resolved,
    device: torch.device,
    progress: Progress,
    stop: StopRequest,
) -> None:
    """Show the method every image, `passes` times, each pass in an order of its own."""
    config = resolved.config
    options = getattr(config.adapt, method.name)
    progress.start(f"adapting ({method.name})", len(images) * options.passes)
    for number in range(options.passes):
        batches = sweep_images(
            images,
            options.batch_size,
            workers=config.workers,
            shuffle_seed=config.seed + number if options.shuffle else None,
        )
        sweep(method, batches, device=device, progress=progress, stop=stop)
        if stop:
            raise stop.error(f"stopped before the end of {method.name}; no network was written", "run it again")
    progress.finish()


def _check_start(result: Path, loaded: LoadedNetwork) -> None:
    """Refuse to pass over a result that was adapted from another network than the one at hand."""
    before = read_facts(result).get("provenance", {}).get("parents", {}).get("checkpoint")
    if before != loaded.digest:
        raise ArtifactError(
            f"{result} is stale: the network it was adapted from was {str(before)[:19]}, {loaded.checkpoint.path} is "
            f"{loaded.digest[:19]}",
            "--force adapts the present one, --name starts another run",
        )


def _network_options(section: Any, name: str) -> dict[str, Any]:
    """A method's own options, without those that say how images are fed to it."""
    return {
        key: value
        for key, value in getattr(section, name).model_dump().items()
        if key not in ("batch_size", "passes", "shuffle")
    }


def _note_layers(method: Method, loaded: LoadedNetwork, progress: Progress) -> None:
    layers = batch_norms(loaded.network)
    inside = sum(name.startswith("encoder") for name in layers)
    if not inside:
        progress.note(
            f"{method.name}: batch norm stands in the head only ({len(layers)} layer); the encoder of "
            f"{loaded.network.name} has no statistics to adapt, so expect little"
        )


def _facts(resolved: Resolved, loaded: LoadedNetwork, name: str, device: str, folder: Path) -> dict[str, Any]:
    return {
        "stage": f"adapt-{name}",
        "network": loaded.checkpoint.facts["network"],
        "classes": loaded.checkpoint.facts["classes"],
        "config": resolved.to_dict(),
        "provenance": provenance(
            sys.argv,
            seed=resolved.config.seed,
            config_digest=resolved.digest,
            parents={"checkpoint": loaded.digest},
            files={"checkpoint": beside(loaded.checkpoint.path, folder)},
            device=device,
        ),
    }


def _finished(folder: Path) -> Trained:
    return Trained(folder / NETWORK, folder / LOG, {}, int(read_facts(folder / NETWORK)["step"]))
