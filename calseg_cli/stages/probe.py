"""Owns `--dry-run` of training: a few real steps in memory, from which time, memory and disk space are estimated."""

import importlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from signal import SIGINT
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calseg_cli.artifacts.disk import free_bytes, human
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Resolved
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import evaluation_samples
from calseg_cli.engine.infer import Prediction, predict
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Progress, Silent
from calseg_cli.engine.train import State
from calseg_cli.errors import StoppedError
from calseg_cli.metrics.tally import Tally, merge
from calseg_cli.stages.measuring import measure
from calseg_cli.stages.roads import views_of
from calseg_cli.stages.run_folder import NETWORK, RESUME
from calseg_cli.stages.training import StageFolder

STEPS, IMAGES = 5, 3
"""Steps and images that are timed; the first of each warms up and does not count."""
_ENOUGH = 30.0  # seconds, after which two steps are enough


@dataclass(frozen=True)
class Work:
    """What a stage would do and keep, in numbers that are known beforehand.

    `looks` are images seen without gradients, over the whole run; `networks` files of its network, and `counts` files
    of counts over `counted` images each.
    """

    images: int
    classes: int
    batch: int
    steps: int
    looks: int
    networks: int
    counts: int = 0
    counted: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """What a stage would do, and what it would take: seconds and bytes, None where nothing could be timed."""

    target: Path
    state: str
    device: str
    work: Work
    seconds_a_step: float | None
    seconds_a_look: float | None
    peak_bytes: int | None
    disk_bytes: int
    free_bytes: int

    @property
    def seconds(self) -> float | None:
        """Of the whole stage."""
        parts = [(self.work.steps, self.seconds_a_step), (self.work.looks, self.seconds_a_look)]
        known = [number * each for number, each in parts if number and each is not None]
        return None if any(number and each is None for number, each in parts) else sum(known)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what a person wants to know."""
        work, unknown = self.work, "not known"
        each = [f"{self.seconds_a_step:.3g} s a step"] if self.seconds_a_step is not None else []
        each += [f"{self.seconds_a_look:.3g} s an image that is looked at"] if self.seconds_a_look is not None else []
        place = "main memory" if self.device == "cpu" else f"{self.device}'s memory"
        peak = f"{human(self.peak_bytes)} of {place} at the peak" if self.peak_bytes is not None else unknown
        return [
            ("to", f"{self.target} ({self.state})"),
            ("device", self.device),
            ("images", str(work.images)),
            ("classes", str(work.classes)),
            *([("steps", f"{work.steps} of {work.batch} images")] if work.steps else []),
            *([("images looked at besides", str(work.looks))] if work.steps and work.looks else []),
            (
                "time, estimated",
                f"{duration(self.seconds) if self.seconds is not None else unknown} ({', '.join(each)})",
            ),
            ("memory, estimated", peak),
            ("disk, estimated", human(self.disk_bytes)),
            ("free on that disk", human(self.free_bytes)),
            *(("note", note) for note in work.notes),
        ]

    def document(self) -> dict[str, Any]:
        """The same as plain values; what begins with `estimated` is an estimate."""
        return {
            "dry_run": True,
            "target": self.target,
            "state": self.state,
            "device": self.device,
            **{name: value for name, value in vars(self.work).items() if name != "notes"},
            "estimated_seconds_a_step": self.seconds_a_step,
            "estimated_seconds_a_look": self.seconds_a_look,
            "estimated_seconds": self.seconds,
            "estimated_peak_bytes": self.peak_bytes,
            "estimated_disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
            "notes": list(self.work.notes),
        }


class Probe(Silent):
    """A listener that times work and asks it to stop after a few steps; `note` goes on to whoever listens.

    What it learns stands in `estimate` in the end.
    """

    def __init__(self, resolved: Resolved, listener: Progress, *, resume: bool) -> None:
        self.resolved, self.resume, self.stop = resolved, resume, StopRequest()
        self._listener, self._ticks = listener, [0.0]
        self.device = torch.device("cpu")
        self._stage: Unwritten | None = None
        self._looks: list[float] = []
        self._tallies: list[Tally] = []
        self._begun = 0.0
        self.estimate: Estimate | None = None

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        """A piece of work begins: the clock too."""
        self._ticks = [self._now()]
        self._begun = self._ticks[0]

    def advance(self, units: int = 1, **facts: float) -> None:
        """A step is done; after a few of them it is enough."""
        if not units:
            return
        self._ticks.append(self._now())
        steps, spent = len(self._ticks) - 1, self._ticks[-1] - self._begun
        if steps >= STEPS or (steps >= 2 and spent > _ENOUGH):
            self.stop.signum = SIGINT

    def note(self, text: str) -> None:
        """Pass it on."""
        self._listener.note(text)

    def run(
        self,
        stage: StageFolder,
        device: torch.device,
        work: "Callable[[Unwritten], object]",
        *,
        finished: str = NETWORK,
    ) -> None:
        """Do `work` on a folder that keeps nothing, until it is asked to stop; `finished` is its result's name."""
        self.device = device
        self._stage = Unwritten.of(stage, self.resolved, finished)
        self._stage.check_begun(resume=self.resume)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            work(self._stage)
        except StoppedError:
            if not self.stop:
                raise

    def look(self, network: nn.Module, dataset: SegmentationDataset, *, labelled: bool) -> None:
        """Time a network's answers to a few images, counted against their labels where they are `labelled`."""
        config = self.resolved.config
        network.eval().to(self.device)
        samples, views = evaluation_samples(dataset), views_of(config.predict, plain=True)
        count = partial(measure, num_images=1, num_classes=dataset.num_classes, edges=config.evaluate.edges)
        self.look_at(
            predict(
                network,  # type: ignore[arg-type]
                samples,
                device=self.device,
                views=views,
                dtype="float32",
                amp=config.predict.amp if labelled else "off",  # statistics are measured without
            ),
            partial(count, progress=Silent()) if labelled else None,
        )

    def look_at(self, predictions: Iterable[Prediction], count: Callable[[list[Prediction]], Tally] | None) -> None:
        """Time the first few predictions, and what counts one of them."""
        since = self._now()
        for one in islice(predictions, IMAGES):
            if count is not None:
                self._tallies.append(count([one]))
            self._looks.append(self._now() - since)
            since = self._now()

    def conclude(self, work: Work, network: nn.Module) -> None:
        """Make the estimate of all that was seen, of a stage that leaves such a network."""
        assert self._stage is not None
        self._stage.weigh(network)
        done = self._stage.done(resume=self.resume)
        kept = work.networks * self._stage.network_bytes + 2 * self._stage.state_bytes  # the old stays until the new is
        self.tell(self._stage.target, self._stage.condition(), replace(work, steps=max(0, work.steps - done)), kept)

    def tell(self, target: Path, state: str, work: Work, kept: int = 0) -> Estimate:
        """The estimate of work whose result goes to `target`; `kept` bytes are there besides counts."""
        steps = [later - earlier for earlier, later in zip(self._ticks, self._ticks[1:], strict=False)]
        self.estimate = Estimate(
            target,
            state,
            str(self.device),
            work,
            _typical(steps),
            _typical(self._looks),
            peak_bytes(self.device),
            kept + work.counts * _counts_bytes(self._tallies, work.counted),
            free_bytes(target.parent),
        )
        return self.estimate

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Unwritten(StageFolder):
    """A stage's folder that keeps nothing: it weighs what it is given. `target` is the folder that it stands for."""

    target: Path
    result: str
    network_bytes = 0
    state_bytes = 0

    @classmethod
    def of(cls, stage: StageFolder, resolved: Resolved, finished: str) -> "Unwritten":
        """In place of `stage`, at a path where nothing is, so that nothing can be removed either."""
        made = cls(stage.path / "dry-run", stage.facts, resolved, stage.may_change, stage.must_stay)
        made.target, made.result = stage.path, finished
        return made

    def condition(self) -> str:
        """What the folder that it stands for holds: finished, unfinished or new."""
        if (self.target / self.result).exists():
            return "finished"
        return "unfinished" if (self.target / RESUME).exists() else "new"

    def done(self, *, resume: bool) -> int:
        """Steps that need not be done any more."""
        return int(read_facts(self.target / RESUME)["step"]) if resume and self.condition() == "unfinished" else 0

    def check_begun(self, *, resume: bool) -> None:
        """Raise ArtifactError where the real folder could not go on with this configuration."""
        if resume and self.condition() != "new":
            file = self.target / (self.result if self.condition() == "finished" else RESUME)
            facts = read_facts(file)
            self._refuse_changes(facts["config"], file)
            self._refuse_origin(facts, file)

    def at(self, path: Path) -> "StageFolder":
        """Itself."""
        return self

    def begin(self, *, resume: bool) -> State | None:
        """Nothing to go on from."""
        return None

    def log(self, record: Mapping[str, Any]) -> None:
        """Forget it."""

    def save(self, step: int, network: nn.Module, state: State) -> None:
        """Weigh the state."""
        self.state_bytes = _bytes(state)

    def keep(self, step: int, network: nn.Module, scores: Mapping[str, Any]) -> Path:
        """Weigh the network."""
        return self.finish(step, network, scores)

    def finish(self, step: int, network: nn.Module, scores: Mapping[str, Any] | None) -> Path:
        """Weigh the network."""
        self.weigh(network)
        return self.path / NETWORK

    def weigh(self, network: nn.Module) -> None:
        """Learn how large a file of the network is."""
        self.network_bytes = _bytes(network.state_dict())


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held so far: of a CUDA device by tensors, else resident by this process; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:  # getrusage would tell the peak of whoever started this process where that was larger
        told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        told = None
    if told is not None:
        return int(told[1]) * 1024
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def duration(seconds: float) -> str:
    """Seconds as people read them.

    >>> duration(0.4), duration(75), duration(7500), duration(200_000)
    ('1 s', '1 min 15 s', '2 h 5 min', '2 d 7 h')
    """
    whole = max(1, round(seconds))
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {below}"
    return f"{whole} s"


def _counts_bytes(tallies: list[Tally], images: int) -> int:
    """Before packing, of that many images."""
    if not tallies:
        return 0
    one, all_seen = (_bytes(merge(part).to_arrays()) for part in (tallies[:1], tallies))
    return one + (images - 1) * (all_seen - one) // max(1, len(tallies) - 1)


def _typical(seconds: list[float]) -> float | None:
    later = seconds[1:] or seconds
    return statistics.median(later) if later else None


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(_bytes(one) for one in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(one) for one in value)
    return 0
