"""Owns measuring checkpoints for a choice: with labels from kept counts or anew, without labels from images alone."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calseg_cli.artifacts.reader import check_classes
from calseg_cli.config import Resolved
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import evaluation_samples
from calseg_cli.engine.infer import Prediction, predict
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, CalsegError
from calseg_cli.methods.checkpoint_criteria import Outlook, OutlookSums
from calseg_cli.methods.value_net import Tap, ValueNet
from calseg_cli.metrics.intervals import Draws, score_draws
from calseg_cli.metrics.intervals import measured as measured_scores
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import Tally
from calseg_cli.networks.network import Network
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.roads import views_of
from calseg_cli.stages.select_checkpoint_candidates import Candidate
from calseg_cli.stages.tally_file import read_tally

Drawn = tuple[float, NDArray[np.float64]]
"""A score of the images as they are, and its draws (B,); none where no intervals are wanted."""

LABELLED = {"ece": "ece", "ece-image-mean": "ece_image", "nll": "nll", "miou": "miou"}
"""Criteria that labels are needed for, and the score that each of them is."""

LABEL_FREE = {"entropy": "entropy", "snd": "neighbourhood", "value-net": "value_net"}
"""Criteria from images alone, and the score that each of them is."""

_DIVISORS = {"entropy": "pixels", "confidence": "pixels", "neighbourhood": "sampled"}
_SAME = 1e-9


@dataclass(frozen=True)
class Place:
    """Whose images are looked at."""

    domain: str
    split: str
    labels: bool

    def __str__(self) -> str:
        return f"{self.domain} {self.split}"


@dataclass(frozen=True)
class Measured:
    """What was found of one checkpoint: scores by name, from where, of which images, and without labels its outlook.

    `counts` is "kept" or "measured"; `images` are ids in the order in which draws were made of them.
    """

    scores: Mapping[str, Drawn]
    counts: str
    images: tuple[str, ...]
    outlook: Outlook | None = None


@dataclass(frozen=True)
class Bench:
    """All that measuring needs. `open_data` opens the images when it is first called, and labels if `place` says so.

    With a `value_net` the error that it expects of each image is a score too.
    """

    resolved: Resolved
    place: Place
    device: torch.device
    open_data: Callable[[], SegmentationDataset]
    progress: Progress
    value_net: ValueNet | None = None

    def draws_of(self, images: Sequence[str]) -> Draws | None:
        """The resamples of these images; None where no intervals are wanted."""
        config = self.resolved.config
        return Draws(tuple(images), config.select.intervals, config.seed) if config.select.intervals else None

    def load(self, candidate: Candidate) -> Network:
        """The checkpoint's network in evaluation mode."""
        return load_network(candidate.path, self.device, self.resolved).network

    def predictions(self, network: Network) -> Iterator[Prediction]:
        """Its plain answers, as pretrain's own validation measures them; whole and exact for a value net's features."""
        config, plain = self.resolved.config, self.value_net is None
        views = views_of(config.predict, plain=True) if plain else None
        samples = evaluation_samples(self.open_data(), config.workers)
        return predict(
            network,
            samples,
            device=self.device,
            views=views,
            dtype=config.predict.logits_dtype,
            amp=config.predict.amp if plain else "off",
        )


def with_labels(
    candidates: Sequence[Candidate], bench: Bench, *, anew: bool
) -> tuple[list[Candidate], dict[str, Measured]]:
    """Scores of each candidate on labelled images, by name; those that cannot be measured come back as refused.

    Counts that training kept are used where they are of the same network, images and conventions, and `anew` is not
    asked for. Raises DataError where images are needed and are not there.
    """
    tallies = {} if anew else _kept_tallies(candidates, bench)
    kept = set(tallies)
    judged = []
    for one in candidates:
        if one.refused is None and one.name not in tallies:
            found = _tried(one, lambda one=one: _tally(one, bench))  # type: ignore[misc]
            if isinstance(found, Tally):
                tallies[one.name] = found
            else:
                one = replace(one, refused=found)
        judged.append(one)
    scores = {
        name: Measured(_scores(tally, bench), "kept" if name in kept else "measured", tally.ids)
        for name, tally in tallies.items()
    }
    return judged, scores


def without_labels(candidates: Sequence[Candidate], bench: Bench) -> tuple[list[Candidate], dict[str, Measured]]:
    """The outlook of each candidate on images whose labels stay closed, by name; the broken ones come back as refused.

    Raises DataError where there are no images.
    """
    judged, found = [], {}
    for one in candidates:
        if one.refused is None:
            seen = _tried(one, lambda one=one: _look(one, bench))  # type: ignore[misc]
            if isinstance(seen, Measured):
                found[one.name] = seen
            else:
                one = replace(one, refused=seen)
        judged.append(one)
    return judged, found


def _tried(candidate: Candidate, work: Callable[[], Any]) -> Any:
    """What `work` gives, or why this checkpoint cannot do it; what is wrong with the data is still raised."""
    try:
        return work()
    except (ArtifactError, CalsegError) as error:
        if type(error) not in (ArtifactError, CalsegError):
            raise
        return error.message.removeprefix(f"{candidate.path} ").removeprefix(f"{candidate.path}: ")


