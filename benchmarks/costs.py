"""Owns what a long training comes to: one step of each method, times the steps of a recipe; one image, times a dataset.

    python benchmarks/costs.py                       # SegFormer-b5, 2 images of 512x512, 19 classes, 40,000 steps
    python benchmarks/costs.py --json > costs.json
    python benchmarks/costs.py --device cuda --amp bf16
    python benchmarks/costs.py --tflops 10           # besides, the hours on a device that sustains that rate
    python benchmarks/costs.py --network tiny --size 240 320 --batch 4 --steps 600

For each method, in a process of its own, on drawn images and random weights (seed 0), with everything acting that acts
for most of a training:

- tflop: floating-point operations of one step, counted by torch (matrix products, convolutions and attention, forward
  and backward; all else is left out). They are the same on every device and at every precision.
- seconds: of one step, the median of `--repeats` after a first one that warms up.
- hours: of `--steps` such steps, by multiplication. Loading images, validation and saving are not in it.
- memory: what the process held at most, with its libraries; what torch allocated at most, on a GPU.

And of one image of `--image` that is only looked at, as `predict` and `evaluate` do; the hours are those of `--images`
such images. Seconds are this machine's: elsewhere, `calseg pretrain -n` and `calseg adapt -n` measure them.
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
from typing import Any

import torch
from artifacts import draw, settle
from steps import METHODS, Steps, network_of, peak_mib
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from calseg_cli.engine.device import autocast

LOOK = "one image"
WANTED = ("source", "self-training", "self-training(daformer)", "self-training(mic)", "dacal", "blda", "dacal+blda")


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# Torch counts attention on a GPU by itself, on a CPU it does not.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def measured(work: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Operations, seconds and memory of one piece of work."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "tflop": counter.get_total_flops() / 1e12,
        "seconds": statistics.median(seconds),
        "memory_mib": peak_mib(device),
    }


def one(name: str, options: argparse.Namespace) -> dict[str, float]:
    """What the process of its own measures: a method's step, or a look at an image."""
    device = torch.device(options.device)
    if name != LOOK:
        return measured(Steps(name, options.network, options), device, options.repeats)
    network = network_of(options.network, options.classes)
    settle(network, draw(options.batch, *options.size))
    image = draw(1, *options.image).float().to(device) / 255
    return measured(lambda: look(network.to(device).eval(), image, options.amp), device, options.repeats)


def look(network: nn.Module, image: torch.Tensor, amp: str) -> None:
    """An image's logits on the network's own grid."""
    with torch.inference_mode(), autocast(image.device, amp):
        network(image)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the script prints."""
    load, given = os.getloadavg()[0], sys.argv[1:]
    rows = {}
    for name in (*options.method, LOOK):
        done = subprocess.run(
            [sys.executable, __file__, *given, "--one", name], stdout=subprocess.PIPE, text=True, check=True
        )
        row = json.loads(done.stdout)
        times = options.images if name == LOOK else options.steps
        row["hours"] = times * row["seconds"] / 3600
        row["gflops"] = 1000 * row["tflop"] / row["seconds"]
        if options.tflops:
            row["hours_at_rate"] = times * row["tflop"] / options.tflops / 3600
        rows[name] = row
        sys.stderr.write(f"{name}: {row['seconds']:.3g} s\n")
    network = network_of(options.network, options.classes)
    return {
        "network": options.network,
        "parameters": sum(one.numel() for one in network.parameters()),
        "network_bytes": sum(one.nbytes for one in network.state_dict().values()),
        "step": f"{options.batch} images of {options.size[0]}x{options.size[1]}, {options.classes} classes",
        "steps": options.steps,
        "image": f"{options.image[0]}x{options.image[1]}",
        "images": options.images,
        "amp": options.amp,
        "tflops": options.tflops or None,
        "rows": rows,
        "machine": {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "load_before": load,
        },
        "repeats": options.repeats,
        "seed": 0,
    }


def table(found: dict[str, Any]) -> str:
    """The same as a table in Markdown."""
    rated = found["tflops"] is not None
    head = ["", "TFLOP", "seconds", "GFLOP/s", "memory, GiB", "hours here"]
    head += [f"hours at {found['tflops']:g} TFLOP/s"] if rated else []
    lines = [
        f"{found['network']}, {found['parameters'] / 1e6:.1f} million parameters; {found['step']}; "
        f"{found['steps']} steps; {found['images']} images of {found['image']}; amp {found['amp']}; {found['machine']}",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, row in found["rows"].items():
        figures = [f"{row['tflop']:.3g}", f"{row['seconds']:.3g}", f"{row['gflops']:.0f}"]
        figures += [f"{row['memory_mib'] / 1024:.1f}", f"{row['hours']:.3g}"]
        figures += [f"{row['hours_at_rate']:.3g}"] if rated else []
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(WANTED))
    parser.add_argument("--network", default="segformer-b5")
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=40_000, help="of the recipe")
    parser.add_argument("--image", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=500, help="that are only looked at: Cityscapes' val has 500")
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tflops", type=float, default=0.0, help="a sustained rate to divide by, 10^12 a second")
    parser.add_argument("--repeats", type=int, default=3, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; all cores by default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=[*METHODS, LOOK], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        sys.stdout.write(json.dumps(one(options.one, options)))
        return
    found = measure(options)
    sys.stdout.write(f"{json.dumps(found, indent=2) if options.json else table(found)}\n")


if __name__ == "__main__":
    main()
