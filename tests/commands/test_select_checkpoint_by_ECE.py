"""calseg select-checkpoint-by-ECE as a user types it: table, JSON, next step, closed labels, mistakes, a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.commands.outcomes import failed, labels

RUN = "runs/sample"


@pytest.fixture(scope="module")
def selected(trained, tmp_path_factory, calseg):
    """The trained folder after a choice; copy it before changing anything (`folder`)."""
    folder = tmp_path_factory.mktemp("selected") / "w"
    shutil.copytree(trained, folder)
    ran = calseg("select-checkpoint-by-ECE", "--floor", "1", cwd=folder)
    assert ran.code == 0, ran.err
    return folder, ran


@pytest.fixture
def folder(selected, tmp_path):
    shutil.copytree(selected[0], tmp_path / "w")
    return tmp_path / "w"


def test_the_table_the_choice_and_the_next_step(selected, folder, calseg):
    _, ran = selected
    lines = ran.out.splitlines()
    assert lines[0] == "by lowest ECE of the dataset: source val"
    assert [line.split()[0] for line in lines[1:4]] == ["checkpoint", "step-000015", "step-000030"]
    assert sum(line.rstrip().endswith("chosen") for line in lines[2:4]) == 1
    assert "draws of" in ran.out
    assert "measured anew" not in ran.err
    step = next(line for line in ran.err.splitlines() if line.startswith("next: "))
    assert calseg(*step.split()[2:], "--json", cwd=folder).code == 0


def test_kept_and_measured_counts_give_the_same_scores(folder, calseg):
    kept, anew = (
        calseg("select-checkpoint", "--floor", "1", "--force", "--json", *words, cwd=folder)
        for words in ((), ("--measure",))
    )
    assert anew.code == 0, anew.err
    for one, other in zip(kept.json["checkpoints"], anew.json["checkpoints"], strict=True):
        assert (one["counts"], other["counts"]) == ("kept", "measured")
        assert one["scores"] == other["scores"]
    assert kept.json["chosen"] == anew.json["chosen"]
    assert kept.json["labels_used_for"] == "source val"


def test_all_names_of_the_command_do_the_same(folder, calseg):
    for name in ("select-checkpoint-by-ECE", "select-checkpoint-by-ece", "select-checkpoint"):
        assert calseg(name, "--floor", "1", "--resume", "-q", cwd=folder).code == 0
    listed = calseg("--help", cwd=folder).out
    assert listed.count("select-checkpoint") == 1


def test_later_stages_start_from_the_choice_and_inspect_tells_of_it(folder, calseg):
    ran = calseg("inspect", f"{RUN}/2-select/selection.h5", cwd=folder)
    assert ran.code == 0
    assert "labels_used_for: source val" in ran.out
    assert "unchanged" in ran.out
    told = calseg("inspect", "--json", f"{RUN}/2-select/network.safetensors", cwd=folder).json
    assert told["selected"]["by"] == "ece"
    assert calseg("adapt", "--method", "adabn", cwd=folder).code == 0
    adapted = calseg("inspect", "--json", f"{RUN}/4-adapt-adabn/network.safetensors", cwd=folder).json
    assert adapted["provenance"]["files"]["checkpoint"] == "../2-select/network.safetensors"
    ran = calseg("select-checkpoint", "--by", "entropy", "--checkpoints", "adapt-adabn", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    assert [one["name"] for one in ran.json["checkpoints"]] == ["start", "network"]
    assert ran.json["network"] == f"{RUN}/4-adapt-adabn-selected/network.safetensors"
    assert (folder / f"{RUN}/2-select/network.safetensors").is_file()


def test_by_a_criterion_of_images_no_truth_is_opened(folder, opened):
    words = ("select-checkpoint", "--by", "snd", "--max-items", "3", "--force")
    assert labels(opened(folder, *words)) == []


def test_an_oracle_is_loud(folder, calseg):
    ran = calseg("select-checkpoint", "--oracle", "--max-items", "3", "--floor", "1", cwd=folder)
    assert ran.code == 0, ran.err
    assert "ORACLE" in ran.err
    assert ran.out.startswith("ORACLE")
    assert (folder / f"{RUN}/2-select-oracle/network.safetensors").is_file()
    ran = calseg("inspect", f"{RUN}/2-select-oracle/selection.h5", cwd=folder)
    assert "labels_used_for: target test: oracle" in ran.out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--by", "luck"), 2, "select.by"),
        (("--by", "entropy", "--oracle"), 2, "no oracle"),
        (("--by", "snd", "--floor", "0.1"), 2, "--floor has no effect"),
        (("--intervals", "5"), 2, "resamples"),
        (("--floor", "2"), 2, "select.floor"),
        (("--checkpoints", "nowhere"), 3, "no folder nowhere"),
        (("--checkpoints", "data"), 3, "holds no checkpoint"),
        (("--by", "value-net", "--force"), 3, "no value net"),
        ((), 3, "holds a finished run"),
        (("--force", "--device", "cuda:99", "--measure"), 6, "cuda"),
    ],
)
def test_mistakes_are_one_line(folder, calseg, words, code, told):
    assert told in failed(calseg("select-checkpoint", *words, cwd=folder), code)
    assert (folder / f"{RUN}/2-select/network.safetensors").is_file()


def test_truth_that_is_needed_and_missing_is_one_line(folder, calseg):
    shutil.rmtree(folder / "data/source/val")
    assert "val" in failed(calseg("select-checkpoint", "--measure", "--force", cwd=folder), 4)
    assert calseg("select-checkpoint", "--force", "--floor", "1", cwd=folder).code == 0  # counts were kept


def test_killed_half_way_nothing_is_half_written(folder, calseg):
    before = (folder / f"{RUN}/2-select/network.safetensors").read_bytes()
    program = [sys.executable, "-m", "calseg_cli", "select-checkpoint", "--measure", "--force", "--by", "nll"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True, env=env) as running:
        assert running.stderr is not None
        while "source val" not in running.stderr.readline():
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL
    assert (folder / f"{RUN}/2-select/network.safetensors").read_bytes() == before
    assert calseg("select-checkpoint", "--by", "nll", "--force", "--floor", "1", cwd=folder).code == 0
