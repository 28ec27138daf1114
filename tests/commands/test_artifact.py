"""calseg artifact and the store's options of predict, as a person types them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def predicted(trained, calseg, tmp_path_factory):
    """A folder with logits as one file and as two shards."""
    folder = tmp_path_factory.mktemp("predicted")
    for words in (["-o", folder / "one.h5"], *(["-o", folder / "s.h5", "--shard", f"{r}/2"] for r in range(2))):
        ran = calseg("predict", "--max-items", "6", *map(str, words), cwd=trained)
        assert ran.code == 0, ran.err
    return folder


def test_shards_verify_diff_merge_and_convert(calseg, predicted, tmp_path):
    for words in (
        ("merge", predicted / "s.manifest.json", "-o", "m.h5"),
        ("convert", predicted / "s.manifest.json", "-o", "c.h5", "--compression", "none"),
        ("verify", predicted / "one.h5", predicted / "s.manifest.json", "m.h5", "c.h5"),
        ("diff", predicted / "one.h5", "m.h5"),
        ("diff", predicted / "s.manifest.json", "c.h5"),
    ):
        ran = calseg("artifact", *map(str, words), cwd=tmp_path)
        assert ran.code == 0, ran.err
    document = calseg("artifact", "verify", "m.h5", "--json", cwd=tmp_path).json
    one = calseg("inspect", str(predicted / "one.h5"), "--json", cwd=tmp_path).json
    assert document["files"][0]["content_digest"] == one["content_digest"]


def test_shards_are_measured_like_one_file(calseg, trained, predicted):
    scores = []
    for file in ("one.h5", "s.manifest.json"):
        words = ("eval", "--logits", str(predicted / file), "--max-items", "6", "--json", "-o", str(predicted / "e"))
        ran = calseg(*words, cwd=trained)
        assert ran.code == 0, ran.err
        scores.append(ran.json["scores"])
    assert scores[0] == scores[1]


def test_a_shard_that_is_first_is_printed_and_a_lost_one_named(calseg, trained, tmp_path):
    words = ("predict", "--max-items", "4", "-o", str(tmp_path / "s.h5"))
    first = calseg(*words, "--shard", "0/2", cwd=trained)
    assert first.code == 0, first.err
    assert Path(first.out.strip()).is_file()
    assert "the manifest follows" in first.err
    second = calseg(*words, "--shard", "1/2", cwd=trained)
    assert second.out.strip() == str(tmp_path / "s.manifest.json")
    Path(first.out.strip()).unlink()
    lost = calseg("inspect", str(tmp_path / "s.manifest.json"), cwd=trained)
    assert lost.code == 3
    assert "lists the shard" in lost.err
    assert "--shard" in lost.err


def test_differences_exit_with_7(calseg, trained, predicted, tmp_path):
    ran = calseg("predict", "--max-items", "5", "-o", str(tmp_path / "five.h5"), cwd=trained)
    assert ran.code == 0, ran.err
    ran = calseg("artifact", "diff", str(predicted / "one.h5"), str(tmp_path / "five.h5"), cwd=tmp_path)
    assert ran.code == 7
    assert "only in the first (1):" in ran.out


def test_damage_exits_with_3_and_is_named(calseg, predicted, tmp_path):
    content = bytearray((predicted / "one.h5").read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0x10
    (tmp_path / "bad.h5").write_bytes(content)
    ran = calseg("artifact", "verify", "bad.h5", str(predicted / "one.h5"), cwd=tmp_path)
    assert ran.code == 3
    assert "1 of 2 files" in ran.err
    assert "Traceback" not in ran.err
    assert calseg("artifact", "convert", "bad.h5", "-o", "b.h5", cwd=tmp_path).code == 3
    assert not (tmp_path / "b.h5").exists()


def test_a_file_that_another_program_wrote_again_can_be_sealed_again(calseg, predicted, tmp_path):
    import h5py

    with h5py.File(predicted / "one.h5") as source, h5py.File(tmp_path / "copy.h5", "w") as copy:
        for name in source:
            source.copy(name, copy)
        for name in source.attrs:
            copy.attrs.create(name, source.attrs[name], dtype=source.attrs.get_id(name).dtype)
    ran = calseg("inspect", "copy.h5", cwd=tmp_path)
    assert (ran.code, "no seal" in ran.err, "artifact convert" in ran.err) == (3, True, True)
    ran = calseg("artifact", "convert", "copy.h5", "-o", "sealed.h5", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert calseg("artifact", "diff", "sealed.h5", str(predicted / "one.h5"), cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("artifact", "verify", "absent.h5"), 3),
        (("artifact", "diff", "absent.h5", "absent.h5"), 3),
        (("artifact", "merge", "absent.h5", "-o", "m.h5"), 3),
        (("artifact", "convert", "absent.h5", "-o", "m.h5", "--compression", "rar"), 2),
        (("artifact", "convert", "absent.h5", "-o", "m.h5", "--dtype", "int8"), 2),
        (("artifact", "merge", "-o", "m.h5"), 2),
        (("predict", "--shard", "2/2"), 2),
    ],
)
def test_mistakes(calseg, trained, words, code):
    ran = calseg(*words, cwd=trained)
    assert ran.code == code
    assert "Traceback" not in ran.err


def test_an_existing_result_is_refused_passed_over_or_made_anew(calseg, workspace):
    first = calseg("predict", "--json", cwd=workspace)
    assert first.code == 0, first.err
    again = calseg("predict", cwd=workspace)
    assert (again.code, "up to date" in again.err) == (3, True)
    passed = calseg("predict", "--resume", "--json", cwd=workspace)
    assert (passed.code, passed.json["digest"]) == (0, first.json["digest"])
    stale = calseg("predict", "--resume", "--flip", cwd=workspace)
    assert (stale.code, "options.flip was false, is true" in stale.err) == (3, True)
    forced = calseg("predict", "--force", "--json", cwd=workspace)
    assert (forced.code, forced.json["digest"]) == (0, first.json["digest"])
    retrained = calseg("pretrain", "--steps", "5", "--seed", "3", "--force", cwd=workspace)
    assert retrained.code == 0, retrained.err
    ran = calseg("eval", "--logits", first.json["artifact"], cwd=workspace)
    assert (ran.code, "is stale: its checkpoint" in ran.err) == (0, True)
    ran = calseg("predict", "--resume", cwd=workspace)
    assert (ran.code, "parents.checkpoint was sha256:" in ran.err) == (3, True)


def test_a_dry_run_writes_nothing(calseg, trained, tmp_path):
    ran = calseg("predict", "--dry-run", "--json", "-o", str(tmp_path / "x.h5"), cwd=trained)
    assert ran.code == 0, ran.err
    assert not list(tmp_path.iterdir())
    plan = ran.json
    assert plan["raw_bytes"] == plan["images"] * plan["classes"] * 24 * 40 * 2


def test_two_at_once_are_told_apart(trained, calseg, tmp_path):
    """The second one names the process of the first."""
    target = tmp_path / "x.h5"
    words = [sys.executable, "-m", "calseg_cli", "predict", "--scales", "1,2,3,4", "--flip", "-o", str(target)]
    first = subprocess.Popen(words, cwd=trained, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        lock = tmp_path / "x.h5.lock"
        while not lock.exists() or not lock.read_text():  # it signs the lock a moment after it has it
            assert time.monotonic() < until
            assert first.poll() is None
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        ran = calseg("predict", "-o", str(target), cwd=trained)
        assert ran.code == 3
        assert f"process {first.pid}" in ran.err
    finally:
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        code = first.wait(120)
    assert code == 143
    assert not (tmp_path / "x.h5.lock").exists()


def test_a_strangers_names_do_not_speak_to_the_terminal(calseg, tmp_path):
    from calseg_cli.artifacts.writer import ArtifactWriter

    classes = {"names": ["road", "[bold]sky"], "palette": [[0, 0, 0]] * 2, "ignore": 255}
    with ArtifactWriter(tmp_path / "a.h5", "metrics", meta={"classes": classes, "protocol": {"values": "\x1b[31mred"}}):
        pass
    ran = calseg("inspect", "a.h5", cwd=tmp_path)
    assert "\x1b" not in ran.out + ran.err
    if ran.code == 0:
        assert "[bold]sky" in ran.out


def test_an_adapted_network_is_stale_when_its_start_was_trained_again(calseg, workspace):
    assert calseg("adapt", cwd=workspace).code == 0
    assert calseg("adapt", "--resume", cwd=workspace).code == 0
    assert calseg("pretrain", "--steps", "4", "--force", cwd=workspace).code == 0
    ran = calseg("adapt", "--resume", cwd=workspace)
    assert (ran.code, "is stale" in ran.err) == (3, True)
    assert calseg("adapt", "--force", cwd=workspace).code == 0
