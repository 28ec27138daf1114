"""Owns the comparison of adaptations on trained runs: what docs/results/calsfda.json and dacal.json hold.

    calseg init --sample camvid_day_to_dusk && calseg pretrain && calseg train-valuenet
    python benchmarks/adaptation_study.py FOLDER [FOLDER ...] --out docs/results/calsfda.json
    python benchmarks/adaptation_study.py --show docs/results/calsfda.json     # the tables of docs/calsfda.md

FOLDER holds the configuration and the run of one pair. Each method adapts the source network to the target's images
under a run name of its own and is measured on the target's test split; every record has pair, method, seed, miou, macc,
ece, nll with 95 % intervals over images and the paired difference to AdaBN. Labels of the target measure, nothing else.
Without `--methods` those of docs/calsfda.md are run. `--seeds` adapts with those seeds from the one source network.
What is there already is not done again, so a stopped study goes on. The commands are those a person would type.
"self-training-hard/rare-classes" samples source images by rare classes and does nothing else of DAFormer.
METHOD/calibrated is a method's network measured with a calibrator that `calseg calibrate --method dacal` fitted to it,
without target labels; METHOD/settled with one temperature of it for all pixels, which is what `adapt --settle` divides
the result by (tests/commands/test_settling.py). Records of DA-Cal and BLDA also hold the difference to their base,
hard labels on the same frame.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study_tables import NAMES, SHOWN, class_tables, tables

KEYS = ("miou", "macc", "accuracy", "accuracy_spread", "iou_spread", "ece", "signed_gap", "nll")
LAST = ("--choose", "last")
PAPER = tuple(
    word for setting in ("settle=false", "trust=1.0", "portion=0.15") for word in ("--set", f"adapt.calsfda.{setting}")
)
ONE_STEP = tuple(
    word for setting in ("route=last-layer", "outer=source+hard") for word in ("--set", f"adapt.dacal.{setting}")
)
METHODS: dict[str, tuple[str, ...]] = {
    "source-only": (),
    "adabn": ("--method", "adabn"),
    "tent": ("--method", "tent"),
    "cbst": ("--method", "cbst"),
    "cbst/two-rounds": ("--method", "cbst", "--rounds", "2", *LAST),
    "calsfda": ("--method", "calsfda"),
    "calsfda/no-guidance": ("--method", "calsfda", "--guidance", "none"),
    "calsfda/paper": ("--method", "calsfda", *PAPER),
    "calsfda/paper-no-guidance": ("--method", "calsfda", "--guidance", "none", *PAPER),
    "calsfda/anchor": ("--method", "calsfda", "--set", "adapt.calsfda.anchor=3"),
    "calsfda/soft": ("--method", "calsfda", "--set", "adapt.calsfda.softness=temperature"),
    "calsfda/average": ("--method", "calsfda", "--average", "0.5"),
    "calsfda/portion-0.15": ("--method", "calsfda", "--portion", "0.15"),
    "calsfda/portion-0.6": ("--method", "calsfda", "--portion", "0.6"),
    "calsfda/two-rounds": ("--method", "calsfda", "--rounds", "2", *LAST),
    "self-training-hard": ("--method", "self-training"),
    "self-training-soft": ("--method", "self-training", "--labels", "soft"),
    "self-training-hard/no-class-weights": (
        *("--method", "self-training"),
        *("--set", "adapt.self_training.class_weights=none"),
    ),
    "self-training-hard/daformer": ("--method", "self-training", "--base", "daformer"),
    "self-training-hard/mic": ("--method", "self-training", "--base", "mic"),
    "dacal": ("--method", "dacal"),
    "dacal/daformer": ("--method", "dacal", "--base", "daformer"),
    "dacal/mic": ("--method", "dacal", "--base", "mic"),
    "dacal/last-layer": ("--method", "dacal", "--set", "adapt.dacal.route=last-layer"),
    "dacal/network": ("--method", "dacal", "--set", "adapt.dacal.route=network"),
    "dacal/one-step": ("--method", "dacal", *ONE_STEP),
    "dacal/outer-source": ("--method", "dacal", "--set", "adapt.dacal.outer=source"),
    "dacal/outer-source+hard": ("--method", "dacal", "--set", "adapt.dacal.outer=source+hard"),
    "dacal/same-mask": ("--method", "dacal", "--set", "adapt.dacal.mask=same"),
    "dacal/half-hard": ("--method", "dacal", "--set", "adapt.dacal.hard_share=0.5"),
    "dacal/late": ("--method", "dacal", "--set", "adapt.dacal.warm_up=225"),
    "self-training-hard/rare-classes": (
        *("--method", "self-training", "--base", "daformer"),
        *("--set", "adapt.self_training.feature_weight=0"),
    ),
    "self-training-hard/class-weights": (
        *("--method", "self-training"),
        *("--set", "adapt.self_training.class_weights=sqrt-inverse"),
    ),
    "blda": ("--method", "blda"),
    "blda/daformer": ("--method", "blda", "--base", "daformer"),
    "blda/mic": ("--method", "blda", "--base", "mic"),
    "blda/tau-0.5": ("--method", "blda", "--tau", "0.5"),
    "blda/tau-1": ("--method", "blda", "--tau", "1"),
    "blda/density": ("--method", "blda", "--set", "adapt.blda.density_weight=0.2"),
    "dacal+blda": ("--method", "dacal+blda"),
    "dacal/hard-complement": ("--method", "dacal", "--set", "adapt.dacal.hard_weight=1"),
}
CALIBRATED: dict[str, tuple[str, ...]] = {"/calibrated": (), "/settled": ("--set", "adapt.dacal.width=0")}
METHODS |= {
    name + suffix: METHODS[name]
    for name in (
        "adabn",
        "self-training-hard",
        "self-training-hard/mic",
        "dacal",
        "dacal/half-hard",
        "dacal/late",
        "blda",
    )
    for suffix in CALIBRATED
}
ONE_PAPER = ("source-only", "adabn", "tent", "cbst", *(name for name in METHODS if name.startswith("calsfda")))
BASELINE = "adabn"
WEIGHED = ("rare-classes", "class-weights")
PLUGINS = ("dacal", "blda", "dacal+blda")


class Study:
    """One folder with a trained run."""

    def __init__(self, folder: Path, resamples: int) -> None:
        self.folder, self.resamples = folder, str(resamples)
        config = json.loads(self.calseg("config", "show", "--json"))["config"]
        self.pair, self.runs = config["name"], Path(config["runs"])

    def calseg(self, *words: str) -> str:
        """What a command printed. Raises CalledProcessError."""
        program = [sys.executable, "-m", "calseg_cli", *words, "--quiet"]
        print("$ calseg", shlex.join(words), file=sys.stderr, flush=True)
        return subprocess.run(program, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def record(self, method: str, seed: int) -> dict[str, Any]:
        """Adapt and measure, or read what was measured before."""
        named = {"pair": self.pair, "method": method, "seed": seed}
        try:
            found = self._measured(method, seed)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            return {**named, "failed": said[0] if said else str(error)}
        scores, intervals = found["scores"], found["intervals"]["scores"]
        named["class_iou"] = {one["name"]: one["iou"] for one in found["classes"]}
        record = {**named, **{key: scores[key] for key in KEYS}}
        record |= {f"{key}_95": intervals[key] for key in KEYS if key in intervals}
        if method != BASELINE:
            record["difference_to_adabn"] = self._difference(method, seed, BASELINE)
        base = base_of(method)
        if base is not None:
            record["difference_to_base"] = self._difference(method, seed, base)
        return record

    def _run(self, method: str, seed: int) -> str:
        return f"study-{method.replace('/', '-')}-s{seed}"

    def _evaluated(self, method: str, seed: int) -> Path:
        return self.runs / self._run(method, seed) / "6-evaluate" / "study"

    def _measured(self, method: str, seed: int) -> dict[str, Any]:
        out = self.folder / self._evaluated(method, seed) / "study.json"
        if not out.is_file():
            adapted, fitted = parted(method)
            self._adapt(adapted, seed)
            network = self._network(adapted, seed)
            words = ("evaluate", "--checkpoint", network, "-o", str(out.parent.relative_to(self.folder)))
            if fitted is not None:
                words = (*words, "--calibrator", self._calibrator(network, out.parent.parent, fitted))
            text = self.calseg(*words, "--json", "--intervals", self.resamples, "--name", self._run(method, seed))
            out.write_text(text, encoding="utf-8")
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return document

    def _adapt(self, method: str, seed: int) -> None:
        done = (self.folder / self._network(method, seed) / "network.safetensors").is_file()
        if METHODS[method] and not done:
            start = ("--checkpoint", str(self.runs / self.pair / "1-pretrain"), "--name", self._run(method, seed))
            guide = self.folder / self.runs / self.pair / "3-valuenet/valuenet.safetensors"
            guided = "calsfda" in method and "no-guidance" not in method
            words = (*METHODS[method], *start, "--seed", str(seed), "--resume")
            self.calseg("adapt", *words, *(("--valuenet", str(guide)) if guided else ()))

    def _calibrator(self, network: str, folder: Path, options: tuple[str, ...]) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "calibrator.h5"
        if not file.is_file():
            self.calseg("calibrate", "--method", "dacal", "--checkpoint", network, *options, "-o", str(file))
        return str(file)

    def _network(self, method: str, seed: int) -> str:
        if not METHODS[method]:
            return str(self.runs / self.pair / "1-pretrain")
        return str(self.runs / self._run(method, seed) / f"4-adapt-{METHODS[method][1]}")

    def _difference(self, method: str, seed: int, other: str) -> dict[str, Any]:
        self._measured(other, seed)
        words = ("compare", *(str(self._evaluated(one, seed)) for one in (other, method)))
        rows = json.loads(self.calseg(*words, "--resamples", self.resamples, "--json"))["differences"][0]["scores"]
        return {key: rows[key] for key in KEYS if key in rows}


def parted(method: str) -> tuple[str, tuple[str, ...] | None]:
    """The method that adapts, and the calibrator's options; None where there is no calibrator.

    >>> parted("dacal/late/settled"), parted("dacal/late")
    (('dacal/late', ('--set', 'adapt.dacal.width=0')), ('dacal/late', None))
    """
    for suffix, options in CALIBRATED.items():
        if method.endswith(suffix):
            return method.removesuffix(suffix), options
    return method, None


def base_of(method: str) -> str | None:
    """Hard labels on the frame that a variant of DA-Cal or BLDA builds on, or a calibrator; None for another method.

    >>> base_of("dacal/half-hard"), base_of("dacal/mic"), base_of("self-training-hard/calibrated"), base_of("tent")
    ('self-training-hard', 'self-training-hard/mic', 'self-training-hard', None)
    """
    adapted, fitted = parted(method)
    name, _, variant = adapted.partition("/")
    if name == "self-training-hard" and (fitted is not None or variant in WEIGHED):
        return adapted if fitted is not None else name
    if name not in PLUGINS:
        return None
    return "self-training-hard" + (f"/{variant}" if variant in ("daformer", "mic") else "")


def differences(records: list[dict[str, Any]], shown: Sequence[str]) -> str:
    """A table of what is changed against the base, with paired 95 % intervals; nothing without such records."""
    lines = [
        f"| pair | seed | method |{''.join(f' {NAMES[key]}, points |' for key in shown)}",
        "|---" * (3 + len(shown)) + "|",
    ]
    for one in records:
        if "difference_to_base" in one:
            changed = one["difference_to_base"]
            cells = [
                f"{100 * changed[key]['value']:+.2f} ({100 * changed[key]['low']:+.2f} to "
                f"{100 * changed[key]['high']:+.2f})"
                for key in shown
            ]
            lines.append(f"| {one['pair']} | {one['seed']} | {one['method']} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def main() -> None:
    """Study every folder; write the records after each method, so that a stop loses little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--show", type=Path, help="print the tables of such a file instead")
    parser.add_argument("--classes", action="store_true", help="with --show, the IoU of each class too")
    parser.add_argument("--scores", nargs="+", choices=list(NAMES), default=list(SHOWN), help="columns of --show")
    parser.add_argument("--differences", nargs="+", choices=list(NAMES), default=["miou", "ece"], help="to the base")
    parser.add_argument("--out", type=Path, default=Path("docs/results/calsfda.json"))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(ONE_PAPER), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    if options.show:
        records = json.loads(options.show.read_text(encoding="utf-8"))
        print(tables(records, ("pair", "seed"), "{}, seed {}", "difference_to_adabn", options.scores))
        print(differences(records, options.differences))
        if options.classes:
            print(class_tables(records, ("pair", "seed"), "{}, seed {}"))
        return
    records: list[dict[str, Any]] = []
    for folder in options.folders:
        study = Study(folder.resolve(), options.resamples)
        for seed in options.seeds:
            for method in options.methods:
                records.append(study.record(method, seed))
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
