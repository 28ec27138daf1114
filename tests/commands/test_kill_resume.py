"""Kills of predict and pseudo-label, then --resume: always the unbroken run's digest, and nothing left behind.

`benchmarks/kill_resume.py` does the same many times; its parts are used here.
"""

import os
import random
import signal
import time

import pytest

from calseg_cli.artifacts.safe_open import PARTIAL

IMAGES, FEW = 120, 6
STAGES = ("predict", "pseudo-label")


@pytest.fixture(scope="module")
def bench(repository):
    """The benchmark's functions; processes are forked from one that has torch loaded, which saves most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        import kill_resume
        import kill_victim

        patch.setattr(kill_victim, "forking", True)
        yield kill_resume


@pytest.fixture(scope="module")
def unbroken(trained, bench, tmp_path_factory):
    """{(stage, images): what it does without a break}, each in a folder of its own."""
    found = {}
    for images in (IMAGES, FEW):
        for stage in bench.stages(trained, images, runs=1):
            found[stage.name, images] = stage
    return found


def begin(bench, stage, *more):
    bench.clear(stage.target)
    process = bench.start(stage.folder, *stage.command(*more))
    bench.wait_for_work(process, stage.target)
    return process


def wait_for_items(stage, process, share):
    """Until the unfinished file has that share of the finished one's bytes."""
    partial = stage.target.with_name(stage.target.name + PARTIAL)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size >= share * stage.size):
        time.sleep(0.002)


@pytest.mark.parametrize("name", STAGES)
def test_killed_three_times_in_a_row(bench, unbroken, name):
    stage, left = unbroken[name, IMAGES], []
    process = begin(bench, stage)
    for share in (0.15, 0.45, 0.75):
        wait_for_items(stage, process, share)
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        left.append(bench.left_by_kill(stage))
        assert not stage.target.exists()
        process = bench.start(stage.folder, *stage.command("--resume"))
    assert [where for where, _ in left] == ["in the middle"] * 3
    shares = [share for _, share in left]
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    bench.check(process)
    assert bench.judged(stage) is None


@pytest.mark.parametrize(
    ("name", "signum", "code"),
    [("predict", signal.SIGINT, 130), ("predict", signal.SIGTERM, 143), ("pseudo-label", signal.SIGTERM, 143)],
    ids=["predict SIGINT", "predict SIGTERM", "pseudo-label SIGTERM"],
)
def test_a_signal_leaves_what_resume_goes_on_with(bench, unbroken, name, signum, code):
    stage = unbroken[name, IMAGES]
    process = begin(bench, stage)
    wait_for_items(stage, process, 0.3)
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert said.count("error:") == 1
    assert "--resume" in said
    assert "Traceback" not in said
    beside = [path.name for path in stage.target.parent.glob(f"{stage.target.name}*")]
    assert beside == [stage.target.name + PARTIAL]
    where, share = bench.left_by_kill(stage)
    assert where == "in the middle"
    assert 0 < share < 1
    assert bench.check(bench.start(stage.folder, *stage.command("--resume")))
    assert bench.judged(stage) is None


@pytest.mark.parametrize("step", ["an item without its facts", "half a seal", "sealed, without a name"])
def test_killed_at_a_step_of_finishing(bench, unbroken, step):
    rounds = bench.killed_at(unbroken["pseudo-label", FEW], [step], lambda line: None)
    assert rounds.wrong == []
    assert rounds.kills == 1


@pytest.mark.parametrize("name", STAGES)
def test_killed_between_two_writes_of_hdf5(bench, unbroken, name):
    """The tables of the unfinished file do not fit together then, and whoever writes on into it would ruin it."""
    stage = unbroken[name, FEW]
    steps = bench.some_writes(stage, 3, random.Random(0))
    rounds = bench.killed_at(stage, steps, lambda line: None)
    assert rounds.wrong == []
    assert rounds.kills == 3


def test_the_judge_is_not_blind(bench, unbroken):
    """A result of other values, a left-over and a flipped bit are all found."""
    stage = unbroken["predict", FEW]
    bench.clear(stage.target)
    bench.check(bench.start(stage.folder, *stage.command()))
    assert bench.judged(stage) is None
    lock = stage.target.with_name(f"{stage.target.name}.lock")
    lock.touch()
    assert "left behind" in bench.judged(stage)
    lock.unlink()
    digest, stage.digest = stage.digest, "sha256:other"
    assert "its digest is" in bench.judged(stage)
    stage.digest = digest
    content = bytearray(stage.target.read_bytes())
    content[len(content) // 2] ^= 1
    stage.target.write_bytes(content)
    assert bench.judged(stage)


def test_a_lock_left_by_a_kill_holds_nobody_up(bench, unbroken):
    stage = unbroken["predict", FEW]
    bench.clear(stage.target)
    lock = stage.target.with_name(f"{stage.target.name}.lock")
    lock.write_text(f'{{"pid": {os.getpid()}, "host": "elsewhere"}}')
    bench.check(bench.start(stage.folder, *stage.command()))
    assert bench.judged(stage) is None
