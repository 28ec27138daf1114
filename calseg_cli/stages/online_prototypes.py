"""Owns `calseg calibrate-prototypes --online`: logits corrected while they are counted, written as logits again."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from calseg_cli.artifacts.provenance import beside, file_digest, provenance
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.device import memory_errors, seed_everything
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError
from calseg_cli.methods.online_prototypes import Mode, OnlinePrototypes
from calseg_cli.stages.calibrate_prototypes import check_section, check_target, options_of, prototypes_folder
from calseg_cli.stages.chain import recipe
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.prototype_input import Asked, Input, Mask, find_input, read_mask
from calseg_cli.stages.roads import classes_table
from calseg_cli.stages.run_folder import run_folder


@dataclass(frozen=True)
class Online:
    """What it leaves: a logits artifact, and how many of the pixels of its grids have another class than before."""

    artifact: Path
    digest: str
    images: int
    described: str
    pixels: int
    changed: int
    split: str | None

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return asdict(self)


def correct_online(
    resolved: Resolved,
    asked: Asked,
    *,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Online:
    """Write the logits of each image, corrected by the prototypes of those before it, in the order of the input.

    Raises ConfigError without a prior, and for options that need more than one pass.
    """
    config, section = resolved.config, resolved.config.prototypes
    check_section(section, resolved, None)
    if section.png:
        raise ConfigError("--png draws what one set of prototypes changes; online there are many", "leave it out")
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    given = find_input(resolved, asked, progress)
    mode = cast("Mode", section.online)
    online = OnlinePrototypes(len(given.class_names), options_of(section), mode, section.forget)
    target = out or prototypes_folder(run_folder(resolved)) / f"{given.stem}-{section.online}.h5"
    with stop_on_signals() as stop, memory_errors(lambda: inference_advice(resolved)), given.open():
        check_target(target, given, force=force)
        progress.note(f"{given.told}, {len(given.ids)} images, in this order")
        writer = ArtifactWriter(
            target,
            "logits",
            meta=_meta(resolved, given, online, asked.mask, target),
            ids=given.ids,
            compression=config.predict.compression,
            force=force,
        )
        with writer:
            wanted = None if asked.mask is None else read_mask(asked.mask)
            pixels, changed = _write(given, online, writer, wanted, progress, stop)
    return Online(
        target, writer.digest, len(given.ids), online.describe(), pixels, changed, given.protocol.get("split")
    )


def _write(
    given: Input,
    online: OnlinePrototypes,
    writer: ArtifactWriter,
    wanted: Mask | None,
    progress: Progress,
    stop: StopRequest,
) -> tuple[int, int]:
    """All images; how many cells of grids there are, and how many changed class."""
    pixels = changed = 0
    progress.start("correcting", len(given.ids))
    for image in given.stream():
        if stop:
            raise stop.error("stopped; what is corrected depends on all images before it", "--force starts anew")
        corrected = online.correct(image.logits.float(), image.mask(wanted), image.id).to(image.logits.dtype)
        pixels += corrected[0].numel()
        changed += int((_classes(corrected) != _classes(image.logits)).sum())
        arrays = {"logits": corrected.numpy()}
        writer.add_item(image.id, arrays, image.geometry, image_digest=given.image_digest(image.id))
        progress.advance()
    progress.finish()
    return pixels, changed


def _classes(logits: Tensor) -> torch.Tensor:
    """The first index of the largest, as everywhere else."""
    return torch.from_numpy(np.argmax(logits.float().numpy(), axis=0))


def _meta(
    resolved: Resolved, given: Input, online: OnlinePrototypes, mask: Path | None, target: Path
) -> dict[str, Any]:
    config = resolved.config
    facts = {**online.facts(), **({} if mask is None else {"mask": file_digest(mask)})}
    return {
        "classes": classes_table(given.class_names, given.palette, IGNORE),
        "protocol": {**given.protocol, "corrected_by": [online.describe()], "online_prototypes": facts},
        "recipe": recipe("calibrate-prototypes", given.parents, given.ids, facts),
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=resolved.digest,
            parents=given.parents,
            files={role: beside(path, target.parent) for role, path in given.files.items()},
            device=given.device,
        ),
        "config": resolved.to_dict(),
    }
