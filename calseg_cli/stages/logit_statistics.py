"""Owns `calseg logit-statistics`: the logits of a split, counted by label and channel, become an artifact."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calseg_cli.artifacts.lineage import stale_note
from calseg_cli.artifacts.provenance import beside, file_digest, provenance
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.interrupt import stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.metrics.confusion import check_labels
from calseg_cli.metrics.logit_distributions import LogitDistributions, mean_logit, quantile_logits, read_distributions
from calseg_cli.metrics.logit_statistics import LogitStatistics
from calseg_cli.report.wording import number
from calseg_cli.stages.cells import cell_labels
from calseg_cli.stages.chain import check_configured_classes
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.roads import ArtifactRoad, NetworkRoad, Road, classes_table
from calseg_cli.stages.run_folder import find_network, run_folder, short_name

FOLDER = "5-statistics"
KIND = "logit_statistics"
ORACLE = "oracle: target labels sorted the logits"
_WARNING = "ORACLE: logits sorted by labels of the target, which nobody has who needs to adapt. For study, not a result"
_PIXELS = "cells of the logits' own grid, each with the label of the pixel under its centre"
_LEVELS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Collected:
    """What logit-statistics leaves: the artifact, what it holds, and of what."""

    artifact: Path
    digest: str
    statistics: LogitStatistics
    class_names: tuple[str, ...]
    domain: str
    place: str
    used_for: str

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headers and rows: a class each, and all of them in the anchors."""
        shown = [f"{level:.0%}" for level in _LEVELS]
        headers = ["class", "pixels", "own logit", *shown, "others' logit", *shown]
        rows = [[row["name"], str(row["pixels"]), *_cells(row["own"]), *_cells(row["others"])] for row in self.rows()]
        oracle = "ORACLE, " if self.used_for == ORACLE else ""
        return f"{oracle}logits of {self.place}", headers, rows

    def rows(self) -> list[dict[str, Any]]:
        """A class each and the anchors, as plain values; NaN where there is no such logit."""
        found, pixels = read_distributions(self.statistics.histograms), self.statistics.pixels
        own, others = _spreads(found, found.positive), _spreads(found, found.negative)
        positive, negative = _spreads(found, found.anchors)
        classes = zip(self.class_names, pixels, own, others, strict=True)
        rows = [{"name": name, "pixels": int(count), "own": one, "others": two} for name, count, one, two in classes]
        return [*rows, {"name": "anchors", "pixels": int(pixels.sum()), "own": positive, "others": negative}]

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        *classes, anchors = self.rows()
        return {
            "artifact": self.artifact,
            "digest": self.digest,
            "images": len(self.statistics.images),
            "of": self.place,
            "labels_used_for": self.used_for,
            "bin_width": float(np.ldexp(1.0, self.statistics.histograms.exponent)),
            "quantile_levels": _LEVELS,
            "classes": classes,
            "anchors": {"positive": anchors["own"], "negative": anchors["others"]},
        }


def _spreads(found: LogitDistributions, shares: NDArray[np.float64]) -> list[dict[str, Any]]:
    means, quantiles = mean_logit(shares, found.edges), quantile_logits(shares, found.edges, np.array(_LEVELS))
    return [
        {"mean": float(mean), "quantiles": [float(one) for one in row]}
        for mean, row in zip(means, quantiles, strict=True)
    ]


def _cells(spread: dict[str, Any]) -> list[str]:
    return [number(one, decimals=2, signed=True) for one in (spread["mean"], *spread["quantiles"])]


