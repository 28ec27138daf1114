"""Owns `calseg calibrate`: a calibrator of a network's logits is fitted, written, and measured where it was fitted."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from calseg_cli.artifacts.lineage import stale_note
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.config import Resolved
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError, DataError, disk_errors
from calseg_cli.methods.calibrator import Calibrator
from calseg_cli.methods.calibrators import BALANCING, FOR_TARGET, LABEL_FREE
from calseg_cli.methods.scenes import GRID
from calseg_cli.metrics.scores import Scores, read_scores
from calseg_cli.report.wording import number
from calseg_cli.stages.calibrate_blda import BalancingFit
from calseg_cli.stages.calibrate_dacal import FrozenFit
from calseg_cli.stages.chain import check_configured_classes
from calseg_cli.stages.corrections import write_correction
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.fits import USES, Job, fit_calibrator
from calseg_cli.stages.fitting_data import FittingData, Mixer, labelled_data
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.roads import ArtifactRoad, NetworkRoad, Road
from calseg_cli.stages.run_folder import find_network, run_folder, short_name

FOLDER = "5-calibrate"
ORACLE = "ORACLE: fitted on labels of the target, which nobody has who needs a calibrator. A floor, not a result"
_MIXES = "every pixel of a mix whose two images show different classes, at the network's input size"
_SHOWN = ("nll", "ece", "brier", "accuracy", "miou")
_BALANCE = ("macc", "accuracy_spread")


@dataclass(frozen=True)
class Calibrated:
    """What calibrate leaves: the artifact, and scores before and after, None where there is no label to measure by."""

    artifact: Path
    digest: str
    calibrator: Calibrator
    before: Scores | None
    after: Scores | None

    @property
    def facts(self) -> dict[str, Any]:
        """What the artifact tells of its origin."""
        return self.calibrator.facts()

    @property
    def _place(self) -> str:
        """What the scores are of."""
        fitted = f"what it was fitted on: {self.facts['fitted_on']}"
        return str(self.facts.get("measured_on", fitted))

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, headers and rows: scores before and after, what was fitted, and the strengths that were tried."""
        oracle = "ORACLE, " if self.calibrator.oracle else ""
        title = f"{oracle}{self.facts['method']}, measured on {self._place}"
        before, after = (self._shown(scores) for scores in (self.before, self.after))
        scores = [[name, number(before[name], decimals=5), number(after[name], decimals=5)] for name in before]
        found = {**self.calibrator.parameters(), **self.facts["fit"]}
        sweep = found.pop("sweep", [])
        told = [[name.replace("_", " "), _told(value)] for name, value in found.items()]
        fit = ("" if scores else title, ["fit", "value"], told)
        measured = [(title, ["score", "before", "after"], scores)] if scores else []
        return [*measured, fit, *_tried(sweep, self.facts)]

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "artifact": self.artifact,
            "digest": self.digest,
            **self.facts,
            "parameters": self.calibrator.parameters(),
            "measured_on": self.facts.get("measured_on", "the data it was fitted on"),
            "before": self._shown(self.before),
            "after": self._shown(self.after),
        }

    def _shown(self, scores: Scores | None) -> dict[str, float]:
        names = (*_SHOWN, *(_BALANCE if self.calibrator.method in BALANCING else ()))
        return {} if scores is None else {name: getattr(scores, name) for name in names}


