"""Owns what a method's training step costs: its time and memory over those of the step that it is built on.

    python benchmarks/steps.py
    python benchmarks/steps.py --json                       # one JSON document
    python benchmarks/steps.py --network tiny --batch 2 --method source+ece
    python benchmarks/steps.py --device cuda --network segformer-b0 segformer-b5 deeplabv2-r101 --size 512 512 --batch 2

For each method and network:

- time_over_base: seconds of one step, forward, backward and optimiser, over those of its base. The two take turns, in
  an order that changes from pair to pair; the figure is the median of the pairs' ratios. With a GPU, its work is waited
  for.
- memory_over_base: peak memory of a process of its own that makes a few steps, over the same of its base's process; the
  largest resident set on a CPU, which the libraries are part of, what torch allocated at most on a GPU.

Images and labels are drawn, the network's weights are random (seed 0).
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
from typing import Any, NamedTuple

import torch
from artifacts import draw, settle

from calseg_cli.data.loader import Batch
from calseg_cli.engine.device import autocast
from calseg_cli.engine.method import Method
from calseg_cli.engine.train import Plan, build_optimizer
from calseg_cli.methods.blda import BLDA, BLDAOptions
from calseg_cli.methods.calsfda import CalSFDA
from calseg_cli.methods.cbst import CBST
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.prototype_labels import PrototypeLabels
from calseg_cli.methods.prototypes import PrototypeOptions
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.methods.source import CalibrationTerm, Source
from calseg_cli.methods.tent import Tent
from calseg_cli.networks.build import build_network
from calseg_cli.networks.network import Network
from calseg_cli.stages.probe import peak_bytes


def network_of(name: str, classes: int) -> Network:
    """A network with random weights; a variant behind a hyphen: "segformer-b5", "deeplabv2-r101"."""
    family, _, variant = name.rpartition("-")
    options: dict[str, Any] = {}
    if family == "segformer":
        name, options = family, {"variant": variant}
    elif family == "deeplabv2":
        name, options = family, {"depth": int(variant.removeprefix("r"))}
    return build_network(name, classes, init="none", options=options, seed=0)


class Contestant(NamedTuple):
    """A method around a network; the method that it is measured against, None for a base; targets for its ratios."""

    build: Callable[[Network], Method]
    base: str | None = None
    time_target: str | None = None
    memory_target: str | None = None


METHODS = {
    "source": Contestant(Source),
    "source+ece": Contestant(lambda network: Source(network, ece=CalibrationTerm(1.0)), "source", "<= 1.10"),
    "source+ece(soft)": Contestant(lambda network: Source(network, ece=CalibrationTerm(1.0, binning="soft")), "source"),
    "tent": Contestant(Tent, "source"),
    "cbst": Contestant(CBST),
    "calsfda": Contestant(CalSFDA, "cbst"),
    "self-training": Contestant(SelfTraining),
    "self-training(daformer)": Contestant(lambda network: SelfTraining(network, Frame("daformer")), "self-training"),
    "self-training(mic)": Contestant(lambda network: SelfTraining(network, Frame("mic")), "self-training"),
    "self-training(prototypes)": Contestant(lambda network: with_prototypes(network), "self-training"),
    "dacal": Contestant(lambda network: dacal(network), "self-training", "<= 1.60", "<= 1.35"),
    "dacal(last-layer)": Contestant(lambda network: dacal(network, route="last-layer"), "self-training"),
    "dacal(network)": Contestant(lambda network: dacal(network, route="network"), "self-training"),
    "blda": Contestant(lambda network: blda(network), "self-training", "<= 1.20", "<= 1.15"),
    "blda(density)": Contestant(lambda network: blda(network, density_weight=0.2), "self-training"),
    "dacal+blda": Contestant(lambda network: both(network), "self-training"),
}


class Acting(BLDA):
    """BLDA that moves logits from its first step on, though drawn labels put its anchors in no order."""

    def _acts(self) -> bool:
        return True


def blda(network: Network, **options: Any) -> Method:
    """BLDA at full work."""
    return SelfTraining(network, plugins=[Acting(network, BLDAOptions(warm_up=0, **options))])


def with_prototypes(network: Network) -> Method:
    """Labels corrected by prototypes that are counted as it trains."""
    return SelfTraining(network, prototypes=PrototypeLabels(network.num_classes, PrototypeOptions(prior=20.0)))


def both(network: Network) -> Method:
    """DA-Cal and BLDA, each at full work."""
    plugins = [build_dacal(network, warm_up=0), Acting(network, BLDAOptions(warm_up=0))]
    return SelfTraining(network, plugins=plugins)


def dacal(network: Network, **options: Any) -> Method:
    """DA-Cal from its first step on."""
    return SelfTraining(network, plugins=[build_dacal(network, warm_up=0, **options)])


class Steps:
    """A method's training steps on one drawn batch."""

    def __init__(self, method: str, network: str, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.amp = options.amp
        built = network_of(network, options.classes)
        images = draw(2 * options.batch, *options.size)
        settle(built, images)
        self.method = METHODS[method].build(built).to(self.device).train()
        self.optimizer = build_optimizer(self.method, Plan(steps=1000))
        self.batch = make_batch(images.float() / 255, options).to(self.device)
        self.done = 0

    def __call__(self) -> None:
        """One step, until the device has finished it."""
        self.method.before_step(self.batch, self.done)
        with autocast(self.device, self.amp):
            terms = self.method(self.batch)
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(self.done)
        self.done += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def make_batch(images: torch.Tensor, options: argparse.Namespace) -> Batch:
    """Source and target images, and labels in blocks of 16 pixels of which a tenth is ignored."""
    random = torch.Generator().manual_seed(0)
    height, width = options.size
    cells = torch.randint(0, options.classes, (options.batch, -(-height // 16), -(-width // 16)), generator=random)
    cells[torch.rand(cells.shape, generator=random) < 0.1] = 255
    labels = cells.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width].contiguous()
    ids = tuple(str(n) for n in range(options.batch))
    held_out = images[: options.batch].flip(-1), labels.flip(-1)
    return Batch(
        0, images[: options.batch], labels, images[options.batch : 2 * options.batch], ids, ids, labels, *held_out
    )


def race(method: str, network: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of both, and the median ratio over pairs."""
    base = METHODS[method].base
    assert base is not None
    pair = [Steps(base, network, options), Steps(method, network, options)]
    for one in pair:
        one()
        one()
    times: list[list[float]] = [[], []]
    for turn in range(options.rounds):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            pair[place]()
            times[place].append(time.perf_counter() - start)
    ratios = [above / below for below, above in zip(*times, strict=True)]
    return {
        "time_over_base": statistics.median(ratios),
        "seconds": statistics.median(times[1]),
        "base_seconds": statistics.median(times[0]),
    }


def peak(method: str, network: str, options: argparse.Namespace) -> float:
    """Peak memory in MiB of a process that makes three steps."""
    words = [sys.executable, __file__, "--peak", method, "--network", network, "--device", options.device]
    words += ["--batch", str(options.batch), "--classes", str(options.classes), "--amp", options.amp]
    words += ["--size", *map(str, options.size), "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def own_peak(method: str, network: str, options: argparse.Namespace) -> float:
    """What `peak` asks the process for."""
    steps = Steps(method, network, options)
    for _ in range(3):
        steps()
    return peak_mib(steps.device)


def peak_mib(device: torch.device) -> float:
    """MiB that this process held at most: what torch allocated on a GPU, else its resident set."""
    held = peak_bytes(device)
    if held is None:
        raise SystemExit("this system does not tell how much memory a process held")
    return held / 2**20


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the script prints."""
    load = os.getloadavg()[0]
    found: dict[str, Any] = {}
    for network in options.network:
        peaks: dict[str, float] = {}
        found[network] = {}
        for method in options.method:
            base = METHODS[method].base
            if base is None:
                continue
            for one in (base, method):
                peaks.setdefault(one, peak(one, network, options))
            found[network][method] = {
                "base": base,
                **race(method, network, options),
                "memory_over_base": peaks[method] / peaks[base],
                "memory_mib": peaks[method],
                "time_target": METHODS[method].time_target,
                "memory_target": METHODS[method].memory_target,
            }
    return {
        "networks": found,
        "input": f"{options.batch} images {options.size[0]}x{options.size[1]}, {options.classes} classes",
        "amp": options.amp,
        "machine": {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_before": load,
        },
        "rounds": options.rounds,
        "seed": 0,
    }


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--network", nargs="+", default=["tiny", "efficientnet-lite0"])
    parser.add_argument("--batch", type=int, default=4, help="images a step")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; all cores by default")
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak:
        print(own_peak(options.peak, options.network[0], options))
        return
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    sys.stdout.write(f"{table(found)}\n")


def table(found: dict[str, Any]) -> str:
    """The same in Markdown."""
    told = {key: value for key, value in found.items() if key != "networks"}
    lines = [
        str(told),
        "| network | method | over | time | seconds | target | memory | MiB | target |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, methods in found["networks"].items():
        for method, row in methods.items():
            time_, memory = (
                f"{row[f'{kind}_over_base']:.2f} | {value} | {row[f'{kind}_target'] or ''}"
                for kind, value in (("time", f"{row['seconds']:.3g}"), ("memory", f"{row['memory_mib']:.0f}"))
            )
            lines.append(f"| {network} | {method} | {row['base']} | {time_} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
