"""Owns the comparison of adaptations on trained runs: what docs/results/calsfda.json and dacal.json hold.

    calseg init --sample camvid_day_to_dusk && calseg pretrain && calseg train-valuenet
    python benchmarks/adaptation_study.py FOLDER [FOLDER ...] --out docs/results/calsfda.json
    python benchmarks/adaptation_study.py --show docs/results/calsfda.json     # the tables of docs/calsfda.md

FOLDER holds the configuration and the run of one pair. Each method adapts the source network to the target's images
under a run name of its own and is measured on the target's test split; every record has pair, method, seed, miou, macc,
ece, nll with 95 % intervals over images and the paired difference to AdaBN. Labels of the target measure, nothing else.
Without `--methods` those of docs/calsfda.md are run. `--seeds` adapts with those seeds from the one source network.
What is there already is not done again, so a stopped study goes on. The commands are those a person would type.
METHOD/calibrated is a method's network measured with a calibrator that `calseg calibrate --method dacal` fitted to it,
without target labels. DA-Cal's records also hold the difference to its base, hard labels on the same frame.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from study_tables import tables

KEYS = ("miou", "macc", "accuracy", "ece", "signed_gap", "nll")
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
    "dacal/hard-complement": ("--method", "dacal", "--set", "adapt.dacal.hard_weight=1"),
}
CALIBRATED = "/calibrated"
METHODS |= {
    name + CALIBRATED: METHODS[name]
    for name in ("adabn", "self-training-hard", "dacal", "dacal/half-hard", "dacal/late")
}
ONE_PAPER = ("source-only", "adabn", "tent", "cbst", *(name for name in METHODS if name.startswith("calsfda")))
BASELINE = "adabn"


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
            adapted = method.removesuffix(CALIBRATED)
            self._adapt(adapted, seed)
            network = self._network(adapted, seed)
            words = ("evaluate", "--checkpoint", network, "-o", str(out.parent.relative_to(self.folder)))
            if adapted != method:
                words = (*words, "--calibrator", self._calibrator(network, out.parent.parent))
            text = self.calseg(*words, "--json", "--intervals", self.resamples, "--name", self._run(method, seed))
            out.write_text(text, encoding="utf-8")
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return document

    def _adapt(self, method: str, seed: int) -> None:
        if METHODS[method]:
            start = ("--checkpoint", str(self.runs / self.pair / "1-pretrain"), "--name", self._run(method, seed))
            guide = self.folder / self.runs / self.pair / "3-valuenet/valuenet.safetensors"
            guided = "calsfda" in method and "no-guidance" not in method
            words = (*METHODS[method], *start, "--seed", str(seed), "--resume")
            self.calseg("adapt", *words, *(("--valuenet", str(guide)) if guided else ()))

    def _calibrator(self, network: str, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "calibrator.h5"
        self.calseg("calibrate", "--method", "dacal", "--checkpoint", network, "-o", str(file), "--force")
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


def base_of(method: str) -> str | None:
    """Hard labels on the frame that a variant of DA-Cal or its calibrator builds on; None for another method.

    >>> base_of("dacal/half-hard"), base_of("dacal/mic"), base_of("self-training-hard/calibrated"), base_of("tent")
    ('self-training-hard', 'self-training-hard/mic', 'self-training-hard', None)
    """
    if method == "self-training-hard" + CALIBRATED:
        return "self-training-hard"
    name, _, variant = method.partition("/")
    if name != "dacal":
        return None
    return "self-training-hard" + (f"/{variant}" if variant in ("daformer", "mic") else "")


def differences(records: list[dict[str, Any]]) -> str:
    """A table of what DA-Cal changes against its base, with paired 95 % intervals; nothing without such records."""
    lines = ["| pair | seed | method | mIoU, points | ECE, points |", "|---|---|---|---|---|"]
    for one in records:
        if "difference_to_base" in one:
            changed = one["difference_to_base"]
            cells = [
                f"{100 * changed[key]['value']:+.2f} ({100 * changed[key]['low']:+.2f} to "
                f"{100 * changed[key]['high']:+.2f})"
                for key in ("miou", "ece")
            ]
            lines.append(f"| {one['pair']} | {one['seed']} | {one['method']} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def main() -> None:
    """Study every folder; write the records after each method, so that a stop loses little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--show", type=Path, help="print the tables of such a file instead")
    parser.add_argument("--out", type=Path, default=Path("docs/results/calsfda.json"))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(ONE_PAPER), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    if options.show:
        records = json.loads(options.show.read_text(encoding="utf-8"))
        print(tables(records, ("pair", "seed"), "{}, seed {}", "difference_to_adabn"))
        print(differences(records))
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