def _tried(
    sweep: Sequence[Mapping[str, float]], facts: Mapping[str, Any]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """The table of the strengths; none where the strength was given."""
    if not sweep:
        return []
    judge = "labels of source val" if facts["options"]["tau_by"] == "source" else "its own probabilities on the target"
    names = ("miou", "macc", "accuracy_spread", "changed_on_target")
    headers = ["tau", *(name.replace("_", " ") for name in names)]
    rows = [[f"{row['tau']:g}", *(number(row[name], decimals=4) for name in names)] for row in sweep]
    return [(f"tau by {facts['options']['tau_for']}, judged by {judge}", headers, rows)]


def calibrate(
    resolved: Resolved,
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Calibrated:
    """Fit the configured calibrator on the source's validation labels, or as the options say; write and measure it."""
    config = resolved.config
    _check_options(resolved, checkpoint, logits)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    with memory_errors(lambda: inference_advice(resolved)):
        origin = (
            _from_network(resolved, checkpoint, progress)
            if logits is None
            else _from_artifact(resolved, logits, progress)
        )
        target = out or origin.target
        if target.exists() and not force:
            raise ArtifactError(f"{target} exists already", "--force replaces it, -o names another file")
        if origin.oracle:
            progress.note(ORACLE)
        progress.note(f"{config.calibrate.method} on {origin.place}: {len(origin.road.dataset)} images")
        calibrator, before, after = _fit(origin, resolved, target, progress)
        digest = write_correction(
            target,
            calibrator,
            resolved,
            class_names=origin.road.class_names,
            palette=origin.road.palette,
            protocol=_protocol(origin),
            parents=origin.road.parents,
            files=origin.road.files,
            device=origin.device,
            force=force,
        )
    return Calibrated(target, digest, calibrator, before, after)


def _fit(
    origin: "_Origin", resolved: Resolved, target: Path, progress: Progress
) -> tuple[Calibrator, Scores | None, Scores | None]:
    """The calibrator, and the scores without and with it; what lies on the disk meanwhile is removed again."""
    config = resolved.config
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=f".{target.stem[:60]}-", dir=target.parent)
    with work as folder:
        data = origin.data(Path(folder), progress)
        progress.start("fitting", 1)
        told = _told_of(origin, resolved, len(data))
        job = Job(data.scenes, config.calibrate, config.seed, told, origin.own, data.predictions)
        calibrator = fit_calibrator(job)
        progress.finish()
        if not len(data):
            return calibrator, None, None
        names = origin.road.class_names
        before, after = (_scores(data, one, resolved, names, progress) for one in (None, calibrator))
    return calibrator, before, after


@dataclass(frozen=True)
class _Origin:
    """What is fitted on: a road to logits of one split; PseudoCal's mixer and some fits have data of their own."""

    road: Road
    domain: str
    split: str
    target: Path
    device: str
    method: str
    mixer: Mixer | None = None
    own: FrozenFit | BalancingFit | None = None

    @property
    def oracle(self) -> bool:
        """Whether labels of the target are opened."""
        return self.domain == "target" and self.method not in FOR_TARGET

    @property
    def place(self) -> str:
        return f"{self.domain} {self.split}"

    @property
    def labels(self) -> str:
        """Which labels are used, for the artifact."""
        if self.own is not None:
            return self.own.labels
        if self.mixer is not None:
            return "none"
        return "target: oracle" if self.oracle else "source"

    def data(self, folder: Path, progress: Progress) -> FittingData:
        """All of it, laid down in `folder`; of fits with data of their own what is measured, if anything."""
        if not len(self.road.dataset):
            raise DataError(f"there are no images in {self.place}", "check the domain's root and splits")
        if self.mixer is not None:
            return self.mixer.data(folder, progress)
        if self.own is not None:
            road = self.own.measured
            return (
                FittingData(folder, progress) if road is None else labelled_data(road, folder, progress, pictures=False)
            )
        return labelled_data(self.road, folder, progress, pictures=self.method == "local")


def _from_network(resolved: Resolved, checkpoint: str | None, progress: Progress) -> _Origin:
    config, options, run = resolved.config, resolved.config.calibrate, run_folder(resolved)
    path = find_network(run, checkpoint)
    device = choose_device(config.device)
    loaded = load_network(path, device, resolved)
    closed = options.method in FOR_TARGET
    domain = options.on or ("target" if closed else "source")
    split = options.split or ("train" if closed else "test" if domain == "target" else "val")
    dataset = open_domain(resolved, domain, loaded.class_names).dataset(
        split, with_labels=not closed, max_items=options.max_items
    )
    road = NetworkRoad(loaded, dataset, config.predict, device=device, workers=config.workers)
    name = f"{short_name(path, run)}-{options.method}-{domain}-{split}"
    target = _target(resolved, name, oracle=domain == "target" and not closed)
    origin = _Origin(road, domain, split, target, str(device), options.method)
    if options.method == "dacal":
        return replace(origin, own=FrozenFit(resolved, loaded, dataset, device, progress))
    if options.method in BALANCING:
        return replace(origin, own=BalancingFit(resolved, road, split, loaded, device, progress))
    if options.method in LABEL_FREE:
        return replace(origin, mixer=Mixer(loaded, dataset, config.predict, device, options.mix, config.seed))
    return origin


def _from_artifact(resolved: Resolved, path: Path, progress: Progress) -> _Origin:
    """The artifact says whose images it is of; labels of the target are opened only if --on target says so too."""
    options = resolved.config.calibrate
    with open_artifact(path, "logits") as artifact:
        check_configured_classes(artifact, resolved)
        names, protocol, stale = artifact.class_names, artifact.meta["protocol"], stale_note(artifact)
    if stale is not None:
        progress.note(stale)
    closed = options.method in FOR_TARGET
    asked = options.on or ("target" if closed else "source")
    domain = str(protocol.get("domain", asked))
    if domain != asked:
        raise ConfigError(
            f"{path} holds logits of the {domain}, and calibrate is to fit on the {asked}",
            "calseg predict --domain target makes the target's logits"
            if closed
            else "--on target fits on labels of the target, as an oracle; "
            "predict --domain source makes the source's logits",
        )
    split = options.split or str(protocol.get("split", "val"))
    dataset = open_domain(resolved, domain, names).dataset(split, with_labels=not closed, max_items=options.max_items)
    stem = path.name.removesuffix(".json").removesuffix(".manifest").removesuffix(".h5")
    target = _target(resolved, f"{stem}-{options.method}", oracle=domain == "target" and not closed)
    road = ArtifactRoad(path, dataset)
    own = BalancingFit(resolved, road, split, None, torch.device("cpu"), progress) if closed else None
    return _Origin(road, domain, split, target, "cpu", options.method, own=own)


def _target(resolved: Resolved, name: str, *, oracle: bool) -> Path:
    first = resolved.config.calibrate.max_items
    part = f"-first{first}" if first is not None else ""
    return run_folder(resolved).root / FOLDER / f"{name}{part}{'-oracle' if oracle else ''}.h5"


def _check_options(resolved: Resolved, checkpoint: str | None, logits: Path | None) -> None:
    """An option on the command line that the method does not use is a misunderstanding; in a file it only waits."""
    method = resolved.config.calibrate.method
    if checkpoint is not None and logits is not None:
        raise ConfigError("--checkpoint and --logits exclude each other", "give the one that is to be calibrated")
    if method in FOR_TARGET - BALANCING and logits is not None:
        raise ConfigError(f"{method} mixes images, so it needs the network", "give --checkpoint in place of --logits")
    if method in {"dacal"} | BALANCING and resolved.config.calibrate.on == "source":
        raise ConfigError(
            f"{method} calibrates for the target: on source has no meaning", "leave it out, or take another method"
        )
    asked = [name for name in ("tau_for", "tau_by") if was_said(resolved, name) and method in BALANCING]
    if asked and resolved.config.calibrate.tau != "auto":
        raise ConfigError(f"{flag_of(asked[0])} has no effect where tau is given", "--tau auto looks for one")
    for name in sorted({option for options in USES.values() for option in options} - set(USES[method])):
        if was_said(resolved, name):
            users = [other for other, options in USES.items() if name in options]
            raise ConfigError(f"{flag_of(name)} has no effect with --method {method}", f"{' and '.join(users)} use it")


def flag_of(name: str) -> str:
    """The option of the command line that sets a key of the section."""
    return f"--{name.replace('_', '-')}"


def was_said(resolved: Resolved, name: str) -> bool:
    """Whether an option of the section was given on the command line, and not in a file."""
    return resolved.sources.get(f"calibrate.{name}", "") == flag_of(name)


def _told_of(origin: _Origin, resolved: Resolved, images: int) -> dict[str, Any]:
    """What the artifact tells of where the calibrator is from."""
    options, own = resolved.config.calibrate, origin.own
    told: dict[str, Any] = {
        "fitted_on": f"{origin.place}, {images} {'images' if origin.mixer is None else 'mixes of two images'}",
        "domain": origin.domain,
        "split": origin.split,
        "images": images,
        "labels": origin.labels,
        "grid": GRID if origin.mixer is None else _MIXES,
        "options": {name: getattr(options, name) for name in USES[options.method]},
        "seed": resolved.config.seed,
    }
    return told if own is None else {**told, **own.told(told["options"])}


def _protocol(origin: _Origin) -> dict[str, Any]:
    used = "oracle: target labels fitted the correction" if origin.oracle else f"fitting: {origin.labels}"
    return {**origin.road.protocol, "domain": origin.domain, "split": origin.split, "labels_used_for": used}


def _scores(
    data: FittingData,
    calibrator: Calibrator | None,
    resolved: Resolved,
    class_names: Sequence[str],
    progress: Progress,
) -> Scores:
    options = resolved.config.evaluate
    predictions = _corrected(data, calibrator)
    tally = measure(predictions, len(data), len(class_names), edges=options.edges, progress=progress)
    return read_scores(tally, bins=options.bins, class_names=class_names)


def _corrected(data: FittingData, calibrator: Calibrator | None) -> Iterator[Prediction]:
    """Predictions as evaluate has them: corrected, in float32."""
    for place, prediction in enumerate(data.predictions()):
        if calibrator is None:
            yield prediction
            continue
        image = data.image(place) if calibrator.needs_image else None
        with torch.no_grad():
            logits = calibrator(prediction.logits.float(), image)
        yield replace(prediction, logits=logits)


def _told(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
