"""Owns `calseg pseudo-label`: a logits artifact becomes labels that are ignored wherever they are not believed."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.disk import free_bytes
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.lineage import stale_note
from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.config.pseudo_label import PseudoLabel
from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.device import memory_errors, seed_everything
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods.pseudo_labels import GRID, VoteHistogram, Votes, believed_labels, class_pixels, votes
from calseg_cli.report.wording import number, percent
from calseg_cli.stages.chain import check_configured_classes, recipe
from calseg_cli.stages.corrections import Loaded, check_fit, correct, told, warn_of_another_network
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.predict import Plan, state_of
from calseg_cli.stages.pseudo_pictures import draw_pseudo_labels
from calseg_cli.stages.roads import network_of
from calseg_cli.stages.run_folder import RunFolder, run_folder

OUT_OF_MEMORY = "one image is enlarged to its full size at a time; a machine with more memory is needed"
GO_ON = "the same command with --resume goes on from there"
_USES = {"none": (), "global": ("confidence",), "class-balanced": ("portion", "ceiling")}
_RULE = "the confidence reaches the threshold of the predicted class (>=)"
_SHARD = re.compile(r"\.rank\d+-of-\d+(-\d+)?\.h5")
_BYTES = {"none": 0.1, "u8": 1.1, "f16": 2.1}  # a pixel, before packing; labels alone never take more than a tenth
_STORED = {"none": "none", "u8": "uint8, confidence * 255 rounded", "f16": "float16"}


@dataclass(frozen=True)
class PseudoLabelled:
    """What pseudo-label leaves: files, and by class (C,) the pixels predicted and believed and the threshold."""

    artifact: Path
    pictures: Path | None
    digest: str
    images: int
    rule: str
    class_names: list[str]
    predicted: NDArray[np.int64]
    kept: NDArray[np.int64]
    thresholds: NDArray[np.float64]

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headers and rows: a class each, and all of them together."""
        rows = [
            [
                row["name"],
                str(row["predicted"]),
                percent(row["share"]),
                number(row["threshold"], decimals=6),
                str(row["kept"]),
                percent(row["kept_share"]),
            ]
            for row in self._rows()
        ]
        total, kept = int(self.predicted.sum()), int(self.kept.sum())
        rows.append(["all", str(total), percent(_share(total, total)), "", str(kept), percent(_share(kept, total))])
        headers = ["class", "predicted pixels", "share", "threshold", "kept", "kept %"]
        return f"{self.artifact.name}: {self.rule} ({self.images} images)", headers, rows

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON; NaN where there is nothing to divide by or no threshold."""
        total, kept = int(self.predicted.sum()), int(self.kept.sum())
        return {
            "artifact": self.artifact,
            "pictures": self.pictures,
            "digest": self.digest,
            "images": self.images,
            "rule": self.rule,
            "pixels": total,
            "kept": kept,
            "kept_share": _share(kept, total),
            "classes": self._rows(),
        }

    def _rows(self) -> list[dict[str, Any]]:
        total = int(self.predicted.sum())
        columns = zip(
            self.class_names, self.predicted.tolist(), self.thresholds.tolist(), self.kept.tolist(), strict=True
        )
        return [
            {
                "name": name,
                "predicted": predicted,
                "share": _share(predicted, total),
                "threshold": threshold,
                "kept": kept,
                "kept_share": _share(kept, predicted),
            }
            for name, predicted, threshold, kept in columns
        ]


def pseudo_label(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    logits: Path | None,
    out: Path | None,
    resume: bool,
    force: bool,
    progress: Progress,
) -> PseudoLabelled:
    """Write pseudo-labels of every image of a logits artifact, the run's newest without one. No label is opened.

    Corrections act on the logits first. Raises ConfigError for one that looks at the image.
    """
    config, options = resolved.config, resolved.config.pseudo_label
    _check_options(resolved)
    source = logits or newest_logits(run_folder(resolved), progress)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    with stop_on_signals() as stop, memory_errors(OUT_OF_MEMORY), open_artifact(source, "logits") as parent:
        target = _checked_target(resolved, corrections, parent, source, out, progress)
        progress.note(f"logits {source}, {len(parent)} images")
        writer = ArtifactWriter(
            target,
            "pseudo_labels",
            meta=_meta(resolved, parent, corrections, target),
            ids=parent.ids,
            force=force,
            resume=resume,
            estimate=_raw_bytes(parent, options),
        )
        with writer:
            if writer.finished:
                progress.note(f"{target} is finished already and up to date")
            else:
                _Work(parent, corrections, writer, options, progress, stop).write()
        with open_artifact(target, "pseudo_labels") as written:
            pictures = None
            if options.png:
                pictures = draw_pseudo_labels(written, resolved, resume=resume, progress=progress, stop=stop)
            return _result(written, pictures, options)


def plan_pseudo_labels(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    logits: Path | None,
    out: Path | None,
    progress: Progress,
) -> Plan:
    """What `pseudo_label` would do; opens everything, writes nothing."""
    refuse_torchrun("--dry-run")
    _check_options(resolved)
    source = logits or newest_logits(run_folder(resolved), progress)
    with open_artifact(source, "logits") as parent:
        target = _checked_target(resolved, corrections, parent, source, out, progress)
        size = _raw_bytes(parent, resolved.config.pseudo_label)
        return Plan(target, state_of(target), len(parent), len(parent.class_names), size, free_bytes(target.parent))


def _checked_target(
    resolved: Resolved,
    corrections: Sequence[Loaded],
    parent: Artifact,
    source: Path,
    out: Path | None,
    progress: Progress,
) -> Path:
    _check_classes(parent, resolved)
    _check_corrections(corrections, parent)
    if (stale := stale_note(parent)) is not None:
        progress.note(stale)
    suffix = "".join(one.suffix for one in corrections)
    target = out or run_folder(resolved).predict / f"{_stem(source)}{suffix}-pseudo.h5"
    if target.absolute() == source.absolute():
        raise ArtifactError(f"{target} holds the logits themselves", "give the labels another name with --out")
    return target


def _raw_bytes(parent: Artifact, options: PseudoLabel) -> int:
    return int(sum(height * width for height, width in _sizes(parent)) * _BYTES[options.keep_confidence])


class _Work:
    """One run of the stage: thresholds are measured where they are not given, then every image is written."""

    def __init__(
        self,
        parent: Artifact,
        corrections: Sequence[Loaded],
        writer: ArtifactWriter,
        options: PseudoLabel,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self._parent, self._corrections, self._writer, self._options = parent, corrections, writer, options
        self._progress, self._stop = progress, stop
        self._classes = len(parent.class_names)

    def write(self) -> None:
        """All images that are not there yet, then the arrays of the whole: the same after a break as without one."""
        if self._options.threshold == "class-balanced":
            measured = self._measure()
            thresholds = measured.thresholds(self._options.portion, self._ceiling)
            predicted, kept = measured.predicted, measured.reaching(thresholds)
            self._label(self._writer.todo, thresholds)
        else:
            lowest = self._options.confidence if self._options.threshold == "global" else 0.0
            thresholds = np.full(self._classes, lowest)
            # Labels that are there already do not say what was predicted under 255, so every image is looked at.
            predicted, kept = self._label(self._parent.ids, thresholds)
        for name, array in {"thresholds": thresholds, "predicted": predicted, "kept": kept}.items():
            self._writer.add_array(name, array)

    @property
    def _ceiling(self) -> float:
        return 1.0 if self._options.ceiling is None else self._options.ceiling

    def _measure(self) -> VoteHistogram:
        histogram = VoteHistogram(self._classes)
        for _, image in self._votes(self._parent.ids, "measuring confidence"):
            histogram.add(image)
        return histogram

    def _label(self, names: list[str], thresholds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Write the labels of the images that lack them; pixels predicted and kept (C,) of all that are named."""
        missing = set(self._writer.todo)
        predicted, kept = np.zeros(self._classes, np.int64), np.zeros(self._classes, np.int64)
        for name, image in self._votes(names, "writing labels"):
            labels = believed_labels(image, thresholds)
            predicted += class_pixels(image.classes, self._classes)
            kept += class_pixels(labels, self._classes)
            if name in missing:
                self._add(name, image, labels)
        return predicted, kept

    def _add(self, name: str, image: Votes, labels: Tensor) -> None:
        arrays: dict[str, NDArray[Any]] = {"label": labels.numpy()}
        if self._options.keep_confidence == "u8":
            arrays["confidence"] = (image.confidence * 255).round().to(torch.uint8).numpy()
        elif self._options.keep_confidence == "f16":
            arrays["confidence"] = image.confidence.to(torch.float16).numpy()
        size = self._parent.geometry(name).out_hw
        geometry = Geometry(in_hw=size, out_hw=size)
        self._writer.add_item(name, arrays, geometry, image_digest=self._parent.image_digest(name))

    def _votes(self, names: list[str], title: str) -> Iterator[tuple[str, Votes]]:
        done, total = len(self._parent) - len(names), len(self._parent)
        self._progress.start(title, total, done=done)
        for place, name in enumerate(names, start=done + 1):
            if self._stop:
                raise self._stop.error(f"stopped while {title} (image {place} of {total})", GO_ON)
            logits = correct(torch.from_numpy(self._parent.item(name, "logits")), self._corrections, name)
            native, grid = label_grid(logits, self._parent.geometry(name))
            yield name, votes(native, grid=grid)
            self._progress.advance()
        self._progress.finish()


