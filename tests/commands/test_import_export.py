"""calseg artifact import and export as a user types them: other tools in and out, exit codes, no label opened."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.commands._artifact_import import _pair
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.errors import ConfigError

LOGITS = "runs/sample/5-predict/pretrain-target-test.h5"
PARTS = ("scores", "classes", "confusion", "images", "reliability")


@pytest.fixture(scope="module")
def predicted(trained, tmp_path_factory, calseg):
    """The trained folder with logits of target test and their evaluation; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("predicted") / "w"
    shutil.copytree(trained, folder)
    assert calseg("predict", cwd=folder).code == 0
    measured = calseg("evaluate", "--logits", LOGITS, "--json", cwd=folder)
    assert measured.code == 0, measured.err
    (folder / "expected.json").write_text(measured.out, encoding="utf-8")
    return folder


@pytest.fixture
def folder(predicted, tmp_path):
    shutil.copytree(predicted, tmp_path / "w")
    return tmp_path / "w"


def same_measures(ran, folder, *, rel=0.0) -> None:
    assert ran.code == 0, ran.err
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for part in PARTS:
        assert_close(ran.json[part], expected[part], rel)


def assert_close(one, other, rel) -> None:
    if isinstance(other, float):
        assert one == pytest.approx(other, rel=rel, abs=rel)
    elif isinstance(other, dict | list):
        keys = other if isinstance(other, dict) else range(len(other))
        assert len(one) == len(other)
        for key in keys:
            assert_close(one[key], other[key], rel)
    else:
        assert one == other


def test_out_and_in_again_measures_the_same(folder, calseg):
    exported = calseg("artifact", "export", LOGITS, "-o", "out", "--to", "npy", cwd=folder)
    assert (exported.code, exported.out) == (0, "out\n"), exported.err
    brought = calseg("artifact", "import", "out", "-o", "x.h5", "--split", "test", cwd=folder)
    assert (brought.code, brought.out) == (0, "x.h5\n"), brought.err
    step = next(line for line in brought.err.splitlines() if line.startswith("next: "))
    assert step == "next: calseg evaluate --logits x.h5"
    same_measures(calseg(*step.split()[2:], "--json", cwd=folder), folder)
    with open_artifact(folder / LOGITS) as one, open_artifact(folder / "x.h5") as other:
        assert one.item_digests == other.item_digests


def test_somebody_elses_full_size_logits_measure_the_same(folder, calseg):
    """What another framework would save: full size, float32, class axis last, names of its own.

    Their enlargement, torch's, rounds the last digit otherwise than calseg's.
    """
    (folder / "theirs").mkdir()
    with open_artifact(folder / LOGITS) as artifact:
        for name in artifact.ids:
            full = upsample_logits(torch.from_numpy(artifact.item(name, "logits")), artifact.geometry(name))
            np.savez(folder / "theirs" / f"{name}_logits.npz", out=full.permute(1, 2, 0).numpy(), loss=np.zeros(3))
    for labels in (folder / "data/target").glob("*/labels"):
        labels.rename(labels.with_name("hidden"))  # an import opens none
    words = ("artifact", "import", "theirs", "-o", "x.h5", "--axes", "hwc", "--key", "out", "--json")
    brought = calseg(*words, cwd=folder)
    assert brought.code == 0, brought.err
    assert brought.json["domain"] == "target"
    assert brought.json["lacking"] == 0
    for hidden in (folder / "data/target").glob("*/hidden"):
        hidden.rename(hidden.with_name("labels"))
    same_measures(calseg("evaluate", "--logits", "x.h5", "--json", cwd=folder), folder, rel=1e-6)
    assert calseg("pseudo-label", "--logits", "x.h5", "-o", "labels.h5", cwd=folder).code == 0


