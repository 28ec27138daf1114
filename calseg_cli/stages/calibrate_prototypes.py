"""Owns `calseg calibrate-prototypes`: soft labels of the target become prototypes. No label is opened."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import check_classes, open_artifact
from calseg_cli.config import Resolved
from calseg_cli.config.prototypes import PrototypeSection
from calseg_cli.engine.device import memory_errors, seed_everything
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.methods.prototype_rows import Rows
from calseg_cli.methods.prototype_state import PrototypeState, soft_labels
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from calseg_cli.methods.pseudo_labels import VoteHistogram, Votes
from calseg_cli.metrics.pixels import finite_pixels
from calseg_cli.report.wording import number, percent
from calseg_cli.stages.changed_labels import ChangedLabels, changed_labels
from calseg_cli.stages.corrections import load_correction, write_correction
from calseg_cli.stages.memory_advice import inference_advice
from calseg_cli.stages.prototype_input import Asked, Counted, Input, Mask, find_input, other_way, read_mask
from calseg_cli.stages.prototype_prior import Shift, SourcePrototypes, read_prior, read_stand_ins
from calseg_cli.stages.run_folder import RunFolder, run_folder

_LEAST = 1000
"""Pixels: a prototype of fewer is said to be of few."""


@dataclass(frozen=True)
class Calibrated:
    """What calibrate-prototypes leaves: the artifact, its prototypes, and if asked which pixels they change."""

    artifact: Path
    digest: str
    images: int
    prototypes: Prototypes
    changed: ChangedLabels | None
    shift: Shift | None = None
    """From the source's prototypes, where `prototypes.prior_from` names them."""

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, headers and rows: a class each."""
        headers = ["class", "pixels", "share", "own mass", "other mass", "nearest", "distance", "notes"]
        rows = [
            [
                row["name"],
                str(row["pixels"]),
                percent(row["share"]),
                number(row["own_mass"]),
                number(row["other_mass"]),
                row["nearest"] or "",
                number(row["distance"]),
                row["note"],
            ]
            for row in self.rows()
        ]
        return f"{self.artifact.name}: {self.prototypes.describe()}", headers, rows

    def rows(self) -> list[dict[str, Any]]:
        """A class each, as plain values; NaN where a class has no prototype."""
        made, pixels = self.prototypes, self.prototypes.state.pixels
        apart, other = made.distances(), made.off_diagonal()
        total = max(int(pixels.sum()), 1)
        return [
            {
                "name": name,
                "pixels": int(pixels[index]),
                "share": int(pixels[index]) / total,
                "own_mass": float(1 - other[index]),
                "other_mass": float(other[index]),
                "nearest": made.names[int(apart[index].argmin())] if np.isfinite(apart[index]).any() else None,
                "distance": float(apart[index].min()) if np.isfinite(apart[index]).any() else float("nan"),
                "note": self._note(index),
            }
            for index, name in enumerate(made.names)
        ]

    def document(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "artifact": self.artifact,
            "digest": self.digest,
            "images": self.images,
            "options": asdict(self.prototypes.options),
            "dropped": self.prototypes.state.dropped,
            "unsure": self.prototypes.state.unsure,
            "mean_other_mass": _mean(self.prototypes.off_diagonal()),
            "notes": self.prototypes.notes(),
            "classes": self.rows(),
            "shift": None if self.shift is None else self.shift.rows(),
            "changed": None if self.changed is None else self.changed.document(),
        }

    def _note(self, index: int) -> str:
        made = self.prototypes
        if index in made.unseen and made.options.shrink < 1:
            return f"no prototype of its own: {made.options.unseen}"
        if index in made.borrowed and made.options.shrink < 1:
            return "the source's prototype"
        return "few pixels" if made.state.pixels[index] < _LEAST else ""


def calibrate_prototypes(
    resolved: Resolved,
    asked: Asked,
    *,
    source: Path | None,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Calibrated:
    """Count the soft labels of a logits artifact, or of a network's answers, and write the prototypes.

    `source` is an artifact of prototypes whose rows stand in for classes never seen (`prototypes.unseen` "source").
    `prototypes.prior_from` names one that all classes begin with. Raises DataError where no pixel counts and where one
    class alone has a prototype, ArtifactError, ConfigError.
    """
    section = resolved.config.prototypes
    check_section(section, resolved, source)
    options = options_of(section)
    seed_everything(resolved.config.seed, deterministic=resolved.config.deterministic, threads=resolved.config.threads)
    given = find_input(resolved, asked, progress)
    with stop_on_signals() as stop, memory_errors(lambda: inference_advice(resolved)), given.open():
        target = out or prototypes_folder(run_folder(resolved)) / f"{given.stem}.h5"
        stand_ins = None if source is None else read_stand_ins(source, given.class_names)
        prior = None if section.prior_from is None else read_prior(section.prior_from, given, options)
        read = [one for one in (stand_ins, prior) if one is not None]
        check_target(target, given, force=force, read=[one.path for one in read])
        progress.note(f"{given.told}, {len(given.ids)} images")
        made = fit(given, options, _Teller(progress, stop), stand_ins=stand_ins, prior=prior, mask=asked.mask)
        digest = write_correction(
            target,
            made,
            resolved,
            class_names=given.class_names,
            palette=given.palette,
            protocol=given.protocol,
            parents={**given.parents, **{one.role: one.digest for one in read}},
            files={**given.files, **{one.role: one.path for one in read}},
            device=given.device,
            force=force,
        )
        changed = None
        if section.png:
            changed = changed_labels(given, made, resolved, drawn=pictures_of(target), progress=progress, stop=stop)
    shift = None if prior is None else Shift(made.names, prior.rows, made.counted_rows())
    return Calibrated(target, digest, len(given.ids), made, changed, shift)


def report_changed(
    resolved: Resolved,
    prototypes: Path,
    asked: Asked,
    *,
    out: Path | None,
    progress: Progress,
) -> ChangedLabels:
    """Which pixels of the logits a prototypes artifact changes, without counting or writing prototypes.

    With `prototypes.png` pictures are drawn: into `out`, or beside the artifact.
    """
    given = find_input(resolved, asked, progress)
    loaded = load_correction(prototypes, "prototypes")
    with open_artifact(prototypes, "prototypes") as artifact:
        check_classes(artifact, given.class_names)
        differs = other_way(artifact.meta["protocol"], given.protocol)
    with stop_on_signals() as stop, memory_errors(lambda: inference_advice(resolved)), given.open():
        progress.note(f"{given.told}, {len(given.ids)} images")
        if differs is not None:
            progress.note(f"warning: the prototypes are of logits that were made differently: {differs}")
        drawn = None
        if resolved.config.prototypes.png:
            drawn = out or prototypes.with_name(f"{prototypes.stem}-on-{given.stem}-changed")
        return changed_labels(given, loaded.correction, resolved, drawn=drawn, progress=progress, stop=stop)


def fit(
    given: Input,
    options: PrototypeOptions,
    tell: "_Teller",
    *,
    stand_ins: SourcePrototypes | None = None,
    prior: SourcePrototypes | None = None,
    mask: Path | None = None,
) -> Prototypes:
    """The prototypes of all images; one pass, and one more each for `top_frac` and every further iteration."""
    tell.wanted = None if mask is None else read_mask(mask)
    classes = len(given.class_names)
    thresholds = None if options.top_frac is None else _thresholds(given, options, tell, classes)
    fitted_on = _fitted_on(given, mask, prior)

    def made(state: PrototypeState) -> Prototypes:
        return Prototypes(
            state,
            options,
            source_rows=None if stand_ins is None else stand_ins.rows,
            prior_rows=None if prior is None else prior.rows,
            names=given.class_names,
            fitted_on=fitted_on,
        )

    state = _count(given, PrototypeState(classes, options.rule(thresholds)), tell, "counting soft labels", None)
    for turn in range(1, options.iterations):
        state = _count(
            given, PrototypeState(classes, options.rule(thresholds)), tell, f"iteration {turn + 1}", made(state)
        )
    return made(state)


def _fitted_on(given: Input, mask: Path | None, prior: SourcePrototypes | None) -> dict[str, Any]:
    origin: dict[str, Any] = {
        key: given.protocol[key] for key in ("domain", "split", "folder") if key in given.protocol
    }
    others = {
        "network": given.network_digest,
        "mask": None if mask is None else file_digest(mask),
        "prior": None if prior is None else prior.digest,
    }
    return {**origin, "images": len(given.ids), **{name: digest for name, digest in others.items() if digest}}


def options_of(section: PrototypeSection) -> PrototypeOptions:
    """The method's options, which have the names of the section's keys."""
    return PrototypeOptions(**{field.name: getattr(section, field.name) for field in fields(PrototypeOptions)})


def prototypes_folder(run: RunFolder) -> Path:
    """Where a run keeps its prototypes."""
    return run.prototypes


def pictures_of(artifact: Path) -> Path:
    """Where the pictures of changed pixels go that belong to an artifact."""
    return artifact.with_name(f"{artifact.stem}-changed")


def check_section(section: PrototypeSection, resolved: Resolved, source: Path | None) -> None:
    """Refuse options that have no effect together. Raises ConfigError."""
    if section.unseen == "source" and source is None:
        raise ConfigError("--unseen source needs the source's prototypes", "--source FILE names them")
    if section.unseen != "source" and source is not None:
        raise ConfigError(f"--source has no effect with --unseen {section.unseen}", "--unseen source uses it")
    _check_prior(section, source)
    for name, needed, value in (("tau", "confidence", "distance"), ("forget", "online", "causal")):
        if resolved.sources.get(f"prototypes.{name}") == f"--{name}" and getattr(section, needed) in ("max", "off"):
            raise ConfigError(
                f"--{name} has no effect with --{needed} {getattr(section, needed)}", f"--{needed} {value} uses it"
            )


def _check_prior(section: PrototypeSection, source: Path | None) -> None:
    if section.prior_from is None:
        return
    if source is not None:
        raise ConfigError(
            "--source and --prior-from both stand in for classes never seen", "--prior-from alone does it too"
        )
    if section.online != "off":
        raise ConfigError(
            f"--prior-from has no effect with --online {section.online}",
            "--set prototypes.prior_from=null leaves it out",
        )


def check_target(target: Path, given: Input, *, force: bool, read: Sequence[Path] = ()) -> None:
    """Refuse to write over what is read or, without `force`, over a result, before hours of work. ArtifactError."""
    if any(target.absolute() == path.absolute() for path in (*given.files.values(), *read)):
        raise ArtifactError(f"{target} is what is read", "give the prototypes another name with --out")
    if target.exists() and not force:
        raise ArtifactError(f"{target} exists already", "--force makes it anew, -o names another file")


class _Teller:
    """Tells progress of a pass over all images, and stops it at a signal; `wanted` (H,W) says which pixels count."""

    def __init__(self, progress: Progress, stop: StopRequest) -> None:
        self._progress, self._stop = progress, stop
        self.wanted: Mask | None = None

    def over(self, given: Input, title: str, work: Callable[[Counted, Tensor | None], None]) -> None:
        """Do `work` for each image and the mask (h,w) of its cells that count."""
        self._progress.start(title, len(given.ids))
        for place, image in enumerate(given.stream(), start=1):
            if self._stop:
                raise self._stop.error(
                    f"stopped while {title} (image {place} of {len(given.ids)}); nothing was written",
                    "give the same command again",
                )
            work(image, image.mask(self.wanted))
            self._progress.advance()
        self._progress.finish()


def _count(given: Input, state: PrototypeState, tell: _Teller, title: str, before: Prototypes | None) -> PrototypeState:
    def add(image: Counted, mask: Tensor | None) -> None:
        classes = None if before is None else before.labels(image.logits)
        state.add(image.logits, mask, name=_identity(image.id, given.image_digest(image.id)), classes=classes)

    tell.over(given, title, add)
    if not state.pixels.any():
        left_out = f"{state.unsure} were not confident enough, {state.dropped} not finite"
        raise DataError(f"no pixel counts: {left_out}", "lower --min-confidence, or look at the logits")
    return state


def _identity(name: str, digest: str) -> str:
    """What tells an image from all others: another split may have another image of the same id."""
    return f"{name} {digest.removeprefix('sha256:')[:16]}".strip()


def _thresholds(given: Input, options: PrototypeOptions, tell: _Teller, classes: int) -> Sequence[float]:
    histogram = VoteHistogram(classes)

    def add(image: Counted, mask: Tensor | None) -> None:
        flat = image.logits.flatten(1).float()
        kept = finite_pixels(flat)
        if mask is not None:
            kept &= mask.flatten()
        found = soft_labels(flat[:, kept], options.temperature)
        histogram.add(Votes(found.classes, found.confidence))

    tell.over(given, "measuring confidence", add)
    thresholds: list[float] = histogram.thresholds(float(options.top_frac or 1)).tolist()
    return thresholds


def _mean(mass: Rows) -> float:
    return float(np.nanmean(mass)) if np.isfinite(mass).any() else float("nan")
