"""Owns the question whether soft pseudo-labels are worse than hard ones, and why: what docs/soft_vs_hard.md says.

    python benchmarks/soft_vs_hard.py                                   # the small world, seeds 0 to 2, about an hour
    python benchmarks/soft_vs_hard.py --seeds 0 --arms hard soft        # minutes
    python benchmarks/soft_vs_hard.py --show docs/results/soft_vs_hard.json     # tables and claims of a file
    python benchmarks/soft_vs_hard.py --show FILE --course soft         # how the runs of an arm went
    python benchmarks/soft_vs_hard.py --pair FOLDER --out FILE          # the same question on real images

Every arm differs from the others in what target pixels are taught, and in nothing else: same seed, images and masks,
and the same steps on source images alone at first. The claims are looked at over all seeds with 600 steps; with
`--check` one that is not met makes the exit status 1. `--out` (docs/results/soft_vs_hard.json by default with the
small world) is written after each arm, and what it holds is not done again. Arms with "oracle" read labels of target
images. FOLDER holds calseg.yaml and a run after `calseg pretrain`; its records go to FOLDER/soft_vs_hard.json by
default.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from soft_vs_hard_arms import ARMS, LONG, SHORT, begin, run
from soft_vs_hard_pair import METHODS, study
from soft_vs_hard_toy import World
from study_tables import tables

Record = dict[str, Any]
OUT = Path("docs/results/soft_vs_hard.json")
COLUMNS = {"miou": "mIoU", "ece": "ECE", "nll": "NLL", "teacher_ece": "teacher's ECE"}


# The claims


class Means:
    """Means over seeds of what arms reached in a number of steps; percent but for the NLL."""

    def __init__(self, records: Sequence[Record], steps: int = SHORT) -> None:
        self.records = [one for one in records if one["steps"] == steps]

    def each(self, arm: str, key: str) -> list[float]:
        scale = 1 if key == "nll" else 100
        return [scale * one[key] for one in self.records if one["arm"] == arm]

    def __call__(self, arm: str, key: str) -> float:
        """Raises StatisticsError where the arm is missing."""
        return statistics.fmean(self.each(arm, key))


Claim = tuple[str, Callable[[Means], float], Callable[[float], bool]]
CLAIMS: list[Claim] = [
    (
        "with a shift hard labels are better: mIoU(hard) - mIoU(soft) >= 8",
        lambda of: of("hard", "miou") - of("soft", "miou"),
        lambda value: value >= 8,
    ),
    (
        "without a shift they are not: the same within 2",
        lambda of: of("in-domain/hard", "miou") - of("in-domain/soft", "miou"),
        lambda value: abs(value) <= 2,
    ),
    (
        "classes drawn from soft labels teach what these do: mIoU(sampled) - mIoU(soft) within 4",
        lambda of: of("sampled", "miou") - of("soft", "miou"),
        lambda value: abs(value) <= 4,
    ),
    (
        "one right temperature closes the gap: mIoU(oracle) - mIoU(hard) >= -4",
        lambda of: of("oracle-temperature", "miou") - of("hard", "miou"),
        lambda value: value >= -4,
    ),
    (
        "and calibrates: ECE(oracle) - ECE(hard) < 0",
        lambda of: of("oracle-temperature", "ece") - of("hard", "ece"),
        lambda value: value < 0,
    ),
    (
        "dacal calibrates: ECE(dacal) - ECE(hard) < -1",
        lambda of: of("dacal", "ece") - of("hard", "ece"),
        lambda value: value < -1,
    ),
    (
        "dacal closes the gap: mIoU(dacal) - mIoU(soft) > 8",
        lambda of: of("dacal", "miou") - of("soft", "miou"),
        lambda value: value > 8,
    ),
]


def judged(records: Sequence[Record]) -> list[tuple[str, float, bool]]:
    """Claim, its value in points, and whether it is met; claims whose arms are missing are left out."""
    of, found = Means(records), []
    for text, value, met in CLAIMS:
        try:
            points = value(of)
        except statistics.StatisticsError:
            continue
        found.append((text, points, met(points)))
    return found


# What is printed


def shown(records: Sequence[Record]) -> str:
    """A table for each length, then the claims, as Markdown."""
    lines: list[str] = []
    for steps in sorted({one["steps"] for one in records}):
        lines += [*_table(records, steps), ""]
    claims = judged(records)
    if claims:
        seeds = sorted({one["seed"] for one in records if one["steps"] == SHORT})
        lines += [f"| claim ({SHORT} steps, seeds {', '.join(map(str, seeds))}) | points | |", "|---|---|---|"]
        lines += [f"| {text} | {points:+.1f} | {'met' if met else 'NOT met'} |" for text, points, met in claims]
    return "\n".join(lines).rstrip()


def _table(records: Sequence[Record], steps: int) -> list[str]:
    of = Means(records, steps)
    machines = ", ".join(sorted({one["machine"] for one in of.records}))
    lines = [f"### {steps} steps ({machines})", ""]
    lines += [
        f"| arm | seeds |{''.join(f' {name} |' for name in COLUMNS.values())}",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for arm in [name for name in ARMS if of.each(name, "miou")]:
        label = arm + (" (oracle)" if ARMS[arm].oracle else "")
        cells = [_cell(of.each(arm, key), key) for key in COLUMNS]
        lines.append(f"| {label} | {len(of.each(arm, 'miou'))} | {' | '.join(cells)} |")
    return lines


def _cell(values: Sequence[float], key: str) -> str:
    digits = 2 if key == "nll" else 1
    mean = f"{statistics.fmean(values):.{digits}f}"
    each = " / ".join(f"{value:.{digits}f}" for value in values)
    return f"**{mean}** ({each})" if len(values) > 1 and key in ("miou", "ece") else mean


def course(records: Sequence[Record], arm: str) -> str:
    """How the runs of an arm went, a table a run."""
    lines: list[str] = []
    head = "| step | mIoU | ECE | teacher sure | teacher right | T | at bound | hard again | quality | class shares |"
    for one in records:
        if one["arm"] == arm:
            lines += [f"### {arm}, seed {one['seed']}, {one['steps']} steps", "", head, "|---" * 10 + "|"]
            lines += [_moment(moment) for moment in one["course"]] + [""]
    return "\n".join(lines).rstrip()


def _moment(of: dict[str, Any]) -> str:
    cells = [str(of["step"]), *(f"{100 * of[key]:.1f}" for key in ("miou", "ece", "confidence", "accuracy"))]
    for key in ("temperature_mean", "temperature_at_bound", "fallen_back", "quality"):
        cells.append(f"{of[key]:.2f}" if key in of else "")
    return f"| {' | '.join(cells)} | {' '.join(f'{share:.2f}' for share in of['shares'])} |"


# What is run


def small_world(options: argparse.Namespace, records: list[Record]) -> None:
    """Every arm that the records do not hold; they are written after each."""
    out = options.out or OUT
    torch.set_num_threads(1)
    for steps in options.steps:
        for seed in options.seeds:
            done = {one["arm"] for one in records if (one["seed"], one["steps"]) == (seed, steps)}
            wanted = [name for name in options.arms if steps in ARMS[name].lengths and name not in done]
            start = begin(World(seed), steps) if wanted else {}
            for name in wanted:
                print(f"{name}, seed {seed}, {steps} steps", file=sys.stderr, flush=True)
                records.append(run(name, seed, steps, start))
                write(out, records)


def write(out: Path, records: Sequence[Record]) -> None:
    """The records as JSON, one a line; whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text("[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]\n", encoding="utf-8")
    part.replace(out)


