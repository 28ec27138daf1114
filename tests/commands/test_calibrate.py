"""calseg calibrate as a user types it: the way to evaluate, JSON, labels that stay closed, mistakes in one line."""

import json
import shutil

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.methods.calibrators import CALIBRATORS
from tests.commands.outcomes import failed, labels

MADE = "runs/sample/5-calibrate/pretrain-temperature-source-val.h5"
QUICK = {
    "local": ("--epochs", "1"),
    "selective": ("--epochs", "1", "--wrong-temperature", "2"),
    "dacal": ("--steps", "2"),
}


@pytest.fixture(scope="module")
def calibrated(trained, tmp_path_factory, calseg):
    """The trained folder with a temperature; copy it before changing anything (`folder`)."""
    folder = tmp_path_factory.mktemp("calibrated") / "w"
    shutil.copytree(trained, folder)
    ran = calseg("calibrate", "--method", "temperature", cwd=folder)
    assert ran.code == 0, ran.err
    return folder, ran


@pytest.fixture
def folder(calibrated, tmp_path):
    shutil.copytree(calibrated[0], tmp_path / "w")
    return tmp_path / "w"


def test_the_table_and_the_next_step(calibrated, folder, calseg):
    _, ran = calibrated
    assert "measured on what it was fitted on: source val" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines()[2:7]] == ["nll", "ece", "brier", "accuracy", "miou"]
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    assert step == f"next: calseg evaluate --calibrator {MADE}"
    assert calseg(*step.split()[2:], cwd=folder).code == 0


def test_evaluate_gives_the_numbers_that_calibrate_gave(folder, calseg):
    ran = calseg("calibrate", "--json", "--force", cwd=folder)
    assert ran.code == 0, ran.err
    words = ("evaluate", "--domain", "source", "--split", "val", "--json")
    plain, better = calseg(*words, cwd=folder), calseg(*words, "--calibrator", MADE, cwd=folder)
    assert better.code == 0, better.err
    for name in ("nll", "ece", "brier"):
        assert plain.json["scores"][name] == pytest.approx(ran.json["before"][name], rel=1e-12)
        assert better.json["scores"][name] == pytest.approx(ran.json["after"][name], rel=1e-12)
    assert better.json["scores"]["nll"] <= plain.json["scores"]["nll"] + 1e-5


def test_json_is_one_document_that_agrees_with_the_artifact(folder, calseg):
    ran = calseg("calibrate", "--force", "--json", cwd=folder)
    assert (ran.json["artifact"], ran.json["method"], ran.json["labels"]) == (MADE, "temperature", "source")
    assert ran.json["fit"]["status"] == "converged"
    with open_artifact(folder / MADE, "calibrator") as artifact:
        assert artifact.digest == ran.json["digest"]
        assert artifact.array("temperature").tolist() == [ran.json["parameters"]["T"]]


