"""calseg adapt --settle: the result's logits are divided by one temperature, and by nothing else."""

import shutil

import pytest
import torch

from tests.commands.outcomes import failed, keep_few, labels, log, weights

RUN = "runs/sample"
FEW = ("--steps", "2", "--batch-size", "2", "--set", "calibrate.steps=12", "--set", "calibrate.batch_size=2")
ADAPT = ("adapt", "--method", "self-training", *FEW, "--checkpoint", f"{RUN}/1-pretrain")


@pytest.fixture
def work(trained, tmp_path):
    """A private copy of the trained folder with eight images a split."""
    shutil.copytree(trained, tmp_path / "w")
    keep_few(tmp_path / "w")
    return tmp_path / "w"


def test_it_divides_by_the_level_that_the_calibrator_learns(work, calseg, opened):
    """On the plain result `calibrate --method dacal` of one level finds the same temperature, of the same images."""
    assert calseg(*ADAPT, "--name", "plain", cwd=work).code == 0
    seen = opened(work, *ADAPT, "--name", "settled", "--settle")
    assert [path for path in labels(seen) if "target" in path] == []
    plain, settled = (work / f"runs/{name}/4-adapt-self-training" for name in ("plain", "settled"))
    told = log(settled)[-1]
    assert (told["event"], told["divided"]) == ("settled", True)
    before, after = (weights(stage / "network.safetensors") for stage in (plain, settled))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.classifier.weight", "head.classifier.bias"}
    assert told["temperature"] != 1
    for name in changed:
        torch.testing.assert_close(after[name], before[name] / told["temperature"])
    level = ("--set", "adapt.dacal.width=0", "--checkpoint", str(plain), "-o", "level.h5", *FEW[4:])
    found = calseg("calibrate", "--method", "dacal", *level, "--json", cwd=work)
    assert found.code == 0, found.err
    assert found.json["fit"]["target_temperature_mean"] == pytest.approx(told["temperature"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "self-training", "--settle", "--source-free"), 2, "settle judges by labelled source images"),
        (("--method", "tent", "--settle"), 2, "--settle has no effect"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(trained, calseg, words, code, told):
    assert told in failed(calseg("adapt", *words, cwd=trained), code)
    assert not list((trained / RUN).glob("4-adapt-*"))


def test_without_what_judges_nothing_is_trained(work, calseg):
    shutil.rmtree(work / "data/source/val")
    assert "val" in failed(calseg(*ADAPT, "--settle", cwd=work), 4)
    assert not (work / RUN / "4-adapt-self-training/network.safetensors").exists()
    assert not (work / RUN / "4-adapt-self-training/log.jsonl").exists()
