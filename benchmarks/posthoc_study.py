"""Owns the comparison of all post-hoc corrections on trained runs: what docs/results/posthoc.json holds.

    calseg init --sample camvid_day_to_dusk && calseg pretrain && calseg adapt --method adabn
    python benchmarks/posthoc_study.py FOLDER [FOLDER ...] --out docs/results/posthoc.json
    python benchmarks/posthoc_study.py --show docs/results/posthoc.json     # the tables of docs/posthoc.md
    python benchmarks/posthoc_study.py FOLDER --methods "dacal*" --networks adapt-adabn --out variants.json

FOLDER holds the configuration and the run of one pair. For each network, the source's and the one after AdaBN, logits
of the target's train and test images are written; prototypes are counted on the train images, calibrators fitted as
`calseg calibrate` does by default (on the labelled source validation split; pseudocal on unlabelled target images;
dacal on these and the source's train and validation splits; the oracle on labels of the target's test split, to show
what nobody can have). "temperature, source's statistics" is fitted on the source's network, whichever is corrected. All
are measured on the target's test split.

Without `--methods` all but two groups are run: DA-Cal's variants ("dacal, ...", docs/dacal.md), and what balances
classes ("blda, ..." and "logit adjustment, ...", docs/blda.md). With it, what the file has of other methods is
kept. `--scores` names the columns of `--show`.

Each record: pair, network, method, seed, labels, miou, macc, ece, nll with 95 % intervals over images, and the paired
difference to the uncorrected network. Labels of the target measure and fit the oracle, nothing else. The commands are
those a person would type; a failed one is recorded with what it said.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from study_tables import NAMES, SHOWN, class_tables, tables

KEYS = ("miou", "macc", "accuracy", "accuracy_spread", "iou_spread", "ece", "nll")
NETWORKS = ("pretrain", "adapt-adabn")
PROTOTYPES = {
    "prototypes, weight power 0": ("--weight-power", "0"),
    "prototypes, weight power 1 (paper)": ("--weight-power", "1"),
    "prototypes, weight power 2": ("--weight-power", "2"),
    "prototypes, half shrunk": ("--shrink", "0.5"),
    "prototypes, kl": ("--distance", "kl"),
}
CALIBRATORS = {
    "temperature": ("--method", "temperature"),
    "temperature, source's statistics": ("--method", "temperature", "--checkpoint", "pretrain"),
    "pseudocal": ("--method", "pseudocal"),
    "dacal": ("--method", "dacal"),
    "vector": ("--method", "vector"),
    "selective": ("--method", "selective"),
    "meta": ("--method", "meta"),
    "local": ("--method", "local"),
    "oracle: temperature": ("--method", "temperature", "--on", "target"),
}
VARIANTS: dict[str, dict[str, str]] = {
    "dacal, route last-layer": {"route": "last-layer"},
    "dacal, route network": {"route": "network"},
    "dacal, outer source": {"outer": "source"},
    "dacal, outer source+hard": {"outer": "source+hard"},
    "dacal, route last-layer, outer source+hard": {"route": "last-layer", "outer": "source+hard"},
    "dacal, mask same": {"mask": "same"},
    "dacal, mask own": {"mask": "own"},
}
CALIBRATORS |= {
    name: (
        "--method",
        "dacal",
        *(word for key, value in chosen.items() for word in ("--set", f"adapt.dacal.{key}={value}")),
    )
    for name, chosen in VARIANTS.items()
}
BALANCING: dict[str, tuple[str, ...]] = {
    "blda, auto": ("--method", "blda"),
    "blda, auto as expected": ("--method", "blda", "--set", "calibrate.tau_by=expected"),
    "blda, anchors of the target, tau 0.6": ("--method", "blda", "--tau", "0.6", "--set", "calibrate.anchors=target"),
    "blda, anchors weighing classes alike, auto": ("--method", "blda", "--set", "calibrate.anchor_weights=classes"),
    "blda, cells of the source, auto": ("--method", "blda", "--set", "calibrate.cells=source"),
    "blda, cells of the source, tau 0.3": ("--method", "blda", "--tau", "0.3", "--set", "calibrate.cells=source"),
    "logit adjustment, auto": ("--method", "logit-adjustment"),
    "logit adjustment, auto as expected": ("--method", "logit-adjustment", "--set", "calibrate.tau_by=expected"),
    "logit adjustment, predicted frequencies, auto": (
        *("--method", "logit-adjustment"),
        *("--set", "calibrate.prior=pseudo"),
    ),
}
CALIBRATORS |= BALANCING
STRENGTHS: dict[str, tuple[str, tuple[str, ...]]] = {
    name: (f"{method}, auto", words)
    for method in ("blda", "logit adjustment")
    for name, words in (
        *((f"{method}, tau {tau}", ("--tau", tau)) for tau in ("0.1", "0.3", "0.6", "1")),
        (f"{method}, auto for mAcc", ("--tau-for", "macc")),
    )
}
"""Made `--from` the calibrator of another method, which is fitted before them."""
PLAIN = "none"
METHODS = (PLAIN, *PROTOTYPES, *CALIBRATORS, *STRENGTHS)
Key = tuple[str, str, str]


class Study:
    """One folder with a trained run."""

    def __init__(self, folder: Path, work: Path, resamples: int, config: str) -> None:
        self.folder, self.work, self.resamples, self.config = folder, work, str(resamples), config
        self.pair = json.loads(self.calseg("config", "show", "--json"))["config"]["name"]

    def calseg(self, *words: str) -> str:
        """What a command printed. Raises CalledProcessError."""
        program = [sys.executable, "-m", "calseg_cli", *words, "--config", self.config, "--quiet"]
        print("$ calseg", shlex.join(words), file=sys.stderr, flush=True)
        done = subprocess.run(program, cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout

    def records(self, network: str, methods: Sequence[str]) -> list[dict[str, Any]]:
        """Those methods on one network; the uncorrected one, which all are compared with, always."""
        splits = ("train", "test") if set(methods) & set(PROTOTYPES) else ("test",)
        logits = {split: str(self.work / f"{self._name(network)}-{split}.h5") for split in splits}
        for split, path in logits.items():
            self.calseg("predict", "--checkpoint", network, "--split", split, "-o", path, "--force")
        found = [self._measured(network, PLAIN, logits["test"])]
        for method in methods:
            file = self._file(network, method)
            written = ("-o", file, "--force")
            if method in PROTOTYPES:
                words = ("calibrate-prototypes", "--logits", logits["train"], *PROTOTYPES[method], *written)
                found.append(self._tried(network, method, words, ("--prototypes", file), logits["test"]))
            elif method in CALIBRATORS:
                words = ("calibrate", "--checkpoint", network, *CALIBRATORS[method], *written)
                found.append(self._tried(network, method, words, ("--calibrator", file), logits["test"]))
            elif method in STRENGTHS:
                start, chosen = STRENGTHS[method]
                words = ("calibrate", "--from", self._file(network, start), *chosen, *written)
                found.append(self._tried(network, method, words, ("--calibrator", file), logits["test"]))
        return found

    def _file(self, network: str, method: str) -> str:
        return str(self.work / f"{self._name(network)}-{re.sub(r'[^-.0-9A-Za-z]+', '_', method)}.h5")

    def _name(self, network: str) -> str:
        return f"{self.pair}-{re.sub(r'[^-.0-9A-Za-z]+', '_', network)}"

    def _tried(
        self, network: str, method: str, words: tuple[str, ...], flag: tuple[str, str], logits: str
    ) -> dict[str, Any]:
        try:
            self.calseg(*words)
            return self._measured(network, method, logits, *flag)
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            return {**self._named(network, method), "failed": said[0] if said else str(error)}

    def _named(self, network: str, method: str) -> dict[str, Any]:
        return {"pair": self.pair, "network": network, "method": method, "seed": 0}

    def _measured(self, network: str, method: str, logits: str, *flag: str) -> dict[str, Any]:
        folder = self.work / "evaluated" / Path(self._file(network, method)).stem
        words = ("evaluate", "--logits", logits, *flag, "-o", str(folder), "--json", "--intervals", self.resamples)
        document = json.loads(self.calseg(*words))
        intervals = document["intervals"]["scores"]
        record = self._named(network, method)
        record |= {"labels": document["protocol"].get("labels_used_for", "measuring only")}
        for key in KEYS:
            record[key] = document["scores"][key]
            record[f"{key}_95"] = intervals.get(key)
        record["class_iou"] = {one["name"]: one["iou"] for one in document["classes"]}
        if method != PLAIN:
            record["difference"] = self._difference(network, folder)
        return record

    def _difference(self, network: str, folder: Path) -> dict[str, Any]:
        plain = self.work / "evaluated" / Path(self._file(network, PLAIN)).stem
        words = ("compare", str(plain), str(folder), "--resamples", self.resamples, "--json")
        rows = json.loads(self.calseg(*words))["differences"][0]["scores"]
        return {key: rows[key] for key in KEYS if key in rows}


def chosen_methods(patterns: Sequence[str] | None) -> list[str]:
    """The methods that any of the patterns names, in the order of the table; all but DA-Cal's variants without one.

    >>> chosen_methods(["dacal", "none"]), len(chosen_methods(["dacal, *"]))
    (['none', 'dacal'], 7)
    """
    if patterns is None:
        return [name for name in METHODS if name not in (*VARIANTS, *BALANCING, *STRENGTHS)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in METHODS):
            sys.exit(f"no method is called {pattern!r}; there are: {'; '.join(METHODS)}")
    named = {name for name in METHODS if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return [name for name in METHODS if name in named | {STRENGTHS[one][0] for one in named & STRENGTHS.keys()}]


def key_of(record: dict[str, Any]) -> Key:
    """What a record is of."""
    return record["pair"], record["network"], record["method"]


def kept_records(path: Path) -> dict[Key, dict[str, Any]]:
    """The records of a file by what they are of; none where there is no file."""
    records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {key_of(one): one for one in records}


def in_order(records: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Networks as they came, the methods of each as the tables above have them."""
    networks = list(dict.fromkeys(key[:2] for key in records))
    return [records[key] for key in sorted(records, key=lambda key: (networks.index(key[:2]), METHODS.index(key[2])))]


