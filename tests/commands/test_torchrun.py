"""Training under torchrun: once by torchrun itself, else by processes forked with the environment that it gives."""

import shutil
import signal

import pytest

from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import failed, keep_few, log, weights
from tests.commands.side_by_side import by_torchrun, ended_by, pair

WORDS = ("pretrain", "--batch-size", "4", "--set", "source.size=[48,64]", "--set", "pretrain.log_every=1")
WORDS = (*WORDS, "--set", "pretrain.validate_every=2", "--set", "pretrain.optimizer=sgd")
SHORT = (*WORDS, "--steps", "4")
LONG = (*WORDS, "--steps", "3000", "--set", "pretrain.checkpoint_every=2", "--set", "pretrain.validate_every=0")


@pytest.fixture(scope="module")
def scenes(trained, tmp_path_factory):
    """Drawn streets, few of them."""
    folder = tmp_path_factory.mktemp("few") / "w"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("runs"))
    keep_few(folder)
    return folder


@pytest.mark.slow
def test_torchrun_itself_starts_them(scenes):
    ran = by_torchrun(scenes, *SHORT, "--name", "itself", "--steps", "2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "runs/itself/1-pretrain/network.safetensors\n"
    assert ran.stderr.count("step 2: source val") == 1
    folder = scenes / "runs/itself/1-pretrain"
    assert [record["step"] for record in log(folder) if record["event"] == "step"] == [1, 2]
    assert read_facts(folder / "network.safetensors")["processes"] == 2


def test_two_processes_make_one_result_of_the_same_images(scenes, calseg):
    main, other = pair(calseg, scenes, *SHORT, "--name", "two")
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert (other.out, other.err) == ("", "")
    assert calseg(*SHORT, "--name", "one", cwd=scenes).code == 0
    one, two = (scenes / "runs" / name / "1-pretrain" for name in ("one", "two"))
    assert main.out == "runs/two/1-pretrain/network.safetensors\n"
    assert main.err.count("step 2: source val") == 1
    assert main.err.count("next: ") == 1
    assert sorted(path.relative_to(one) for path in one.rglob("*")) == sorted(
        path.relative_to(two) for path in two.rglob("*")
    )
    events = [(record["event"], record["step"]) for record in log(two)]
    assert events == [(record["event"], record["step"]) for record in log(one)]
    for first, second in zip(log(one), log(two), strict=True):
        name = "loss" if first["event"] == "step" else "nll"
        assert second[name] == pytest.approx(first[name], rel=1e-4)
    first, second = weights(one / "network.safetensors"), weights(two / "network.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] - second[name]).abs().max() < 1e-3 for name in first)
    assert read_facts(two / "network.safetensors")["processes"] == 2
    assert "processes" not in read_facts(one / "network.safetensors")
    finished = pair(calseg, scenes, *SHORT, "--name", "two", "--resume")
    assert [ran.code for ran in finished] == [0, 0]
    assert ["finished already" in ran.err for ran in finished] == [True, False]


def test_what_ends_one_process_ends_both_and_the_state_goes_on(scenes, calseg, tmp_path):
    """SIGTERM, then a kill of what was resumed, then one process goes on where two were."""
    shutil.copytree(scenes, tmp_path / "w")
    folder, words = tmp_path / "w", (*LONG, "--name", "cut")
    state = folder / "runs/cut/1-pretrain/resume.safetensors"
    assert ended_by(signal.SIGTERM, calseg, folder, state, *words) == [143, 143]
    assert ended_by(signal.SIGKILL, calseg, folder, state, *words, "--resume") == [5, -signal.SIGKILL]
    reached = read_facts(state)["step"]
    ran = calseg(*words, "--steps", str(reached + 2), "--resume", cwd=folder)
    assert ran.code == 0, ran.err
    steps = [record["step"] for record in log(state.parent) if record["event"] == "step"]
    assert steps == list(range(1, reached + 3))


def test_an_error_in_one_process_ends_both_with_its_code(scenes, calseg, tmp_path):
    """An image that only the second one cannot read."""
    shutil.copytree(scenes, tmp_path / "w")
    for image in (tmp_path / "w/data/source/train/images").glob("*.png"):
        image.write_bytes(image.read_bytes()[:100])
    first, second = pair(calseg, [scenes, tmp_path / "w"], *LONG, "--name", "broken")
    assert first.code == 4
    assert first.err == ""
    assert failed(second, 4)
    assert not (scenes / "runs/broken/1-pretrain/network.safetensors").exists()


@pytest.mark.parametrize("command", ["predict", "pseudo-label"])
def test_a_dry_run_of_shards_is_refused(scenes, calseg, command):
    """What it tells is one artifact, and each process would tell it."""
    ran = calseg(command, "--dry-run", cwd=scenes, env={"RANK": "1", "WORLD_SIZE": "2"})
    assert "--dry-run works in one process, and torchrun started 2" in failed(ran, 2)
    assert ran.out == ""


def test_a_mistake_in_the_words_is_told_once(scenes, calseg):
    for words in (("pretrain", "--stpes", "6"), ("pretrian",)):
        ran = [calseg(*words, cwd=scenes, env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
        assert [one.code for one in ran] == [2, 2]
        assert words[-2 if len(words) > 1 else -1] in ran[0].err
        assert ran[1].err == ran[1].out == ""


REFUSED = [
    ((*WORDS, "--batch-size", "5"), 2, "5 images cannot be shared equally by 2 processes"),
    (("train-valuenet", "--set", "valuenet.batch_size=3"), 2, "valuenet.batch_size: 3 images cannot be shared"),
    (("calibrate", "--method", "temperature"), 2, "calibrate works in one process, and torchrun started 2"),
    (("pretrain", "--steps", "0"), 2, "pretrain.steps"),
]


@pytest.mark.parametrize(("words", "code", "told"), REFUSED, ids=[words[0] for words, _, _ in REFUSED])
def test_a_refusal_is_one_line_of_one_process(scenes, calseg, words, code, told):
    ran = pair(calseg, scenes, *words, "--name", "refused") if words[0] == "pretrain" else pair(calseg, scenes, *words)
    assert [one.code for one in ran] == [code, code]
    said = [one.err for one in ran if one.err]
    assert len(said) == 1, said
    assert said[0].count("error:") == 1
    assert told in said[0]
    assert not (scenes / "runs/refused").exists()
