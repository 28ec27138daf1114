"""calseg calibrate-prototypes as a user types it: tables and JSON, every way in, labels that stay closed, mistakes."""

import shutil

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact

MADE = "runs/sample/5-prototypes/pretrain-target-train.h5"


def test_the_table_and_the_next_step(folder, calseg):
    ran = calseg("calibrate-prototypes", cwd=folder)
    assert ran.code == 0, ran.err
    assert f"prototypes: {MADE}" in ran.err
    with open_artifact(folder / MADE, "prototypes") as artifact:
        names = artifact.class_names
    assert [line.split()[0] for line in ran.out.splitlines()[2:]] == names
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    assert step == f"next: calseg evaluate --prototypes {MADE}"
    evaluated = calseg(*step.split()[2:], cwd=folder)
    assert evaluated.code == 0, evaluated.err


def test_json_and_pictures(folder, calseg):
    ran = calseg("calibrate-prototypes", "--png", "--distance", "kl", "--shrink", "0.1", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["artifact"] == MADE
    assert ran.json["options"]["distance"] == "kl"
    assert ran.json["changed"]["pixels"] > 0
    assert (folder / ran.json["changed"]["pictures"] / "changed.png").exists()
    with open_artifact(folder / MADE) as artifact:
        assert [row["pixels"] for row in ran.json["classes"]] == artifact.array("pixels").tolist()
    again = calseg("calibrate-prototypes", "--changed-by", MADE, "--json", cwd=folder)
    assert again.code == 0, again.err
    assert again.json["changes"] == ran.json["changed"]["changes"]


def test_a_network_and_a_folder_are_ways_in_too_and_no_label_is_needed(folder, calseg):
    for labels in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(labels)
    assert calseg("calibrate-prototypes", cwd=folder).code == 0
    ran = calseg("calibrate-prototypes", "--checkpoint", "pretrain", "-o", "network.h5", cwd=folder)
    assert ran.code == 0, ran.err
    with open_artifact(folder / MADE) as one, open_artifact(folder / "network.h5") as other:
        np.testing.assert_array_equal(one.array("pixels"), other.array("pixels"))
        np.testing.assert_array_equal(one.array("sums"), other.array("sums"))
        assert other.meta["protocol"]["correction"]["fitted_on"]["split"] == "train"
    images = "data/target/test/images"
    ran = calseg("calibrate-prototypes", "--images", images, "--max-items", "2", "-o", "some.h5", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["images"] == 2


def test_parts_merge(folder, calseg):
    for split in ("train", "test"):
        ran = calseg(
            "calibrate-prototypes", "--checkpoint", "pretrain", "--split", split, "-o", f"{split}.h5", cwd=folder
        )
        assert ran.code == 0, ran.err
    merged = calseg("artifact", "merge", "train.h5", "test.h5", "-o", "all.h5", cwd=folder)
    assert merged.code == 0, merged.err
    with open_artifact(folder / "all.h5", "prototypes") as artifact:
        counted = artifact.array("pixels")
    parts = [open_artifact(folder / f"{split}.h5") for split in ("train", "test")]
    np.testing.assert_array_equal(counted, sum(part.array("pixels") for part in parts))
    assert calseg("artifact", "merge", "all.h5", "test.h5", "-o", "twice.h5", cwd=folder).code == 4


def test_the_source_as_a_prior_and_the_shift(folder, calseg):
    words = ("--checkpoint", "pretrain", "--domain", "source", "--split", "val", "-o", "source.h5")
    assert calseg("calibrate-prototypes", *words, cwd=folder).code == 0
    ran = calseg("calibrate-prototypes", "--prior-from", "source.h5", "--prior", "50", cwd=folder)
    assert ran.code == 0, ran.err
    title = next(number for number, line in enumerate(ran.out.splitlines()) if line.startswith("shift"))
    with open_artifact(folder / MADE) as artifact, open_artifact(folder / "source.h5") as source:
        assert artifact.meta["provenance"]["parents"]["prior"] == source.digest
        assert [line.split()[0] for line in ran.out.splitlines()[title + 2 :]] == artifact.class_names
    (folder / "source.h5").rename(folder / "elsewhere.h5")
    assert calseg("evaluate", "--prototypes", MADE, cwd=folder).code == 0
    told = calseg("calibrate-prototypes", "--prior-from", "elsewhere.h5", "--force", "--json", cwd=folder)
    assert [row["name"] for row in told.json["shift"]] == [row["name"] for row in told.json["classes"]]
    refused = calseg("calibrate-prototypes", "--prior-from", "elsewhere.h5", "--temperature", "2", cwd=folder)
    assert refused.code == 3
    assert "elsewhere.h5 was counted by another rule: temperature was 1.0, is 2.0" in refused.err
    assert "Traceback" not in refused.err


def test_online(folder, calseg):
    ran = calseg("calibrate-prototypes", "--online", "causal", "--prior", "100", "--forget", "0.9", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.out == "runs/sample/5-prototypes/pretrain-target-train-causal.h5\n"
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    evaluated = calseg(*step.split()[2:], cwd=folder)
    assert evaluated.code == 0, evaluated.err


def test_settings_come_from_the_file_too(folder, calseg):
    with (folder / "calseg.yaml").open("a") as stream:
        stream.write("\nprototypes: {weight_power: 2, prior: 10}\n")
    ran = calseg("calibrate-prototypes", "--json", cwd=folder)
    assert (ran.json["options"]["weight_power"], ran.json["options"]["prior"]) == (2, 10)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--distance", "far"), 2, "prototypes.distance"),
        (("--shrink", "2"), 2, "prototypes.shrink"),
        (("--logits", "nowhere.h5"), 3, "nowhere.h5"),
        (("--logits", "a.h5", "--checkpoint", "pretrain"), 2, "--logits excludes"),
        (("--split", "train"), 2, "--split has no effect on logits"),
        (("--max-items", "3"), 2, "--max-items has no effect on logits"),
        (("--changed-by", "nowhere.h5"), 3, "nowhere.h5"),
        (("--online", "causal"), 2, "--prior"),
        (("--prior-from", "nowhere.h5"), 3, "nowhere.h5"),
        (("--min-confidence", "1"), 4, "no pixel counts"),
        (("--name", "empty"), 3, "calseg predict --split train"),
    ],
)
def test_mistakes_are_one_line(folder, calseg, words, code, said):
    ran = calseg("calibrate-prototypes", *words, cwd=folder)
    assert ran.code == code, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_a_result_is_kept_without_force(folder, calseg):
    assert calseg("calibrate-prototypes", cwd=folder).code == 0
    assert calseg("calibrate-prototypes", cwd=folder).code == 3
    assert calseg("calibrate-prototypes", "--force", cwd=folder).code == 0
