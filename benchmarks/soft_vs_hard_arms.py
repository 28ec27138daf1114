"""Owns the arms of soft_vs_hard.py on the small world: what target pixels are taught, and what a run's record holds.

Student, teacher, mixing, loss and loop are the product's (methods.self_training, methods.dacal, engine.train). What is
here alone are two plugins that read labels of target images. They are stamped "oracle": a user has no such labels.
"""

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from soft_vs_hard_toy import CLASS_NAMES, CLASSES, NO_SHIFT, SHIFT, Pictures, World, build_network
from torch import Tensor, nn

from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch
from calseg_cli.data.strong_augmentation import StrongAugmentation
from calseg_cli.engine.forward import dense_logits
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.train import Hooks, Plan, State, train
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.self_training_view import Plugin, View
from calseg_cli.methods.temperature import find_temperature, sums_at
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import tally_image

SOURCE_STEPS, SHORT, LONG = 120, 600, 1500
EMA, REFIT, MOMENTS = 0.99, 20, 10
SCORES = ("miou", "ece", "nll", "signed_gap")
Make = Callable[[World, nn.Module, int], Plugin]


# What is taught


class TargetTruth(Plugin):
    """oracle: target pixels are taught their true classes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def targets(self, view: View, logits: Tensor) -> Tensor:
        labels = self.world.target_labels(view.step)
        return F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).float()


class OracleTemperature(Plugin):
    """oracle: softmax(z / T), T fitted every few steps to the teacher's logits on labelled target images."""

    def __init__(self, world: World, every: int = REFIT) -> None:
        super().__init__()
        self.world, self.every = world, every
        self.predict: Callable[[Tensor], Tensor] | None = None
        self.temperature = math.nan

    def targets(self, view: View, logits: Tensor) -> Tensor:
        if math.isnan(self.temperature) or view.step % self.every == 0:
            self.temperature = self._fitted()
        return (view.dense(logits) / self.temperature).softmax(dim=1)

    def report(self) -> dict[str, float]:
        return {"temperature_mean": self.temperature}

    def _fitted(self) -> float:
        assert self.predict is not None
        pictures = self.world.labelled_target
        rows = self.predict(pictures.images).permute(1, 0, 2, 3).flatten(1)
        fit = find_temperature(lambda beta: sums_at(beta, rows, pictures.labels.flatten()))
        return fit.temperature or self.temperature


PAPER = {
    "outer": "source+hard",
    "step_size": 0.3,
    "width": 16,
    "inputs": "centred",
    "bound": 4.0,
    "lr": 3e-3,
    "level_lr": 3e-3,
    "average": 0.0,
    "alarms": False,
    "warm_up": SOURCE_STEPS,
}
"""One small step of the student, and labels trained on and the teacher's own to judge it by: sections "one step"."""
DEFAULT = {"warm_up": SOURCE_STEPS + 60}
"""DA-Cal's own defaults; its warm-up of 60 steps is counted from where self-training begins."""


NEVER = 10**9
"""Steps between two of the temperature network: T stays 1, and only DA-Cal's alarms are left of it."""


def _dacal(**options: Any) -> Make:
    return lambda world, network, steps: build_dacal(network, seed=world.seed, **options)


