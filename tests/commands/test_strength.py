"""calseg calibrate --from: another strength for a calibrator that balances classes, without a look at anything."""

import shutil

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from tests.commands.outcomes import failed, keep_few

OFFSETS = "runs/sample/5-calibrate/pretrain-blda-target-train.h5"
PRIOR = "runs/sample/5-calibrate/pretrain-logit-adjustment-target-train.h5"


@pytest.fixture(scope="module")
def balanced(trained, tmp_path_factory, calseg):
    """The trained folder with both calibrators that balance, their strengths chosen; copy it before changing it."""
    folder = tmp_path_factory.mktemp("balanced") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder, 8)
    for method in ("blda", "logit-adjustment"):
        ran = calseg("calibrate", "--method", method, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


@pytest.fixture
def folder(balanced, tmp_path):
    shutil.copytree(balanced, tmp_path / "w")
    return tmp_path / "w"


def contents(path):
    with open_artifact(path, "calibrator") as artifact:
        return artifact.arrays(), artifact.meta


@pytest.mark.parametrize("method", ["blda", "logit-adjustment"])
def test_it_is_what_a_fit_with_that_strength_is(folder, calseg, method):
    made = OFFSETS if method == "blda" else PRIOR
    ran = calseg("calibrate", "--from", made, "--tau", "0.6", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["artifact"] == made.replace(".h5", "-tau-0.6.h5")
    assert (ran.json["parameters"]["tau"], ran.json["fit"]["status"], ran.json["before"]) == (0.6, "tau given", {})
    fitted = calseg("calibrate", "--method", method, "--tau", "0.6", "-o", "fitted.h5", cwd=folder)
    assert fitted.code == 0, fitted.err
    (one, told), (other, wanted) = contents(folder / ran.json["artifact"]), contents(folder / "fitted.h5")
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    first, second = (dict(meta["protocol"]["correction"]) for meta in (told, wanted))
    for name in ("options", "measured_on", "fitted_on"):  # how the first strength was found is still told
        first.pop(name), second.pop(name)
    assert first == second
    assert wanted["provenance"]["parents"].items() <= told["provenance"]["parents"].items()
    assert told["classes"] == wanted["classes"]
    words = ("evaluate", "--json", "--max-items", "4", "--calibrator")
    scores = [
        calseg(*words, str(file), "-o", out, cwd=folder).json
        for file, out in ((ran.json["artifact"], "a"), ("fitted.h5", "b"))
    ]
    assert scores[0]["scores"] == scores[1]["scores"]


@pytest.mark.parametrize(("wanted", "other"), [("macc", "miou"), ("miou", "macc")])
def test_auto_chooses_again_from_the_strengths_that_were_tried(folder, calseg, wanted, other):
    fitted = calseg("calibrate", "--method", "blda", "--tau-for", wanted, "-o", "fitted.h5", "--json", cwd=folder)
    calseg("calibrate", "--method", "blda", "--tau-for", other, "-o", "other.h5", cwd=folder)
    ran = calseg("calibrate", "--from", "other.h5", "--tau-for", wanted, "-o", "again.h5", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["parameters"] == fitted.json["parameters"]
    assert ran.json["fit"] == fitted.json["fit"]
    assert ran.json["options"]["tau_for"] == wanted
    shown = calseg("calibrate", "--from", "other.h5", "--tau-for", wanted, "-o", "shown.h5", cwd=folder).out
    table = [line.split() for line in shown.splitlines() if line[:1].isdigit()]
    for cells, row in zip(table, ran.json["fit"]["sweep"], strict=True):
        named = [row[name] for name in ("tau", "miou", "macc", "accuracy_spread", "changed_on_target")]
        assert [float(cell) for cell in cells] == pytest.approx(named, abs=6e-5)


def test_it_opens_no_image_and_no_label(folder, calseg):
    for part in ("source", "target"):
        shutil.rmtree(folder / "data" / part, ignore_errors=True)
    shutil.rmtree(folder / "runs/sample/1-pretrain")
    assert calseg("calibrate", "--from", OFFSETS, "--tau", "0", cwd=folder).code == 0
    parents = contents(folder / OFFSETS.replace(".h5", "-tau-0.h5"))[1]["provenance"]["parents"]
    with open_artifact(folder / OFFSETS) as first:
        assert parents["calibrator"] == first.digest


def test_it_is_stale_when_the_first_was_made_again(folder, calseg):
    assert calseg("calibrate", "--from", OFFSETS, "--tau", "1", "-o", "one.h5", cwd=folder).code == 0
    shutil.copy(folder / PRIOR, folder / OFFSETS)
    ran = calseg("inspect", "one.h5", cwd=folder)
    assert ran.code == 0
    assert "changed" in ran.out, ran.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--from", "none.h5", "--tau", "1"), 3, "none.h5"),
        (("--from", "calseg.yaml", "--tau", "1"), 3, "calseg.yaml"),
        (("--from", OFFSETS, "--tau", "-1"), 2, "must be auto or a number"),
        (("--from", OFFSETS, "--tau", "1", "--method", "logit-adjustment"), 2, "was made by blda, not by"),
        (("--from", OFFSETS, "--tau", "1", "--checkpoint", "pretrain"), 2, "--checkpoint has no effect"),
        (("--from", OFFSETS, "--tau", "1", "--logits", "x.h5"), 2, "--logits has no effect"),
        (("--from", OFFSETS, "--tau", "1", "--split", "val"), 2, "--split has no effect"),
        (("--from", OFFSETS, "--tau-by", "expected"), 2, "--tau-by has no effect"),
        (("--from", OFFSETS, "--tau", "1", "--tau-for", "macc"), 2, "--tau-for has no effect"),
        (("--from", OFFSETS, "--tau", "1", "-o", PRIOR), 3, "exists already"),
    ],
)
def test_mistakes_are_one_line(balanced, calseg, words, code, told):
    assert told in failed(calseg("calibrate", *words, cwd=balanced), code)


def test_a_file_without_a_strength_or_without_a_table_of_them_is_refused(folder, calseg):
    assert calseg("calibrate", "--method", "temperature", "-o", "t.h5", cwd=folder).code == 0
    assert "has no tau" in failed(calseg("calibrate", "--from", "t.h5", "--tau", "1", cwd=folder), 3)
    assert calseg("calibrate", "--from", OFFSETS, "--tau", "0.3", "-o", "given.h5", cwd=folder).code == 0
    assert "keeps no table of strengths" in failed(calseg("calibrate", "--from", "given.h5", cwd=folder), 3)
    assert not list((folder / "runs/sample/5-calibrate").glob("t-tau*"))
