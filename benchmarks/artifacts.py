"""Owns what writing an artifact costs `predict`, what its checks cost a reader, and how large artifacts are.

    python benchmarks/artifacts.py
    python benchmarks/artifacts.py --json     # one JSON document
    python benchmarks/artifacts.py --compression none --dtype float32 --classes 11 --size 360 480 --threads 1
    python benchmarks/artifacts.py --sizes    # arithmetic: the logits of known datasets before packing

The figures:

- write_overhead: seconds of a pass over the images with writing over one without. Both passes draw the same predictions
  from the same network on the CPU as the stage does; the one that writes also takes the digest of each image's file,
  hands the logits to ArtifactWriter and ends with the seal and fsync. Images wait in memory: reading and decoding
  them would only hide what writing costs.
- read_ratio: images a second of `Artifact.items` over those of h5py's [()] on the same datasets, the file open and in
  the system's cache, every image read before: what a training that goes through the images again and again meets.
- first_read_ratio: the same for the first time, with `open_artifact`, the seal, the rules, and every image's digest
  taken and compared; h5py proves nothing of that.
- bytes_per_image: the file's size over its images.

Passes alternate, and the figures are medians of the pairs' ratios. Another program that works on the same machine
spoils them: `load_before` tells, and `quickest` is the ratio of the quickest passes, which it spoils least.

Images are drawn (seed 0): blobs with a little noise. The network has random weights (init none, seed 0); a few batches
in training mode give its batch norms sensible statistics, so that logits differ from pixel to pixel and from class to
class. They are not those of a trained network, and pack about as well.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from calseg_cli.artifacts.disk import human
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.engine.infer import Sample, predict
from calseg_cli.networks.build import build_network

TARGETS = {"write_overhead": "<= 1.10", "read_ratio": ">= 0.80"}
CPU = torch.device("cpu")


class Bench:
    """A network, images in memory and on the disk, and the four passes."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.network = build_network(options.network, options.classes, init="none", seed=0)
        self.images = draw(options.images, *options.size)
        settle(self.network, self.images)
        self.files = [self._save(number) for number in range(options.images)]
        self.names = [path.stem for path in self.files]
        names = [f"class {number}" for number in range(options.classes)]
        palette = [[number, 0, 0] for number in range(options.classes)]
        self.meta = {"classes": {"names": names, "palette": palette, "ignore": 255}, "protocol": {}}

    def _save(self, number: int) -> Path:
        path = self.folder / f"{number:04d}.png"
        Image.fromarray(self.images[number].permute(1, 2, 0).numpy()).save(path, compress_level=1)
        return path

    def _samples(self) -> Iterator[Sample]:
        for name, image in zip(self.names, self.images, strict=True):
            yield name, image[None].float() / 255, None, tuple(self.options.size)

    def _predictions(self):
        return predict(self.network, self._samples(), device=CPU, dtype=self.options.dtype)

    def compute(self) -> None:
        """The pass without writing."""
        for prediction in self._predictions():
            prediction.logits.numpy()

    def write(self) -> None:
        """The same and an artifact."""
        with ArtifactWriter(
            self.artifact, "logits", meta=self.meta, ids=self.names, compression=self.options.compression, force=True
        ) as writer:
            for prediction, file in zip(self._predictions(), self.files, strict=True):
                writer.add_item(
                    prediction.id,
                    {"logits": prediction.logits.numpy()},
                    prediction.geometry,
                    image_digest=file_digest(file),
                )

    def read(self) -> None:
        """The artifact by its reader."""
        with open_artifact(self.artifact, "logits") as artifact:
            for _ in artifact.items("logits"):
                pass

    def read_plain(self) -> None:
        """The same datasets by h5py alone."""
        with h5py.File(self.artifact, "r") as file:
            for number in range(len(self.names)):
                file[f"items/{number:06d}/logits"][()]

    def read_again(self, artifact: Artifact) -> None:
        """The artifact by its reader, when every image has been proved before."""
        for _ in artifact.items("logits"):
            pass

    def read_plain_again(self, file: h5py.File) -> None:
        """The same datasets of an open file by h5py alone."""
        for number in range(len(self.names)):
            file[f"items/{number:06d}/logits"][()]

    def open(self) -> None:
        """Seal, rules and lists, without an image."""
        open_artifact(self.artifact, "logits").close()

    @property
    def artifact(self) -> Path:
        return self.folder / "logits.h5"


