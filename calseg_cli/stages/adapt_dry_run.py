"""Owns `calseg adapt --dry-run`: what of an adaptation is tried in memory, and how often the whole of it does that."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from calseg_cli.config import Resolved
from calseg_cli.config.self_training import sections_of
from calseg_cli.data.loader import Batch
from calseg_cli.engine.forward import dense_logits
from calseg_cli.engine.method import Method
from calseg_cli.methods.round_self_training import RoundSelfTraining
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.stages.probe import Probe, Work
from calseg_cli.stages.target_training import Setting, train_on_target
from calseg_cli.stages.training import StageFolder, void

_FROM_THE_FIRST = {
    "self_training": {"warm_up": False, "hard_steps": 0, "settle": False, "visualize": 0, "oracle": False},
    "dacal": {"warm_up": 0},  # its own steps are the dear ones
    "blda": {"warm_up": 0},
}


def tried(resolved: Resolved) -> Resolved:
    """The configuration whose first steps are like the many: no sweep over all images, no pictures, no oracle."""
    config = resolved.config
    sections = {name: getattr(config.adapt, name).model_copy(update=less) for name, less in _FROM_THE_FIRST.items()}
    adapt = config.adapt.model_copy(update=sections)
    return replace(resolved, config=config.model_copy(update={"adapt": adapt}))


class StandIn(Method):
    """A round's steps without its pseudo-labels: the same passes, and a loss of one kind or another."""

    name = "stand-in"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean log-partition of all target pixels."""
        assert batch.target_images is not None
        return {"loss": dense_logits(self.network, batch.target_images).logsumexp(dim=1).mean()}  # type: ignore[arg-type]


def try_round(setting: Setting, folder: StageFolder) -> None:
    """A few steps of a round with a stand-in for its loss."""
    method, seed = StandIn(setting.loaded.network), setting.resolved.config.seed
    train_on_target(setting, folder, method, setting.images, seed=seed, resume=False, conclude=lambda: void(None))


def conclude(probe: Probe, setting: Setting, method: Method) -> None:
    """Look at a few images, and make the probe's estimate of the whole adaptation."""
    config, images = probe.resolved.config, len(setting.images)
    options: Any = getattr(config.adapt, sections_of(config.adapt.method)[-1])
    steps, passes, networks, notes = _amounts(options, method, images)
    if passes:
        probe.look(method.deployed(), setting.images, labelled=False)
    work = Work(
        images=images,
        classes=len(setting.loaded.class_names),
        batch=options.batch_size,
        steps=steps,
        looks=passes * images,
        networks=networks,
        notes=notes,
    )
    probe.conclude(work, method.deployed())


def _amounts(options: Any, method: Method, images: int) -> tuple[int, int, int, tuple[str, ...]]:
    """Steps, passes over all images without gradients, networks kept, and what a reader has to know."""
    if method.sweeps:
        return options.passes * -(-images // options.batch_size), 0, 1, ()
    if isinstance(method, RoundSelfTraining):
        told = (
            "steps were tried with a stand-in for the loss of a round",
            "disk: besides, each round's logits and pseudo-labels",
        )
        passes = options.rounds + 1 + (options.warm_up == "all")
        return options.rounds * options.steps, passes, options.rounds + 2, told
    if isinstance(method, SelfTraining):
        extras = [name for name in ("settle", "visualize", "oracle") if getattr(options, name)]
        notes = (f"not counted: {', '.join(extras)}",) if extras else ()
        return options.steps, int(options.warm_up) + int(method.measures_again), 1, notes
    return options.steps, int(method.remeasures), 1, ()
