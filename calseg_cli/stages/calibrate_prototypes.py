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
from calseg_cli.methods.prototype_state import PrototypeState, soft_labels
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes, Rows
from calseg_cli.methods.pseudo_labels import VoteHistogram, Votes
from calseg_cli.metrics.pixels import finite_pixels
from calseg_cli.report.wording import number, percent
from calseg_cli.stages.changed_labels import ChangedLabels, changed_labels
from calseg_cli.stages.corrections import load_correction, write_correction
from calseg_cli.stages.predict import OUT_OF_MEMORY
from calseg_cli.stages.prototype_input import Asked, Counted, Input, Mask, find_input, other_way, read_mask
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
            "changed": None if self.changed is None else self.changed.document(),
        }

    def _note(self, index: int) -> str:
        made = self.prototypes
        if index in made.unseen and made.options.shrink < 1:
            return f"no prototype of its own: {made.options.unseen}"
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
    Raises DataError where no pixel counts and where one class alone has a prototype, ArtifactError, ConfigError.
    """
    section = resolved.config.prototypes
    check_section(section, resolved, source)
    options = options_of(section)
    seed_everything(resolved.config.seed, deterministic=resolved.config.deterministic, threads=resolved.config.threads)
    given = find_input(resolved, asked, progress)
    with stop_on_signals() as stop, memory_errors(OUT_OF_MEMORY), given.open():
        target = out or prototypes_folder(run_folder(resolved)) / f"{given.stem}.h5"
        check_target(target, given, force=force)
        progress.note(f"{given.told}, {len(given.ids)} images")
        rows, parent = _source_rows(source, given.class_names)
        made = fit(given, options, _Teller(progress, stop), source_rows=rows, mask=asked.mask)
        digest = write_correction(
            target,
            made,
            resolved,
            class_names=given.class_names,
            palette=given.palette,
            protocol=given.protocol,
            parents={**given.parents, **parent},
            files={**given.files, **({"source_prototypes": source} if source is not None else {})},
            device=given.device,
            force=force,
        )
        changed = None
        if section.png:
            changed = changed_labels(given, made, resolved, drawn=pictures_of(target), progress=progress, stop=stop)
    return Calibrated(target, digest, len(given.ids), made, changed)


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
    with stop_on_signals() as stop, memory_errors(OUT_OF_MEMORY), given.open():
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
    source_rows: Rows | None = None,
    mask: Path | None = None,
) -> Prototypes:
    """The prototypes of all images; one pass, and one more each for `top_frac` and every further iteration."""
    tell.wanted = None if mask is None else read_mask(mask)
    classes = len(given.class_names)
    thresholds = None if options.top_frac is None else _thresholds(given, options, tell, classes)

    def made(state: PrototypeState) -> Prototypes:
        return Prototypes(
            state,
            options,
            source_rows=source_rows,
            names=given.class_names,
            fitted_on={
                **{key: given.protocol[key] for key in ("domain", "split", "folder") if key in given.protocol},
                "images": len(given.ids),
                **({} if mask is None else {"mask": file_digest(mask)}),
            },
        )

    state = _count(given, PrototypeState(classes, options.rule(thresholds)), tell, "counting soft labels", None)
    for turn in range(1, options.iterations):
        state = _count(
            given, PrototypeState(classes, options.rule(thresholds)), tell, f"iteration {turn + 1}", made(state)
        )
    return made(state)


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
    for name, needed, value in (("tau", "confidence", "distance"), ("forget", "online", "causal")):
        if resolved.sources.get(f"prototypes.{name}") == f"--{name}" and getattr(section, needed) in ("max", "off"):
            raise ConfigError(
                f"--{name} has no effect with --{needed} {getattr(section, needed)}", f"--{needed} {value} uses it"
            )


def check_target(target: Path, given: Input, *, force: bool) -> None:
    """Refuse to write over what is read or, without `force`, over a result, before hours of work. ArtifactError."""
    if any(target.absolute() == path.absolute() for path in given.files.values()):
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


def _source_rows(source: Path | None, class_names: Sequence[str]) -> tuple[Rows | None, dict[str, str]]:
    """The prototypes of the source, NaN in rows that it lacks, and its digest by role."""
    if source is None:
        return None, {}
    loaded = load_correction(source, "prototypes")
    with open_artifact(source, "prototypes") as artifact:
        check_classes(artifact, class_names)
    found = loaded.correction
    if not isinstance(found, Prototypes):
        raise ArtifactError(f"{source} holds no prototypes", "--source FILE names prototypes of the source")
    rows = np.where(found.valid[:, None], found.rows, np.nan)
    return rows, {"source_prototypes": loaded.digest}


def _mean(mass: Rows) -> float:
    return float(np.nanmean(mass)) if np.isfinite(mass).any() else float("nan")
