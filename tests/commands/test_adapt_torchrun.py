"""calseg adapt under torchrun: every method's result is that of one process, and a run that was cut goes on."""

import shutil
import signal

import pytest

from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import failed, keep_few, log, weights
from tests.commands.side_by_side import by_torchrun, ended_by, pair

RUN = "runs/sample"
START = ("--checkpoint", f"{RUN}/1-pretrain")
SMALL = ("--set", "source.size=[48,64]", "--set", "target.size=[48,64]")
GUIDE = ("--valuenet", f"{RUN}/3-valuenet/valuenet.safetensors")
ROUNDS = ("--steps", "2", "--batch-size", "2", "--rounds", "1", "--choose", "last")
FRAME = ("--steps", "3", "--batch-size", "2", "--set", "adapt.self_training.log_every=1")
DACAL = ("--set", "adapt.dacal.warm_up=1", "--set", "calibrate.steps=3", "--set", "calibrate.batch_size=2")
METHODS = {
    "adabn": ("--batch-size", "3"),
    "calsfda": (*ROUNDS, *GUIDE, "--set", "adapt.calsfda.optimizer=sgd"),
    "self-training": (
        *FRAME,
        "--base",
        "mic",
        "--oracle",
        "--visualize",
        "2",
        "--set",
        "adapt.self_training.optimizer=sgd",
    ),
    "dacal+blda": (
        *FRAME,
        *DACAL,
        "--settle",
        "--set",
        "adapt.blda.warm_up=1",
        "--set",
        "adapt.self_training.optimizer=sgd",
    ),
}


@pytest.fixture(scope="module")
def scenes(trained, calseg, tmp_path_factory):
    """Drawn streets, few of them, and a value net."""
    folder = tmp_path_factory.mktemp("few") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder)
    ran = calseg("train-valuenet", "--steps", "4", *SMALL, cwd=folder)
    assert ran.code == 0, ran.err
    return folder


def words_of(method, name):
    return ("adapt", "--method", method, *METHODS[method], *SMALL, *START, "--name", name)


def close(first, second):
    assert first.keys() == second.keys()
    return all((first[name] - second[name]).abs().max() < 2e-3 for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_make_what_one_makes(scenes, calseg, method):
    main, other = pair(calseg, scenes, *words_of(method, "two"))
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert (other.out, other.err) == ("", "")
    alone = calseg(*words_of(method, "one"), cwd=scenes)
    assert alone.code == 0, alone.err
    one, two = (scenes / f"runs/{name}/4-adapt-{method}" for name in ("one", "two"))
    assert main.out == f"runs/two/4-adapt-{method}/network.safetensors\n"
    assert main.err.count("next: ") == alone.err.count("next: ")
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(two) for path in two.rglob("*")
    )
    start = weights(scenes / RUN / "1-pretrain/network.safetensors")
    first, second = (weights(folder / "network.safetensors") for folder in (one, two))
    assert close(first, second)
    assert not close(first, start)
    assert [(record["event"], record.get("step")) for record in log(one)] == [
        (record["event"], record.get("step")) for record in log(two)
    ]
    for mine, theirs in zip(log(one), log(two), strict=True):
        for name in ("loss", "miou", "entropy", "expected_error", "temperature"):
            assert (name in mine) == (name in theirs)
            assert theirs.get(name, 0) == pytest.approx(mine.get(name, 0), rel=2e-2)
    assert read_facts(two / "network.safetensors")["processes"] == 2
    assert "processes" not in read_facts(one / "network.safetensors")


@pytest.mark.slow
def test_torchrun_itself_starts_them(scenes):
    ran = by_torchrun(scenes, *words_of("dacal+blda", "itself"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "runs/itself/4-adapt-dacal+blda/network.safetensors\n"
    assert ran.stderr.count("the result's logits are divided by") == 1


@pytest.mark.parametrize(
    ("method", "more", "state"),
    [
        ("dacal+blda", ("--set", "adapt.self_training.checkpoint_every=2"), "resume.safetensors"),
        ("calsfda", ("--set", "adapt.calsfda.checkpoint_every=2"), "round-1/resume.safetensors"),
    ],
    ids=["dacal+blda", "calsfda"],
)
def test_what_ends_one_process_ends_both_and_the_state_goes_on(scenes, calseg, tmp_path, method, more, state):
    """SIGTERM, then a kill of what was resumed, then one process goes on where two were."""
    shutil.copytree(scenes, tmp_path / "w")
    folder, words = tmp_path / "w", (*words_of(method, "cut"), *more, "--steps", "40")
    stage = folder / f"runs/cut/4-adapt-{method}"
    assert ended_by(signal.SIGTERM, calseg, folder, stage / state, *words) == [143, 143]
    assert ended_by(signal.SIGKILL, calseg, folder, stage / state, *words, "--resume") == [5, -signal.SIGKILL]
    reached = read_facts(stage / state)["step"]
    assert 0 < reached < 40
    assert not (stage / "network.safetensors").exists()
    ran = calseg(*words, "--resume", cwd=folder)
    assert ran.code == 0, ran.err
    assert (stage / "network.safetensors").exists()


def test_an_odd_batch_is_refused_in_one_line(scenes, calseg):
    words = ("adapt", "--method", "dacal", "--batch-size", "3", *SMALL, *START, "--name", "odd")
    ran = pair(calseg, scenes, *words)
    assert [one.code for one in ran] == [2, 2]
    (speaker,) = [one for one in ran if one.err]
    assert "adapt.self_training.batch_size: 3 images cannot be shared equally by 2" in failed(speaker, 2)
