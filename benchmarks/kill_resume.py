"""Owns the proof that no kill harms a result: SIGKILL, --resume, and the unbroken run's digest.

    python benchmarks/kill_resume.py --kills 30 --writes 30
    python benchmarks/kill_resume.py --kills 30 --writes 30 --json

The sample data are drawn, the tiny network is trained for a few steps, and `calseg predict` and `calseg pseudo-label`
run without a break. Then each of them is started again and again, as a process of its own, and killed:

- at random moments, uniform over the time that the work took without a break (the least of three runs). Start-up does
  not count: the clock starts when the process has signed the lock of its result. Every second round goes on with
  --resume at once; in the others the resumed run is killed too, up to four times in a row. A run that ends before its
  kill is counted, but not as a kill.
- once at each step of finishing, which take milliseconds, with a few images (benchmarks/kill_victim.py).
- at random writes, uniform over all writes that HDF5 makes to the file, with a few images: in the middle of a flush.

After each round the result must have the digest of the unbroken run, every value must prove to be what was written, and
neither an unfinished file nor a lock may lie beside it. What a kill left is read from the unfinished file itself.
Exits with 1 if a single round ends otherwise.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kill_victim
from kill_victim import PATIENCE, STEPS, Started, check, start

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.safe_open import PARTIAL, examine
from calseg_cli.artifacts.verify import verify

WHERE = ("before the file", "before the first item", "in the middle", "finishing", "after the end", "unreadable")
EXAMINING = 1.0  # seconds that a resumed run looks at the unfinished file before it works
LONGEST_CHAIN = 4
FEW = 8  # images of the runs that are killed at steps and writes


@dataclass
class Unbroken:
    """A stage and what it does without a break: `words` lack --out.

    `seconds` are those of its work, from the lock to the result: neither start-up nor the end of the process counts.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    target: Path
    digest: str = ""
    seconds: float = 0.0
    items: int = 0
    size: int = 0  # bytes of the result

    def command(self, *more: str) -> list[str]:
        return [*self.words, "--out", str(self.target), *more]

    def measure(self, runs: int) -> None:
        """Run it; remember its digest, its length and its least time."""
        self.seconds = min(self._measured() for _ in range(runs))
        self.digest, self.items = proven(self.target)
        self.size = self.target.stat().st_size

    def _measured(self) -> float:
        clear(self.target)
        process = start(self.folder, *self.command())
        began = wait_for_work(process, self.target)
        while process.poll() is None and not self.target.exists():
            time.sleep(0.002)
        seconds = time.monotonic() - began
        check(process)
        return seconds


@dataclass
class Rounds:
    """What the rounds of one stage came to."""

    kills: int = 0
    missed: int = 0
    rounds: int = 0
    longest_chain: int = 0
    left: Counter[str] = field(default_factory=Counter)
    kept: list[float] = field(default_factory=list)  # share of the items that were there after each kill
    begun_anew: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, left: tuple[str, float]) -> None:
        self.kills += 1
        self.left[left[0]] += 1
        self.kept.append(left[1])

    def document(self) -> dict[str, Any]:
        kept = self.kept or [0.0]
        return {
            "kills": self.kills,
            "missed": self.missed,
            "rounds": self.rounds,
            "longest_chain": self.longest_chain,
            "left": {where: self.left[where] for where in WHERE},
            "items_kept": {"least": min(kept), "median": statistics.median(kept), "most": max(kept)},
            "begun_anew": self.begun_anew,
            "wrong": self.wrong,
        }


def wait_for_work(process: Started, target: Path) -> float:
    """Wait until the process holds the lock of its target, or has ended; the time on the monotonic clock."""
    lock = target.with_name(f"{target.name}.lock")
    while process.poll() is None and signed_by(lock) != process.pid:
        time.sleep(0.002)
    return time.monotonic()