def newest_logits(run: RunFolder, progress: Progress) -> Path:
    """The run's most recent logits of the target, of its train split where there are any. Raises ArtifactError."""
    found: list[tuple[bool, int, Path]] = []
    for path in [*run.predict.glob("*.h5"), *run.predict.glob("*.manifest.json")]:
        if _SHARD.search(path.name):
            continue  # a part of what its manifest stands for
        try:
            with open_artifact(path, "logits", explain=False) as artifact:
                origin = artifact.meta["protocol"]
        except ArtifactError:
            continue
        if origin.get("domain") == "target":
            found.append((origin.get("split") == "train", path.stat().st_mtime_ns, path))
    if not found:
        raise ArtifactError(
            f"no logits of the target in {run.predict}",
            "run `calseg predict --split train` first, or name an artifact with --logits",
        )
    train, _, path = max(found)
    if not train:
        progress.note(
            f"there are no logits of target train in {run.predict}: `calseg predict --split train` makes them"
        )
    return path


def _stem(path: Path) -> str:
    return path.name.removesuffix(".json").removesuffix(".manifest").removesuffix(".h5")


def _check_options(resolved: Resolved) -> None:
    """An option on the command line that the rule does not use is a misunderstanding; in a file it only waits."""
    rule = resolved.config.pseudo_label.threshold
    for name, others in (("confidence", "global"), ("portion", "class-balanced"), ("ceiling", "class-balanced")):
        if resolved.sources.get(f"pseudo_label.{name}", "") == f"--{name}" and name not in _USES[rule]:
            raise ConfigError(f"--{name} has no effect with --threshold {rule}", f"--threshold {others} uses it")


