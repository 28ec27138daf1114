"""Owns the way from a method's name and options to a fitted calibrator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calseg_cli.config.calibrate import Calibrate
from calseg_cli.errors import DataError
from calseg_cli.methods.calibrator import Calibrator
from calseg_cli.methods.local_temperature import LocalTemperature, train_tree
from calseg_cli.methods.metacal import MetaCal, fit_metacal
from calseg_cli.methods.pseudocal import PseudoCal
from calseg_cli.methods.scenes import Scenes
from calseg_cli.methods.selective_scaling import SelectiveScaling, fit_wrong_temperature, train_judge
from calseg_cli.methods.temperature import Fit, Temperature, fit_temperature
from calseg_cli.methods.vector_scaling import VectorScaling, fit_vector
from calseg_cli.stages.calibrate_blda import BalancingFit, Held
from calseg_cli.stages.calibrate_dacal import FrozenFit

USES: dict[str, tuple[str, ...]] = {
    "temperature": (),
    "vector": ("penalty",),
    "local": ("positive", "epochs", "lr"),
    "selective": ("wrong_temperature", "epochs", "lr"),
    "pseudocal": ("mix",),
    "meta": ("miscoverage", "target_accuracy"),
    "dacal": ("steps", "batch_size", "statistics"),
    "blda": ("tau", "tau_for", "tau_by", "anchors", "anchor_weights", "cells"),
    "logit-adjustment": ("tau", "tau_for", "tau_by", "prior"),
}
"""The options of the section that each method looks at."""


@dataclass(frozen=True)
class Job:
    """What a fit is given: the images, the options, the seed, and what its artifact tells of its origin.

    `own` is what dacal and the balancing methods are fitted on in place of the images, which are `held` for judging.
    """

    scenes: Scenes
    options: Calibrate
    seed: int
    origin: Mapping[str, Any]
    own: FrozenFit | BalancingFit | None = None
    held: Held = tuple

    def told(self, **outcome: Any) -> dict[str, Any]:
        """The origin with what the fit found."""
        return {**self.origin, "fit": outcome}


def fit_calibrator(job: Job) -> Calibrator:
    """The calibrator that the options name. Raises DataError where the images allow none."""
    return _FITS[job.options.method](job)


def _temperature(job: Job) -> Calibrator:
    fit = fit_temperature(job.scenes)
    return Temperature(fit.found(), job.told(**_outcome(fit)))


def _pseudocal(job: Job) -> Calibrator:
    fit = fit_temperature(job.scenes)
    if fit.status == "no pixels":
        raise DataError("in no mix the two images show different classes", "name a split with more varied images")
    return PseudoCal(fit.found("temperature of the mixes"), job.told(**_outcome(fit)))


def _vector(job: Job) -> Calibrator:
    fit = fit_vector(job.scenes, job.options.penalty)
    told = job.told(status="converged", passes=fit.passes, pixels=fit.pixels)
    return VectorScaling(fit.weights, fit.offsets, told)


def _meta(job: Job) -> Calibrator:
    options = job.options
    found = fit_metacal(job.scenes, miscoverage=options.miscoverage, target_accuracy=options.target_accuracy)
    temperature = found.fit.found("temperature of the pixels that are kept")
    shares = {"kept": found.kept, "accuracy_kept": found.accuracy_kept, "right_rejected": found.right_rejected}
    return MetaCal(found.steps, temperature, job.told(**_outcome(found.fit), **shares))


def _selective(job: Job) -> Calibrator:
    options = job.options
    judge = train_judge(job.scenes, epochs=options.epochs, lr=options.lr, seed=job.seed)
    if options.wrong_temperature is not None:
        told = job.told(status="temperature given", epochs=options.epochs)
        return SelectiveScaling(judge, options.wrong_temperature, told)
    fit = fit_wrong_temperature(judge, job.scenes)
    if fit.temperature is None:
        raise DataError(
            f"no temperature can be fitted on the pixels that are judged wrong ({fit.status}, {fit.pixels} pixels)",
            "raise calibrate.epochs, or give a temperature with --wrong-temperature",
        )
    return SelectiveScaling(judge, fit.temperature, job.told(**_outcome(fit), epochs=options.epochs))


def _local(job: Job) -> Calibrator:
    options = job.options
    tree = train_tree(job.scenes, positive=options.positive, epochs=options.epochs, lr=options.lr, seed=job.seed)
    return LocalTemperature(tree, job.told(status="trained", epochs=options.epochs))


def _dacal(job: Job) -> Calibrator:
    if not isinstance(job.own, FrozenFit):
        raise ValueError("dacal needs the network")
    return job.own.fit(job.origin)


def _balanced(job: Job) -> Calibrator:
    if not isinstance(job.own, BalancingFit):
        raise ValueError(f"{job.options.method} is fitted on logits of the target")
    return job.own.fit(job.origin, job.held)


def _outcome(fit: Fit) -> dict[str, Any]:
    return {"status": fit.status, "passes": fit.passes, "pixels": fit.pixels}


_FITS: dict[str, Callable[[Job], Calibrator]] = {
    "temperature": _temperature,
    "vector": _vector,
    "local": _local,
    "selective": _selective,
    "pseudocal": _pseudocal,
    "meta": _meta,
    "dacal": _dacal,
    "blda": _balanced,
    "logit-adjustment": _balanced,
}
