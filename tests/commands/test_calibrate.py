"""calseg calibrate as a user types it: the way to evaluate, JSON, labels that stay closed, mistakes in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.methods.aligned_quantiles import pooled_anchors, quantile_table
from calseg_cli.methods.calibrators import CALIBRATORS
from calseg_cli.metrics.logit_histograms import count_logits
from tests.commands.outcomes import failed, keep_few, killed_at, labels

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
    keep_few(folder, 16)
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


# Classes that are balanced: blda, logit-adjustment

LABEL_FREE = ("--set", "calibrate.anchors=target", "--set", "calibrate.prior=pseudo")
FEW = ("--max-items", "8")


@pytest.mark.parametrize("method", ["blda", "logit-adjustment"])
def test_balancing_opens_labels_of_the_source_alone(folder, opened, method):
    seen = labels(opened(folder, "calibrate", "--method", method, *FEW))
    assert any("source/train" in path for path in seen)
    assert any("source/val" in path for path in seen)
    assert not any("target" in path for path in seen)


@pytest.mark.parametrize(
    ("method", "strength"),
    [("blda", ("--tau-by", "expected")), ("logit-adjustment", ("--tau", "0.5"))],
)
def test_balancing_can_do_without_the_source_and_any_label(folder, calseg, method, strength):
    shutil.rmtree(folder / "data/source")
    for closed in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(closed)
    ran = calseg("calibrate", "--method", method, *strength, *LABEL_FREE, *FEW, "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert (ran.json["labels"], ran.json["before"]) == ("none", {})
    assert ran.json["measured_on"].startswith("nothing")


@pytest.mark.parametrize(("method", "wanted"), [("blda", "miou"), ("logit-adjustment", "macc")])
def test_the_strength_is_the_smallest_of_the_best_that_were_tried(folder, calseg, method, wanted):
    words = ("calibrate", "--method", method, "--tau-for", wanted, *FEW, "--set", "calibrate.anchor_weights=classes")
    ran = calseg(*words, "--json", cwd=folder)
    assert ran.code == 0, ran.err
    rows = ran.json["fit"]["sweep"]
    assert rows[0]["changed_on_target"] == 0 < rows[-1]["changed_on_target"]
    best = max(row[wanted] for row in rows)
    assert ran.json["parameters"]["tau"] == next(row["tau"] for row in rows if best - row[wanted] < 1e-3)
    assert set(ran.json["after"]) >= {"miou", "macc", "accuracy_spread"}
    with open_artifact(folder / ran.json["artifact"], "calibrator") as artifact:
        assert artifact.array("tau").tolist() == [ran.json["parameters"]["tau"]]
        assert artifact.meta["protocol"]["correction"]["fit"]["sweep"] == rows
        assert artifact.meta["protocol"]["labels_used_for"] == "fitting: source"
    table = calseg(*words, "--force", cwd=folder)
    assert f"tau by {wanted}, judged by labels of source val" in table.out
    with open_artifact(folder / ran.json["artifact"], "calibrator") as artifact:
        assert artifact.digest == ran.json["digest"]  # it repeats


def cells_and_labels(folder, artifact, split):
    """Logits (C,P) of an artifact's cells and the labels (P,) under their centres, at stride 4 without padding."""
    logits, found = [], []
    for name in artifact.ids:
        one = artifact.item(name, "logits").astype(np.float32)
        with Image.open(folder / "data/source" / split / "labels" / f"{name}.png") as picture:
            label = np.asarray(picture)
        step = label.shape[0] // one.shape[1]
        logits.append(one.reshape(len(one), -1))
        found.append(label[step // 2 :: step, step // 2 :: step].ravel())
    return np.concatenate(logits, axis=1), np.concatenate(found).astype(int)


def test_the_prior_and_what_judged_are_those_of_brute_force(folder, calseg):
    ran = calseg("calibrate", "--method", "logit-adjustment", "--json", cwd=folder)
    assert calseg("predict", "--domain", "source", "--split", "val", "-o", "val.h5", cwd=folder).code == 0
    counts = np.zeros(256)
    for path in (folder / "data/source/train/labels").rglob("*.png"):
        with Image.open(path) as picture:
            counts += np.bincount(np.asarray(picture).ravel(), minlength=256)
    with open_artifact(folder / ran.json["artifact"]) as artifact:
        prior = artifact.array("prior")
    np.testing.assert_allclose(prior, counts[: len(prior)] / counts[: len(prior)].sum(), rtol=1e-12)
    with open_artifact(folder / "val.h5") as artifact:
        z, y = cells_and_labels(folder, artifact, "val")
    z, y = z[:, y < len(prior)], y[y < len(prior)]
    for row in ran.json["fit"]["sweep"][::5]:
        chosen = (z - row["tau"] * np.log(prior)[:, None]).argmax(axis=0)
        present = np.unique(y)
        shares = [np.mean(chosen[y == c] == c) for c in present]
        ious = [np.sum((y == c) & (chosen == c)) / np.sum((y == c) | (chosen == c)) for c in present]
        assert row["macc"] == pytest.approx(np.mean(shares), abs=1e-4)
        assert row["accuracy_spread"] == pytest.approx(np.std(shares), abs=1e-4)
        assert row["miou"] == pytest.approx(np.mean(ious), abs=1e-4)


def test_the_offsets_are_those_of_the_targets_cells(folder, calseg):
    words = ("calibrate", "--method", "blda", "--tau", "0.5", *LABEL_FREE[:2], "--json")
    ran = calseg(*words, cwd=folder)
    assert ran.code == 0, ran.err
    assert calseg("predict", "--split", "train", "-o", "t.h5", cwd=folder).code == 0
    again = calseg(*words, "--logits", "t.h5", "-o", "from-logits.h5", cwd=folder)
    assert again.code == 0, again.err
    with open_artifact(folder / "t.h5") as artifact:
        parts = [torch.from_numpy(artifact.item(name, "logits")).float().flatten(1) for name in artifact.ids]
    z = torch.cat(parts, dim=1)
    cells = count_logits(z, z.argmax(dim=0))
    seen = cells.counts[:, 0].sum(axis=1) >= 100
    expected = quantile_table(cells, pooled_anchors(cells), seen)
    with open_artifact(folder / ran.json["artifact"]) as one, open_artifact(folder / "from-logits.h5") as other:
        np.testing.assert_array_equal(one.array("offsets"), expected.offsets.float().numpy())
        np.testing.assert_array_equal(one.array("offsets"), other.array("offsets"))
    unseen = [name for name, known in zip(artifact.class_names, seen, strict=True) if not known]
    assert ran.json["fit"]["unchanged_classes"] == (", ".join(unseen) or "none")


def test_at_strength_0_the_evaluation_is_the_networks_own(folder, calseg):
    ran = calseg("calibrate", "--method", "blda", "--tau", "0", *LABEL_FREE, *FEW, "--json", cwd=folder)
    assert ran.code == 0, ran.err
    words = ("evaluate", "--max-items", "4", "--json")
    plain = calseg(*words, cwd=folder)
    same = calseg(*words, "--calibrator", ran.json["artifact"], cwd=folder)
    assert same.json["scores"] == plain.json["scores"]


def test_a_failed_balance_leaves_nothing(folder, calseg):
    shutil.rmtree(folder / "runs/sample/5-calibrate")
    for path in (folder / "data/source/val/labels").rglob("*.png"):
        Image.new("L", (2, 2)).save(path)
    assert failed(calseg("calibrate", "--method", "blda", *FEW, cwd=folder), 4)
    left = folder / "runs/sample/5-calibrate"
    assert not left.exists() or not list(left.iterdir())


@pytest.mark.parametrize("method", ["temperature", "blda"])
def test_a_killed_fit_leaves_nothing_under_its_name_and_nothing_in_the_way(folder, calseg, method):
    place = folder / "runs/sample/5-calibrate"
    shutil.rmtree(place)
    killed_at(calseg, folder, place, "calibrate", "--method", method)
    assert not list(place.glob("*.h5"))
    ran = calseg("calibrate", "--method", method, cwd=folder)
    assert ran.code == 0, ran.err
    assert len(list(place.glob("*.h5"))) == 1


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
        (("--tau", "1"), 2, "--tau has no effect with --method temperature"),
        (("--method", "blda", "--tau", "-1"), 2, "calibrate.tau must be auto or a number"),
        (("--method", "blda", "--tau", "x"), 2, "calibrate.tau must be auto or a number"),
        (("--method", "blda", "--tau", "nan"), 2, "calibrate.tau must be auto or a number"),
        (("--method", "blda", "--tau-for", "iou"), 2, "calibrate.tau_for"),
        (("--method", "blda", "--tau", "1", "--tau-by", "expected"), 2, "--tau-by has no effect where tau is given"),
        (("--method", "logit-adjustment", "--on", "source"), 2, "calibrates for the target"),
        (("--method", "blda", "--set", "source.root=nowhere"), 4, "nowhere"),
        (("--method", "blda", "--logits", "nowhere.h5"), 3, "nowhere.h5"),
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
