"""Owns one choice among checkpoints: what each is measured by, who is refused, who wins, and the rows that say so."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import beside, file_digest
from calseg_cli.config import Resolved
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.checkpoint import Checkpoint, read_checkpoint
from calseg_cli.engine.device import choose_device
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.checkpoint_criteria import LEAST_SHARE, collapse
from calseg_cli.metrics.intervals import Draws, difference, interval
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.run_folder import RunFolder
from calseg_cli.stages.select_checkpoint_candidates import Candidate, find_candidates, find_start
from calseg_cli.stages.select_checkpoint_measure import (
    LABEL_FREE,
    LABELLED,
    Bench,
    Drawn,
    Measured,
    Place,
    with_labels,
    without_labels,
)
from calseg_cli.stages.select_checkpoint_result import Row, ends_of
from calseg_cli.stages.select_checkpoint_rule import Better, Record, choose, refuse
from calseg_cli.stages.value_nets import VALUE_NET, check_value_net, load_value_net

CRITERIA = {
    "ece": "lowest ECE of the dataset",
    "ece-image-mean": "lowest mean of the images' ECE",
    "nll": "lowest NLL",
    "miou": "highest mIoU",
    "entropy": "lowest entropy",
    "snd": "highest soft neighbourhood density (SND-like)",
    "value-net": "lowest ECE that the value net expects",
}


@dataclass(frozen=True)
class Winner:
    """The chosen checkpoint, read and proved whole, its place among the rows, and the rows."""

    checkpoint: Checkpoint
    digest: str
    place: int
    rows: tuple[Row, ...]


class Election:
    """The checkpoints of a folder and how one of them is chosen; `target` is where the result will lie.

    Raises ArtifactError where there is no checkpoint, or none that can be read.
    """

    def __init__(
        self, resolved: Resolved, run: RunFolder, folder: Path, target: Path, start: str | None, progress: Progress
    ) -> None:
        self.resolved, self._options, self._run = resolved, resolved.config.select, run
        self._folder, self._target, self._progress = folder, target, progress
        by = self._options.by
        self.labelled, self.score = by in LABELLED, {**LABELLED, **LABEL_FREE}[by]
        self.better: Better = "higher" if by in ("miou", "snd") else "lower"
        self.place = self._place()
        self.candidates = find_candidates(folder, resolved, but=target)
        self._refuse_all([(one.name, one.refused) for one in self.candidates])
        self.start = None if self.labelled else find_start(self.candidates, run, start)
        if self.start is not None and self.start not in self.candidates:
            self.candidates.insert(0, self.start)
        self._found: dict[str, Measured] = {}

    def recipe(self) -> dict[str, Any]:
        """What the choice depends on; that counts are kept or measured anew makes no difference to it."""
        evaluate = self.resolved.config.evaluate
        return {
            "stage": "select",
            "options": {**self._options.model_dump(), "seed": self.resolved.config.seed},
            "bins": evaluate.bins,
            "edges": evaluate.edges,
            "checkpoints": {one.name: _digest(one) for one in self.candidates},
            "start": _digest(self.start) if self.start is not None else None,
        }

    def hold(self, *, anew: bool) -> Winner:
        """Measure all, then choose until the chosen file proves whole. Raises ArtifactError where nobody is left."""
        self._measure(anew=anew)
        while True:
            records = self._records()
            self._refuse_all([(one.name, one.refused) for one in records])
            chosen = choose(records, better=self.better)
            assert chosen is not None
            path = self.candidates[chosen].path
            try:
                checkpoint = read_checkpoint(path)
            except ArtifactError as error:
                self.candidates[chosen] = replace(self.candidates[chosen], refused=error.message.partition(" ")[2])
                continue
            return Winner(checkpoint, file_digest(path), chosen, self._rows(records, chosen))

    def least_miou(self) -> float | None:
        """The floor that mIoU was held to; None where there is none."""
        if not self._floored:
            return None
        known = [self._value(one, "miou") for one in self.candidates if one.refused is None]
        return max(known, default=math.nan) - self._options.floor

    @cached_property
    def bench(self) -> Bench:
        """What measuring needs; images are not opened yet."""
        device = choose_device(self.resolved.config.device)
        value_net = None
        if self._options.by == "value-net":
            path = self._run.valuenet / VALUE_NET
            value_net = load_value_net(path, self._network_of(path), device).net
        return Bench(self.resolved, self.place, device, lambda: self._data, self._progress, value_net)

    @cached_property
    def _data(self) -> SegmentationDataset:
        names = next(one.class_names for one in self.candidates if one.refused is None)
        domain = open_domain(self.resolved, self.place.domain, names)
        return domain.dataset(self.place.split, with_labels=self.place.labels, max_items=self._options.max_items)

    def _place(self) -> Place:
        domain = "target" if self._options.oracle or not self.labelled else "source"
        usual = "val" if domain == "source" else "test" if self.labelled else "train"
        return Place(domain, self._options.split or usual, self.labelled)

    def _network_of(self, value_net: Path) -> str:
        """The digest that the value net must name: that of the network which the checkpoints started from."""
        assert self.start is not None
        named = check_value_net(value_net, None).get("provenance", {}).get("parents", {}).get("checkpoint")
        recorded = {one.facts.get("provenance", {}).get("parents", {}).get("checkpoint") for one in self.candidates}
        return str(named) if named in recorded else file_digest(self.start.path)

    def _measure(self, *, anew: bool) -> None:
        if self.labelled:
            self.candidates, self._found = with_labels(self.candidates, self.bench, anew=anew)
            return
        self.candidates, self._found = without_labels(self.candidates, self.bench)
        self._refuse_all([(one.name, one.refused) for one in self.candidates])
        assert self.start is not None
        began = self._found.get(self.start.name)
        if began is None:
            raise ArtifactError(f"{self.start.path} cannot be measured", "name another network with --start")
        for place, one in enumerate(self.candidates):
            if one.refused is None:
                self.candidates[place] = replace(one, refused=self._collapsed(self._found[one.name], began))

    def _collapsed(self, one: Measured, began: Measured) -> str | None:
        assert one.outlook is not None
        assert began.outlook is not None
        options = self._options
        return collapse(one.outlook, began.outlook, kept_classes=options.kept_classes, most_moved=options.most_moved)

    @property
    def _floored(self) -> bool:
        """Whether the rule looks at mIoU: to choose by it needs no floor, and without labels there is none."""
        return self.labelled and self._options.by != "miou"

    def _records(self) -> list[Record]:
        records = [
            Record(one.name, one.step, self._value(one, self.score), self._value(one, "miou"), one.refused)
            for one in self.candidates
        ]
        return refuse(records, floor=self._options.floor if self._floored else None)

    def _value(self, candidate: Candidate, score: str) -> float:
        found = self._found.get(candidate.name)
        return found.scores[score][0] if found is not None and score in found.scores else math.nan

    def _rows(self, records: Sequence[Record], chosen: int) -> tuple[Row, ...]:
        draws = self._draws()
        best = self._found[records[chosen].name].scores[self.score]
        return tuple(self._row(one, record, best, draws) for one, record in zip(self.candidates, records, strict=True))

    def _row(self, one: Candidate, record: Record, best: Drawn, draws: Draws | None) -> Row:
        found = self._found.get(one.name)
        row = Row(one.name, beside(one.path, self._target), one.step, _digest(one), refused=record.refused)
        if found is None:
            return row
        mine = found.scores[self.score]
        apart = (mine[0] - best[0], math.nan, math.nan)
        return replace(
            row,
            counts=found.counts,
            scores={name: _interval(drawn, draws) for name, drawn in found.scores.items()},
            apart=ends_of(difference(best, mine, draws)) if draws is not None else apart,
            classes=int((found.outlook.class_shares > LEAST_SHARE).sum()) if found.outlook is not None else -1,
        )

    def _draws(self) -> Draws | None:
        """The draws that all scores were made with. They look at the images' names alone."""
        images = self.images()
        return self.bench.draws_of(images) if images else None

    def images(self) -> tuple[str, ...]:
        """The ids of the images that were measured, in the order of their rows."""
        return next((found.images for found in self._found.values()), ())

    def _refuse_all(self, told: Sequence[tuple[str, str | None]]) -> None:
        """Raise ArtifactError where everyone is refused, in one line with the reasons."""
        reasons = [f"{name}: {reason}" for name, reason in told if reason is not None]
        if len(reasons) == len(told):
            raise ArtifactError(
                f"none of {len(told)} checkpoints in {self._folder} can be chosen: {'; '.join(reasons)}",
                "train longer, name another folder with --checkpoints, or raise select.floor where mIoU decided",
            )


def _interval(drawn: Drawn, draws: Draws | None) -> tuple[float, float, float]:
    return ends_of(interval(*drawn, draws)) if draws is not None else (drawn[0], math.nan, math.nan)


def _digest(candidate: Candidate) -> str:
    """The digest of its tensors; of the whole file where that cannot be read."""
    told: Mapping[str, Any] = candidate.facts
    return f"sha256:{told['tensors_sha256']}" if "tensors_sha256" in told else file_digest(candidate.path)
