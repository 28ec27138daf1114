"""calseg train-valuenet as a user types it: what it leaves, what it does not touch, stopping, mistakes in one line."""

import json
import shutil
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.metrics.agreement import agreement
from tests.commands.outcomes import failed, keep_few

STAGE = "runs/sample/3-valuenet"
QUICK = ("--steps", "8", "--set", "valuenet.max_items=3", "--set", "valuenet.checkpoint_every=2")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory, calseg):
    """The trained folder with a value net, and what was said; copy it before changing anything (`folder`)."""
    folder = tmp_path_factory.mktemp("valuenet") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder, 12)
    before = file_digest(folder / "runs/sample/1-pretrain/network.safetensors")
    shutil.rmtree(folder / "data/target")  # no file of the target is needed
    ran = calseg("train-valuenet", *QUICK, cwd=folder)
    assert ran.code == 0, ran.err
    assert file_digest(folder / "runs/sample/1-pretrain/network.safetensors") == before
    return folder, ran


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "w")
    return tmp_path / "w"


def tensors_of(folder, stage=STAGE):
    return load_file(folder / stage / "valuenet.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def test_what_it_leaves_and_says(made):
    folder, ran = made
    assert {path.name for path in (folder / STAGE).iterdir()} == {
        *("valuenet.safetensors", "held-out.h5", "held-out.png", "log.jsonl", "config.yaml")
    }
    facts = read_facts(folder / STAGE / "valuenet.safetensors")
    assert facts["kind"] == "value-net"
    network = file_digest(folder / "runs/sample/1-pretrain/network.safetensors")
    assert facts["provenance"]["parents"] == {"checkpoint": network}
    told = facts["value_net"]
    assert (told["target"], told["bins"], told["channels"]) == ("image", 10, 64)
    assert 0 <= told["range"][0] < told["range"][1] <= 1
    assert len(told["held_out_ids"]) == 3
    assert all(name.startswith("network.") and "encoder" not in name for name in tensors_of(folder))
    assert "3 held-out images as they are" in ran.out
    assert ran.err.splitlines()[-1].startswith("next: calseg adapt --method calsfda")


def test_the_artifact_holds_every_image_and_change_and_agrees_with_the_scores(made):
    folder, _ = made
    scores = read_facts(folder / STAGE / "valuenet.safetensors")["value_net"]["scores"]
    with open_artifact(folder / STAGE / "held-out.h5", "value_scores") as artifact:
        arrays = artifact.arrays()
    assert set(arrays) == {
        *("images", "changes", "true", "expected", "expected_by_mean", "expected_by_entropy", "expected_by_doubt")
    }
    changes = ["as they are", "darker", "brighter", "gamma", "contrast", "noise", "blur"]
    assert arrays["changes"].tolist() == changes * 3
    assert len(set(arrays["images"].tolist())) == 3
    for change in ("as they are", "blur"):
        rows = arrays["changes"] == change
        again = agreement(arrays["expected"][rows], arrays["true"][rows])
        assert scores[change]["value net"]["mse"] == pytest.approx(again.mse, rel=1e-12)
        assert scores[change]["value net"]["spearman"] == pytest.approx(again.spearman, nan_ok=True)
    assert np.ptp(arrays["expected_by_mean"]) == 0


def test_the_same_seed_gives_the_same_net_with_any_workers(folder, calseg):
    first = tensors_of(folder)
    shutil.copytree(folder / "runs/sample/1-pretrain", folder / "runs/again/1-pretrain")
    ran = calseg("train-valuenet", *QUICK, "--workers", "1", "--name", "again", cwd=folder)
    assert ran.code == 0, ran.err
    assert same(first, tensors_of(folder, "runs/again/3-valuenet"))
    ran = calseg("train-valuenet", *QUICK, "--seed", "5", "--name", "again", "--force", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert not same(first, tensors_of(folder, "runs/again/3-valuenet"))
    assert ran.json["value_net"] == "runs/again/3-valuenet/valuenet.safetensors"
    assert set(ran.json["scores"]["all together"]) == {"value net", "mean", "entropy", "doubt"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_resumed_is_the_unbroken_net(folder, calseg, signum, code):
    whole = tensors_of(folder)
    log = records(folder)
    shutil.rmtree(folder / STAGE)
    process = calseg.start("train-valuenet", *QUICK, cwd=folder)
    process.wait_for(folder / STAGE / "resume.safetensors")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not (folder / STAGE / "valuenet.safetensors").exists()
    assert "unfinished run" in failed(calseg("train-valuenet", *QUICK, cwd=folder), 3)
    ran = calseg("train-valuenet", *QUICK, "--resume", cwd=folder)
    assert ran.code == 0, ran.err
    assert same(whole, tensors_of(folder))
    assert records(folder) == log
    assert not (folder / STAGE / "resume.safetensors").exists()


def records(folder):
    lines = [json.loads(line) for line in (folder / STAGE / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_resume_of_a_finished_one_does_nothing_and_force_begins_anew(folder, calseg):
    before = (folder / STAGE / "valuenet.safetensors").stat().st_mtime_ns
    ran = calseg("train-valuenet", *QUICK, "--resume", cwd=folder)
    assert ran.code == 0, ran.err
    assert "finished already" in ran.err
    assert (folder / STAGE / "valuenet.safetensors").stat().st_mtime_ns == before
    assert "finished run" in failed(calseg("train-valuenet", *QUICK, cwd=folder), 3)
    told = failed(calseg("train-valuenet", *QUICK, "--resume", "--lr", "0.5", cwd=folder), 3)
    assert "valuenet.lr: was 0.0001, is 0.5" in told


def test_resume_for_another_network_is_refused(folder, calseg):
    assert calseg("pretrain", "--steps", "1", "--force", cwd=folder).code == 0
    assert "another network" in failed(calseg("train-valuenet", *QUICK, "--resume", cwd=folder), 3)


def test_a_failed_new_try_leaves_the_old_one(folder, calseg):
    before = tensors_of(folder)
    broken = sorted((folder / "data/source/val").rglob("*.png"))[0]
    broken.write_bytes(b"no picture")
    ran = calseg("train-valuenet", *QUICK, "--force", cwd=folder)
    failed(ran, 4)
    assert not (folder / STAGE / "network.safetensors").exists()
    kept = folder / STAGE if (folder / STAGE / "valuenet.safetensors").exists() else folder / f"{STAGE}.replaced"
    assert same(before, load_file(kept / "valuenet.safetensors"))


def test_val_as_what_is_learnt_on_holds_its_last_part_out(folder, calseg):
    words = ("--force", "--json", "--set", "valuenet.fit_split=val", "--set", "valuenet.hold_out=0.25")
    ran = calseg("train-valuenet", "--steps", "2", *words, cwd=folder)
    assert ran.code == 0, ran.err
    assert ran.json["held_out_ids"] == ["0009", "0010", "0011"]
    assert ran.json["fitted_on"] == "source val, 9 images (0000 to 0008)"


def test_the_other_choice_of_everything_runs(folder, calseg):
    other = {"target": "class", "loss": "logit", "statistics": "batch", "pooling": "bilinear", "measure_strength": "0"}
    words = [word for key, value in other.items() for word in ("--set", f"valuenet.{key}={value}")]
    ran = calseg(
        "train-valuenet", "--steps", "2", "--set", "valuenet.max_items=2", *words, "--force", "--json", cwd=folder
    )
    assert ran.code == 0, ran.err
    assert (ran.json["target"], ran.json["pooling"]) == ("class", "bilinear")
    assert set(ran.json["scores"]) == {"as they are", "all together"}


def test_no_label_of_the_target_and_no_file_of_it_is_opened(workspace, opened):
    seen = opened(workspace, "train-valuenet", "--steps", "1", "--set", "valuenet.max_items=1")
    assert not [path for path in seen if "data/target" in path]
    assert any("data/source" in path for path in seen)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--target", "pixel"), 2, "valuenet.target"),
        (("--lr", "0"), 2, "valuenet.lr"),
        (("--steps", "0"), 2, "valuenet.steps"),
        (("--checkpoint", "nowhere"), 3, "nowhere"),
        (("--checkpoint", f"{STAGE}/held-out.png"), 3, "held-out.png"),
        (("--checkpoint", f"{STAGE}/valuenet.safetensors"), 3, "valuenet.safetensors"),
    ],
)
def test_mistakes_are_one_line(folder, calseg, words, code, told):
    assert told in failed(calseg("train-valuenet", "--force", *words, cwd=folder), code)


def test_a_checkpoint_whose_values_are_not_finite_is_no_traceback(folder, calseg):
    path = folder / "bare.safetensors"
    save_file({"weight": np.full(3, np.nan, np.float32)}, path)
    assert "bare.safetensors" in failed(calseg("train-valuenet", "--force", "--checkpoint", str(path), cwd=folder), 3)