def _kept_tallies(candidates: Sequence[Candidate], bench: Bench) -> dict[str, Tally]:
    """The kept counts that can be used, by name; all of them or none where they are of different images."""
    if (bench.place.domain, bench.place.split) != ("source", "val") or bench.resolved.config.select.max_items:
        return {}
    found: dict[str, Tally] = {}
    for one in (one for one in candidates if one.refused is None):
        try:
            found[one.name] = _kept_tally(one, bench.resolved)
        except ArtifactError as error:
            bench.progress.note(f"{one.name} is measured anew: {error.message}")
    images = {tally.ids for tally in found.values()}
    if len(found) < sum(one.refused is None for one in candidates) and found:
        images.add(tuple(sorted(item.id for item in bench.open_data().items)))
    if len(images) > 1:
        bench.progress.note("all checkpoints are measured anew: their kept counts are not of the same images")
        return {}
    return found


def _kept_tally(candidate: Candidate, resolved: Resolved) -> Tally:
    """The counts beside a checkpoint. Raises ArtifactError, saying why, where they are not what is wanted now."""
    if not candidate.counts.is_file():
        raise ArtifactError("no counts were kept beside it")
    differs = _changed_settings(candidate.facts["config"], resolved)
    if differs:
        raise ArtifactError(f"its counts were kept with another {differs}")
    tally, artifact = read_tally(candidate.counts)
    with artifact:
        check_classes(artifact, candidate.class_names)
        protocol, origin = artifact.meta.get("protocol", {}), artifact.meta.get("provenance", {})
    wanted = {"domain": "source", "split": "val", "step": candidate.step, "edges": resolved.config.evaluate.edges}
    if any(protocol.get(key) != value for key, value in wanted.items()) or tally.edges != wanted["edges"]:
        raise ArtifactError(f"{candidate.counts.name} was counted otherwise")
    trained = candidate.facts.get("provenance", {}).get("config_digest")
    if origin.get("config_digest") != trained or not _agrees(tally, candidate, resolved):
        raise ArtifactError(f"{candidate.counts.name} is of another network")
    return tally


def _changed_settings(before: Mapping[str, Any], resolved: Resolved) -> str | None:
    """The first setting that decides counts and is not what it was; where the images lie does not matter."""
    now = resolved.to_dict()
    if now.get("source") is not None:
        old, new = ({**(table.get("source") or {}), "root": None} for table in (before, now))
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                return f"source.{name}"
    old, new = {"amp": "off", **before.get("predict", {})}, now["predict"]  # the key is younger than some networks
    decide = ["logits_dtype", "amp", "window", *(["window_overlap"] if new["window"] else [])]
    return next((f"predict.{name}" for name in decide if old.get(name) != new[name]), None)


def _agrees(tally: Tally, candidate: Candidate, resolved: Resolved) -> bool:
    """Whether the counts give the scores that the checkpoint itself recorded; those do not depend on bins."""
    recorded = candidate.facts.get("scores") or {}
    scores = read_scores(tally, bins=resolved.config.evaluate.bins, class_names=candidate.class_names)
    known = [name for name in ("miou", "nll") if isinstance(recorded.get(name), float)]
    return all(math.isclose(recorded[name], getattr(scores, name), abs_tol=_SAME) for name in known)


def _tally(candidate: Candidate, bench: Bench) -> Tally:
    dataset, edges = bench.open_data(), bench.resolved.config.evaluate.edges
    bench.progress.note(f"{candidate.name}: {bench.place}, {len(dataset)} images")
    predictions = bench.predictions(bench.load(candidate))
    return measure(predictions, len(dataset), len(candidate.class_names), edges=edges, progress=bench.progress)


def _scores(tally: Tally, bench: Bench) -> dict[str, Drawn]:
    bins = bench.resolved.config.evaluate.bins
    value = measured_scores(tally.images, bins=bins).scores
    draws = bench.draws_of(tally.ids)
    drawn = score_draws(tally.images, draws, bins=bins).scores if draws is not None and tally.ids else {}
    return {
        name: (float(value[name][0]) if name in value else math.nan, drawn.get(name, np.zeros(0)))
        for name in LABELLED.values()
    }


def _look(candidate: Candidate, bench: Bench) -> Measured:
    network, sums, expected = bench.load(candidate), OutlookSums(), []
    bench.progress.start(f"{candidate.name}: {bench.place}", len(bench.open_data()))
    with Tap(network) if bench.value_net is not None else nullcontext() as tap:
        for prediction in bench.predictions(network):
            sums.add(prediction.logits)
            if bench.value_net is not None and tap is not None:
                expected.append(float(bench.value_net(tap.features)))
            bench.progress.advance()
    bench.progress.finish()
    return _outlook(sums, expected, bench)


def _outlook(sums: OutlookSums, expected: Sequence[float], bench: Bench) -> Measured:
    outlook, columns = sums.outlook(), sums.columns
    images = tuple(item.id for item in bench.open_data().items)
    draws = bench.draws_of(images)
    weights = np.concatenate(list(draws)).astype(np.float64) if draws is not None else None
    scores = {
        name: (float(getattr(outlook, name)), _ratios(columns[name], columns[below], weights))
        for name, below in _DIVISORS.items()
    }
    if expected:
        each = np.array(expected, np.float64)
        scores["value_net"] = math.fsum(expected) / len(expected), _ratios(each, np.ones(len(each)), weights)
    return Measured(scores, "measured", images, outlook)


def _ratios(
    parts: NDArray[np.float64], wholes: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """The ratio of both sums in each draw (B,); NaN where a draw has nothing."""
    if weights is None:
        return np.zeros(0)
    total = weights @ wholes
    ratios: NDArray[np.float64] = np.divide(weights @ parts, total, out=np.full(len(total), np.nan), where=total > 0)
    return ratios