def read(file: Path) -> list[Record]:
    """What a file holds; nothing where there is none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.pair:
        out = options.out or options.pair / "soft_vs_hard.json"
        records = study(options.pair, options.methods, options.seeds, lambda rows: write(out, rows))
        print(tables(records, ("pair", "seed"), "{}, seed {}", "difference_to_hard"))
        return 0
    records = read(options.show or options.out or OUT)
    if not options.show:
        small_world(options, records)
    if options.course:
        print(course(records, options.course))
        return 0
    if records and "pair" in records[0]:
        print(tables(records, ("pair", "seed"), "{}, seed {}", "difference_to_hard"))
        return 0
    print(shown(records))
    return int(options.check and not all(met for _, _, met in judged(records)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--toy", action="store_true", help="the small world (default)")
    what.add_argument("--pair", type=Path, metavar="FOLDER", help="a folder with calseg.yaml and a trained run")
    what.add_argument("--show", type=Path, metavar="FILE", help="print what such a file holds instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the records go")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="0 1 2; of a pair: 0")
    parser.add_argument("--steps", type=int, nargs="+", choices=(SHORT, LONG), default=[SHORT, LONG])
    parser.add_argument("--course", choices=list(ARMS), metavar="ARM", help="print how the runs of an arm went")
    parser.add_argument("--check", action="store_true", help="exit status 1 where a claim is not met")
    options = parser.parse_args(arguments)
    if options.show and not options.show.is_file():
        parser.error(f"there is no file {options.show}")
    if options.pair and not (options.pair / "calseg.yaml").is_file():
        parser.error(f"{options.pair} holds no calseg.yaml")
    options.seeds = options.seeds or ([0] if options.pair else [0, 1, 2])
    return options


if __name__ == "__main__":
    sys.exit(main())
