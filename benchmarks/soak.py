"""Owns the long proof that kills harm no stage: all of them, killed at random for an hour, against an unbroken chain.

    python benchmarks/soak.py --minutes 60
    python benchmarks/soak.py --minutes 5 --only adapt-dacal+blda predict
    python benchmarks/soak.py --minutes 60 --json > soak.json

The sample data are drawn, and the chain of all stages, every adaptation among them, is run once without a break. Then,
until the time is over, a stage is drawn, its results are taken out of a copy of that folder, and its command is typed
again: SIGKILL strikes after a time drawn uniformly from what the stage took, `--resume` goes on (a stage without it
begins anew), up to four times in a row; the last run is left to end. Then

- every tensor of its networks, every artifact's content and every line of its log (without the seconds) must be those
  of the unbroken chain, and nothing unfinished may lie beside them;
- the largest resident set of the run that ended is noted: it must not grow from round to round.

For a fifth of the time one process trains without a break (`pretrain`, then `adapt --method dacal+blda`), and its
resident set is read as it goes: from its third quarter to its last it must not grow by more than 2 %.

Exits with 1 where anything differs or grows.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_resume import proven
from safetensors.numpy import load_file

LONGEST_CHAIN = 4
GROWTH = 0.02  # of the resident set, from the middle of a long run to its end
IMAGES = 24  # of each split
RUN = "runs/sample"
FIRST = ("--checkpoint", f"{RUN}/1-pretrain")
SMALL = ("--steps", "24", "--batch-size", "2")
OFTEN = tuple(
    word
    for section in ("tent", "cbst", "calsfda", "self_training")
    for word in ("--set", f"adapt.{section}.checkpoint_every=4", "--set", f"adapt.{section}.log_every=4")
)
ROUNDS = ("--rounds", "2", *SMALL, *OFTEN)
PLUGINS = ("--set", "adapt.dacal.warm_up=4", "--set", "adapt.blda.warm_up=4")
SETTLE = ("--settle", "--set", "calibrate.steps=10")


@dataclass(frozen=True)
class Stage:
    """A command, what it leaves below the folder, whether it goes on after a break, and whether it refuses a result."""

    name: str
    words: tuple[str, ...]
    result: str
    resumes: bool = True
    refuses: bool = True

    def again(self, folder: Path) -> tuple[str, ...]:
        """The words after which the command goes on, or begins anew."""
        if self.resumes:
            return ("--resume",)
        return ("--force",) if self.refuses and (folder / self.result).exists() else ()


def adapt(method: str, *more: str, resumes: bool = True) -> Stage:
    """One adaptation of the network that was trained first."""
    words = ("adapt", "--method", method, *FIRST, *more)
    return Stage(f"adapt-{method}", words, f"{RUN}/4-adapt-{method}", resumes)


STAGES = (
    Stage(
        "pretrain",
        ("pretrain", "--steps", "60", "--set", "pretrain.checkpoint_every=5", "--set", "pretrain.validate_every=20"),
        f"{RUN}/1-pretrain",
    ),
    Stage("select-checkpoint-by-ECE", ("select-checkpoint-by-ECE",), f"{RUN}/2-select", resumes=False),
    Stage("train-valuenet", ("train-valuenet", "--steps", "40", *FIRST), f"{RUN}/3-valuenet"),
    adapt("adabn", resumes=False),
    adapt("tent", *SMALL, *OFTEN),
    adapt("cbst", *ROUNDS),
    adapt("calsfda", *ROUNDS),
    adapt("self-training", "--base", "mic", *SMALL, *OFTEN),
    adapt("dacal", "--base", "daformer", "--prototypes", "online", *SMALL, *OFTEN, *PLUGINS),
    adapt("blda", *SMALL, *OFTEN, *PLUGINS),
    adapt("dacal+blda", *SMALL, *OFTEN, *PLUGINS, *SETTLE),
    Stage("logit-statistics", ("logit-statistics", "-o", "statistics.h5"), "statistics.h5", resumes=False),
    Stage("predict", ("predict", "--checkpoint", "pretrain", "-o", "logits.h5"), "logits.h5"),
    Stage("pseudo-label", ("pseudo-label", "--logits", "logits.h5", "-o", "labels.h5"), "labels.h5"),
    Stage("calibrate", ("calibrate", "--method", "temperature", "-o", "calibrator.h5"), "calibrator.h5", resumes=False),
    Stage(
        "calibrate-prototypes",
        ("calibrate-prototypes", "--logits", "logits.h5", "-o", "prototypes.h5"),
        "prototypes.h5",
        resumes=False,
    ),
    Stage(
        "evaluate",
        ("evaluate", "--checkpoint", "pretrain", "-o", "measured"),
        "measured",
        resumes=False,
        refuses=False,
    ),
)  # fmt: skip
STEADY = {
    "pretrain": ("pretrain", "--name", "steady", "--set", "pretrain.validate_every=0"),
    "adapt-dacal+blda": (
        *("adapt", "--method", "dacal+blda", *FIRST, "--name", "steady"),
        *("--batch-size", "2", *PLUGINS),
    ),
}


@dataclass
class Ended:
    """A process that ended: its code, what it said, how long it took, and its largest resident set in MiB."""

    code: int
    said: str
    seconds: float
    peak: float


@dataclass
class Found:
    """What all rounds of one stage came to."""

    rounds: int = 0
    kills: int = 0
    longest_chain: int = 0
    peaks: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """Of the largest resident set: the last third of the rounds over the first third, less 1; 0 for few rounds."""
        third = len(self.peaks) // 3
        return statistics.median(self.peaks[-third:]) / statistics.median(self.peaks[:third]) - 1 if third else 0.0

    def document(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "kills": self.kills,
            "longest_chain": self.longest_chain,
            "peak_mib": round(max(self.peaks, default=0.0), 1),
            "peak_growth": round(self.growth(), 4),
            "wrong": self.wrong,
        }


def run(folder: Path, *words: str, kill_after: float | None = None) -> Ended:
    """Type a command, and kill it after so many seconds unless it has ended."""
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "calseg_cli", *words],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if kill_after is not None and time.monotonic() - began > kill_after:
                os.kill(process.pid, signal.SIGKILL)
                _, status, usage = os.wait4(process.pid, 0)
                break
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return Ended(process.returncode, said.read(), time.monotonic() - began, usage.ru_maxrss / 1024)


def must(ended: Ended) -> Ended:
    if ended.code:
        raise RuntimeError(f"exit code {ended.code}: {ended.said}")
    return ended


def results(folder: Path, stage: Stage) -> dict[str, str]:
    """The digest of all that a stage left, file by file: of contents, not of when or how they were written."""
    place = folder / stage.result
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest for path in files if (digest := digest_of(path)) is not None}


def digest_of(path: Path) -> str | None:
    """None for what tells of the run and not of its result: configuration and reports name times and commands."""
    if path.suffix == ".safetensors":
        found = hashlib.sha256()
        for name, values in sorted(load_file(path).items()):
            found.update(f"{name} {values.dtype} {values.shape}".encode())
            found.update(values.tobytes())
        return found.hexdigest()
    if path.suffix == ".h5":
        return proven(path)[0]
    if path.suffix == ".jsonl":
        timeless = re.sub(r'"seconds": [0-9.e+-]+', "", path.read_text(encoding="utf-8"))
        return hashlib.sha256(timeless.encode()).hexdigest()
    return None if path.suffix in (".yaml", ".json", ".html", ".png", ".csv", ".md", ".txt") else "left behind"


def prepare(folder: Path) -> dict[str, float]:
    """The unbroken chain; how long each stage took."""
    must(run(folder, "sample-data"))
    for images in (folder / "data").glob("*/*/images"):
        for image in sorted(images.glob("*.png"))[IMAGES:]:
            image.unlink()
            (images.parent / "labels" / image.name).unlink(missing_ok=True)
    seconds = {}
    for stage in STAGES:
        tell(f"unbroken: {stage.name}")
        seconds[stage.name] = must(run(folder, *stage.words)).seconds
        if not results(folder, stage):
            raise RuntimeError(f"{stage.name} left nothing at {stage.result}")
    return seconds


def one_round(whole: Path, folder: Path, stage: Stage, seconds: float, chance: random.Random, found: Found) -> None:
    """Take a stage's results out of a copy of the whole chain, make them again under kills, and compare."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder, symlinks=True)
    target = folder / stage.result
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    found.rounds += 1
    more: tuple[str, ...] = ()
    for number in range(1, chance.randint(1, LONGEST_CHAIN) + 1):
        ended = run(folder, *stage.words, *more, kill_after=chance.uniform(0, seconds))
        if ended.code != -signal.SIGKILL:
            break
        found.kills += 1
        found.longest_chain = max(found.longest_chain, number)
        more = stage.again(folder)
    else:
        ended = run(folder, *stage.words, *more)
    if ended.code:
        found.wrong.append(f"round {found.rounds}: exit code {ended.code}: {ended.said.strip()[-400:]}")
        return
    found.peaks.append(ended.peak)
    expected, made = results(whole, stage), results(folder, stage)
    different = sorted(name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name))
    if different:
        found.wrong.append(f"round {found.rounds}: {', '.join(different)} differ from the unbroken chain's")