def test_from_the_network_and_from_its_logits_is_the_same(folder, calseg):
    assert calseg("predict", "--domain", "source", "--split", "val", cwd=folder).code == 0
    logits = "runs/sample/5-predict/pretrain-source-val.h5"
    ran = calseg("calibrate", "--logits", logits, "-o", "from-logits.h5", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    with open_artifact(folder / MADE) as one, open_artifact(folder / "from-logits.h5") as other:
        np.testing.assert_array_equal(one.array("temperature"), other.array("temperature"))


@pytest.mark.parametrize("method", [name for name in CALIBRATORS if name != "temperature"])
def test_every_method_runs_and_evaluate_takes_it(folder, calseg, method):
    words = ("--max-items", "6", *QUICK.get(method, ()))
    ran = calseg("calibrate", "--method", method, *words, "--json", cwd=folder)
    assert ran.code == 0, ran.err
    done = calseg("evaluate", "--calibrator", ran.json["artifact"], "--json", "--max-items", "4", cwd=folder)
    assert done.code == 0, done.err
    assert np.isfinite(done.json["scores"]["nll"])


def test_settings_come_from_the_file_too(folder, calseg):
    with (folder / "calseg.yaml").open("a") as stream:
        stream.write("\ncalibrate: {method: vector, penalty: 0.01}\n")
    ran = calseg("calibrate", "--max-items", "6", "--json", cwd=folder)
    assert (ran.json["method"], ran.json["options"]) == ("vector", {"penalty": 0.01})


# Labels


def test_pseudocal_opens_no_label_at_all(folder, opened):
    assert labels(opened(folder, "calibrate", "--method", "pseudocal", "--max-items", "5")) == []


def test_pseudocal_needs_neither_the_source_nor_a_label(folder, calseg):
    shutil.rmtree(folder / "data/source")
    for closed in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(closed)
    ran = calseg("calibrate", "--method", "pseudocal", "--max-items", "5", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["labels"] == "none"


def test_dacal_opens_labels_of_the_source_alone(folder, opened):
    seen = labels(opened(folder, "calibrate", "--method", "dacal", "--steps", "1", "--max-items", "5"))
    assert any("source/train" in path for path in seen)
    assert any("source/val" in path for path in seen)
    assert not any("target" in path for path in seen)


def test_the_others_open_labels_of_the_source_alone(folder, opened):
    seen = labels(opened(folder, "calibrate", "--method", "temperature", "--force", "--max-items", "3"))
    assert seen
    assert not any("target" in path for path in seen)


def test_an_oracle_says_so_everywhere(folder, calseg):
    ran = calseg("calibrate", "--on", "target", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert "ORACLE" in ran.err
    assert ran.json["labels"] == "target: oracle"
    assert ran.json["artifact"].endswith("-oracle.h5")
    done = calseg("evaluate", "--calibrator", ran.json["artifact"], "--json", cwd=folder)
    assert done.code == 0, done.err
    assert "oracle" in json.dumps(done.json["protocol"])


# DA-Cal


def test_dacal_tells_what_judged_it_and_what_became_of_the_target(folder, calseg):
    for closed in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(closed)
    words = ("calibrate", "--method", "dacal", "--steps", "2", "--set", "adapt.dacal.width=4", "--json")
    ran = calseg(*words, cwd=folder)
    assert ran.code == 0, ran.err
    told = ran.json
    assert told["artifact"] == "runs/sample/5-calibrate/pretrain-dacal-target-train.h5"
    assert (told["domain"], told["split"], told["labels"]) == ("target", "train", "source")
    assert told["measured_on"].startswith("source val, ")
    assert told["measured_on"].endswith("whose labels judged it")
    assert (told["options"]["steps"], told["options"]["width"]) == (2, 4)
    fit = told["fit"]
    assert (fit["target_temperature_mean"] > 1) == (fit["target_confidence_after"] < fit["target_confidence_before"])
    assert fit["target_temperature_q05"] <= fit["target_temperature_q50"] <= fit["target_temperature_q95"]
    with open_artifact(folder / told["artifact"], "calibrator") as artifact:
        assert artifact.digest == told["digest"]
        assert list(artifact.meta["provenance"]["parents"]) == ["checkpoint"]
        assert artifact.meta["protocol"]["labels_used_for"] == "fitting: source"
    table = calseg(*words[:-1], "--force", cwd=folder)
    assert "dacal, measured on source val" in table.out
    again = calseg(*words, "--force", cwd=folder)
    assert again.json["digest"] == told["digest"]
    assert calseg("predict", "--calibrator", told["artifact"], "--max-items", "2", cwd=folder).code == 0


def test_dacal_without_a_source_is_one_line(folder, calseg):
    shutil.rmtree(folder / "data/source/val")
    assert "source" in failed(calseg("calibrate", "--method", "dacal", cwd=folder), 4)


# Mistakes


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "temprature"), 2, "calibrate.method"),
        (("--penalty", "1"), 2, "--penalty has no effect"),
        (("--method", "pseudocal", "--logits", "x.h5"), 2, "network"),
        (("--checkpoint", "a", "--logits", "x.h5"), 2, "exclude"),
        ((), 3, "exists"),
        (("--logits", "nowhere.h5"), 3, "nowhere.h5"),
        (("--logits", MADE), 3, "calibrator, not logits"),
        (("--checkpoint", "nowhere"), 3, "nowhere"),
        (("--method", "pseudocal", "--max-items", "1"), 2, "two images"),
        (("--steps", "5"), 2, "--steps has no effect"),
        (("--method", "dacal", "--lr", "0.1"), 2, "--lr has no effect with --method dacal"),
        (("--method", "dacal", "--steps", "0"), 2, "calibrate.steps"),
        (("--method", "dacal", "--statistics", "mine"), 2, "calibrate.statistics"),
        (("--method", "dacal", "--on", "source"), 2, "dacal calibrates for the target"),
        (("--method", "dacal", "--logits", "x.h5"), 2, "needs the network"),
        (("--method", "dacal", "--set", "target.size=[48, 64]"), 4, "images are"),
    ],
)
def test_mistakes_are_one_line(folder, calseg, words, code, told):
    assert told in failed(calseg("calibrate", *words, cwd=folder), code)


def test_a_calibrator_of_other_classes_is_refused(folder, calseg):
    text = (folder / "calseg.yaml").read_text()
    shutil.copy(folder / MADE, folder / "kept.h5")
    shutil.rmtree(folder / "runs")
    assert "road" in text
    (folder / "calseg.yaml").write_text(text.replace("road", "street"))
    assert calseg("pretrain", "--steps", "1", cwd=folder).code == 0
    assert "street" in failed(calseg("evaluate", "--calibrator", "kept.h5", cwd=folder), 3)


def test_a_failed_fit_leaves_nothing(folder, calseg):
    """One image with no label left: there is nothing to fit on, and nothing is written."""
    shutil.rmtree(folder / "runs/sample/5-calibrate")
    assert failed(calseg("calibrate", "--logits", "nowhere.h5", cwd=folder), 3)
    assert not (folder / "runs/sample/5-calibrate").exists()


def test_a_calibrator_of_another_network_is_told_of(workspace, calseg):
    assert calseg("calibrate", "--checkpoint", "pretrain", "-o", "c.h5", cwd=workspace).code == 0
    assert calseg("adapt", "--method", "adabn", cwd=workspace).code == 0
    for checkpoint, told in (("pretrain", False), ("adapt-adabn", True)):
        words = ("--checkpoint", checkpoint, "--calibrator", "c.h5")
        ran = calseg("evaluate", *words, "--max-items", "2", cwd=workspace)
        assert ran.code == 0, ran.err
        assert ("c.h5 was fitted on the logits of another network" in ran.err) == told
        assert calseg("predict", "--checkpoint", checkpoint, "-o", f"{checkpoint}.h5", cwd=workspace).code == 0
        ran = calseg("pseudo-label", "--logits", f"{checkpoint}.h5", "--calibrator", "c.h5", cwd=workspace)
        assert ran.code == 0, ran.err
        assert ("another network" in ran.err) == told
