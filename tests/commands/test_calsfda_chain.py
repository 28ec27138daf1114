"""The four stages of Cal-SFDA one after another, the last with the source's folder and all target labels deleted."""

import json
import shutil

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import draw_few

RUN = "runs/sample"
VALUE_NET = ("--steps", "6", "--set", "valuenet.max_items=3", "--set", "valuenet.log_every=3")
QUICK = ("--steps", "4", "--set", "adapt.calsfda.log_every=2", "--set", "adapt.calsfda.pictures=1")


@pytest.fixture(scope="module")
def chained(tmp_path_factory, calseg):
    """A folder after the four commands, and what the last one printed."""
    folder = tmp_path_factory.mktemp("chained")
    validated = ("--set", "pretrain.validate_every=10")
    draw_few(folder, 12)
    for words in (
        ("pretrain", "--steps", "20", "--ece-weight", "1", *validated),
        ("select-checkpoint-by-ECE", "--floor", "1"),
        ("train-valuenet", *VALUE_NET),
    ):
        ran = calseg(*words, cwd=folder)
        assert ran.code == 0, ran.err
    shutil.rmtree(folder / "data/source")
    for labels in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(labels)
    options = ("--set", "adapt.calsfda.trust=1", "--set", "adapt.calsfda.anchor=1")
    ran = calseg("adapt", "--method", "calsfda", *QUICK, *options, cwd=folder)
    assert ran.code == 0, ran.err
    return folder, ran


def test_each_stage_names_the_one_before_it(chained):
    folder, _ = chained
    parents = {
        stage: read_facts(folder / RUN / stage)["provenance"]["parents"]
        for stage in (
            "2-select/network.safetensors",
            "3-valuenet/valuenet.safetensors",
            "4-adapt-calsfda/network.safetensors",
        )
    }
    select, value_net, adapted = parents.values()
    assert set(adapted) == {"checkpoint", "value_net"}
    assert value_net["checkpoint"] == adapted["checkpoint"]
    assert select["checkpoint"] != adapted["checkpoint"]


def test_labels_are_scaled_by_what_the_value_net_expects(chained):
    """From the artifact alone: the expected errors differ by image, and so does the share that is believed."""
    folder, ran = chained
    with open_artifact(folder / RUN / "4-adapt-calsfda/round-1/pseudo_labels.h5", "pseudo_labels") as labels:
        errors = labels.array("expected_error")
        shares = np.array([(labels.item(name, "label") != 255).mean() for name in labels.ids])
        assert labels.meta["protocol"]["pseudo_labels"]["guidance"] == "value-net"
    assert errors.std() > 0
    assert ((errors > 0) & (errors < 1)).all()
    records = [json.loads(line) for line in (folder / RUN / "4-adapt-calsfda/log.jsonl").read_text().splitlines()]
    assert records[0]["expected_error"] == pytest.approx(errors.mean())
    assert "expected ECE" in ran.err
    assert shares.std() > 0


def test_the_round_logs_every_term(chained):
    folder, _ = chained
    lines = (folder / RUN / "4-adapt-calsfda/round-1/log.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])["terms"]) == {"sce", "negative", "entropy", "anchor"}


def test_the_result_predicts(chained, calseg):
    folder, _ = chained
    ran = calseg("predict", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert "adapt-calsfda-target-test" in ran.json["artifact"]


@pytest.mark.parametrize("softness", ["smoothing", "temperature"])
def test_what_is_taught_may_be_soft(chained, calseg, softness, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(chained[0], folder)
    options = ("--force", "--set", f"adapt.calsfda.softness={softness}", "--set", "adapt.calsfda.trust=0")
    ran = calseg("adapt", "--method", "calsfda", *QUICK, *options, cwd=folder)
    assert ran.code == 0, ran.err
    with open_artifact(folder / RUN / "4-adapt-calsfda/round-1/pseudo_labels.h5") as labels:
        errors, temperatures = labels.array("expected_error"), labels.array("temperature")
    assert np.allclose(errors, errors[0])
    assert ((temperatures > 1) == (softness == "temperature")).all()


def test_a_value_net_of_another_network_is_refused(chained, calseg, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(chained[0], folder)
    ran = calseg("adapt", "--method", "calsfda", "--checkpoint", "pretrain", "--force", *QUICK, cwd=folder)
    assert ran.code == 3
    assert "made for another network" in ran.err
    assert (folder / RUN / "4-adapt-calsfda/network.safetensors").exists()


def test_the_result_is_as_sure_as_it_is_expected_to_be_right(chained, calseg, tmp_path):
    """Measured on the predictions: the mean confidence on the images that it was adapted to, and the same classes."""
    folder = tmp_path / "w"
    shutil.copytree(chained[0], folder)
    stage = folder / RUN / "4-adapt-calsfda"
    records = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    wanted, chosen = records[0]["expected_confidence"], records[-1]["step"]
    found = {}
    for name, checkpoint in (("settled", stage), ("trained", stage / f"round-{chosen}")):
        words = ("--split", "train", "--checkpoint", str(checkpoint), "-o", f"{name}.h5")
        assert calseg("predict", *words, cwd=folder).code == 0
        with open_artifact(folder / f"{name}.h5", "logits") as logits:
            found[name] = np.stack([logits.item(one, "logits").astype(np.float64) for one in logits.ids])
    exps = np.exp(found["settled"] - found["settled"].max(axis=1, keepdims=True))
    confidence = (1 / exps.sum(axis=1)).mean()
    assert confidence == pytest.approx(wanted, abs=2e-3)
    assert records[chosen]["temperature"] > 1
    assert (found["settled"].argmax(axis=1) == found["trained"].argmax(axis=1)).mean() > 0.999
