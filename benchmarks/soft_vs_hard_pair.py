"""Owns the arms of soft_vs_hard.py on a trained run with real images: the commands that a person would type.

Labels of the target measure, nothing else; so there is no oracle here. "weight-one" is there because the quality weight
counts sure pixels: softer labels make a softer teacher, which then weighs less, whatever its labels are worth.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adaptation_study import KEYS, Study

Record = dict[str, Any]
_ONE = ("--set", "adapt.self_training.quality=one")


def _taught(labels: str, *more: str) -> tuple[str, ...]:
    return ("--method", "self-training", "--labels", labels, *more)


METHODS: dict[str, tuple[str, ...]] = {
    "hard": _taught("hard"),
    "soft": _taught("soft"),
    "sampled": _taught("sampled"),
    "hard/weight-one": _taught("hard", *_ONE),
    "soft/weight-one": _taught("soft", *_ONE),
    "sampled/weight-one": _taught("sampled", *_ONE),
    "dacal": ("--method", "dacal"),
    "dacal/weight-one": ("--method", "dacal", *_ONE),
}
BASELINE = "hard"


class LabelStudy(Study):
    """One folder with a trained run, adapted with every kind of labels. What is there already is not done again."""

    def record(self, method: str, seed: int) -> Record:
        """Scores of the target's test split with intervals, and the paired difference to hard labels."""
        named = {"pair": self.pair, "method": method, "seed": seed}
        try:
            found = self._measured(method, seed)
            compared = {} if method == BASELINE else {"difference_to_hard": self._difference(method, seed)}
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            return {**named, "failed": said[0] if said else str(error)}
        intervals = found["intervals"]["scores"]
        scores = {key: found["scores"][key] for key in KEYS}
        return {**named, **scores, **{f"{key}_95": intervals[key] for key in KEYS if key in intervals}, **compared}

    def _run(self, method: str, seed: int) -> str:
        return f"labels-{method.replace('/', '-')}-s{seed}"

    def _adapt(self, method: str, seed: int) -> None:
        start = ("--checkpoint", str(self.runs / self.pair / "1-pretrain"), "--name", self._run(method, seed))
        self.calseg("adapt", *METHODS[method], *start, "--seed", str(seed), "--resume")

    def _network(self, method: str, seed: int) -> str:
        return str(self.runs / self._run(method, seed) / f"4-adapt-{METHODS[method][1]}")

    def _difference(self, method: str, seed: int) -> Record:
        self._measured(BASELINE, seed)
        words = ("compare", *(str(self._evaluated(one, seed)) for one in (BASELINE, method)))
        rows = json.loads(self.calseg(*words, "--resamples", self.resamples, "--json"))["differences"][0]["scores"]
        return {key: rows[key] for key in KEYS if key in rows}


def study(
    folder: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    told: Callable[[list[Record]], None],
    resamples: int = 1000,
) -> list[Record]:
    """The records of all methods and seeds; `told` hears of them after each."""
    one, records = LabelStudy(folder.resolve(), resamples), []
    for seed in seeds:
        for method in methods:
            records.append(one.record(method, seed))
            told(records)
    return records
