"""calseg adapt with the methods that train: what they leave, what they need, and how they go on after a kill."""

import shutil

import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import keep_few, killed_at, log, same_weights, weights

PAPER = ("--set", "adapt.calsfda.settle=false")
QUICK = ("--set", "adapt.cbst.log_every=2", "--set", "adapt.calsfda.log_every=2", "--steps", "4")
RUN = "runs/sample"


@pytest.fixture(scope="module")
def trained(trained, tmp_path_factory):
    """The trained folder with few images."""
    folder = tmp_path_factory.mktemp("few") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder, 12)
    return folder


@pytest.fixture(scope="module")
def adapted(trained, calseg, tmp_path_factory):
    """A run of calsfda in two rounds without guidance, with neither the source nor any target label on the disk."""
    folder = tmp_path_factory.mktemp("adapted") / "work"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "data/source")
    for labels in (folder / "data/target").glob("*/labels"):
        shutil.rmtree(labels)
    ran = calseg(
        "adapt",
        "--method",
        "calsfda",
        "--guidance",
        "none",
        "--rounds",
        "2",
        "--choose",
        "last",
        *QUICK,
        *PAPER,
        cwd=folder,
    )
    assert ran.code == 0, ran.err
    return folder, ran


def test_each_round_leaves_labels_pictures_and_a_network(adapted):
    folder, ran = adapted
    stage = folder / RUN / "4-adapt-calsfda"
    assert sorted(path.name for path in stage.glob("round-*")) == ["round-0", "round-1", "round-2"]
    for number, portion in ((1, 0.3), (2, 0.35)):
        with open_artifact(stage / f"round-{number}/pseudo_labels.h5", "pseudo_labels") as labels:
            assert labels.meta["protocol"]["pseudo_labels"]["portion"] == portion
            kept = labels.array("kept") / labels.array("predicted").clip(1)
            assert (kept[labels.array("predicted") > 1000] < portion + 0.02).all()
            assert set(labels.array("expected_error")) == {0.0}
        assert len(list((stage / f"round-{number}/overlays").glob("*.png"))) == 4
    assert not list(stage.rglob("*.partial"))
    assert not list(stage.rglob("resume.safetensors"))
    assert "round 2" in ran.err
    assert ran.out.strip() == f"{RUN}/4-adapt-calsfda/network.safetensors"


def test_the_chosen_candidate_is_the_result(adapted):
    folder, _ = adapted
    stage = folder / RUN / "4-adapt-calsfda"
    assert same_weights(stage / "network.safetensors", stage / "round-2/network.safetensors")
    assert not same_weights(stage / "round-1/network.safetensors", stage / "round-2/network.safetensors")
    records = log(stage)
    assert [record["event"] for record in records] == ["candidate"] * 3 + ["chosen"]
    assert records[-1]["step"] == 2
    assert read_facts(stage / "network.safetensors")["step"] == 2


def test_before_any_step_the_candidate_is_adabns_network(adapted, calseg):
    folder, _ = adapted
    assert calseg("adapt", "--method", "adabn", cwd=folder).code == 0
    start = folder / RUN / "4-adapt-calsfda/round-0/network.safetensors"
    assert same_weights(start, folder / RUN / "4-adapt-adabn/network.safetensors")


def test_the_entropy_in_the_log_is_that_of_the_predictions(adapted, calseg):
    import numpy as np
    import torch

    folder, _ = adapted
    start = f"{RUN}/4-adapt-calsfda/round-0/network.safetensors"
    assert calseg("predict", "--checkpoint", start, "--split", "train", "-o", "l.h5", cwd=folder).code == 0
    entropies = []
    with open_artifact(folder / "l.h5", "logits") as logits:
        for name in logits.ids:
            p = torch.from_numpy(logits.item(name, "logits")).double().softmax(dim=0)
            entropies.append(float(-(p * p.log()).sum(dim=0).mean()) / np.log(p.shape[0]))
    assert log(folder / RUN / "4-adapt-calsfda")[0]["entropy"] == pytest.approx(np.mean(entropies), abs=1e-5)


@pytest.mark.parametrize("words", [("tent",), ("cbst", "--average", "0.5"), ("cbst", "--train", "head")], ids=str)
def test_other_methods_work_and_read_no_label(workspace, opened, words):
    found = opened(workspace, "adapt", "--method", *words, *QUICK)
    assert [path for path in found if "target" in path and "labels" in path and path.endswith(".png")] == []
    assert [path for path in found if "data/source" in path] == []
    result = workspace / RUN / f"4-adapt-{words[0]}/network.safetensors"
    before = weights(workspace / RUN / "1-pretrain/network.safetensors")
    after = weights(result)
    moved = {name for name in before if not bool((before[name] == after[name]).all())}
    if "head" in words:
        trained = {name for name in moved if name.rpartition(".")[2] in ("weight", "bias")}
        assert trained
        assert all(name.startswith("head.") for name in trained)
    assert any(name.endswith("running_mean") for name in moved)


