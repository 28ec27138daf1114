"""benchmarks/steps.py runs on a small case: times of both contestants, and the memory of one."""

import argparse
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("steps")


def test_it_measures_time_and_memory(steps):
    options = argparse.Namespace(batch=2, size=(32, 48), classes=5, amp="off", device="cpu", rounds=2)
    found = steps.race("source+ece", "tiny", options)
    assert found["seconds"] > 0
    assert 0.05 < found["time_over_base"] < 50
    assert steps.own_peak("source+ece", "tiny", options) > 10


def test_every_method_has_a_base_that_is_measured(steps):
    assert all(one.base is None or steps.METHODS[one.base].base is None for one in steps.METHODS.values())


def test_the_table_tells_what_was_found(steps):
    row = {"base": "source", "time_over_base": 1.234, "seconds": 0.5, "base_seconds": 0.4, "memory_over_base": 1.5}
    row |= {"memory_mib": 300.4, "time_target": "<= 1.10", "memory_target": None}
    text = steps.table({"networks": {"tiny": {"source+ece": row}}, "seed": 0})
    assert "| tiny | source+ece | source | 1.23 | 0.5 | <= 1.10 | 1.50 | 300 |  |" in text
    assert "{'seed': 0}" in text


def test_a_variant_of_a_network_has_a_name(steps):
    sizes = [sum(one.numel() for one in steps.network_of(f"segformer-{name}", 3).parameters()) for name in ("b0", "b1")]
    assert 3e6 < sizes[0] < 4e6 < 1.3e7 < sizes[1] < 1.5e7
    assert steps.network_of("efficientnet-lite0", 3).name == "efficientnet-lite0"


def test_the_peak_is_that_of_the_process_alone(steps):
    """A process inherits the largest resident set of who starts it, as `getrusage` tells it."""
    held = bytearray(b"1" * 2**30)
    options = argparse.Namespace(batch=2, size=(32, 48), classes=5, amp="off", device="cpu")
    assert steps.peak("source", "tiny", options) < 900
    assert len(held) == 2**30
