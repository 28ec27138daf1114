"""Owns `calseg evaluate`: predictions and labels become counts, scores read off them, and a report."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.lineage import stale_note
from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.config import Evaluate as EvaluateOptions
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.distributed import ALONE, Ranks, process_group
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.progress import Progress, Silent
from calseg_cli.errors import ConfigError
from calseg_cli.metrics.bin_intervals import accuracy_intervals
from calseg_cli.metrics.calibration import Convention
from calseg_cli.metrics.fine_histogram import check_bins
from calseg_cli.metrics.image_rows import COARSE_BINS
from calseg_cli.metrics.intervals import LEVEL, Draws, check_resamples, interval, score_draws
from calseg_cli.metrics.intervals import measured as measured_scores
from calseg_cli.metrics.scores import Scores, read_scores
from calseg_cli.metrics.tally import Tally, merge
from calseg_cli.report.bias_figure import bias_figure
from calseg_cli.report.data import Compared, Intervals, ReportData
from calseg_cli.report.drawing import save_png
from calseg_cli.report.page import write_page
from calseg_cli.report.tables import class_rows, logit_note, region_rows, score_rows, to_csv, to_document, to_json
from calseg_cli.stages.chain import check_configured_classes
from calseg_cli.stages.comparison import earlier_results
from calseg_cli.stages.corrections import Loaded, corrected
from calseg_cli.stages.domains import evaluation_subset, open_domain
from calseg_cli.stages.measuring import extra_counts, measure
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.probe import Estimate, Probe, Work
from calseg_cli.stages.report_data import report_data
from calseg_cli.stages.roads import ArtifactRoad, NetworkRoad, Road, classes_table
from calseg_cli.stages.run_folder import LOG, find_network, run_folder, short_name
from calseg_cli.stages.tally_file import write_tally
from calseg_cli.stages.thresholds import check_conditions, check_thresholds
from calseg_cli.stages.training import read_log


@dataclass(frozen=True)
class Evaluated:
    """What evaluate leaves and what its tables are made of."""

    scores: Scores
    data: ReportData
    folder: Path
    html: bool
    failed: list[str]

    def tables(self, report: str) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, headers and rows of the tables of a report: "iou", "ece", "full" or "bias"."""
        return [
            (f"{self.data.title} ({len(self.data.images)} images)", *score_rows(self.data, report)),
            ("by class", *class_rows(self.data, report)),
            *([("by region", *region_rows(self.data, report))] if self.data.regions else []),
        ]

    def notes(self, report: str) -> list[str]:
        """What a reader of these tables has to know besides, a line each."""
        if report == "bias":
            return logit_note(self.data).splitlines()
        told = (f"{name}: {self.data.protocol[name]}" for name in ("preset", "regions") if name in self.data.protocol)
        return [self.data.convention, *told] if report != "iou" else []

    def csv(self) -> str:
        """The report as CSV text."""
        return to_csv(self.data)

    def document(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return to_document(self.data)

    def without_pictures(self) -> "Evaluated":
        """The same without the images of the page, which are large."""
        return replace(self, data=replace(self.data, examples=()))


def evaluate(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    progress: Progress,
) -> Evaluated:
    """Measure a network on a labelled split, or a logits artifact against the labels of its images.

    The processes that torchrun started measure some of the images each. Counts add exactly, so their number changes
    no score. The main one alone writes and tells; all return the same, the others without the report's pictures.
    """
    config, options = resolved.config, resolved.config.evaluate
    _check_options(options, checkpoint, logits)
    with process_group("cpu" if logits is not None else config.device) as ranks:
        listener = progress if ranks.is_main else Silent()
        seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
        with memory_errors(lambda: inference_advice(resolved, options.domain)):
            measured = _opened(resolved, checkpoint, logits, ranks, listener).corrected(corrections)
            subset = evaluation_subset(measured.road.class_names, names=options.classes, preset=options.eval_classes)
            tally = _counted(measured, options, ranks, listener)
            done = ranks.main_does(partial(_reported, resolved, measured, tally, subset, out))
        told = ranks.share(done.without_pictures() if done is not None else None)
    found = done or told
    assert found is not None  # the main process's
    return found


def plan_evaluation(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    progress: Progress,
) -> Estimate:
    """What `evaluate` would do and take, from a few of its images; writes nothing."""
    refuse_torchrun("--dry-run")
    config, options = resolved.config, resolved.config.evaluate
    _check_options(options, checkpoint, logits)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    probe = Probe(resolved, progress, resume=False)
    with memory_errors(lambda: inference_advice(resolved, options.domain)):
        measured = _opened(resolved, checkpoint, logits, ALONE, progress).corrected(corrections)
        probe.device, road = torch.device(measured.device), measured.road
        evaluation_subset(road.class_names, names=options.classes, preset=options.eval_classes)
        extra, classes = extra_counts(options, road.class_names), len(road.class_names)
        count = partial(measure, num_images=1, num_classes=classes, edges=options.edges, extra=extra)
        probe.look_at(road.stream(), partial(count, progress=Silent()))
    images, folder = len(road.dataset), out or run_folder(resolved).evaluate / measured.name
    work = Work(images=images, classes=classes, batch=1, steps=0, looks=images, networks=0, counts=1, counted=images)
    return probe.tell(folder, "exists" if folder.exists() else "new", work)


def _check_options(options: EvaluateOptions, checkpoint: str | None, logits: Path | None) -> None:
    if checkpoint is not None and logits is not None:
        raise ConfigError("--checkpoint and --logits exclude each other", "give the one that is to be measured")
    check_bins(options.bins, COARSE_BINS)
    check_conditions(options.fail_if, classwise=options.classwise, preset=options.preset is not None)
    if options.intervals:
        check_resamples(options.intervals)


def _opened(
    resolved: Resolved, checkpoint: str | None, logits: Path | None, ranks: Ranks, progress: Progress
) -> "_Measured":
    if logits is not None:
        return _from_artifact(resolved, logits, progress)
    return _from_network(resolved, checkpoint, ranks)


def _counted(measured: "_Measured", options: EvaluateOptions, ranks: Ranks, progress: Progress) -> Tally:
    """The counts of all images, whichever process counted them."""
    road = measured.road
    progress.note(f"evaluating {measured.name}: {len(road.dataset)} images")
    places = ranks.places(len(road.dataset))
    own = measure(
        road.stream(places),
        len(places),
        len(road.class_names),
        edges=options.edges,
        progress=progress,
        extra=extra_counts(options, road.class_names),
    )
    return merge(ranks.gather(own))


def _reported(
    resolved: Resolved, measured: "_Measured", tally: Tally, subset: list[int] | None, out: Path | None
) -> Evaluated:
    """The scores that follow from the counts, and the report's files, written."""
    config, options, run = resolved.config, resolved.config.evaluate, run_folder(resolved)
    scores = read_scores(tally, bins=options.bins, classes=subset, class_names=measured.road.class_names)
    folder = out or run.evaluate / measured.name
    meta = _meta(resolved, measured, folder, scores)
    data = report_data(
        measured.road,
        tally,
        scores,
        meta,
        bins=options.bins,
        title=f"{config.name}: {measured.name}",
        examples=options.examples if options.html else 0,
    )
    earlier = earlier_results(run.evaluate, measured.name, meta["protocol"], scores.num_images)
    itself = Compared(measured.name, data.scores, data.reliability)
    data = replace(
        data,
        comparison=[*earlier, itself] if earlier else [],
        training=measured.training,
        intervals=_intervals(tally, options, subset, config.seed) if options.intervals else None,
    )
    _write(folder, tally, meta, data, html=options.html)
    return Evaluated(scores, data, folder, options.html, check_thresholds(options.fail_if, scores))


def _intervals(tally: Tally, options: EvaluateOptions, classes: list[int] | None, seed: int) -> Intervals:
    draws = Draws(tally.ids, options.intervals, seed)
    value = measured_scores(tally.images, bins=options.bins, classes=classes).scores
    drawn = score_draws(tally.images, draws, bins=options.bins, classes=classes).scores
    found = {name: interval(float(number[0]), drawn[name], draws) for name, number in value.items()}
    ends = {name: (one.low, one.high) for name, one in found.items()}
    return Intervals(LEVEL, draws.resamples, seed, ends, accuracy_intervals(tally.images, draws, bins=options.bins))


@dataclass(frozen=True)
class _Measured:
    """What is measured: a road, a name for the result, the split it is of, and the network's training log."""

    road: Road
    name: str
    domain: str
    split: str
    device: str
    training: list[dict[str, Any]]

    def corrected(self, corrections: Sequence[Loaded]) -> "_Measured":
        """The same by a corrected road, under a name that says so."""
        suffix = "".join(one.suffix for one in corrections)
        return replace(self, road=corrected(self.road, corrections), name=self.name + suffix)


def _from_network(resolved: Resolved, checkpoint: str | None, ranks: Ranks) -> _Measured:
    config, options, run = resolved.config, resolved.config.evaluate, run_folder(resolved)
    path = ranks.main_answers(partial(find_network, run, checkpoint))
    kind = choose_device(config.device)
    device = ranks.device(kind)
    loaded = load_network(path, device, resolved)
    dataset = _labelled(resolved, loaded.class_names, options.domain, options.split)
    road = NetworkRoad(loaded, dataset, config.predict, device=device, workers=config.workers)
    name = f"{short_name(path, run)}-{options.domain}-{options.split}{_part(resolved)}"
    return _Measured(road, name, options.domain, options.split, str(kind), read_log(path.parent / LOG))


def _part(resolved: Resolved) -> str:
    """A part of a split must not take the whole one's place."""
    first = resolved.config.evaluate.max_items
    return f"-first{first}" if first is not None else ""


def _from_artifact(resolved: Resolved, path: Path, progress: Progress) -> _Measured:
    """The artifact says which split it is of; --domain and --split have the last word."""
    with open_artifact(path, "logits") as artifact:
        check_configured_classes(artifact, resolved)
        names, protocol = artifact.class_names, artifact.meta["protocol"]
        stale = stale_note(artifact)
    if stale is not None:
        progress.note(stale)
    options = resolved.config.evaluate

    def chosen(key: str) -> str:
        given = resolved.sources.get(f"evaluate.{key}", "default") != "default"
        return str(getattr(options, key) if given else protocol.get(key, getattr(options, key)))

    domain, split = chosen("domain"), chosen("split")
    dataset = _labelled(resolved, names, domain, split)
    return _Measured(
        ArtifactRoad(path, dataset), path.stem.removesuffix(".manifest") + _part(resolved), domain, split, "cpu", []
    )


def _labelled(resolved: Resolved, class_names: Sequence[str], domain: str, split: str) -> SegmentationDataset:
    data = open_domain(resolved, domain, class_names)
    return data.dataset(split, with_labels=True, max_items=resolved.config.evaluate.max_items)


def _meta(resolved: Resolved, measured: _Measured, folder: Path, scores: Scores) -> dict[str, Any]:
    config, options, road = resolved.config, resolved.config.evaluate, measured.road
    return {
        "classes": classes_table(road.class_names, road.palette, IGNORE),
        "protocol": {
            **road.protocol,
            "domain": measured.domain,
            "split": measured.split,
            "labels_used_for": road.protocol.get("labels_used_for", "measuring only"),
            "metric": Convention(options.bins, options.edges).describe(),
            **({"preset": scores.preset_convention} if scores.preset_convention else {}),
            **({"regions": scores.region_convention} if scores.region_convention else {}),
            "evaluated_classes": list(options.classes or []) or options.eval_classes or "all",
        },
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=resolved.digest,
            parents=road.parents,
            files={role: beside(path, folder) for role, path in road.files.items()},
            device=measured.device,
        ),
        "config": resolved.to_dict(),
    }


def _write(folder: Path, tally: Tally, meta: Mapping[str, Any], data: ReportData, *, html: bool) -> None:
    """The report's files. They follow from their inputs alone, so a second evaluation may take their place."""
    write_tally(folder / "metrics.h5", tally, meta, force=True)
    write_whole(folder / "scores.json", to_json(data))
    write_whole(folder / "scores.csv", to_csv(data))
    if data.logits is not None:
        save_png(bias_figure(data.logits), folder / "bias.png")
    if html:
        write_page(folder / "report.html", data)
