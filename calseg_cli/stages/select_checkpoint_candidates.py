"""Owns which checkpoints are there to choose from: every network of a folder once, the broken ones with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import Resolved
from calseg_cli.errors import ArtifactError
from calseg_cli.stages.domains import domain_layout
from calseg_cli.stages.run_folder import NETWORK, RunFolder, find_network

_SUFFIX = ".safetensors"
_UNKNOWN = -1


@dataclass(frozen=True)
class Candidate:
    """One checkpoint: how it is called, where it lies, its step (-1 where unknown), why it cannot be read, if so."""

    name: str
    path: Path
    step: int
    facts: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its outputs stand for."""
        return tuple(self.facts["classes"]["names"])

    @property
    def counts(self) -> Path:
        """Where training keeps the counts of its validation."""
        return self.path.with_suffix(".h5")


def find_folder(run: RunFolder, asked: str | None) -> Path:
    """The folder of checkpoints: a path, a stage's short name such as "adapt-adabn", or pretrain's of the run.

    Raises ArtifactError where it is not there.
    """
    if asked is None:
        folder = run.pretrain
    elif Path(asked).is_dir():
        folder = Path(asked)
    else:
        named = [path for path in _folders(run.root) if path.name.partition("-")[2] == asked]
        folder = named[0] if named else Path(asked)
    if not folder.is_dir():
        known = ", ".join(path.name.partition("-")[2] for path in _folders(run.root)) or "nothing yet"
        raise ArtifactError(f"there is no folder {folder} of checkpoints", f"{run.root} holds {known}")
    return folder


def find_candidates(folder: Path, resolved: Resolved, *, but: Path) -> list[Candidate]:
    """Every network in `folder` and one level below, by step; what lies in `but` is left out.

    A file that is no whole checkpoint, or is of other classes than the configured source (else: than the first), is
    among them as refused. Of copies of one network the one with kept counts stays, or else the deeper one. Raises
    ArtifactError where there is no network at all.
    """
    files = [path for path in (*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*/*{_SUFFIX}")) if _counts(path, folder)]
    found = [_read(path, folder) for path in sorted(files) if path.parent.resolve() != but.resolve()]
    networks = [one for one in found if one.refused is not None or one.facts.get("kind") == "network"]
    if not networks:
        raise ArtifactError(
            f"{folder} holds no checkpoint", "pretrain.keep=all keeps them while training, --checkpoints names another"
        )
    ordered = sorted(_named_apart(_without_copies(networks), folder), key=lambda one: (one.step, one.name))
    return _of_one_class_list(ordered, resolved)


def find_start(candidates: Sequence[Candidate], run: RunFolder, asked: str | None) -> Candidate:
    """What the candidates are held against when no label is: the network that they started from.

    That is the one asked for, the one whose digest they record, or, where there is none, the last checkpoint of a
    pretraining and the first one of anything else. Raises ArtifactError for one asked for that cannot be used.
    """
    usable = [one for one in candidates if one.refused is None]
    path = find_network(run, asked) if asked is not None else _recorded_start(usable, run)
    if path is None:
        return usable[-1] if usable[-1].facts.get("stage") == "pretrain" else usable[0]
    facts = read_facts(path)
    same = [one for one in usable if one.facts["tensors_sha256"] == facts["tensors_sha256"]]
    if same:
        return same[0]
    if facts["classes"]["names"] != usable[0].facts["classes"]["names"]:
        raise ArtifactError(f"{path} is of other classes than the checkpoints", "name what they started from")
    return Candidate("start", path, 0, facts)


def _recorded_start(usable: Sequence[Candidate], run: RunFolder) -> Path | None:
    for one in usable:
        origin = one.facts.get("provenance", {})
        digest, beside = (origin.get(key, {}).get("checkpoint") for key in ("parents", "files"))
        places = [one.path.parent / str(beside), one.path.parent.parent / str(beside), *run.networks()]
        for place in places if digest else ():
            if place.is_file() and file_digest(place) == digest:
                return place
    return None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("[0-9]-*") if path.is_dir() and not path.name.endswith(".replaced"))


def _counts(path: Path, folder: Path) -> bool:
    """Whether it is a file of its own: no hidden place, no result that waits for its successor."""
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") or part.endswith(".replaced") for part in parts)


def _read(path: Path, folder: Path) -> Candidate:
    name = path.stem if path.name != NETWORK or path.parent == folder else path.parent.name
    try:
        facts = read_facts(path)
        return Candidate(name, path, int(facts.get("step", _UNKNOWN)), facts)
    except (ArtifactError, ValueError, TypeError) as error:
        return Candidate(name, path, _UNKNOWN, refused=str(error).removeprefix(f"{path} ").removeprefix(f"{path}: "))


def _without_copies(found: Sequence[Candidate]) -> list[Candidate]:
    kept: dict[str, Candidate] = {}
    for one in sorted(found, key=lambda one: (one.counts.is_file(), len(one.path.parts)), reverse=True):
        kept.setdefault(str(one.facts.get("tensors_sha256", one.path)), one)
    return list(kept.values())


def _named_apart(found: Sequence[Candidate], folder: Path) -> list[Candidate]:
    names = [one.name for one in found]

    def name(one: Candidate) -> str:
        full = one.path.relative_to(folder).with_suffix("").as_posix()
        return one.name if names.count(one.name) == 1 and one.name != "start" else full

    return [Candidate(name(one), one.path, one.step, one.facts, one.refused) for one in found]


def _of_one_class_list(found: Sequence[Candidate], resolved: Resolved) -> list[Candidate]:
    configured = domain_layout(resolved.config, "source").class_names if resolved.config.source is not None else ()
    wanted = configured or next((one.class_names for one in found if one.refused is None), ())
    told = "it is of other classes than the configured source" if configured else "it is of other classes than others"
    return [
        one
        if one.refused is not None or one.class_names == wanted
        else Candidate(one.name, one.path, one.step, one.facts, told)
        for one in found
    ]
