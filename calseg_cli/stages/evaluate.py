"""Owns `calseg evaluate`: predictions and labels become counts, scores read off them, and a report."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import provenance
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError
from calseg_cli.metrics.calibration import Convention
from calseg_cli.metrics.scores import Scores, read_scores
from calseg_cli.metrics.tally import Tally
from calseg_cli.report.data import ReportData
from calseg_cli.report.page import write_page
from calseg_cli.report.tables import class_rows, score_rows, to_csv, to_document, to_json
from calseg_cli.stages.domains import evaluation_subset, open_domain
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.predict import OUT_OF_MEMORY
from calseg_cli.stages.report_data import report_data
from calseg_cli.stages.roads import ArtifactRoad, NetworkRoad, Road, classes_table
from calseg_cli.stages.run_folder import RunFolder, find_network, run_folder, short_name
from calseg_cli.stages.tally_file import write_tally
from calseg_cli.stages.thresholds import check_thresholds


@dataclass(frozen=True)
class Evaluated:
    """What evaluate leaves and what its tables are made of."""

    scores: Scores
    data: ReportData
    folder: Path
    html: bool
    failed: list[str]

    def tables(self, report: str) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, headers and rows of the tables of a report: "iou", "ece" or "full"."""
        return [
            (f"{self.data.title} ({len(self.data.images)} images)", *score_rows(self.data, report)),
            ("by class", *class_rows(self.data, report)),
        ]

    def csv(self) -> str:
        """The report as CSV text."""
        return to_csv(self.data)

    def document(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return to_document(self.data)


def evaluate(
    resolved: Resolved,
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    progress: Progress,
) -> Evaluated:
    """Measure a network on a labelled split, or a logits artifact against the labels of its images."""
    if checkpoint is not None and logits is not None:
        raise ConfigError("--checkpoint and --logits exclude each other", "give the one that is to be measured")
    config, options = resolved.config, resolved.config.evaluate
    run = run_folder(resolved)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    with memory_errors(OUT_OF_MEMORY):
        road, name = _road(resolved, run, checkpoint, logits)
        name = f"{name}-{options.domain}-{options.split}"
        progress.note(f"evaluating {name}: {len(road.dataset)} images")
        tally = measure(road.stream(), len(road.dataset), len(road.class_names), edges=options.edges, progress=progress)
        scores = _scores(resolved, road, tally)
        meta = _meta(resolved, road, name)
        data = report_data(
            road,
            tally,
            scores,
            meta,
            bins=options.bins,
            title=f"{config.name}: {name}",
            examples=options.examples if options.html else 0,
        )
    folder = out or run.evaluate / name
    _write(folder, tally, meta, data, html=options.html)
    return Evaluated(scores, data, folder, options.html, check_thresholds(options.fail_if, scores))


def _road(resolved: Resolved, run: RunFolder, checkpoint: str | None, logits: Path | None) -> tuple[Road, str]:
    config, options = resolved.config, resolved.config.evaluate
    if logits is not None:
        with open_artifact(logits, "logits") as artifact:
            names = artifact.class_names
        dataset = open_domain(resolved, options.domain, names).dataset(
            options.split, with_labels=True, max_items=options.max_items
        )
        return ArtifactRoad(logits, dataset), logits.stem
    path = find_network(run, checkpoint)
    device = choose_device(config.device)
    loaded = load_network(path, device, resolved)
    domain = open_domain(resolved, options.domain, loaded.class_names)
    dataset = domain.dataset(options.split, with_labels=True, max_items=options.max_items)
    road = NetworkRoad(loaded, dataset, config.predict, device=device, workers=config.workers)
    return road, short_name(path, run)


def _scores(resolved: Resolved, road: Road, tally: Tally) -> Scores:
    options = resolved.config.evaluate
    subset = evaluation_subset(road.class_names, names=options.classes, preset=options.eval_classes)
    return read_scores(tally, bins=options.bins, classes=subset, class_names=road.class_names)


def _meta(resolved: Resolved, road: Road, name: str) -> dict[str, Any]:
    config, options = resolved.config, resolved.config.evaluate
    return {
        "classes": classes_table(road.class_names, road.palette, IGNORE),
        "protocol": {
            **road.protocol,
            "dataset": f"{options.domain}-{options.split}",
            "labels_used_for": "measuring only",
            "metric": Convention(options.bins, options.edges).describe(),
            "evaluated_classes": list(options.classes or []) or options.eval_classes or "all",
        },
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=resolved.digest,
            parents=road.parents,
            device=config.device,
        ),
        "config": resolved.to_dict(),
        "name": {"name": name},
    }


def _write(folder: Path, tally: Tally, meta: Mapping[str, Any], data: ReportData, *, html: bool) -> None:
    """The report's files. They follow from their inputs alone, so a second evaluation may take their place."""
    write_tally(folder / "metrics.h5", tally, meta, force=True)
    write_whole(folder / "scores.json", to_json(data))
    write_whole(folder / "scores.csv", to_csv(data))
    if html:
        write_page(folder / "report.html", data)
