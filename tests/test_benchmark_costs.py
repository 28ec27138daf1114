"""benchmarks/costs.py counts a step's operations as a person does, and multiplies."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("costs")


def test_operations_are_counted_forward_and_backward(costs):
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    image = torch.rand(2, 3, 16, 20, requires_grad=True)
    forward = 2 * 2 * 16 * 20 * 8 * 3 * 9  # a product and a sum, at each pixel, for each output, input and tap
    cpu = torch.device("cpu")
    assert costs.measured(lambda: layer(image), cpu, 1)["tflop"] * 1e12 == pytest.approx(forward)
    both = costs.measured(lambda: layer(image).sum().backward(), cpu, 1)
    assert both["tflop"] * 1e12 == pytest.approx(3 * forward)  # the image's gradient and the weights'


def test_attention_is_counted_too(costs):
    query, key = torch.rand(2, 4, 32, 8, requires_grad=True), torch.rand(2, 4, 16, 8)
    forward = 2 * 2 * (2 * 4) * 32 * 16 * 8  # two products of matrices, each of sums and products
    cpu = torch.device("cpu")
    attend = nn.functional.scaled_dot_product_attention
    assert costs.measured(lambda: attend(query, key, key), cpu, 1)["tflop"] * 1e12 == pytest.approx(forward)
    both = costs.measured(lambda: attend(query, key, key).sum().backward(), cpu, 1)["tflop"] * 1e12
    assert both == pytest.approx(3.5 * forward)  # backward the probabilities are computed again, and four products


def test_the_table_multiplies_steps_and_images(costs, monkeypatch, capsys):
    words = "--network tiny --size 32 48 --batch 2 --classes 5 --method source --image 32 64 --images 7 --steps 100"
    given = [costs.__file__, *words.split(), "--repeats", "1", "--tflops", "2", "--json"]

    def run(program, **_):
        """The process of its own, in this one."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", program[1:])
            options = costs.arguments()
        return subprocess.CompletedProcess(program, 0, json.dumps(costs.one(options.one, options)))

    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(costs.subprocess, "run", run)
    costs.main()
    found = json.loads(capsys.readouterr().out)
    for name, times in (("source", 100), (costs.LOOK, 7)):
        row = found["rows"][name]
        assert row["hours"] == pytest.approx(times * row["seconds"] / 3600)
        assert row["hours_at_rate"] == pytest.approx(times * row["tflop"] / 2 / 3600)
        assert row["gflops"] == pytest.approx(1000 * row["tflop"] / row["seconds"])
        assert f"| {name} |" in costs.table(found)
    shown = 2 * 32 * 48 / (32 * 64)  # pixels of a step over those of the one image
    assert found["rows"]["source"]["tflop"] == pytest.approx(3 * shown * found["rows"][costs.LOOK]["tflop"], rel=0.05)
