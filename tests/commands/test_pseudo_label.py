"""calseg pseudo-label as a user types it: tables and JSON, Ctrl-C and kill, labels that stay closed."""

import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact

LABELS = "runs/sample/5-predict/pretrain-target-train-pseudo.h5"


def test_the_table_and_the_next_step(folder, calseg):
    ran = calseg("pseudo-label", cwd=folder)
    assert ran.code == 0, ran.err
    header = next(line for line in ran.out.splitlines() if line.startswith("class"))
    assert header.split() == ["class", "predicted", "pixels", "share", "threshold", "kept", "kept", "%"]
    assert [line.split()[0] for line in ran.out.splitlines()[2:]][-1] == "all"
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    assert step == f"next: calseg inspect {LABELS}"
    assert calseg(*step.split()[2:], cwd=folder).code == 0


def test_json_is_one_document_that_agrees_with_the_artifact(folder, calseg):
    ran = calseg("pseudo-label", "--portion", "0.2", "--ceiling", "0.9", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["artifact"] == LABELS
    with open_artifact(folder / LABELS, "pseudo_labels") as artifact:
        assert ran.json["digest"] == artifact.digest
        assert [row["name"] for row in ran.json["classes"]] == artifact.class_names
        assert [row["kept"] for row in ran.json["classes"]] == artifact.array("kept").tolist()
        for row, threshold in zip(ran.json["classes"], artifact.array("thresholds").tolist(), strict=True):
            assert row["threshold"] == (None if np.isnan(threshold) else threshold)
            assert threshold <= 0.9 or np.isnan(threshold)
            if row["predicted"]:
                assert row["kept_share"] >= 0.2
    assert ran.json["images"] == len(list((folder / "data/target/train/images").iterdir()))


def test_settings_come_from_the_file_too(folder, calseg):
    with (folder / "calseg.yaml").open("a") as stream:
        stream.write("\npseudo_label: {threshold: global, confidence: 0.5, keep_confidence: f16}\n")
    assert calseg("pseudo-label", cwd=folder).code == 0
    with open_artifact(folder / LABELS) as artifact:
        name = artifact.ids[0]
        label, confidence = artifact.item(name, "label"), artifact.item(name, "confidence")
    assert (label != 255).any()
    assert (confidence[label != 255] >= np.float16(0.5)).all()


def test_pictures(folder, calseg):
    ran = calseg("pseudo-label", "--png", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    pictures = folder / ran.json["pictures"]
    with open_artifact(folder / LABELS) as artifact:
        for name in artifact.ids:
            with Image.open(pictures / "label" / f"{name}.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), artifact.item(name, "label"))
            assert (pictures / "overlay" / f"{name}.png").exists()
            assert (pictures / "ignored" / f"{name}.png").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--threshold", "best"), 2, "pseudo_label.threshold"),
        (("--portion", "0"), 2, "pseudo_label.portion"),
        (("--threshold", "global", "--portion", "0.5"), 2, "--portion has no effect"),
        (("--logits", "nowhere.h5"), 3, "nowhere.h5"),
        (("--name", "empty"), 3, "calseg predict --split train"),
    ],
)
def test_mistakes_are_one_line(folder, calseg, words, code, said):
    ran = calseg("pseudo-label", *words, cwd=folder)
    assert ran.code == code
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_a_result_is_kept_without_force(folder, calseg):
    assert calseg("pseudo-label", cwd=folder).code == 0
    assert calseg("pseudo-label", cwd=folder).code == 3
    assert calseg("pseudo-label", "--force", cwd=folder).code == 0
    again = calseg("pseudo-label", "--resume", cwd=folder)
    assert again.code == 0
    assert "finished already" in again.err


STOPS = [
    ("class-balanced", signal.SIGINT, 130),
    ("class-balanced", signal.SIGKILL, -9),
    ("global", signal.SIGTERM, 143),
    ("global", signal.SIGKILL, -9),
]


@pytest.mark.parametrize(("rule", "signum", "code"), STOPS)
def test_stopped_and_resumed_is_the_unbroken_result(folder, calseg, rule, signum, code):
    words = ("--threshold", rule, "--png", "--keep-confidence", "f16")
    whole = calseg("pseudo-label", *words, "--out", "whole.h5", "--json", cwd=folder).json
    process = calseg.start("pseudo-label", *words, "--out", "broken.h5", cwd=folder)
    process.wait_for(folder / "broken.h5.partial")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the machine finished before the signal arrived")
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not (folder / "broken-pictures").exists()
    if code > 0:
        assert "--resume" in err
        assert err.count("error:") == 1
    resumed = calseg("pseudo-label", *words, "--out", "broken.h5", "--resume", "--json", cwd=folder)
    assert resumed.code == 0, resumed.err
    assert resumed.json["digest"] == whole["digest"]
    assert resumed.json["classes"] == whole["classes"]
    pictures = sorted(
        path.relative_to(folder / "whole-pictures") for path in (folder / "whole-pictures").rglob("*.png")
    )
    assert (
        sorted(path.relative_to(folder / "broken-pictures") for path in (folder / "broken-pictures").rglob("*.png"))
        == pictures
    )
    assert len(pictures) == 3 * whole["images"]
    assert not list(folder.glob("*.partial"))


def test_no_label_is_opened_or_listed(folder, calseg, opened):
    """Of the target's test split, which has labels."""
    assert calseg("predict", "--split", "test", cwd=folder).code == 0
    logits = "runs/sample/5-predict/pretrain-target-test.h5"
    seen = opened(folder, "pseudo-label", "--png", "--logits", logits)
    assert any(path.endswith(".png") and "images" in path for path in seen)
    assert [path for path in seen if "data/target" in path and "labels" in path] == []


def test_neither_images_nor_labels_are_needed(folder, calseg):
    shutil.rmtree(folder / "data")
    ran = calseg("pseudo-label", "--png", cwd=folder)
    assert ran.code == 0, ran.err
    assert "no overlays:" in ran.err