def _sizes(artifact: Artifact) -> Iterator[tuple[int, int]]:
    return (artifact.geometry(name).out_hw for name in artifact.ids)


def _check_classes(parent: Artifact, resolved: Resolved) -> None:
    check_configured_classes(parent, resolved)
    if len(parent.class_names) > IGNORE:
        raise ArtifactError(
            f"{parent.path} has {len(parent.class_names)} classes; a label is one byte and tells {IGNORE} at most",
            "use logits of fewer classes",
        )


def _check_corrections(corrections: Sequence[Loaded], parent: Artifact) -> None:
    for one in corrections:
        check_fit(one, parent.class_names, parent.meta["protocol"])
        warn_of_another_network(one, network_of(parent.meta.get("provenance", {})))
        if one.correction.needs_image:
            raise ConfigError(
                f"{one.path} looks at the images, which pseudo-label does not open",
                "calseg predict --calibrator writes corrected logits; give those to pseudo-label",
            )


def _used(options: PseudoLabel) -> dict[str, Any]:
    """The options that decide the content."""
    chosen = {name: getattr(options, name) for name in _USES[options.threshold]}
    return {"threshold": options.threshold, **chosen, "keep_confidence": options.keep_confidence}


def _meta(resolved: Resolved, parent: Artifact, corrections: Sequence[Loaded], target: Path) -> dict[str, Any]:
    config = resolved.config
    options = _used(config.pseudo_label)
    parents = {"logits": parent.digest, **{one.role: one.digest for one in corrections}}
    files = {"logits": parent.path, **{one.role: one.path for one in corrections}}
    done = {"believed_where": _RULE, **options, "grid": GRID, "keep_confidence": _STORED[options["keep_confidence"]]}
    return {
        "classes": parent.meta["classes"],
        "protocol": {**parent.meta["protocol"], **told(corrections), "pseudo_labels": done},
        "recipe": recipe("pseudo-label", parents, parent.ids, options),
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=resolved.digest,
            parents=parents,
            files={role: beside(path, target.parent) for role, path in files.items()},
            device="cpu",
        ),
        "config": resolved.to_dict(),
    }


def _result(written: Artifact, pictures: Path | None, options: PseudoLabel) -> PseudoLabelled:
    return PseudoLabelled(
        written.path,
        pictures,
        written.digest,
        len(written),
        _described(options),
        written.class_names,
        written.array("predicted"),
        written.array("kept"),
        written.array("thresholds"),
    )


def _described(options: PseudoLabel) -> str:
    if options.threshold == "none":
        return "every pixel believed"
    if options.threshold == "global":
        return f"confidence {options.confidence} or more believed"
    ceiling = "" if options.ceiling is None else f", no threshold above {options.ceiling}"
    return f"the most confident {options.portion} of each class believed{ceiling}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan
