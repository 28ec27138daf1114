"""Owns which evaluations a comparison is of, whether they may be compared, and which of their images they share."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.config import Resolved
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.image_rows import ImageRows
from calseg_cli.metrics.tally import Tally
from calseg_cli.stages.domains import evaluation_subset
from calseg_cli.stages.run_folder import run_folder
from calseg_cli.stages.tally_file import read_tally

METRICS = "metrics.h5"
MEASURING = "measuring only"
_MANNER = ("network_input", "grid", "values", "stored_as", "scales", "flip", "amp", "temperature", "weights")
"""Keys of a protocol that say how answers came about; they may be what is compared, so they are told, not refused."""


@dataclass(frozen=True)
class Source:
    """One evaluation: its counts, its protocol, and a name that no other of the comparison has."""

    name: str
    path: Path
    tally: Tally
    class_names: tuple[str, ...]
    protocol: Mapping[str, Any]
    digest: str

    @property
    def oracle(self) -> str | None:
        """What labels of the measured images were used for besides measuring; None where nothing is recorded."""
        used = str(self.protocol.get("labels_used_for", MEASURING))
        return None if used == MEASURING else used

    @property
    def where(self) -> str:
        """Domain and split, as far as they are recorded."""
        return f"{self.protocol.get('domain', 'unknown')} {self.protocol.get('split', 'unknown')}"


def find_metrics(word: str, configured: Callable[[], Resolved]) -> Path:
    """The metrics artifact that is meant: a file, a folder with one, or an evaluation of the configured run.

    Within the run, `6-evaluate/WORD` is looked for, then `6-evaluate/WORD-DOMAIN-SPLIT` with the configuration's
    evaluate.domain and evaluate.split, so that a stage's short name will do. Raises ArtifactError where nothing is.
    """
    path = Path(word)
    if path.is_file():
        return path
    if (path / METRICS).is_file():
        return path / METRICS
    if path.is_dir() or len(path.parts) != 1 or path.suffix == ".h5":
        wrong = f"{word} holds no {METRICS}" if path.is_dir() else f"there is no {word}"
        raise ArtifactError(wrong, "name a metrics.h5, or a folder of RUN/6-evaluate")
    resolved = configured()
    options, folder = resolved.config.evaluate, run_folder(resolved).evaluate
    for name in (word, f"{word}-{options.domain}-{options.split}"):
        if (folder / name / METRICS).is_file():
            return folder / name / METRICS
    known = sorted(found.parent.name for found in folder.glob(f"*/{METRICS}"))
    raise ArtifactError(
        f"there is no evaluation {word!r} in {folder}",
        f"it has {', '.join(known)}" if known else "run `calseg evaluate` first, or name a metrics.h5",
    )


def open_sources(paths: Sequence[Path]) -> list[Source]:
    """The evaluations, each with a name of its own. Raises ArtifactError: unreadable, or two that do not fit."""
    sources = [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    for other in sources[1:]:
        _check_fit(sources[0], other)
    return sources


def _read(path: Path, name: str) -> Source:
    tally, artifact = read_tally(path)
    with artifact:
        protocol = artifact.meta.get("protocol") or {}
        return Source(name, path, tally, tuple(artifact.class_names), protocol, artifact.digest)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest of: the evaluation's folder or file, with its run, the whole path, that with its place in line."""
    whole = [path.absolute() for path in paths]
    short = [path.parent.name if path.name == METRICS else path.stem for path in whole]
    with_run = [
        f"{path.parents[2].name}/{name}" if path.name == METRICS and len(path.parents) > 2 else str(path)
        for path, name in zip(whole, short, strict=True)
    ]
    numbered = [f"{number}: {path}" for number, path in enumerate(paths, 1)]
    choices = (short, with_run, [str(path) for path in paths], numbered)
    return next(names for names in choices if len(set(names)) == len(names))


def _check_fit(first: Source, other: Source) -> None:
    """What no comparison can bridge: other classes, other edges of the bins."""
    if first.class_names != other.class_names:
        raise ArtifactError(
            f"{other.path} has another class list than {first.path}",
            "compare what was measured in the same classes; `calseg inspect` shows them",
        )
    if first.tally.edges != other.tally.edges:
        raise ArtifactError(
            f"{other.path} was counted in bins with {other.tally.edges} edges and {first.path} with "
            f"{first.tally.edges} ones",
            "evaluate both with the same --edges",
        )


def shared_images(sources: Sequence[Source]) -> list[ImageRows]:
    """The rows of the images that are in all, by the same ids in the same order.

    Raises ArtifactError where none is, or where an id stands for different labels: then it is another image, or labels
    of another size.
    """
    common = set(sources[0].tally.ids).intersection(*(source.tally.ids for source in sources[1:]))
    if not common:
        told = "; ".join(f"{source.name}: {source.where}" for source in sources)
        raise ArtifactError(f"no image is in all of them ({told})", "compare evaluations of the same split")
    ids = tuple(sorted(common))
    tables = [_pick(source.tally.images, ids) for source in sources]
    for source, table in zip(sources[1:], tables[1:], strict=True):
        _check_labels(sources[0], tables[0], source, table)
    return tables


def _pick(images: ImageRows, ids: tuple[str, ...]) -> ImageRows:
    place = {name: row for row, name in enumerate(images.ids)}
    rows = np.array([place[name] for name in ids])
    return ImageRows(ids, **{name: array[rows] for name, array in images.arrays().items()})


def _check_labels(first: Source, one: ImageRows, other: Source, two: ImageRows) -> None:
    sizes, labels = _size(one) != _size(two), _labels(one) != _labels(two)
    # Pixels without a finite logit are in no cell of the matrix, so only sizes can be compared there.
    broken = (one.invalid > 0) | (two.invalid > 0)
    wrong = sizes | (labels.any(axis=1) & ~broken)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = f"{_size(one)[row]:,} and {_size(two)[row]:,} pixels" if sizes[row] else "other pixels of a class"
        raise ArtifactError(
            f"the labels of {one.ids[row]!r} differ between {first.path} ({first.where}) and {other.path} "
            f"({other.where}): {what}",
            "compare evaluations of the same images against the same labels",
        )


def _size(images: ImageRows) -> NDArray[np.int64]:
    size: NDArray[np.int64] = images.valid + images.ignored + images.invalid
    return size


def _labels(images: ImageRows) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = images.confusion.sum(axis=2)
    return labels


def evaluated_classes(sources: Sequence[Source], preset: int | None) -> list[int] | None:
    """The classes that means are over: a preset, else what all evaluations were averaged over; None for all.

    Raises ArtifactError where the evaluations differ, ConfigError for a preset that does not fit the classes.
    """
    names = sources[0].class_names
    if preset is not None:
        return evaluation_subset(names, names=None, preset=preset)
    asked = [source.protocol.get("evaluated_classes", "all") for source in sources]
    for source, classes in zip(sources, asked, strict=True):
        if classes != asked[0]:
            raise ArtifactError(
                f"{source.path} averages over other classes than {sources[0].path}: {classes} and {asked[0]}",
                "evaluate both over the same classes, or give --eval-classes",
            )
    if asked[0] == "all":
        return None
    chosen = asked[0]
    by_number = isinstance(chosen, int)
    return evaluation_subset(names, names=None if by_number else chosen, preset=chosen if by_number else None)


def notes(sources: Sequence[Source], num_shared: int) -> list[str]:
    """What a reader of the comparison has to know of its sources, a sentence each."""
    return [*_left_out(sources, num_shared), *_oracles(sources), *_other_manner(sources)]


def _left_out(sources: Sequence[Source], num_shared: int) -> Iterator[str]:
    for source in sources:
        missing = len(source.tally.ids) - num_shared
        if missing:
            yield f"{missing} of {len(source.tally.ids)} images of {source.name} are not in all, and left out"


def _oracles(sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        if source.oracle is not None:
            yield f"{source.name} is an oracle: labels of the target were used for {source.oracle}"


def _other_manner(sources: Sequence[Source]) -> Iterator[str]:
    places = [source.where for source in sources]
    if len(set(places)) > 1:
        yield f"not the same domain and split: {_listed(sources, places)}"
    for key in _MANNER:
        values = [source.protocol.get(key) for source in sources]
        if any(value != values[0] for value in values):
            yield f"not the same {key.replace('_', ' ')}: {_listed(sources, values)}"


def _listed(sources: Sequence[Source], values: Sequence[Any]) -> str:
    return "; ".join(
        f"{source.name} {'not recorded' if value is None else value}"
        for source, value in zip(sources, values, strict=True)
    )


def groups_of(ids: Sequence[str], by: str, pattern: str | None) -> tuple[str, ...]:
    """The group that each image is resampled with: itself ("image"), or its sequence ("sequence").

    A sequence is the folder part of the id, or what the groups of the regular expression `pattern` match (the whole
    match where it has none). Raises ConfigError: unknown `by`, no regular expression, an id without a sequence.
    """
    if by not in ("image", "sequence"):
        raise ConfigError(f"--by {by!r} is unknown", "choose image or sequence")
    if pattern is not None:
        return _matched(ids, pattern)
    if by == "image":
        return tuple(ids)
    flat = [name for name in ids if "/" not in name]
    if flat:
        raise ConfigError(
            f"the image {flat[0]!r} lies in no folder that could be its sequence",
            r"say which part of the name it is, such as --sequence-pattern '^([^_]+)_'",
        )
    return tuple(name.rpartition("/")[0] for name in ids)


def _matched(ids: Sequence[str], pattern: str) -> tuple[str, ...]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"--sequence-pattern {pattern!r} is no regular expression: {error}", "see Python's re") from (
            error
        )
    found = [(name, expression.search(name)) for name in ids]
    unmatched = [name for name, match in found if match is None]
    if unmatched:
        raise ConfigError(
            f"--sequence-pattern {pattern!r} does not match {len(unmatched)} of {len(ids)} images, such as "
            f"{unmatched[0]!r}",
            "every image needs a sequence",
        )
    return tuple("/".join(part or "" for part in match.groups()) or match[0] for _, match in found if match is not None)
