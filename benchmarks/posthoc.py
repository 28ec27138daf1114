"""Owns what post-hoc corrections cost: counting prototypes, labelling by them, fitting a temperature.

    python benchmarks/posthoc.py
    python benchmarks/posthoc.py --json     # one JSON document
    python benchmarks/posthoc.py --network segformer --classes 19 --size 512 512

The figures are medians of ratios over rounds in which all contestants take turns:

- prototype_accumulate_over_forward: seconds to count an image's logits over those of the network's forward pass.
- prototype_predict_over_argmax: seconds from stored logits to the labels of an image at its full size by the nearest
  prototype, over the same by the largest logit (as pseudo-label and predict --png make them).
- correction_over_argmax: the correction of the logits alone over their argmax, both on their own grid: what is added
  where nothing else is done. The product takes C times as many operations as an argmax.
- temperature_passes: passes over the data until the temperature is found.
- fit_over_training_step: seconds of one pass of the temperature over an image, over those of a training step's forward
  and backward pass on it: a fit of ten passes costs an epoch about ten times this.

Images are drawn, the network's weights are random (seed 0); see benchmarks/artifacts.py.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from artifacts import draw, settle

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.engine.forward import dense_logits, native_logits
from calseg_cli.methods.prototype_state import PrototypeState
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from calseg_cli.methods.pseudo_labels import votes
from calseg_cli.methods.scenes import Scene
from calseg_cli.methods.temperature import fit_temperature, total_at
from calseg_cli.networks.build import build_network
from calseg_cli.stages.label_grid import label_grid

TARGETS = {
    "prototype_accumulate_over_forward": "<= 0.10",
    "prototype_predict_over_argmax": "<= 1.5",
    "temperature_passes": "<= 10",
}


class Bench:
    """One image, its logits and a label, and what is done with them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.network = build_network(options.network, options.classes, init="none", seed=0)
        images = draw(8, *options.size)
        settle(self.network, images)
        self.network.eval()
        self.image = images[:1].float() / 255
        with torch.inference_mode():
            logits, self.geometry = native_logits(self.network, self.image)
        self.logits = (logits[0] * 4).half().float().clone()
        random = torch.Generator().manual_seed(0)
        native, grid = label_grid(self.logits, self.geometry)
        classes = votes(native, grid=grid).classes
        noise = torch.randint(0, options.classes, classes.shape, generator=random)
        self.label = torch.where(torch.rand(classes.shape, generator=random) < 0.3, noise, classes).to(torch.uint8)
        state = PrototypeState(options.classes)
        state.add(self.logits)
        self.prototypes = Prototypes(state, PrototypeOptions())

    def forward(self) -> Any:
        """The network's logits."""
        with torch.inference_mode():
            return self.network(self.image)

    def accumulate(self) -> Any:
        """Count the logits."""
        state = PrototypeState(self.logits.shape[0])
        state.add(self.logits)

    def labels(self) -> Any:
        """Full-size labels by the largest logit."""
        native, grid = label_grid(self.logits, self.geometry)
        return votes(native, grid=grid)

    def prototype_labels(self) -> Any:
        """Full-size labels by the nearest prototype."""
        native, grid = label_grid(self.prototypes(self.logits), self.geometry)
        return votes(native, grid=grid)

    def argmax(self) -> Any:
        """Labels on the logits' own grid."""
        return self.logits.argmax(0)

    def correct(self) -> Any:
        """Corrected logits on their own grid."""
        return self.prototypes(self.logits)

    def scenes(self) -> list[Scene]:
        """What a temperature is fitted on."""
        geometry: Geometry = self.geometry
        return [Scene("a", self.logits, self.label, lambda logits: label_grid(logits, geometry))]

    def temperature_pass(self) -> Any:
        """One pass of the fit."""
        return total_at(1.0, self.scenes)

    def training_step(self) -> Any:
        """Forward and backward of a supervised step."""
        self.network.zero_grad()
        full = dense_logits(self.network, self.image)
        F.cross_entropy(full, self.label.long()[None]).backward()


NAMES = (
    "forward",
    "accumulate",
    "labels",
    "prototype_labels",
    "argmax",
    "correct",
    "temperature_pass",
    "training_step",
)


def race(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of each, all taking turns; each runs once before. The quick ones run ten times a turn."""
    repeats = {name: 10 if name in ("argmax", "correct", "accumulate") else 1 for name in NAMES}
    for name in NAMES:
        getattr(bench, name)()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            times[name].append(seconds(getattr(bench, name), repeats[name]))
    return times


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Of one call, over several."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the script prints."""
    load = os.getloadavg()[0]
    bench = Bench(options)
    times = race(bench, options.rounds)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    fit = fit_temperature(bench.scenes)
    return {
        "prototype_accumulate_over_forward": ratio("accumulate", "forward"),
        "prototype_predict_over_argmax": ratio("prototype_labels", "labels"),
        "temperature_passes": fit.passes,
        "correction_over_argmax": ratio("correct", "argmax"),
        "fit_over_training_step": ratio("temperature_pass", "training_step"),
        "temperature": fit.temperature,
        "targets": TARGETS,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "network": f"{options.network}, {options.classes} classes, {options.size[0]}x{options.size[1]}",
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_before": load,
        },
        "rounds": options.rounds,
        "seed": 0,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="efficientnet-lite0")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; all cores by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        print(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