def _half_hard(**options: Any) -> Make:
    return lambda world, network, steps: build_dacal(network, seed=world.seed, **{**options, "warm_up": steps // 2})


@dataclass(frozen=True)
class Arm:
    """One way of teaching. `half_hard`: hard labels during the first half of the run."""

    labels: str = "hard"
    plugin: Make | None = None
    shifted: bool = True
    oracle: bool = False
    source_only: bool = False
    quality: str = "one"
    half_hard: bool = False
    hard_steps: int = 0
    lengths: tuple[int, ...] = (SHORT,)


BOTH, LATER = (SHORT, LONG), (LONG,)
ARMS: dict[str, Arm] = {
    "source-only": Arm(source_only=True),
    "hard": Arm(lengths=BOTH),
    "soft": Arm("soft", lengths=BOTH),
    "soft/60-hard": Arm("soft", hard_steps=SOURCE_STEPS + 60),
    "sampled": Arm("sampled"),
    "oracle-temperature": Arm(plugin=lambda world, *_: OracleTemperature(world), oracle=True, lengths=BOTH),
    "target-truth": Arm(plugin=lambda world, *_: TargetTruth(world), oracle=True),
    "in-domain/hard": Arm(shifted=False),
    "in-domain/soft": Arm("soft", shifted=False),
    "dacal": Arm(plugin=_dacal(**DEFAULT), lengths=BOTH),
    "dacal/last-layer": Arm(plugin=_dacal(**PAPER, route="last-layer")),
    "dacal/network": Arm(plugin=_dacal(**PAPER, route="network"), lengths=BOTH),
    "soft/alarms": Arm(plugin=_dacal(**DEFAULT, interval=NEVER), lengths=LATER),
    "soft/half-hard": Arm("soft", half_hard=True, lengths=LATER),
    "dacal/half-hard": Arm(plugin=_half_hard(**DEFAULT), lengths=LATER),
    "dacal/no-alarms": Arm(plugin=_dacal(**DEFAULT, alarms=False), lengths=LATER),
    "dacal/quality": Arm(plugin=_dacal(**DEFAULT), quality="batch", lengths=LATER),
    "soft/quality": Arm("soft", quality="batch", lengths=LATER),
    "dacal/network/alarms": Arm(plugin=_dacal(**{**PAPER, "alarms": True}, route="network"), lengths=LATER),
    "dacal/network/half-hard": Arm(plugin=_half_hard(**PAPER, route="network"), lengths=LATER),
}


# A run


class Beginning(SelfTraining):
    """The steps before self-training: source images alone, while the teacher follows already."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.source_images is not None
        assert batch.source_labels is not None
        logits = dense_logits(self.network, batch.source_images)  # type: ignore[arg-type]
        return {"source": F.cross_entropy(logits, batch.source_labels, ignore_index=IGNORE)}


def begin(world: World, steps: int, source_steps: int = SOURCE_STEPS) -> State:
    """The loop's state when self-training begins, for all arms of a seed and a length."""
    kept: dict[int, State] = {}
    stop = StopRequest()

    def save(step: int, state: State) -> None:
        kept[step] = copy.deepcopy(state)
        stop.signum = 1

    method = Beginning(build_network(world.seed), Frame(ema=EMA))
    plan = replace(_plan(steps), checkpoint_every=source_steps)
    _train(method, world, plan, Hooks(lambda _: None, lambda _: None, save), stop=stop)
    return kept[source_steps]


def run(name: str, seed: int, steps: int, start: State, shift: Any = SHIFT) -> dict[str, Any]:
    """The record of one arm: the student's scores on target images at the end, and the course of the run."""
    arm, begun = ARMS[name], time.perf_counter()
    world = World(seed, shift if arm.shifted else NO_SHIFT)
    method = build(arm, world, steps)
    course: list[dict[str, Any]] = []

    def log(record: dict[str, Any]) -> None:
        course.append({"step": record["step"], **_looked_at(method, world), **_told(record)})

    state = {**copy.deepcopy(start)}
    state["method"] = {**method.state_dict(), **state["method"]}
    _train(method, world, _plan(steps), Hooks(log, lambda _: None, lambda *_: None), state=state)
    found = scores(method.network, world.val)
    teacher = {f"teacher_{key}": value for key, value in scores(method.teacher, world.val).items()}
    named = {"arm": name, "seed": seed, "steps": steps, "oracle": arm.oracle}
    measured = {**found, **teacher, "seconds": time.perf_counter() - begun, "course": course}
    return {**named, "machine": f"{os.cpu_count()} CPU cores", **rounded(measured)}


def rounded(value: Any) -> Any:
    """Numbers with four decimals, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def build(arm: Arm, world: World, steps: int) -> SelfTraining:
    """The product's self-training as the arm wants it."""
    network = build_network(world.seed)
    plugins = [] if arm.plugin is None else [arm.plugin(world, network, steps)]
    hard_steps = steps // 2 if arm.half_hard else arm.hard_steps
    frame = Frame(
        labels=arm.labels,  # type: ignore[arg-type]
        ema=EMA,
        trust=Trust(arm.quality),  # type: ignore[arg-type]
        hard_steps=hard_steps,
        strong=StrongAugmentation(color=0.0, blur=0.0),  # on pictures so small and noisy it hides the textures
    )
    method = (Beginning if arm.source_only else SelfTraining)(network, frame, seed=world.seed, plugins=plugins)
    for plugin in plugins:
        if isinstance(plugin, OracleTemperature):
            plugin.predict = lambda images: logits_of(method.teacher, images)
    return method


def _plan(steps: int) -> Plan:
    log_every = max(1, steps // MOMENTS)
    return Plan(
        steps,
        lr=2e-3,
        head_lr=2e-3,
        weight_decay=0.01,
        schedule="poly",
        power=1.0,
        channels_last=True,
        log_every=log_every,
    )


def _train(method: SelfTraining, world: World, plan: Plan, hooks: Hooks, **more: Any) -> None:
    more = {"stop": StopRequest(), **more}
    train(method, world, plan, device=torch.device("cpu"), hooks=hooks, progress=Silent(), **more)


# What is measured


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N,C,H,W); group norm knows no training mode."""
    parts = [dense_logits(network, part) for part in images.split(20)]  # type: ignore[arg-type]
    return torch.cat(parts)


def scores(network: nn.Module, pictures: Pictures) -> dict[str, float]:
    """mIoU, ECE (15 bins), NLL, confidence minus accuracy; all pixels pooled, as one tall image."""
    return scores_of(logits_of(network, pictures.images), pictures)


def scores_of(dense: Tensor, pictures: Pictures) -> dict[str, float]:
    """The same of logits (N,C,H,W)."""
    logits = dense.permute(1, 0, 2, 3).flatten(1, 2)
    tally = tally_image(logits, pictures.labels.flatten(0, 1), image_id="all", ignore=IGNORE)
    found = read_scores(tally, class_names=CLASS_NAMES)
    return {key: float(getattr(found, key)) for key in SCORES}


def _looked_at(method: SelfTraining, world: World) -> dict[str, Any]:
    """Student and teacher on the target images to measure on; the shares of the classes that the teacher names."""
    logits = logits_of(method.teacher, world.val.images)
    student, teacher = scores(method.network, world.val), scores_of(logits, world.val)
    sure, named = logits.softmax(dim=1).max(dim=1)
    shares = torch.bincount(named.flatten(), minlength=CLASSES) / named.numel()
    return {
        "miou": student["miou"],
        "ece": student["ece"],
        "teacher_miou": teacher["miou"],
        "teacher_ece": teacher["ece"],
        "confidence": float(sure.mean()),
        "accuracy": float((named == world.val.labels).float().mean()),
        "shares": shares.tolist(),
    }


def _told(record: dict[str, Any]) -> dict[str, float]:
    """What the method itself logged of the step."""
    wanted = ("temperature_mean", "temperature_at_bound", "fallen_back", "quality")
    watch = record.get("watch", {})
    loss = {f"loss_{name}": value for name, value in record["terms"].items()}
    return loss | {name: watch[name] for name in wanted if name in watch}