def test_label_files_have_the_accuracy_that_evaluate_measures(folder, calseg):
    ran = calseg("artifact", "export", LOGITS, "-o", "out", "--to", "png", "--palette", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    right = seen = 0
    for path in sorted((folder / "data/target/test/labels").glob("*.png")):
        label = np.array(Image.open(path))
        found = np.array(Image.open(folder / "out" / path.name))
        right += int((found[label != 255] == label[label != 255]).sum())
        seen += int((label != 255).sum())
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert right / seen == pytest.approx(expected["scores"]["accuracy"], abs=1e-12)


def test_values_of_the_configured_dataset(folder, calseg):
    with open_artifact(folder / LOGITS) as artifact:
        names = artifact.class_names
    ids = ", ".join(f"{10 * (n + 1)}: {name!r}" for n, name in enumerate(names))
    text = (folder / "calseg.yaml").read_text(encoding="utf-8")
    assert text.count("target:\n") == 1
    text = text.replace("target:\n", f"target:\n  ids: {{0: ignore, {ids}}}\n")
    (folder / "other.yaml").write_text(text, encoding="utf-8")
    words = ("artifact", "export", LOGITS, "-o", "out", "--to", "png", "--ids", "dataset")
    ran = calseg(*words, "-c", "other.yaml", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert list(ran.json["values"].values()) == [10 * (n + 1) for n in range(len(names))]
    assert ran.json["ignore_id"] == 0
    values = {int(v) for path in (folder / "out").glob("*.png") for v in np.unique(np.array(Image.open(path)))}
    assert values <= set(ran.json["values"].values())
    assert len(values) > 2
    words = ("artifact", "import", "out", "-o", "x.h5", "--ids", "dataset", "-c", "other.yaml")
    assert calseg(*words, cwd=folder).code == 0


def test_without_a_configuration(calseg, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.zeros((2, 3, 4), np.float16))
    words = ("artifact", "import", "in", "-o", "x.h5", "--classes", "road,sky")
    ran = calseg(*words, "--stride", "4", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "next: calseg inspect x.h5" in ran.err
    assert "12x16" in calseg("inspect", "x.h5", cwd=tmp_path).out
    refused = calseg(*words, "--force", "--split", "test", cwd=tmp_path)
    assert refused.code == 2
    assert "need a configuration" in refused.err
    assert calseg("artifact", "import", "in", "-o", "y.h5", cwd=tmp_path).code == 2
    refused = calseg("artifact", "export", "x.h5", "-o", "out", "--to", "png", "--ids", "dataset", cwd=tmp_path)
    assert refused.code == 2
    assert calseg("artifact", "export", "x.h5", "-o", "out", "--to", "png", cwd=tmp_path).code == 0


@pytest.mark.parametrize("text", ["3", "3x", "axb", "-1x3", "1x2x3", "999999x1", ""])
def test_pairs_that_are_none(text):
    with pytest.raises(ConfigError, match="--pad"):
        _pair(text, "--pad", "BOTTOM,RIGHT")


def test_pairs():
    assert _pair("3,16", "--pad", "") == _pair(" 3x16", "--pad", "") == (3, 16)
    assert _pair(None, "--pad", "") is None


def test_exit_codes(folder, calseg):
    (folder / "in").mkdir()
    np.save(folder / "in" / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    ran = calseg("artifact", "import", "in", "-o", "x.h5", cwd=folder)
    assert ran.code == 4
    assert "in/a.npy holds Python objects" in ran.err
    assert "Traceback" not in ran.err
    wrong = calseg("artifact", "import", "in", "-o", "x.h5", "--out-size", "12", cwd=folder)
    assert wrong.code == 2
    assert "--out-size 12 is no pair" in wrong.err
    assert calseg("artifact", "export", "absent.h5", "-o", "out", "--to", "npz", cwd=folder).code == 3
    assert calseg("artifact", "export", LOGITS, "-o", "data", "--to", "png", "--force", cwd=folder).code == 3
    assert (folder / "data/target/test/labels").is_dir()
    assert not (folder / "x.h5").exists()
