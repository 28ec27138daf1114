"""Owns what pretrain and adapt share: a stage folder's log, states and checkpoints around the loop."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.config import Resolved
from calseg_cli.config.training import Augment
from calseg_cli.data.transforms import Augmentation
from calseg_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from calseg_cli.engine.distributed import ALONE, Ranks
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Progress
from calseg_cli.engine.train import Hooks, Plan, State, Stream, train
from calseg_cli.errors import ArtifactError, disk_errors
from calseg_cli.stages.event_files import EventFile, check_installed, clear_events
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.run_folder import LOG, NETWORK, RESUME

Validate = Callable[[nn.Module, int], Mapping[str, Any]]
_FREE_TO_CHANGE = (
    *("runs", "name", "device", "workers", "threads", "tensorboard", "target."),
    *("select.", "valuenet.", "predict.", "pseudo_label.", "logit_statistics.", "prototypes.", "calibrate."),
    "evaluate.",
)


@dataclass
class StageFolder:
    """A training stage's files: log.jsonl, resume.safetensors, checkpoints/, config.yaml, network.safetensors.

    With `tensorboard` in the configuration also event files of what is logged; raises MissingExtraError without it.
    A resumed stage refuses another configuration than it began with, but for sections that it does not look at: some
    common ones, and `may_change` besides; `must_stay` takes common ones back.
    """

    path: Path
    facts: Mapping[str, Any]
    resolved: Resolved
    may_change: tuple[str, ...] = ()
    must_stay: tuple[str, ...] = ()
    _events: EventFile | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.resolved.config.tensorboard:
            check_installed()
            self._events = EventFile(self.path)

    def at(self, path: Path) -> "StageFolder":
        """A folder within the stage, such as a round's, that tells the same facts."""
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return StageFolder(path, self.facts, self.resolved, self.may_change, self.must_stay)

    def begin(self, *, resume: bool) -> State | None:
        """The state to go on from, or None at a fresh start. Raises ArtifactError when the configuration changed."""
        state_file = self.path / RESUME
        if not resume or not state_file.exists():
            write_whole(self.path / "config.yaml", self.resolved.dump_yaml(with_sources=False))
            (self.path / LOG).unlink(missing_ok=True)
            clear_events(self.path)
            return None
        checkpoint = read_checkpoint(state_file)
        self._refuse_changes(checkpoint.facts["config"], state_file)
        self._refuse_origin(checkpoint.facts, state_file)
        assert checkpoint.state is not None
        self._cut_log(int(checkpoint.state["step"]))
        if self._events is not None:
            self._events.purge = int(checkpoint.state["step"]) + 1
        return checkpoint.state

    def check_finished(self, *, strict: tuple[str, ...] = ()) -> None:
        """Raise ArtifactError when the finished result is not what the configuration asks for.

        What may change half way, such as the number of steps, may not change any more if it is in `strict`.
        """
        file = self.path / NETWORK
        facts = read_facts(file)
        self._refuse_changes(facts["config"], file, strict)
        self._refuse_origin(facts, file)

    def _refuse_origin(self, before: Mapping[str, Any], file: Path) -> None:
        """Raise ArtifactError where what `file` was made from is not what the stage is given now, digest by digest."""
        old, new = (facts.get("provenance", {}).get("parents", {}) for facts in (before, self.facts))
        for role in sorted({*old, *new}):
            if old.get(role) != new.get(role):
                name = {"checkpoint": "network"}.get(role, role.replace("_", " "))
                raise ArtifactError(
                    f"{file} is stale: it was made from another {name}, {str(old.get(role))[:19]}; the one at hand is "
                    f"{str(new.get(role))[:19]}",
                    "give the one that it was begun with, start anew with --force, or another run with --name",
                )
        if "images" in before and before["images"] != self.facts.get("images"):
            raise ArtifactError(f"{file} was begun with other images", "put them back, or start anew with --force")

    def _refuse_changes(self, before: Mapping[str, Any], file: Path, strict: tuple[str, ...] = ()) -> None:
        old, new = _leaves(before), _leaves(self.resolved.to_dict())
        free = tuple(key for key in (*_FREE_TO_CHANGE, *self.may_change) if key not in (*strict, *self.must_stay))
        kept = tuple(key for key in self.must_stay if key not in free)
        changed = [
            f"{key}: was {old.get(key)!r}, is {new.get(key)!r}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
            and (not key.startswith(free) or key in kept)
            and not self._is_news(key, old)
        ]
        if changed:
            raise ArtifactError(
                f"{file} was made with another configuration: {'; '.join(changed)}",
                "take the change back, or start anew with --force or another name",
            )

    def _is_news(self, key: str, old: Mapping[str, Any]) -> bool:
        """An option that did not exist when the stage was begun, and is left as it comes: nothing was changed."""
        return key not in old and self.resolved.sources.get(key) == "default"

    def _cut_log(self, step: int) -> None:
        """Forget what was logged after the state that is resumed: it will happen again."""
        kept = [record for record in read_log(self.path / LOG) if record.get("step", 0) <= step]
        write_whole(self.path / LOG, "".join(f"{json.dumps(record)}\n" for record in kept))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line of JSON, and the same to the event file if there is one."""
        with disk_errors(self.path / LOG), (self.path / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_nan_to_null(record)) + "\n")
        if self._events is not None:
            self._events.write(_nan_to_null(record))

    def save(self, step: int, network: nn.Module, state: State) -> None:
        """Write the resumable state in place of the one before."""
        write_checkpoint(self.path / RESUME, {}, {**self.facts, "kind": "training-state", "step": step}, state)

    def keep(self, step: int, network: nn.Module, scores: Mapping[str, Any]) -> Path:
        """Write this step's network and its scores among the checkpoints."""
        path = self.path / "checkpoints" / f"step-{step:06d}.safetensors"
        self._write_network(path, step, network, scores)
        return path

    def finish(self, step: int, network: nn.Module, scores: Mapping[str, Any] | None) -> Path:
        """Write the stage's result and remove the resumable state."""
        path = self.path / NETWORK
        self._write_network(path, step, network, scores)
        (self.path / RESUME).unlink(missing_ok=True)
        return path

    def _write_network(self, path: Path, step: int, network: nn.Module, scores: Mapping[str, Any] | None) -> None:
        facts = {**self.facts, "kind": "network", "step": step, "scores": _nan_to_null(scores or {})}
        write_checkpoint(path, network.state_dict(), facts)