def signed_by(lock: Path) -> int | None:
    try:
        return int(json.loads(lock.read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError):
        return None


def struck(process: Started, delay: float, signum: int = signal.SIGKILL) -> bool:
    """Send the signal after `delay` seconds of work; whether the process died of it."""
    try:
        process.wait(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signum)
    process.communicate(timeout=PATIENCE)
    return process.returncode == -signum


def left_by_kill(stage: Unbroken) -> tuple[str, float]:
    """Where the kill hit, read from what it left, and the share of the items that are there."""
    partial = stage.target.with_name(stage.target.name + PARTIAL)
    if not partial.exists():
        return ("after the end", 1.0) if stage.target.exists() else ("before the file", 0.0)
    found = examine(partial, items=True, seconds=PATIENCE)["items"]
    if found is None:
        return "unreadable", 0.0
    where = "before the first item" if not found else "in the middle" if len(found) < stage.items else "finishing"
    return where, len(found) / stage.items


def proven(target: Path) -> tuple[str, int]:
    """Content digest and number of items, after every value was read. Raises RuntimeError."""
    with open_artifact(target) as artifact:
        wrong = [f"{what}: {reason}" for what, reason in verify(artifact) if reason]
        if wrong:
            raise RuntimeError(f"{target}: {'; '.join(wrong)}")
        return artifact.digest, len(artifact)


def clear(target: Path) -> None:
    for path in target.parent.glob(f"{target.name}*"):
        path.unlink()


def judged(stage: Unbroken) -> str | None:
    """What is wrong with a result that should be that of the unbroken run."""
    try:
        digest, _ = proven(stage.target)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    beside = sorted(path.name for path in stage.target.parent.glob(f"{stage.target.name}?*"))
    if beside:
        return f"left behind: {', '.join(beside)}"
    return None if digest == stage.digest else f"its digest is {digest}, not {stage.digest}"


def random_round(stage: Unbroken, rounds: Rounds, chance: random.Random, *, chain: int) -> None:
    """Kill up to `chain` times, each run going on from the last, then let it end."""
    clear(stage.target)
    rounds.rounds += 1
    share, resume = 0.0, False
    for number in range(1, chain + 1):
        process = start(stage.folder, *stage.command(*(["--resume"] if resume else [])))
        wait_for_work(process, stage.target)
        if not struck(process, chance.uniform(0, stage.seconds * (1 - share) + (EXAMINING if resume else 0.0))):
            rounds.missed += 1
            break
        left = left_by_kill(stage)
        rounds.note(left)
        rounds.longest_chain = max(rounds.longest_chain, number)
        share, resume = left[1], True
    finish(stage, rounds, "killed at random")


def finish(stage: Unbroken, rounds: Rounds, how: str) -> None:
    """Go on to the end, and judge."""
    try:
        rounds.begun_anew += "starting from the first image" in check(start(stage.folder, *stage.command("--resume")))
        wrong = judged(stage)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    if wrong:
        rounds.wrong.append(f"round {rounds.rounds} ({how}): {wrong}")


def killed_at_random(stage: Unbroken, kills: int, chance: random.Random, told: Callable[[str], None]) -> Rounds:
    rounds = Rounds()
    while rounds.kills < kills and rounds.missed <= 3 * kills:
        chain = 1 if rounds.rounds % 2 else min(kills - rounds.kills, chance.randint(2, LONGEST_CHAIN))
        random_round(stage, rounds, chance, chain=chain)
        told(f"{stage.name}: {rounds.kills} of {kills} kills")
    return rounds


def killed_at(stage: Unbroken, steps: Sequence[str], told: Callable[[str], None]) -> Rounds:
    """A round for each step that benchmarks/kill_victim.py knows."""
    rounds = Rounds()
    for step in steps:
        clear(stage.target)
        rounds.rounds += 1
        process = start(stage.folder, *stage.command(), victim=step)
        said = process.communicate(timeout=PATIENCE)[1]
        if process.returncode != -signal.SIGKILL:
            rounds.wrong.append(f"{stage.name}: not killed at {step!r}: {said}")
            continue
        rounds.note(left_by_kill(stage))
        finish(stage, rounds, step)
        told(f"{stage.name}: killed at {step!r}")
    return rounds


def some_writes(stage: Unbroken, number: int, chance: random.Random) -> list[str]:
    """Steps `write N` with N drawn from all writes of an unbroken run."""
    clear(stage.target)
    said = check(start(stage.folder, *stage.command(), victim="write 0"))
    writes = int(said.rpartition("writes: ")[2])
    if not writes:
        raise RuntimeError("no write was counted; kill_victim.py does not replace what makes the file")
    return [f"write {chance.randint(1, writes)}" for _ in range(number)]


# The stages


def prepare(folder: Path) -> None:
    """Sample data and a network of a few steps."""
    check(start(folder, "sample-data"))
    check(start(folder, "pretrain", "--steps", "30"))


def gather(folder: Path, images: int) -> Path:
    """A folder with the first images of the sample data, from all of its splits."""
    found = sorted(path for path in (folder / "data").rglob("*.png") if path.parent.name == "images")[:images]
    gathered = folder / f"images-{len(found)}"
    gathered.mkdir(exist_ok=True)
    for number, path in enumerate(found):
        shutil.copy(path, gathered / f"{number:04d}.png")
    return gathered


def stages(folder: Path, images: int, *, runs: int) -> Iterator[Unbroken]:
    """`predict` and `pseudo-label` of so many images, measured; the second reads the first's unbroken result."""
    logits = folder / f"logits-{images}.h5"
    gathered = str(gather(folder, images))
    check(start(folder, "predict", gathered, "--out", str(logits), "--force"))
    target = folder / "killed" / str(images)
    target.mkdir(parents=True, exist_ok=True)
    for stage in (
        Unbroken("predict", folder, ("predict", gathered), target / "logits.h5"),
        Unbroken("pseudo-label", folder, ("pseudo-label", "--logits", str(logits)), target / "labels.h5"),
    ):
        stage.measure(runs)
        yield stage


def table(found: dict[str, Any]) -> str:
    lines = [f"seed {found['seed']}, {found['seconds']:.0f} s in all"]
    for entry in found["stages"]:
        kept = entry["items_kept"]
        lines += [
            f"{entry['stage']}, {entry['items']} images, {entry['work_seconds']:.1f} s without a break, {entry['how']}",
            f"  {entry['kills']} kills in {entry['rounds']} rounds, at most {entry['longest_chain'] or 1} in a row; "
            f"{entry['missed']} runs ended before their kill",
            "  hit: " + ", ".join(f"{where} {number}" for where, number in entry["left"].items()),
            f"  share of the items kept: {kept['least']:.2f} to {kept['most']:.2f}, median {kept['median']:.2f}; "
            f"begun anew {entry['begun_anew']}",
            f"  rounds that did not end in the unbroken run's digest: {len(entry['wrong'])}",
            *(f"    {wrong}" for wrong in entry["wrong"]),
        ]
    return "\n".join(lines)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    began, chance = time.monotonic(), random.Random(options.seed)

    def told(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    prepare(folder)
    found = []
    for stage in stages(folder, options.images, runs=3):
        found.append((stage, "killed at random moments", killed_at_random(stage, options.kills, chance, told)))
    for stage in stages(folder, FEW, runs=1):
        found.append((stage, "killed once at each step of finishing", killed_at(stage, list(STEPS), told)))
        writes = some_writes(stage, options.writes, chance)
        found.append((stage, "killed at random writes to the file", killed_at(stage, writes, told)))
    entries = [
        {
            "stage": stage.name,
            "how": how,
            "items": stage.items,
            "work_seconds": stage.seconds,
            "digest": stage.digest,
            **rounds.document(),
        }
        for stage, how, rounds in found
    ]
    return {
        "seed": options.seed,
        "seconds": time.monotonic() - began,
        "all_equal": not any(entry["wrong"] for entry in entries),
        "stages": entries,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill, resume, compare.")
    parser.add_argument("--kills", type=int, default=30, help="random kills of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=360, help="images of each run; the sample data have 360")
    parser.add_argument("--writes", type=int, default=30, help="kills at random writes of each stage")
    parser.add_argument("--quick", action="store_true", help="fork runs from a process that has torch loaded")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kill_victim.forking = options.quick
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options)
    sys.stdout.write(f"{json.dumps(found, indent=2) if options.json else table(found)}\n")
    sys.exit(0 if found["all_equal"] else 1)


if __name__ == "__main__":
    main()