def test_it_repeats_and_continues_after_a_stop_to_the_same_bits(workspace, calseg):
    words = ("adapt", "--method", "cbst", "--rounds", "2", "--choose", "last", "--set", "adapt.cbst.checkpoint_every=1")
    assert calseg(*words, *QUICK, "--name", "whole", "--checkpoint", f"{RUN}/1-pretrain", cwd=workspace).code == 0
    more = (*words, *QUICK, "--name", "broken", "--checkpoint", f"{RUN}/1-pretrain")
    stage = workspace / "runs/broken/4-adapt-cbst"
    for wait in (
        stage / "resume.safetensors",
        stage / "round-1/resume.safetensors",
        stage / "round-2/resume.safetensors",
    ):
        killed_at(calseg, workspace, wait, *more, *(("--resume",) if stage.exists() else ()))
    refused = calseg(*more, cwd=workspace)
    assert (refused.code, "unfinished" in refused.err) == (3, True)
    changed = calseg(*more, "--resume", "--lr", "1", cwd=workspace)
    assert (changed.code, "adapt.cbst.lr" in changed.err) == (3, True)
    done = calseg(*more, "--resume", cwd=workspace)
    assert done.code == 0, done.err
    assert same_weights(stage / "network.safetensors", workspace / "runs/whole/4-adapt-cbst/network.safetensors")
    assert not list(stage.rglob("resume.safetensors"))
    assert log(stage) == log(workspace / "runs/whole/4-adapt-cbst")


@pytest.fixture(scope="module")
def stopped(trained, tmp_path_factory, calseg):
    """A run of cbst that was killed within its first round."""
    folder = tmp_path_factory.mktemp("stopped") / "w"
    shutil.copytree(trained, folder)
    killed_at(calseg, folder, folder / RUN / "4-adapt-cbst/round-1/resume.safetensors", *STOPPED)
    return folder


STOPPED = ("adapt", "--method", "cbst", "--set", "adapt.cbst.checkpoint_every=1", "--steps", "40")


def other_start(folder):
    return ("--checkpoint", str(folder / RUN / "1-pretrain/checkpoints/step-000015.safetensors"))


def other_image(folder):
    images = folder / "data/target/train/images"
    first, second = sorted(images.glob("*.png"))[:2]
    shutil.copy(second, first)
    return ()


def fewer_images(folder):
    min((folder / "data/target/train/images").glob("*.png")).unlink()
    return ()


def damaged_labels(folder):
    path = folder / RUN / "4-adapt-cbst/round-1/pseudo_labels.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    return ()


def lost_start(folder):
    (folder / RUN / "4-adapt-cbst/round-0/network.safetensors").unlink()
    return ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_start, "made from another network"),
        (other_image, "is not the image labelled"),
        (fewer_images, "other images"),
        (damaged_labels, "cannot go on"),
        (lost_start, "cannot go on"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_stopped_run_does_not_go_on_with_something_else(stopped, calseg, tmp_path, change, told):
    folder = tmp_path / "w"
    shutil.copytree(stopped, folder)
    ran = calseg(*STOPPED, "--resume", *change(folder), cwd=folder)
    assert ran.code == 3, ran.err
    assert told in ran.err
    assert "--force" in ran.err or "put" in ran.err
    assert not (folder / RUN / "4-adapt-cbst/network.safetensors").exists()


def test_prototypes_correct_the_logits_that_labels_are_made_of(workspace, calseg):
    assert calseg("predict", "--split", "train", "-o", "l.h5", cwd=workspace).code == 0
    assert calseg("calibrate-prototypes", "--logits", "l.h5", "-o", "p.h5", cwd=workspace).code == 0
    words = ("adapt", "--method", "cbst", *QUICK, "--set", "adapt.cbst.warm_up=none")
    ran = calseg(*words, "--prototypes", "p.h5", cwd=workspace)
    assert ran.code == 0, ran.err
    with open_artifact(workspace / RUN / "4-adapt-cbst/round-1/pseudo_labels.h5") as labels:
        assert "corrected_by" in labels.meta["protocol"]
        corrected = labels.array("predicted")
    assert calseg("pseudo-label", "--logits", "l.h5", "--prototypes", "p.h5", "-o", "q.h5", cwd=workspace).code == 0
    with open_artifact(workspace / "q.h5") as labels:
        assert (abs(labels.array("predicted") - corrected) <= 0.001 * corrected.sum()).all()
    assert "prototypes" in read_facts(workspace / RUN / "4-adapt-cbst/network.safetensors")["provenance"]["parents"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "calsfda"), 3, ("valuenet.safetensors", "--guidance none")),
        (("--method", "adabn", "--rounds", "2"), 2, ("--rounds", "adabn")),
        (("--method", "cbst", "--guidance", "none"), 2, ("--guidance", "cbst")),
        (("--method", "tent", "--momentum", "0.5"), 2, ("--momentum", "tent")),
        (("--method", "cbst", "--portion", "0"), 2, ("portion",)),
        (("--method", "cbst", "--train", "tail"), 2, ("train",)),
        (("--method", "cbst", "--valuenet", "x"), 2, ("--valuenet",)),
        (("--method", "tent", "--calibrator", "c.h5"), 3, ("c.h5",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_what_cannot_be_is_one_line(workspace, calseg, words, code, told):
    ran = calseg("adapt", *words, cwd=workspace)
    assert ran.code == code, ran.err
    assert all(word in ran.err for word in told)
    assert "Traceback" not in ran.err
    assert not list((workspace / RUN).glob("4-adapt-*/network.safetensors"))


def test_corrections_are_refused_where_no_label_is_made(workspace, calseg):
    assert calseg("calibrate", "--method", "temperature", "-o", "c.h5", cwd=workspace).code == 0
    ran = calseg("adapt", "--method", "tent", "--calibrator", "c.h5", cwd=workspace)
    assert (ran.code, "c.h5" in ran.err) == (2, True)