def draw(number: int, height: int, width: int) -> torch.Tensor:
    """Blobs of colour under a little noise (number,3,height,width), uint8."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(number, 3, -(-height // 24), -(-width // 24), generator=random)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    noisy = smooth + 0.02 * torch.randn(smooth.shape, generator=random)
    return (noisy.clamp(0, 1) * 255).round().to(torch.uint8)


def settle(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give the batch norms the statistics of a few batches, then switch to evaluation."""
    with torch.no_grad():
        for batch in images[:16].split(4) if len(images) >= 16 else [images[:2].repeat(2, 1, 1, 1)]:
            for _ in range(8):
                network(batch.float() / 255)
    network.eval()


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the wall, and of the processors' work in all threads."""
    wall, work_start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - work_start


def alternate(
    first: Callable[[], None], second: Callable[[], None], repeats: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Timings of both, in turns, each pair in the other order than the last; one untimed pass of each before."""
    first()
    second()
    one: list[tuple[float, float]] = []
    other: list[tuple[float, float]] = []
    for repeat in range(repeats):
        for work, times in ((first, one), (second, other))[:: 1 if repeat % 2 else -1]:
            times.append(timed(work))
    return one, other


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(above: list[tuple[float, float]], below: list[tuple[float, float]], which: int = 0) -> list[float]:
    return [a[which] / b[which] for a, b in zip(above, below, strict=True)]


def quickest(above: list[tuple[float, float]], below: list[tuple[float, float]]) -> float:
    return min(above)[0] / min(below)[0]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    bench = Bench(options, folder)
    without, writing = alternate(bench.compute, bench.write, options.repeats)
    plain, ours = alternate(bench.read_plain, bench.read, options.reads)
    opening = [timed(bench.open)[0] for _ in range(options.reads)]
    with open_artifact(bench.artifact, "logits") as artifact, h5py.File(bench.artifact, "r") as file:
        bench.read_again(artifact)
        later = alternate(lambda: bench.read_plain_again(file), lambda: bench.read_again(artifact), options.reads)
    overhead, ratio = spread(ratios(writing, without)), spread(ratios(plain, ours))
    again = spread(ratios(*later))
    with open_artifact(bench.artifact) as artifact:
        first = artifact.item(bench.names[0], "logits")
    size = bench.artifact.stat().st_size / options.images
    return {
        "write_overhead": overhead["median"],
        "read_ratio": again["median"],
        "first_read_ratio": ratio["median"],
        "bytes_per_image": round(size),
        "targets": TARGETS,
        "write": {
            "repeats": options.repeats,
            "seconds_without": spread([wall for wall, _ in without]),
            "seconds_with": spread([wall for wall, _ in writing]),
            "ratio": overhead,
            "quickest": quickest(writing, without),
            "processor_time_ratio": spread(ratios(writing, without, 1)),
        },
        "read": {
            "repeats": options.reads,
            "seconds_plain": spread([wall for wall, _ in plain]),
            "seconds_artifact": spread([wall for wall, _ in ours]),
            "seconds_of_it_opening": spread(opening),
            "ratio": ratio,
            "ratio_again": again,
            "quickest": quickest(plain, ours),
            "processor_time_ratio": spread(ratios(plain, ours, 1)),
            "without_opening": statistics.median(
                p / (o - statistics.median(opening)) for (p, _), (o, _) in zip(plain, ours, strict=True)
            ),
            "images_per_second": options.images / statistics.median(wall for wall, _ in ours),
            "raw_bytes_per_second": options.images * first.nbytes / statistics.median(wall for wall, _ in ours),
        },
        "work": {
            "network": f"{options.network}, init none, seed 0",
            "images": options.images,
            "image_size": list(options.size),
            "logits": f"{'x'.join(map(str, first.shape))} {first.dtype}",
            "logits_standard_deviation": float(first.astype(np.float64).std()),
            "compression": options.compression,
            "raw_bytes_per_image": first.nbytes,
            "packed_to": size / first.nbytes,
        },
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    return {
        "kind": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": LOAD,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "h5py": h5py.__version__,
        "hdf5": h5py.version.hdf5_version,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def table(found: dict[str, Any]) -> str:
    write, read, work, kind = (found[name] for name in ("write", "read", "work", "machine"))
    rows = [
        ("images", f"{work['images']} of {'x'.join(map(str, work['image_size']))}, {work['network']}"),
        ("logits", f"{work['logits']}, {work['compression']}, packed to {work['packed_to']:.2f}"),
        ("bytes per image", f"{found['bytes_per_image']:,} ({work['raw_bytes_per_image']:,} raw)"),
        ("predict", ranged(write["seconds_without"], "s")),
        ("predict and write", ranged(write["seconds_with"], "s")),
        (
            "write overhead",
            f"{ranged(write['ratio'])}, of {write['repeats']} pairs; target {TARGETS['write_overhead']}",
        ),
        ("  of the quickest", f"{write['quickest']:.3f}"),
        ("  processor time", ranged(write["processor_time_ratio"])),
        ("read by h5py", ranged(read["seconds_plain"], "s")),
        ("read by calseg", ranged(read["seconds_artifact"], "s")),
        ("  of it opening", ranged(read["seconds_of_it_opening"], "s")),
        ("read ratio", f"{ranged(read['ratio_again'])}, of {read['repeats']} pairs; target {TARGETS['read_ratio']}"),
        ("first read ratio", f"{ranged(read['ratio'])}, with opening and every digest taken"),
        ("  of the quickest", f"{read['quickest']:.3f}"),
        ("  processor time", ranged(read["processor_time_ratio"])),
        ("  without opening", f"{read['without_opening']:.3f}"),
        (
            "machine",
            f"{kind['cores']} cores, {kind['processor']}, load {kind['load_before']} before",
        ),
        ("threads", str(kind["torch_threads"])),
        ("versions", f"Python {kind['python']}, torch {kind['torch']}, h5py {kind['h5py']}, HDF5 {kind['hdf5']}"),
    ]
    return "\n".join(f"{name:18} {value}" for name, value in rows)


DATASETS = (  # images, height, width, classes
    ("Cityscapes train", 2975, 1024, 2048, 19),
    ("Cityscapes val", 500, 1024, 2048, 19),
    ("GTA5", 24966, 1052, 1914, 19),
    ("CamVid", 701, 720, 960, 11),
)


def sizes() -> str:
    """Logits before packing, float16, by the network's stride: classes x rows x columns x 2 bytes an image."""
    lines = [f"{'float16, before packing':24}{'images':>8}{'stride 8':>10}{'stride 4':>10}{'full size':>10}"]
    for name, images, height, width, classes in DATASETS:
        bytes_each = [classes * -(-height // stride) * -(-width // stride) * 2 for stride in (8, 4, 1)]
        lines.append(f"{name:24}{images:8}" + "".join(f"{human(images * size):>10}" for size in bytes_each))
    return "\n".join(lines)


def ranged(values: dict[str, float], unit: str = "") -> str:
    median, least, most = (f"{values[name]:.3f}" for name in ("median", "least", "most"))
    return f"{median}{f' {unit}' if unit else ''} ({least} to {most})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What writing an artifact costs, and what reading one does.")
    parser.add_argument("--network", default="efficientnet-lite0")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--compression", choices=("gzip", "none", "zstd", "bitshuffle"), default="gzip")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of passes with and without writing")
    parser.add_argument("--reads", type=int, default=25, help="pairs of passes of reading")
    parser.add_argument("--threads", type=int, help="of torch; its own choice without it")
    parser.add_argument("--sizes", action="store_true", help="print a table of sizes and measure nothing")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder without it")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


LOAD = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def main() -> None:
    options = arguments()
    if options.sizes:
        sys.stdout.write(f"{sizes()}\n")
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(options, Path(folder))
    sys.stdout.write(f"{json.dumps(found, indent=2) if options.json else table(found)}\n")


if __name__ == "__main__":
    main()
