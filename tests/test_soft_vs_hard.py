"""benchmarks/soft_vs_hard.py: its small world, its arms for a few steps, its claims and what it prints."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.main import get_command

from calseg_cli.app import build as build_app

FOLDER = Path(__file__).parent.parent / "benchmarks"
STEPS, FIRST = 4, 2


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def toy(load, monkeypatch):
    module = load("soft_vs_hard_toy")
    monkeypatch.setattr(module, "COUNTS", {"train": 10, "held-out": 4, "val": 4})
    return module


@pytest.fixture
def arms(load, toy):
    return load("soft_vs_hard_arms")


@pytest.fixture
def study(load, arms):
    return load("soft_vs_hard")


# The world


def test_a_shift_changes_what_is_seen_and_not_what_is_there(toy):
    plain, shifted = toy.draw(3, toy.NO_SHIFT, 5), toy.draw(3, toy.SHIFT, 5)
    assert torch.equal(plain.labels, shifted.labels)
    assert float((plain.images - shifted.images).abs().mean()) > 0.03
    assert plain.images.shape == (3, 3, 32, 32)
    assert len(plain.labels.unique()) == toy.CLASSES
    assert torch.equal(plain.images, toy.draw(3, toy.NO_SHIFT, 5).images)


def test_an_epoch_shows_every_image_once(toy):
    world = toy.World(1, batch=4)
    shown = [image for step in range(5) for image in world.of_step(step).source_images]
    counts = [sum(torch.equal(image, one) for one in shown) for image in world.source.images]
    assert counts == [2] * 10
    tail = next(iter(world.batches(3, 5)))
    assert torch.equal(tail.target_images, world.of_step(3).target_images)


def test_the_truth_told_is_that_of_the_images_shown(toy):
    world = toy.World(2)
    for step in (0, 1, 4):
        for image, label in zip(world.of_step(step).target_images, world.target_labels(step), strict=True):
            place = next(k for k, one in enumerate(world.target.images) if torch.equal(one, image))
            assert torch.equal(label, world.target.labels[place])


def test_the_network_keeps_the_contract_and_the_generator(toy):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    network = toy.build_network(0)
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.rand(2, 3, 32, 32)
    assert network(images).shape == (2, toy.CLASSES, 32, 32)
    assert torch.equal(network.classify(network.features(images)), network(images))


# The arms


@pytest.fixture
def start(arms, toy):
    return arms.begin(toy.World(0), STEPS, FIRST)


def test_arms_start_from_the_same_source_training(arms, toy, start):
    assert start["step"] == FIRST
    kept = {name: tensor.clone() for name, tensor in start["method"].items()}
    for name in ("sampled", "target-truth", "in-domain/soft"):
        record = arms.run(name, 0, STEPS, start)
        assert [moment["step"] for moment in record["course"]] == list(range(FIRST + 1, STEPS + 1))
        assert record["oracle"] == (name == "target-truth")
        assert all(np.isfinite(record[key]) for key in arms.SCORES)
        assert sum(record["course"][-1]["shares"]) == pytest.approx(1, abs=1e-3)
        json.dumps(record)
    assert all(torch.equal(start["method"][name], tensor) for name, tensor in kept.items())


def test_what_is_taught_is_all_that_differs(arms, start):
    hard, again, soft = (arms.run(name, 0, STEPS, start) for name in ("hard", "hard", "soft"))
    assert hard["course"] == again["course"]
    assert hard["course"][0]["loss_source"] == soft["course"][0]["loss_source"]
    assert hard["course"][0]["loss_mix"] != soft["course"][0]["loss_mix"]
    late = arms.run("soft/60-hard", 0, STEPS, start)  # so few steps are all hard
    assert late["course"] == hard["course"]


def test_source_only_learns_nothing_of_the_target(arms, start):
    record = arms.run("source-only", 0, STEPS, start)
    assert all(set(moment) & {"loss_mix", "quality"} == set() for moment in record["course"])
    assert record["miou"] != record["teacher_miou"]


@pytest.mark.parametrize("name", ["dacal", "dacal/last-layer", "dacal/network", "oracle-temperature"])
def test_temperatures_are_in_the_course(arms, start, monkeypatch, name):
    if name != "oracle-temperature":
        options = {**(arms.DEFAULT if name == "dacal" else arms.PAPER), "warm_up": 0}
        route = {} if name == "dacal" else {"route": name.partition("/")[2]}
        monkeypatch.setitem(arms.ARMS, name, arms.Arm(plugin=arms._dacal(**options, **route)))
    course = arms.run(name, 0, STEPS, start)["course"]
    assert all(moment["temperature_mean"] > 0 for moment in course)
    assert len({moment["temperature_mean"] for moment in course}) > 1 or name == "oracle-temperature"


def test_the_oracle_has_the_temperature_of_least_loss(arms, toy):
    world = toy.World(0)
    plugin = arms.OracleTemperature(world)
    truth = F.one_hot(world.labelled_target.labels, toy.CLASSES).permute(0, 3, 1, 2).float()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    logits = 3 * truth + 2 * noise
    plugin.predict = lambda images: logits

    def loss(temperature):
        return float(F.cross_entropy(logits.double() / temperature, world.labelled_target.labels))

    found = plugin._fitted()
    assert loss(found) < min(loss(0.98 * found), loss(1.02 * found))
    assert abs(found - 1) > 0.1


# The claims, and what is printed


def record(arm, miou, ece, seed=0, steps=600):
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "machine": "2 CPU cores",
        "miou": miou / 100,
        "ece": ece / 100,
        "nll": 0.5,
        "teacher_ece": 0.1,
        "course": [],
    }


@pytest.fixture
def good():
    return [
        *(record("hard", miou, 4.0, seed) for seed, miou in enumerate((60, 64, 62))),
        *(record("soft", miou, 9.0, seed) for seed, miou in enumerate((53, 54, 55))),
        record("sampled", 51, 9.0),
        record("in-domain/hard", 91, 3.0),
        record("in-domain/soft", 92, 4.0),
        record("oracle-temperature", 58.5, 2.0),
        record("dacal", 62.5, 2.5),
        record("soft", 20, 40.0, steps=1500),
    ]


def test_claims_are_judged_by_means_over_seeds(study, good):
    found = study.judged(good)
    assert [met for _, _, met in found] == [True] * 7
    assert [round(points, 6) for _, points, _ in found] == [8, -1, -3, -3.5, -2, -1.5, 8.5]
    worse = [one for one in good if one["arm"] != "dacal"] + [record("dacal", 61.5, 3.5)]
    assert [met for _, _, met in study.judged(worse)] == [True] * 5 + [False, False]
    assert len(study.judged([one for one in good if one["arm"] != "soft"])) == 4


def test_the_command_says_what_is_not_met(study, good, tmp_path, capsys):
    file = tmp_path / "records.json"
    study.write(file, [*good[:-2], record("dacal", 50, 2.5)])
    assert study.main(["--show", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "| hard | 3 | **62.0** (60.0 / 64.0 / 62.0) |" in printed
    assert "| -4.0 | NOT met |" in printed
    assert printed.count("| met |") == 6
    assert study.main(["--show", str(file), "--check"]) == 1


def test_what_is_there_is_not_done_again(study, tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(study, "begin", lambda *_: {})
    monkeypatch.setattr(study, "run", lambda name, seed, steps, start: done.append(name) or record(name, 5, 5, seed))
    words = ["--out", str(tmp_path / "out.json"), "--seeds", "0", "--steps", "600", "--arms"]
    study.main([*words, "hard"])
    study.main([*words, "hard", "soft", "dacal/half-hard"])  # the last one has no short run
    assert done == ["hard", "soft"]
    assert [one["arm"] for one in json.loads((tmp_path / "out.json").read_text())] == ["hard", "soft"]
    assert not list(tmp_path.glob("*.part"))


def test_the_course_of_a_run_is_a_table(study, arms, start):
    text = study.course([arms.run("hard", 0, STEPS, start)], "hard")
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + STEPS - FIRST


def test_the_commands_of_a_pair_exist(load):
    pair = load("soft_vs_hard_pair")
    command = get_command(build_app())
    context = command.make_context("calseg", [], resilient_parsing=True)
    for words in pair.METHODS.values():
        assert command.get_command(context, "adapt").make_context("adapt", list(words), parent=context).params["method"]
