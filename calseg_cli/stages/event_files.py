"""Owns a stage's log as TensorBoard reads it: the numbers of each record, in event files beside log.jsonl."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from calseg_cli.errors import MissingExtraError, disk_errors

_NAME = "events.out.tfevents."  # TensorBoard knows its files by this, and reads those of a folder in the names' order
_FORMAT = "brain.Event:2"


def check_installed() -> None:
    """Raise MissingExtraError where the package tensorboard is not there."""
    if find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "tracking", "tensorboard: true")


def clear_events(folder: Path) -> None:
    """Remove a folder's event files."""
    for path in folder.glob(f"{_NAME}*"):
        path.unlink()


@dataclass
class EventFile:
    """The events of one process in a folder. `purge` is the first step of earlier processes that did not count.

    A file is opened for each record and closed again, so that whatever ends the process leaves whole records; only
    a process of its own writes to it, so that a record cut short is a file's last.
    """

    folder: Path
    purge: int | None = None
    _path: Path | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """The numbers of one record of the log, at its step. Raises DiskFullError."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record)]
        now = time.time()
        events = [Event(wall_time=now, step=int(record.get("step", 0)), summary=Summary(value=values))]
        if self._path is None:
            self._path = self._new_path()
            if self.purge is not None:
                events.insert(0, Event(wall_time=now, step=self.purge, session_log=SessionLog(status=SessionLog.START)))
            events.insert(0, Event(wall_time=now, file_version=_FORMAT))
        with disk_errors(self._path), self._path.open("ab") as stream:
            for event in events:
                RecordWriter(stream).write(event.SerializeToString())

    def _new_path(self) -> Path:
        numbers = [int(name) for path in self.folder.glob(f"{_NAME}*") if (name := path.name[len(_NAME) :]).isdigit()]
        return self.folder / f"{_NAME}{max(numbers, default=0) + 1:06d}"


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and numbers of a record; those of a step by their names, those of another event below the event's.

    >>> list(scalars({"event": "step", "step": 2, "loss": 1.5, "terms": {"mix": 0.5}, "grad_norm": None}))
    [('loss', 1.5), ('terms/mix', 0.5)]
    >>> list(scalars({"event": "validation", "step": 2, "miou": 0.25}))
    [('validation/miou', 0.25)]
    """
    event = record.get("event", "step")
    yield from _numbers(
        {name: value for name, value in record.items() if name not in ("event", "step")},
        "" if event == "step" else f"{event}/",
    )


def _numbers(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
