"""Owns what measuring costs: calseg's two roads against torchmetrics, plain eager torch, and the enlargement alone.

    python benchmarks/metrics.py
    python benchmarks/metrics.py --json     # one JSON document
    python benchmarks/metrics.py --strides 4 --classes 150 --size 512 512 --rounds 9
    python benchmarks/metrics.py --images 10000     # memory over that many images instead

One image: logits of 19 classes on a grid of stride 4 or 8, a label of 1024x2048 with a tenth of its pixels ignored.
Contestants, each from the logits on their grid to its scores:

- compiled: `tally_image` with numba: everything that `calseg evaluate` prints is in its counts.
- plain: the same without numba, in blocks.
- torchmetrics: bilinear enlargement, MulticlassCalibrationError (15 bins) and MulticlassConfusionMatrix.
- eager: enlargement, softmax, max, 15 bins, confusion, NLL: as one writes it, float64 where it counts.
- limit: enlargement, logsumexp and argmax alone, in eager torch. A contestant that fuses them may be quicker.

The figures are medians over rounds, in which all take turns; of two strides, the worse one:

- speedup_vs_torchmetrics, speedup_vs_eager: their seconds over those of `compiled`.
- ratio_to_limit: seconds of `compiled` over those of `limit`.
- plain_vs_eager: seconds of eager over those of `plain`.
- extra_mib: by how much the largest memory of a process grows while it measures, logits and label being there.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from calseg_cli.metrics import counting
from calseg_cli.metrics.grid import bilinear_grid
from calseg_cli.metrics.tally import Tally, merge, tally_image

IGNORE, BINS = 255, 15
TARGETS = {"speedup_vs_torchmetrics": ">= 8", "speedup_vs_eager": ">= 3", "extra_mib": "< 64"}


class Scene:
    """An image's logits and label, and the ways to measure it."""

    def __init__(self, classes: int, size: tuple[int, int], stride: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        cells = tuple(-(-side // stride) for side in size)
        blobs = rng.integers(0, classes, tuple(-(-side // 64) for side in size)).repeat(64, 0).repeat(64, 1)
        self.label = blobs[: size[0], : size[1]].astype(np.uint8)
        noise = rng.standard_normal((classes, *cells)).astype(np.float32) * 1.5
        noise[self.label[::stride, ::stride][: cells[0], : cells[1]], *np.indices(cells)] += 4
        self.label[rng.random(size) < 0.1] = IGNORE
        self.logits = torch.from_numpy(noise)
        self.grid = bilinear_grid(cells, size)
        self.truth = torch.from_numpy(self.label.astype(np.int64))
        self.classes, self.size = classes, size

    def compiled(self) -> Tally:
        """Counts by the compiled road."""
        return tally_image(self.logits, self.label, image_id="a", ignore=IGNORE, grid=self.grid)

    def plain(self) -> Tally:
        """Counts by plain torch."""
        with mock.patch.object(counting, "compiled_road", return_value=None):
            return self.compiled()

    def limit(self) -> Any:
        """No score at all."""
        full = self._full()
        return full.logsumexp(1), full.argmax(1)

    def eager(self) -> Any:
        """ECE, confusion and NLL as one would write them."""
        full = self._full()
        probs = full.softmax(1)
        confidence, guess = probs[0].max(0)
        kept = self.truth != IGNORE
        q, right = confidence[kept].double(), (guess == self.truth)[kept].double()
        place = (q * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
        sums = [torch.bincount(place, weights=value, minlength=BINS) for value in (q, right)]
        ece = (sums[0] - sums[1]).abs().sum() / q.numel()
        cells = self.truth[kept] * self.classes + guess[kept]
        confusion = torch.bincount(cells, minlength=self.classes**2)
        return ece, confusion, F.cross_entropy(full, self.truth[None], ignore_index=IGNORE, reduction="sum")

    def torchmetrics(self) -> Any:
        """ECE and confusion by the library."""
        from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

        options = {"num_classes": self.classes, "ignore_index": IGNORE, "validate_args": False}
        error = MulticlassCalibrationError(n_bins=BINS, **options)
        matrix = MulticlassConfusionMatrix(**options)
        full = self._full()
        for metric in (error, matrix):
            metric.update(full, self.truth[None])
        return error.compute(), matrix.compute()

    def _full(self) -> torch.Tensor:
        return F.interpolate(self.logits[None], size=self.size, mode="bilinear")


NAMES = ("compiled", "plain", "torchmetrics", "eager", "limit")


def seconds(function: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def race(scene: Scene, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant, all taking turns; each runs once before."""
    for name in NAMES:
        getattr(scene, name)()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            times[name].append(seconds(getattr(scene, name)))
    return times


def figures(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the rounds' ratios."""

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    return {
        "speedup_vs_torchmetrics": ratio("torchmetrics", "compiled"),
        "speedup_vs_eager": ratio("eager", "compiled"),
        "ratio_to_limit": ratio("compiled", "limit"),
        "plain_vs_eager": ratio("eager", "plain"),
    }


def extra_mib(options: argparse.Namespace, stride: int) -> float:
    """Measured in a process of its own, so that nothing else has raised the mark before."""
    words = ["--extra-of", str(stride), "--classes", str(options.classes), "--size", *map(str, options.size)]
    words += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout)


def own_extra(options: argparse.Namespace) -> float:
    """By how much the high-water mark of this process lies above what it holds before; Linux only."""
    Scene(options.classes, (64, 64), options.extra_of).compiled()
    scene = Scene(options.classes, tuple(options.size), options.extra_of)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the mark
    scene.compiled()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def many(options: argparse.Namespace) -> dict[str, Any]:
    """Memory over many small images: what each image leaves, its row in the table, and nothing else."""
    size = (128, 256)
    scenes = [Scene(options.classes, size, 8, seed) for seed in range(8)]
    marks: dict[int, float] = {}

    def tallies() -> Any:
        for number in range(options.images):
            scene = scenes[number % len(scenes)]
            yield tally_image(scene.logits, scene.label, image_id=f"{number}", ignore=IGNORE, grid=scene.grid)
            if number + 1 in (options.images // 10, options.images):
                marks[number + 1] = _status("VmRSS") / 1024

    whole = merge(tallies())
    rows = sum(array.nbytes for array in whole.images.arrays().values()) / 2**20
    first, last = sorted(marks)
    return {
        "images": options.images,
        "rss_mib": marks,
        "grown_mib": marks[last] - marks[first],
        "rows_grown_mib": rows * (last - first) / last,
        "row_kib": rows * 1024 / last,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the script prints."""
    load = os.getloadavg()[0]
    strides = {}
    for stride in options.strides:
        times = race(Scene(options.classes, tuple(options.size), stride), options.rounds)
        extra = extra_mib(options, stride) if sys.platform == "linux" else float("nan")
        medians = {name: statistics.median(values) for name, values in times.items()}
        strides[stride] = {**figures(times), "extra_mib": extra, "seconds": medians}
    better = {"speedup_vs_torchmetrics": min, "speedup_vs_eager": min, "plain_vs_eager": min}
    worst = {
        key: better.get(key, max)(found[key] for found in strides.values())
        for key in ("speedup_vs_torchmetrics", "speedup_vs_eager", "ratio_to_limit", "plain_vs_eager", "extra_mib")
    }
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": counting.compiled_road() is not None,
        "load_before": load,
    }
    return {**worst, "targets": TARGETS, "by_stride": strides, "rounds": options.rounds, "seed": 0, "machine": machine}


def show(found: dict[str, Any]) -> None:
    """The figures as text."""
    for stride, values in found["by_stride"].items():
        print(f"stride {stride}: seconds", ", ".join(f"{k} {v:.3f}" for k, v in values["seconds"].items()))
        print("  ", ", ".join(f"{key} {values[key]:.2f}" for key in values if key != "seconds"))
    for key, target in TARGETS.items():
        print(f"{key}: {found[key]:.2f} (target {target})")
    print(f"ratio_to_limit: {found['ratio_to_limit']:.2f}; {found['machine']}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--strides", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; all cores by default")
    parser.add_argument("--images", type=int, default=0, help="measure memory over so many images instead")
    parser.add_argument("--extra-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.extra_of:
        print(own_extra(options))
        return
    if options.images:
        print(json.dumps(many(options), indent=2))
        return
    found = measure(options)
    print(json.dumps(found, indent=2)) if options.json else show(found)


if __name__ == "__main__":
    main()
