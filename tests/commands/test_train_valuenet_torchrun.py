"""train-valuenet under torchrun: one process's value net and scores, an end that is all's, and states that go on."""

import shutil
import signal

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import keep_few, log, weights
from tests.commands.side_by_side import by_torchrun, ended_by, pair

STAGE = "runs/sample/3-valuenet"
NET = f"{STAGE}/valuenet.safetensors"
WORDS = ("train-valuenet", "--set", "valuenet.max_items=3", "--set", "valuenet.log_every=1")


@pytest.fixture(scope="module")
def begun(trained, tmp_path_factory):
    """The trained folder with few images."""
    folder = tmp_path_factory.mktemp("begun") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder)
    return folder


def rows_of(folder):
    with open_artifact(folder / STAGE / "held-out.h5", "value_scores") as artifact:
        return artifact.arrays()


def test_two_processes_make_one_value_net_of_the_same_images(begun, calseg, tmp_path):
    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        shutil.copytree(begun, folder)
    words = (*WORDS, "--steps", "3", "--set", "valuenet.statistics=batch")
    assert calseg(*words, cwd=one).code == 0
    main, other = pair(calseg, two, *words)
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert (other.out, other.err) == ("", "")
    assert main.out.count("3 held-out images as they are") == 1
    assert main.err.count("next: ") == 1
    assert sorted(path.name for path in (one / STAGE).iterdir()) == sorted(
        path.name for path in (two / STAGE).iterdir()
    )
    for first, second in zip(log(one / STAGE), log(two / STAGE), strict=True):
        assert (second["event"], second["step"]) == (first["event"], first["step"])
        assert second.get("loss", 0) == pytest.approx(first.get("loss", 0), rel=1e-5)
    first, second = weights(one / NET), weights(two / NET)
    assert first.keys() == second.keys()
    assert all((first[name] - second[name]).abs().max() < 1e-5 for name in first)
    told, same = (read_facts(folder / NET) for folder in (one, two))
    assert same["processes"] == 2
    assert all(same["value_net"][name] == told["value_net"][name] for name in ("held_out_ids", "fitted_on"))
    assert same["value_net"]["range"] == pytest.approx(told["value_net"]["range"], rel=1e-5)
    first, second = rows_of(one), rows_of(two)
    assert first.keys() == second.keys()
    for name, column in first.items():
        if name.startswith("expected"):
            np.testing.assert_allclose(second[name], column, atol=1e-4)
        else:  # of the frozen network, image by image
            assert np.array_equal(second[name], column)
    finished = pair(calseg, two, *words, "--resume")
    assert [ran.code for ran in finished] == [0, 0]
    assert ["finished already" in ran.err for ran in finished] == [True, False]


def test_what_ends_one_process_ends_both_and_the_state_goes_on(begun, calseg, tmp_path):
    """SIGTERM, then a kill of what was resumed, then one process goes on where two were."""
    folder = shutil.copytree(begun, tmp_path / "w")
    words = (*WORDS, "--set", "valuenet.checkpoint_every=2", "--steps", "3000")
    state = folder / STAGE / "resume.safetensors"
    assert ended_by(signal.SIGTERM, calseg, folder, state, *words) == [143, 143]
    assert ended_by(signal.SIGKILL, calseg, folder, state, *words, "--resume") == [5, -signal.SIGKILL]
    reached = read_facts(state)["step"]
    ran = calseg(*words, "--steps", str(reached + 2), "--resume", cwd=folder)
    assert ran.code == 0, ran.err
    steps = [record["step"] for record in log(folder / STAGE) if record["event"] == "step"]
    assert steps == list(range(1, reached + 3))


@pytest.mark.slow
def test_torchrun_itself_starts_them(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "w")
    ran = by_torchrun(folder, *WORDS, "--steps", "1", "--set", "valuenet.measure_strength=0", "--json")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(f'"value_net": "{NET}"') == 1
    assert read_facts(folder / NET)["processes"] == 2
