"""Event files hold the log's numbers, as TensorBoard's own reader sees them; a resume takes back what did not count."""

import importlib.util
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calseg_cli.config import load_config
from calseg_cli.errors import MissingExtraError
from calseg_cli.stages import event_files
from calseg_cli.stages.event_files import EventFile, scalars
from calseg_cli.stages.training import StageFolder

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="calseg[tracking]")
NETWORK = {"name": "tiny", "options": {}, "num_classes": 1}


def read_back(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def record(step, loss):
    return {
        "event": "step",
        "step": step,
        "loss": loss,
        "terms": {"source": loss / 2, "mix": loss / 2},
        "lr": 0.5,
        "grad_norm": None,
        "watch": {"temperature_mean": 1.25},
    }


def stage(folder, monkeypatch, **flags):
    (folder / "calseg.yaml").write_text("name: x\n")
    monkeypatch.chdir(folder)
    resolved = load_config(None, flags=flags, environ={})
    (folder / "stage").mkdir(exist_ok=True)
    facts = {
        "config": resolved.to_dict(),
        "provenance": {},
        "network": NETWORK,
        "classes": {"names": ["road"], "palette": [[1, 2, 3]]},
    }
    return StageFolder(folder / "stage", facts, resolved)


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(width=32) | st.none() | st.booleans() | st.text(), max_size=3),
    st.sampled_from(["step", "validation", "oracle"]),
)
def test_every_number_has_a_tag_and_nothing_else_has(numbers, event):
    tags = dict(scalars({"event": event, "step": 3, "watch": numbers, **numbers}))
    kept = {name for name, value in numbers.items() if type(value) is float}
    below = "" if event == "step" else f"{event}/"
    assert tags.keys() == {f"{below}{part}{name}" for name in kept for part in ("", "watch/")}


@needs_tensorboard
def test_the_records_are_read_back(tmp_path):
    file = EventFile(tmp_path)
    for step in (2, 4):
        file.write(record(step, step / 8))
    file.write({"event": "validation", "step": 4, "miou": 0.75, "note": "said", "nll": None})
    assert len(list(tmp_path.iterdir())) == 1
    assert read_back(tmp_path) == {
        "loss": [(2, 0.25), (4, 0.5)],
        "terms/source": [(2, 0.125), (4, 0.25)],
        "terms/mix": [(2, 0.125), (4, 0.25)],
        "lr": [(2, 0.5), (4, 0.5)],
        "watch/temperature_mean": [(2, 1.25), (4, 1.25)],
        "validation/miou": [(4, 0.75)],
    }


@needs_tensorboard
def test_a_resumed_run_goes_on_without_doubled_steps(tmp_path, monkeypatch):
    first = stage(tmp_path, monkeypatch, tensorboard=True)
    assert first.begin(resume=False) is None
    for step in (1, 2, 3):
        first.log(record(step, step / 4))
        if step == 2:
            first.save(2, None, {"step": 2})
    file = next((tmp_path / "stage").glob("events*"))
    file.write_bytes(file.read_bytes()[:-5])  # a kill in the middle of a record
    second = stage(tmp_path, monkeypatch, tensorboard=True)
    assert second.begin(resume=True)["step"] == 2
    for step in (3, 4):
        second.log(record(step, 8.0 + step))
    assert read_back(tmp_path / "stage")["loss"] == [(1, 0.25), (2, 0.5), (3, 11.0), (4, 12.0)]
    logged = [json.loads(line) for line in (tmp_path / "stage/log.jsonl").read_text().splitlines()]
    assert [(one["step"], one["loss"]) for one in logged] == read_back(tmp_path / "stage")["loss"]


@needs_tensorboard
def test_steps_after_the_kept_state_are_gone_as_soon_as_it_goes_on(tmp_path):
    before = EventFile(tmp_path)
    for step in (1, 2, 3):
        before.write(record(step, 1.0))
    EventFile(tmp_path, purge=2).write(record(2, 2.0))
    assert read_back(tmp_path)["loss"] == [(1, 1.0), (2, 2.0)]


@needs_tensorboard
def test_a_fresh_start_forgets_what_was_there(tmp_path, monkeypatch):
    for loss in (1.0, 2.0):
        fresh = stage(tmp_path, monkeypatch, tensorboard=True)
        fresh.begin(resume=False)
        fresh.log(record(1, loss))
    assert read_back(tmp_path / "stage")["loss"] == [(1, 2.0)]


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    quiet = stage(tmp_path, monkeypatch)
    quiet.begin(resume=False)
    quiet.log(record(1, 1.0))
    assert list((tmp_path / "stage").glob("events*")) == []


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(event_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="needs the package tensorboard") as caught:
        stage(tmp_path, monkeypatch, tensorboard=True)
    assert "calseg[tracking]" in caught.value.hint
    stage(tmp_path, monkeypatch)