def run_loop(
    folder: StageFolder,
    method: Method,
    stream: Stream,
    plan: Plan,
    *,
    resume: bool,
    device: torch.device,
    validate: Validate | None,
    keep_all: bool,
    progress: Progress,
    stop: StopRequest,
    conclude: Callable[[], None] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Train to the end, or leave a resumable state and raise StoppedError with the signal's exit code.

    `conclude` is done after the last step, to the network that is then validated and kept. Of several `ranks`, which
    all validate, the main one reads and writes the folder alone. Raises ConfigError where torchrun started several
    processes and they are not told of each other.
    """
    if ranks.world == 1:
        refuse_torchrun(f"training of {method.name}")

    def validate_now(step: int) -> Mapping[str, Any]:
        network = method.deployed()
        scores = validate(network, step) if validate is not None else {}
        if scores and ranks.is_main:
            folder.log({"event": "validation", "step": step, **scores})
        if keep_all and ranks.is_main:
            folder.keep(step, network, scores)
        return scores

    hooks = Hooks(
        log=folder.log if ranks.is_main else void,
        validate=lambda step: void(validate_now(step)),
        save=lambda step, state: folder.save(step, method, state) if ranks.is_main else None,
    )
    state = ranks.share(folder.begin(resume=resume) if ranks.is_main else None)
    done = train(
        method,
        stream,
        plan,
        device=device,
        hooks=hooks,
        progress=progress,
        stop=stop,
        state=state,
        ranks=ranks,
        seed=folder.resolved.config.seed,
    )
    if stop and done < plan.steps:
        raise stop.error(
            f"stopped at step {done} of {plan.steps}; everything so far is in {folder.path / RESUME}",
            "the same command with --resume goes on from there",
        )
    if conclude is not None:
        conclude()
    scores = validate_now(done)
    return folder.finish(done, method.deployed(), scores) if ranks.is_main else folder.path / NETWORK


def augmentation(augment: Augment) -> Augmentation:
    """The loader's augmentation from the configuration's section."""
    return Augmentation(
        scale=augment.scale,
        crop=augment.crop,
        flip=augment.flip,
        color=augment.color,
        color_strength=augment.color_strength,
        blur=augment.blur,
    )


def facts_of(
    stage: str,
    resolved: Resolved,
    loaded: LoadedNetwork,
    folder: Path,
    *,
    others: Mapping[str, tuple[str, Path]],
    device: torch.device,
) -> dict[str, Any]:
    """What a stage's files say of themselves that begins from a network: `others` are further parents, by role."""
    made_from = {"checkpoint": (loaded.digest, loaded.checkpoint.path), **others}
    return {
        "stage": stage,
        "network": loaded.checkpoint.facts["network"],
        "classes": loaded.checkpoint.facts["classes"],
        "config": resolved.to_dict(),
        **{name: value for name, value in loaded.checkpoint.facts.items() if name == "labels_used_for"},
        "provenance": provenance(
            sys.argv,
            seed=resolved.config.seed,
            config_digest=resolved.digest,
            parents={role: digest for role, (digest, _) in made_from.items()},
            files={role: beside(path, folder) for role, (_, path) in made_from.items()},
            device=str(device),
        ),
    }


def void(value: object) -> None:
    """Forget a value."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; damaged lines are left out, and a log that is missing is empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [record for line in lines if (record := _record(line)) is not None]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and value != value else value