def main() -> None:
    """Study every folder; write the records after each network, so that a stop loses little."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--show", type=Path, help="print the tables of such a file instead")
    parser.add_argument("--out", type=Path, default=Path("docs/results/posthoc.json"))
    parser.add_argument("--classes", action="store_true", help="with --show, the IoU of each class too")
    parser.add_argument("--scores", nargs="+", choices=list(NAMES), default=list(SHOWN), help="columns to print")
    parser.add_argument("--work", type=Path, default=Path("runs/posthoc_study"), help="where artifacts are kept")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="names, or patterns such as 'dacal*'")
    parser.add_argument("--config", default="calseg.yaml", help="the configuration's name in each folder")
    options = parser.parse_args()
    if options.show:
        records = json.loads(options.show.read_text(encoding="utf-8"))
        print(tables(records, ("pair", "network"), "{}, {}", "difference", options.scores))
        if options.classes:
            print(class_tables(records, ("pair", "network"), "{}, {}"))
        return
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    chosen = chosen_methods(options.methods)
    records = kept_records(options.out) if options.methods else {}
    for folder in options.folders:
        study = Study(folder.resolve(), work, options.resamples, options.config)
        for network in options.networks:
            records |= {key_of(one): one for one in study.records(network, chosen)}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(in_order(records), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