def logit_statistics(
    resolved: Resolved,
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Collected:
    """Count the logits of a network, or of a logits artifact, by label and channel, and write them.

    Labels of the target are opened only where they are asked for, and the result says "oracle". Raises ConfigError for
    two inputs, ArtifactError for what is in the way or does not fit, DataError where no pixel has a label.
    """
    if checkpoint is not None and logits is not None:
        raise ConfigError("--logits excludes --checkpoint", "give the one whose logits count")
    config = resolved.config
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    with memory_errors(lambda: inference_advice(resolved)):
        origin = _from_artifact(resolved, logits, progress) if logits else _from_network(resolved, checkpoint)
        target = out or run_folder(resolved).root / FOLDER / f"{origin.name}.h5"
        _check_target(target, origin.road, force=force)
        if origin.used_for == ORACLE:
            progress.note(_WARNING)
        progress.note(f"{origin.told}, {len(origin.road.dataset)} images of {origin.place}")
        statistics = _collect(origin, progress)
        digest = write_statistics(target, statistics, _meta(resolved, origin, target), force=force)
    names = origin.road.class_names
    return Collected(target, digest, statistics, names, origin.domain, origin.place, origin.used_for)


def write_statistics(path: Path, statistics: LogitStatistics, meta: dict[str, Any], *, force: bool) -> str:
    """Write statistics as an artifact of kind "logit_statistics"; its content digest."""
    writer = ArtifactWriter(path, KIND, meta=meta, force=force)
    with writer:
        for name, array in statistics.to_arrays().items():
            writer.add_array(name, array)
    return writer.digest


@dataclass(frozen=True)
class _Origin:
    """Whose logits: a road of them, and by which labels of which split they are sorted."""

    road: Road
    told: str
    stem: str
    domain: str
    split: str
    labels: str
    first: int | None
    device: str

    @property
    def place(self) -> str:
        kind = "labels" if self.labels == "true" else "pseudo-labels"
        return f"{self.domain} {self.split} by {kind}"

    @property
    def used_for(self) -> str:
        """What labels were used for, for the artifact; an oracle's logits stay one's."""
        if self.labels == "true" and self.domain == "target":
            return ORACLE
        known = self.road.protocol.get("labels_used_for")
        return str(known or ("sorting logits: source" if self.labels == "true" else "none"))

    @property
    def name(self) -> str:
        """The file's, without its ending; it tells apart what may stand in one folder."""
        usual = _usual_labels(self.domain)
        part = f"-first{self.first}" if self.first is not None else ""
        return f"{self.stem}{part}{'' if self.labels == usual else '-oracle' if usual == 'pseudo' else '-pseudo'}"


def _usual_labels(domain: str) -> str:
    return "true" if domain == "source" else "pseudo"


def _from_network(resolved: Resolved, checkpoint: str | None) -> _Origin:
    config, options, run = resolved.config, resolved.config.logit_statistics, run_folder(resolved)
    path = find_network(run, checkpoint)
    device = choose_device(config.device)
    loaded = load_network(path, device, resolved)
    labels = options.labels or _usual_labels(options.domain)
    dataset = _images(resolved, loaded.class_names, options.domain, options.split, labels)
    road = NetworkRoad(loaded, dataset, config.predict, device=device, workers=config.workers)
    stem = f"{short_name(path, run)}-{options.domain}-{options.split}"
    told = f"network {path}"
    return _Origin(road, told, stem, options.domain, options.split, labels, options.max_items, str(device))


def _from_artifact(resolved: Resolved, path: Path, progress: Progress) -> _Origin:
    """The artifact says which split it is of; --domain and --split have the last word."""
    options = resolved.config.logit_statistics
    with open_artifact(path, "logits") as artifact:
        check_configured_classes(artifact, resolved)
        names, protocol, stale = artifact.class_names, artifact.meta["protocol"], stale_note(artifact)
    if stale is not None:
        progress.note(stale)

    def chosen(key: str) -> str:
        given = resolved.sources.get(f"logit_statistics.{key}", "default") != "default"
        return str(getattr(options, key) if given else protocol.get(key, getattr(options, key)))

    domain, split = chosen("domain"), chosen("split")
    labels = options.labels or _usual_labels(domain)
    road = ArtifactRoad(path, _images(resolved, names, domain, split, labels))
    stem = path.name.removesuffix(".json").removesuffix(".manifest").removesuffix(".h5")
    return _Origin(road, f"logits {path}", stem, domain, split, labels, options.max_items, "cpu")


def _images(
    resolved: Resolved, class_names: Sequence[str], domain: str, split: str, labels: str
) -> SegmentationDataset:
    data = open_domain(resolved, domain, class_names)
    first = resolved.config.logit_statistics.max_items
    return data.dataset(split, with_labels=labels == "true", max_items=first)


def _check_target(target: Path, road: Road, *, force: bool) -> None:
    if any(target.absolute() == path.absolute() for path in road.files.values()):
        raise ArtifactError(f"{target} is what is read", "give the statistics another name with --out")
    if target.exists() and not force:
        raise ArtifactError(f"{target} exists already", "--force makes it anew, -o names another file")


def _collect(origin: _Origin, progress: Progress) -> LogitStatistics:
    items = origin.road.dataset.items
    total = LogitStatistics.zeros(len(origin.road.class_names))
    progress.start("counting logits", len(items))
    with stop_on_signals() as stop:
        for place, (item, one) in enumerate(zip(items, origin.road.stream(), strict=True), start=1):
            if stop:
                raise stop.error(
                    f"stopped at image {place} of {len(items)}; nothing was written", "give the same command again"
                )
            total += _count(one, f"{item.id} {file_digest(item.image).removeprefix('sha256:')[:16]}")
            progress.advance()
    progress.finish()
    if not total.pixels.any():
        raise DataError(f"no pixel of {origin.place} has a label", "all of them are ignored: check the labels")
    return total


def _count(one: Prediction, name: str) -> LogitStatistics:
    """The statistics of one image. Raises DataError for a logit that is no number and a label that is no class."""
    logits = one.logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise DataError(f"the logits of {one.id} hold NaN or infinity", "the network is broken")
    size = (int(logits.shape[1]), int(logits.shape[2]))
    if one.label is None:
        blank = np.zeros(one.geometry.out_hw, np.uint8)  # only padding is told from it
        labels, known = logits.argmax(dim=0), cell_labels(blank, one.geometry, size) != IGNORE
    else:
        check_labels(torch.from_numpy(one.label), len(logits), ignore=IGNORE, where=one.id)
        labels = cell_labels(one.label, one.geometry, size)
        known = labels != IGNORE
    return LogitStatistics.of_image(logits[:, known], labels[known], name)


def _meta(resolved: Resolved, origin: _Origin, target: Path) -> dict[str, Any]:
    road = origin.road
    told = {"domain": origin.domain, "split": origin.split, "labels": origin.labels, "pixels": _PIXELS}
    digest = {} if road.network_digest is None else {"network_digest": road.network_digest}
    return {
        "classes": classes_table(road.class_names, road.palette, IGNORE),
        "protocol": {**road.protocol, **told, **digest, "labels_used_for": origin.used_for},
        "provenance": provenance(
            sys.argv,
            seed=resolved.config.seed,
            config_digest=resolved.digest,
            parents=road.parents,
            files={role: beside(path, target.parent) for role, path in road.files.items()},
            device=origin.device,
        ),
        "config": resolved.to_dict(),
    }
