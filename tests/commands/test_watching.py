"""calseg adapt --visualize, --oracle, --tensorboard: what they leave, and that the network is the same without them."""

import importlib.util
import shutil

import numpy as np
import pytest
from PIL import Image

from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import failed, keep_few, log

START = ("--checkpoint", "runs/sample/1-pretrain", "--batch-size", "2", "--steps", "4")
FEW = (*START, "--set", "adapt.self_training.log_every=1", "--set", "adapt.self_training.oracle_every=3")
DACAL = ("adapt", "--method", "dacal", *FEW, "--set", "adapt.dacal.warm_up=1")
needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="calseg[tracking]")


@pytest.fixture(scope="module")
def work(trained, tmp_path_factory):
    """The trained folder with eight images a split; every test uses a run of its own."""
    folder = tmp_path_factory.mktemp("watching") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder)
    return folder


@pytest.fixture(scope="module")
def watched(work, calseg):
    """The stage of a run that is watched in every way, and what was said."""
    words = ("--visualize", "2", "--oracle", *(("--tensorboard",) if needs_tensorboard.args[0] is False else ()))
    ran = calseg(*DACAL, *words, "--name", "watched", cwd=work)
    assert ran.code == 0, ran.err
    return work / "runs/watched/4-adapt-dacal", ran.err


def test_the_network_is_the_same_bit_for_bit(work, watched, calseg):
    import torch

    from calseg_cli.engine.checkpoint import read_checkpoint

    assert calseg(*DACAL, "--name", "plain", cwd=work).code == 0
    plain, stage = work / "runs/plain/4-adapt-dacal", watched[0]
    one, two = (read_checkpoint(folder / "network.safetensors").network for folder in (plain, stage))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    quiet = [{**record, "seconds": 0} for record in log(stage) if record["event"] == "step"]
    assert quiet == [{**record, "seconds": 0} for record in log(plain)]
    assert sorted(path.name for path in plain.iterdir()) == ["config.yaml", "log.jsonl", "network.safetensors"]
    assert "labels_used_for" not in read_facts(plain / "network.safetensors")


def test_pictures_are_of_the_same_images_at_each_moment(watched):
    names = sorted(path.stem for path in (watched[0] / "pictures").iterdir())
    images = {name.partition("-")[0] for name in names}
    assert len(images) == 2
    assert names == sorted(f"{image}-step-{step:06d}" for image in images for step in (1, 2, 4))
    first, last = (np.asarray(Image.open(watched[0] / f"pictures/{names[0][:-6]}{step:06d}.png")) for step in (1, 4))
    assert first.shape == last.shape
    assert (first != last).any()


def test_the_oracles_last_word_is_what_evaluate_says(work, watched, calseg):
    stage, said = watched
    records = [record for record in log(stage) if record["event"] == "oracle"]
    assert [record["step"] for record in records] == [0, 3, 4]
    ran = calseg("evaluate", "--name", "watched", "--checkpoint", str(stage), "--json", cwd=work)
    assert ran.code == 0, ran.err
    scores = ran.json["scores"]
    assert {name: records[-1][name] for name in ("miou", "ece", "nll")} == {
        name: scores[name] for name in ("miou", "ece", "nll")
    }
    assert records[0]["softened_ece"] == pytest.approx(records[0]["teacher_ece"])  # T is 1 before the first step
    assert records[-1]["softened_nll"] != records[-1]["teacher_nll"]
    used = "oracle: curves on target test while training"
    assert used in ran.out
    assert read_facts(stage / "network.safetensors")["labels_used_for"] == used
    assert used in (stage / "ORACLE.txt").read_text()
    assert said.count("ORACLE") >= 4


@needs_tensorboard
def test_tensorboard_shows_what_the_log_says(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched[0])).Reload()
    records = log(watched[0])
    for event, tag, value in (
        ("step", "loss", lambda record: record["loss"]),
        ("step", "watch/temperature_mean", lambda record: record["watch"].get("temperature_mean")),
        ("oracle", "oracle/softened_ece", lambda record: record["softened_ece"]),
    ):
        wanted = [(record["step"], value(record)) for record in records if record["event"] == event]
        wanted = [(step, pytest.approx(number)) for step, number in wanted if number is not None]
        assert [(one.step, one.value) for one in events.Scalars(tag)] == wanted


def test_the_oracle_opens_the_labels_of_its_split_alone(work, opened):
    words = ("adapt", "--method", "self-training", *START[:-1], "1", "--visualize", "1", "--oracle")
    seen = opened(work, *words, "--name", "opened", "--set", "adapt.self_training.oracle_images=2")
    labels = [path for path in seen if "target" in path and "labels" in path and path.endswith(".png")]
    assert {path.split("/labels/")[0].rpartition("/")[2] for path in labels} == {"test"}
    assert len(set(labels)) == 2


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "tent", "--visualize", "2"), 2, "--visualize has no effect with --method tent"),
        (("--method", "cbst", "--oracle"), 2, "--oracle has no effect with --method cbst"),
        (("--method", "dacal", "--visualize", "-1"), 2, "adapt.self_training.visualize"),
        (("--method", "dacal", "--oracle", "--set", "adapt.self_training.oracle_split=train"), 2, "val, test"),
        (("--method", "dacal", "--oracle", "--set", "adapt.self_training.oracle_split=val"), 4, "val"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(work, calseg, words, code, told):
    assert told in failed(calseg("adapt", *words, *START[:2], "--name", "none", cwd=work), code)
    assert not (work / "runs/none").exists()
