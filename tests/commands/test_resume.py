"""Stopping and going on: Ctrl-C, SIGTERM and SIGKILL in mid-run, then --resume, against an unbroken run."""

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

STEPS = "30"
WORDS = ("pretrain", "--steps", STEPS, "--set", "pretrain.checkpoint_every=5", "--set", "pretrain.validate_every=25")


@pytest.fixture(scope="session")
def unbroken(trained, calseg):
    ran = calseg(*WORDS, "--name", "unbroken", cwd=trained)
    assert ran.code == 0, ran.err
    return trained / "runs/unbroken/1-pretrain"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_and_resumed_is_the_unbroken_run(trained, unbroken, calseg, signum, code):
    name = f"cut-{signum.name}"
    folder = trained / "runs" / name / "1-pretrain"
    process = calseg.start(*WORDS, "--name", name, cwd=trained)
    process.wait_for(folder / "resume.safetensors")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not (folder / "network.safetensors").exists()
    if code > 0:
        assert "--resume" in err
        assert err.count("error:") == 1
    refused = calseg(*WORDS, "--name", name, cwd=trained)
    assert refused.code == 3
    ran = calseg(*WORDS, "--name", name, "--resume", cwd=trained)
    assert ran.code == 0, ran.err
    first, second = load_file(unbroken / "network.safetensors"), load_file(folder / "network.safetensors")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert records(unbroken) == records(folder)
    assert not (folder / "resume.safetensors").exists()


def records(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_resume_of_a_finished_run_does_nothing(trained, unbroken, calseg):
    before = (unbroken / "network.safetensors").stat().st_mtime_ns
    ran = calseg(*WORDS, "--name", "unbroken", "--resume", cwd=trained)
    assert ran.code == 0
    assert "finished already" in ran.err
    assert (unbroken / "network.safetensors").stat().st_mtime_ns == before


def test_resume_with_another_configuration_is_refused(trained, calseg):
    process = calseg.start(*WORDS, "--name", "changed", cwd=trained)
    process.wait_for(trained / "runs/changed/1-pretrain/resume.safetensors")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    ran = calseg(*WORDS, "--name", "changed", "--resume", "--lr", "0.5", cwd=trained)
    assert ran.code == 3
    assert "pretrain.lr: was 0.01, is 0.5" in ran.err


def test_a_killed_predict_leaves_no_artifact_under_its_name(workspace, calseg):
    process = calseg.start("predict", "--split", "train", cwd=workspace)
    folder = workspace / "runs/sample/5-predict"
    process.wait_for(folder / "pretrain-target-train.h5.partial")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "pretrain-target-train.h5").exists()
    refused = calseg("predict", "--split", "train", cwd=workspace)
    assert refused.code == 3
    assert "--resume goes on with it" in refused.err
    ran = calseg("predict", "--split", "train", "--resume", cwd=workspace)
    assert ran.code == 0, ran.err
    assert not list(folder.glob("*.partial"))


def test_ctrl_c_during_predict_says_so_and_keeps_what_is_done(workspace, calseg):
    process = calseg.start("predict", "--split", "train", cwd=workspace)
    folder = workspace / "runs/sample/5-predict"
    process.wait_for(folder / "pretrain-target-train.h5.partial")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the machine finished before the signal arrived")
    assert process.returncode == 130
    assert err.count("error:") == 1
    assert "--resume" in err
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["pretrain-target-train.h5.partial"]