def steady(folder: Path, name: str, seconds: float) -> dict[str, Any]:
    """One process that trains for so long: its resident set, in MiB, at the start, in the middle and at the end."""
    program = [sys.executable, "-m", "calseg_cli", *STEADY[name], "--steps", "1000000", "--force"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        program, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    sizes, end = [], None
    while process.poll() is None and (end is None or time.monotonic() < end):
        time.sleep(0.5)
        if end is None and any((folder / "runs/steady").rglob("log.jsonl")):  # the first steps are done, all is loaded
            end = time.monotonic() + seconds
        elif end is not None:
            sizes.append(resident(process.pid))
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{name} ended with {process.returncode} before it was to")
    quarter = max(1, len(sizes) // 4)
    start, middle, last = (
        statistics.median(part)
        for part in (sizes[quarter : 2 * quarter], sizes[2 * quarter : 3 * quarter], sizes[-quarter:])
    )
    return {
        "seconds": round(seconds),
        "second_quarter_mib": round(start, 1),
        "third_quarter_mib": round(middle, 1),
        "last_quarter_mib": round(last, 1),
        "growth": round(last / middle - 1, 4),
    }


def resident(pid: int) -> float:
    """MiB of a process in memory; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(options.seed)
    chosen = [stage for stage in STAGES if not options.only or stage.name in options.only]
    found: defaultdict[str, Found] = defaultdict(Found)
    with tempfile.TemporaryDirectory() as scratch:
        whole, folder = Path(scratch) / "whole", Path(scratch) / "round"
        whole.mkdir()
        seconds = prepare(whole)
        began = time.monotonic()
        end = began + 60 * options.minutes
        told = {}
        for name in STEADY:
            tell(f"without a break: {name}")
            told[name] = steady(whole, name, 0.1 * 60 * options.minutes)
            shutil.rmtree(whole / "runs/steady")
        for stage in drawn(chosen, chance, end):
            one_round(whole, folder, stage, seconds[stage.name], chance, found[stage.name])
            tell(f"{stage.name}: {found[stage.name].kills} kills, {len(found[stage.name].wrong)} wrong")
    kills = Counter({name: one.kills for name, one in found.items()})
    return {
        "seed": options.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "kills": kills.total(),
        "rounds": sum(one.rounds for one in found.values()),
        "all_equal": bool(found) and not any(one.wrong for one in found.values()),
        "flat": all(one["growth"] <= GROWTH for one in told.values()),
        "steady": told,
        "stages": {stage.name: found[stage.name].document() for stage in chosen},
    }


def drawn(stages: list[Stage], chance: random.Random, end: float) -> Iterator[Stage]:
    """All stages again and again, each time in another order, until the time is over."""
    while True:
        for stage in chance.sample(stages, len(stages)):
            if time.monotonic() > end:
                return
            yield stage


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def table(found: dict[str, Any]) -> str:
    lines = [
        f"seed {found['seed']}, {found['minutes']} minutes: {found['kills']} kills in {found['rounds']} rounds",
        "| stage | rounds | kills | most in a row | peak, MiB | peak, last third over first | wrong |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found["stages"].items():
        lines.append(
            f"| {name} | {one['rounds']} | {one['kills']} | {one['longest_chain']} | {one['peak_mib']:.0f} | "
            f"{one['peak_growth']:+.1%} | {len(one['wrong'])} |"
        )
        lines += [f"  {wrong}" for wrong in one["wrong"]]
    lines += [
        "",
        "| one process | seconds | 2nd quarter, MiB | 3rd | last | last over 3rd |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found["steady"].items():
        sizes = " | ".join(f"{one[key]:.1f}" for key in ("second_quarter_mib", "third_quarter_mib", "last_quarter_mib"))
        lines.append(f"| {name} | {one['seconds']} | {sizes} | {one['growth']:+.2%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], metavar="STAGE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options)
    sys.stdout.write(f"{json.dumps(found, indent=2) if options.json else table(found)}\n")
    sys.exit(0 if found["all_equal"] and found["flat"] else 1)


if __name__ == "__main__":
    main()
