"""Writing in the background, and what is left where it stops: everything that was whole, and never a wrong file."""

import logging
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts import writer as writer_module
from calseg_cli.artifacts.background import Background
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError, DiskFullError

# ---- the queue ----


def test_jobs_are_done_in_their_order():
    done = []
    background = Background(done.append, size=3)
    for number in range(50):
        background.put(number)
    background.close()
    background.close()
    assert done == list(range(50))


def test_a_full_queue_is_waited_for():
    gate, handed = threading.Event(), []
    background = Background(lambda job: gate.wait(), size=2)

    def hand_over():
        for number in range(10):
            background.put(number)
            handed.append(number)

    thread = threading.Thread(target=hand_over)
    thread.start()
    time.sleep(0.2)
    assert len(handed) <= 3  # one is being worked on, two wait
    gate.set()
    thread.join(timeout=10)
    background.close()
    assert handed == list(range(10))


def test_the_first_error_is_raised_once_and_ends_the_work():
    done = []

    def work(job):
        if job == 3:
            raise OSError("third")
        done.append(job)

    background = Background(work, size=2)
    with pytest.raises(OSError, match="third"):
        for number in range(1000):
            background.put(number)
    background.close()
    assert done == [0, 1, 2]


def test_an_error_of_the_last_job_is_raised_at_the_end():
    background = Background(lambda job: 1 // job, size=2)
    background.put(0)
    with pytest.raises(ZeroDivisionError):
        background.close()
    background.close()


def test_an_error_does_not_leave_a_full_queue_waiting():
    gate = threading.Event()

    def work(job):
        gate.wait()
        raise OSError("no")

    background = Background(work, size=1)
    threading.Timer(0.1, gate.set).start()
    with pytest.raises(OSError, match="no"):
        for number in range(100):
            background.put(number)
        background.close()


# ---- the writer ----


class Stop(Exception):
    """What ends a writer in these tests."""


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """Six items, and the file that nobody interrupted."""
    items = store.make_items(6, size=(20, 30))
    return store.write(tmp_path_factory.mktemp("whole") / "a.h5", items, ids=list(items))


def go_on(store, whole, path, *, stop_after=None, meta=None, **options):
    """Write what is to do; stop after so many items."""
    writer = ArtifactWriter(path, "logits", meta=meta or store.META, ids=whole.ids, **options)
    with writer:
        for number, name in enumerate(writer.todo):
            if number == stop_after:
                raise Stop
            writer.add_item(name, whole.items[name], store.GEOMETRY, image_digest=f"sha256:{name}")
    return writer


def begin(store, whole, path, stop_after=3, **options):
    with pytest.raises(Stop):
        go_on(store, whole, path, stop_after=stop_after, **options)
    return path.with_name(path.name + ".partial")


@settings(max_examples=12, deadline=None)
@given(stops=st.lists(st.integers(0, 6), max_size=4), packing=st.sampled_from(["gzip", "none"]))
def test_however_often_it_stops_the_result_is_the_same(store, whole, tmp_path_factory, stops, packing):
    path = tmp_path_factory.mktemp("r") / "a.h5"
    done = 0
    for stop in stops:
        if done + stop < len(whole.ids):
            begin(store, whole, path, stop, resume=True, compression=packing)
            done += stop
            assert path.with_name("a.h5.partial").exists() == (done > 0)
    with ArtifactWriter(path, "logits", meta=store.META, ids=whole.ids, resume=True, compression=packing) as writer:
        assert writer.todo == whole.ids[done:]
        for name in writer.todo:
            writer.add_item(name, whole.items[name], store.GEOMETRY, image_digest=f"sha256:{name}")
        assert writer.todo == []
    assert writer.digest == whole.digest
    assert [entry.name for entry in path.parent.iterdir()] == ["a.h5"]
    assert store.read_all(path)["items"] == store.read_all(whole.path)["items"]


def test_a_finished_result_is_passed_over(store, whole, tmp_path):
    path = tmp_path / "a.h5"
    go_on(store, whole, path)
    before, read = path.stat(), path.read_bytes()
    with ArtifactWriter(path, "logits", meta=store.META, ids=whole.ids, resume=True) as writer:
        assert writer.finished
        assert writer.todo == []
    assert writer.digest == whole.digest
    after = path.stat()  # when it was last read is nobody's business
    assert (after.st_ino, after.st_mtime_ns, path.read_bytes()) == (before.st_ino, before.st_mtime_ns, read)


CHANGES = {
    "option": ({"recipe": {"stage": "predict", "options": {"flip": True}}}, "options.flip was false, is true"),
    "new option": (
        {"recipe": {"stage": "predict", "options": {"flip": False, "crop": 3}}},
        "options.crop was absent, is 3",
    ),
    "stage": ({"recipe": {"stage": "adapt", "options": {"flip": False}}}, "stage was predict, is adapt"),
    "protocol": ({"protocol": {"stride": 8}}, "protocol.stride was 4, is 8"),
    "classes": ({"classes": {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}}, "classes.names"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_another_recipe_is_refused_by_what_changed(store, whole, tmp_path, change, state):
    tables, says = CHANGES[change]
    path = tmp_path / "a.h5"
    kept = path if state == "finished" else path.with_name("a.h5.partial")
    if state == "finished":
        go_on(store, whole, path)
    else:
        begin(store, whole, path)
    before = kept.read_bytes()
    with pytest.raises(ArtifactError, match=says) as refused:
        go_on(store, whole, path, resume=True, meta={**store.META, **tables})
    assert refused.value.exit_code == 3
    assert kept.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [kept.name]


def test_another_kind_is_refused(store, whole, tmp_path):
    partial = begin(store, whole, tmp_path / "a.h5")
    with (
        pytest.raises(ArtifactError, match="of kind logits"),
        ArtifactWriter(tmp_path / "a.h5", "pseudo_labels", meta=store.META, resume=True),
    ):
        pass
    assert partial.exists()


@pytest.mark.parametrize("options", [{}, {"force": True}])
def test_an_unfinished_file_is_not_lost_by_accident(store, whole, tmp_path, options):
    partial = begin(store, whole, tmp_path / "a.h5")
    if not options:
        with pytest.raises(ArtifactError, match="unfinished") as refused:
            go_on(store, whole, tmp_path / "a.h5")
        assert "--resume" in refused.value.hint
        assert partial.exists()
    else:
        assert go_on(store, whole, tmp_path / "a.h5", **options).digest == whole.digest


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"garbage" * 100, lambda b: b[:600] + bytes(9000) + b[9600:]],
    ids=["truncated", "empty", "garbage", "tables lost"],
)
def test_an_unfinished_file_that_cannot_be_read_is_begun_anew(store, whole, tmp_path, caplog, damage):
    partial = begin(store, whole, tmp_path / "a.h5")
    partial.write_bytes(damage(partial.read_bytes()))
    with caplog.at_level(logging.WARNING):
        writer = go_on(store, whole, tmp_path / "a.h5", resume=True)
    assert "starting from the first image" in caplog.text
    assert writer.digest == whole.digest
    assert not partial.exists()


def half_an_item(file):
    del file["items/000002"].attrs["facts"]


def wrong_values(file):
    file["items/000001/logits"][0, 0, 0] = 5


def a_stranger(file):
    file.copy("items/000002", "items/000077")


@pytest.mark.parametrize(
    ("damage", "todo"), [(half_an_item, {2}), (wrong_values, {1}), (a_stranger, set())], ids=lambda d: str(d)[:20]
)
def test_items_that_are_not_whole_are_written_again(store, whole, tmp_path, damage, todo):
    partial = begin(store, whole, tmp_path / "a.h5")
    store.edit(partial, damage)
    with ArtifactWriter(tmp_path / "a.h5", "logits", meta=store.META, ids=whole.ids, resume=True) as writer:
        assert writer.todo == [name for n, name in enumerate(whole.ids) if n in todo or n >= 3]
        for name in writer.todo:
            writer.add_item(name, whole.items[name], store.GEOMETRY, image_digest=f"sha256:{name}")
    assert writer.digest == whole.digest
    store.read_all(writer.path)


def test_other_images_in_the_same_places_are_written_again(store, whole, tmp_path):
    begin(store, whole, tmp_path / "a.h5")
    with ArtifactWriter(
        tmp_path / "a.h5", "logits", meta=store.META, ids=list(reversed(whole.ids)), resume=True
    ) as writer:
        assert writer.todo == list(reversed(whole.ids))
        for name in writer.todo:
            writer.add_item(name, whole.items[name], store.GEOMETRY, image_digest=f"sha256:{name}")
    with open_artifact(writer.path) as artifact:
        assert artifact.ids == list(reversed(whole.ids))


@pytest.mark.parametrize("where", ["name_file", "finish_file", "write_index"])
def test_stopped_at_the_very_end(store, whole, tmp_path, monkeypatch, where):
    def stop(*words):
        raise Stop

    monkeypatch.setattr(writer_module, where, stop)
    with pytest.raises(Stop):
        go_on(store, whole, tmp_path / "a.h5")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5.partial"]
    with ArtifactWriter(tmp_path / "a.h5", "logits", meta=store.META, ids=whole.ids, resume=True) as writer:
        assert writer.todo == []
    assert writer.digest == whole.digest
    assert store.read_all(writer.path)["items"] == store.read_all(whole.path)["items"]


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.writer import ArtifactWriter

meta = {"classes": {"names": ["a", "b"], "palette": [[0, 0, 0]] * 2, "ignore": 255}}
ids = [str(n) for n in range(40)]
with ArtifactWriter(Path(sys.argv[1]), "logits", meta=meta, ids=ids, resume=True) as writer:
    print(len(writer.todo), flush=True)
    for number, name in enumerate(writer.todo):
        values = np.random.default_rng(int(name)).normal(size=(2, 40, 50)).astype(np.float16)
        writer.add_item(name, {"logits": values}, Geometry((40, 50), (40, 50)))
        if len(sys.argv) > 2 and number == int(sys.argv[2]):
            while not writer._facts:  # on a machine under load nothing may have been written yet
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
print(writer.digest)
"""


def test_a_killed_writer_loses_next_to_nothing(tmp_path):
    def run(path, *words):
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(path), *words], capture_output=True, text=True, check=False
        )

    unbroken = run(tmp_path / "whole.h5").stdout.split()[1]
    left = 40
    for number in ("12", "3", "9"):
        ran = run(tmp_path / "a.h5", number)
        assert ran.returncode == -signal.SIGKILL
        assert int(ran.stdout) <= left
        left = int(ran.stdout)
    todo, digest = run(tmp_path / "a.h5").stdout.split()
    assert int(todo) < 40  # what had been flushed was kept
    assert digest == unbroken
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "whole.h5"]


def test_an_error_in_the_background_names_its_image(store, whole, tmp_path):
    items = {**whole.items, whole.ids[2]: {"logits": np.full((2, 3, 3), np.inf, np.float16)}}
    with pytest.raises(ArtifactError, match=f"logits of '{whole.ids[2]}' holds values"):
        store.write(tmp_path / "a.h5", items, ids=whole.ids)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5.partial"]
    writer = go_on(store, whole, tmp_path / "a.h5", resume=True)
    assert writer.digest == whole.digest


def test_a_full_disk_stops_and_goes_on(store, whole, tmp_path, monkeypatch):
    """HDF5 cannot even close a file on a full disk, so it must never meet one."""
    calls = []

    def free(folder):
        calls.append(folder)
        return 1000 if len(calls) > 4 else 10**12

    monkeypatch.setattr("calseg_cli.artifacts.disk.free_bytes", free)
    with pytest.raises(DiskFullError, match=r"a\.h5") as full:
        go_on(store, whole, tmp_path / "a.h5")
    assert full.value.exit_code == 5
    assert "--resume" in full.value.hint
    monkeypatch.undo()
    with ArtifactWriter(tmp_path / "a.h5", "logits", meta=store.META, ids=whole.ids, resume=True) as writer:
        assert 0 < len(writer.todo) < len(whole.ids)
        for name in writer.todo:
            writer.add_item(name, whole.items[name], store.GEOMETRY, image_digest=f"sha256:{name}")
    assert writer.digest == whole.digest


def test_what_cannot_fit_is_not_begun(store, whole, tmp_path):
    with pytest.raises(DiskFullError, match=r"would need at least .* are free"):
        go_on(store, whole, tmp_path / "a.h5", estimate=10**18)
    assert not list(tmp_path.iterdir())


def test_force_keeps_the_old_result_until_the_new_one_is_whole(store, whole, tmp_path):
    path = tmp_path / "a.h5"
    old = store.write(path, store.make_items(2, seed=4)).digest
    with pytest.raises(ArtifactError, match="exists already and is"):
        go_on(store, whole, path)
    with pytest.raises(Stop):
        go_on(store, whole, path, force=True, stop_after=3)
    with open_artifact(path) as artifact:
        assert artifact.digest == old
    assert go_on(store, whole, path, force=True).digest == whole.digest
    with open_artifact(path) as artifact:
        assert artifact.digest == whole.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


def test_an_unfinished_file_is_never_read_as_a_finished_one(store, whole, tmp_path):
    partial = begin(store, whole, tmp_path / "a.h5")
    copy = tmp_path / "b.h5"
    copy.write_bytes(partial.read_bytes())
    with pytest.raises(ArtifactError, match="unfinished"):
        open_artifact(copy)
    with h5py.File(copy) as file:
        assert file.attrs["complete"] == 0
