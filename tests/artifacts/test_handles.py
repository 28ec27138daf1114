"""One artifact in many hands: processes however started, threads, two at once, and a file that changes underneath."""

import fcntl
import logging
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError

PROCESSES = """
import multiprocessing, os, sys
from pathlib import Path
from calseg_cli.artifacts.digests import array_digest
from calseg_cli.artifacts.reader import open_artifact

class Images:
    '''What a loader of batches asks of its data: a length, and an image by its number.'''

    def __init__(self, artifact):
        self.artifact = artifact

    def __len__(self):
        return len(self.artifact)

    def __getitem__(self, number):
        return self.artifact.item(self.artifact.ids[number], "logits")

def read(images):
    return [array_digest(images[n % len(images)]) for n in range(120)]

def inherited(queue, images):
    queue.put(read(images))

if __name__ == "__main__":
    method, path, before = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "opened"
    context = multiprocessing.get_context(method)
    images = Images(open_artifact(path))
    if not before:
        images.artifact.close()
    facts = [images.artifact.item_facts(name) for name in images.artifact.ids]
    expected = [facts[n % len(facts)]["arrays"]["logits"] for n in range(120)]
    if not before:
        images.artifact.close()
    queue = context.Queue()
    processes = [context.Process(target=inherited, args=(queue, images)) for _ in range(2)]
    for process in processes:
        process.start()
    assert read(images) == expected          # while the children read
    assert [queue.get(timeout=60) for _ in processes] == [expected] * 2
    for process in processes:
        process.join()
    with context.Pool(2) as pool:
        assert pool.map(read, [images] * 4) == [expected] * 4
    assert read(images) == expected
    print("equal")
"""

DESCRIPTORS = """
import os, sys
from pathlib import Path
from calseg_cli.artifacts.reader import open_artifact

artifact = open_artifact(Path(sys.argv[1]))
mine = artifact._open().id.get_vfd_handle()
at = os.lseek(mine, 0, os.SEEK_CUR)
if not os.fork():
    artifact.item(artifact.ids[0], "logits")
    os.lseek(artifact._open().id.get_vfd_handle(), at + 12345, os.SEEK_SET)
    os._exit(0)
assert os.wait()[1] == 0
assert os.lseek(mine, 0, os.SEEK_CUR) == at, "the child reads through the parent's descriptor"
print("apart")
"""

FORK_WHILE_WRITING = """
import os, sys
from pathlib import Path
import numpy as np
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter

path = Path(sys.argv[1])
meta = {"classes": {"names": ["a", "b"], "palette": [[0, 0, 0]] * 2, "ignore": 255}}
source = open_artifact(path)
values = np.random.default_rng(0).normal(size=(2, 300, 300)).astype(np.float16)
geometry = Geometry((300, 300), (300, 300))
with ArtifactWriter(path.with_name("b.h5"), "logits", meta=meta) as writer:
    for number in range(30):
        writer.add_item(str(number), {"logits": values}, geometry)  # packed and written in a thread ...
        child = os.fork()                                           # ... which may hold HDF5's lock just now
        if not child:
            source.item(source.ids[0], "logits")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
with open_artifact(path.with_name("b.h5")) as written:
    assert all((array == values).all() for _, array in written.items("logits"))
print("written")
"""


def run(script: str, folder, *words: str) -> str:
    (folder / "script.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, str(folder / "script.py"), *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def made(store, tmp_path):
    return store.write(tmp_path / "a.h5", store.make_items(3, size=(60, 50)))


def equal(artifact, made) -> bool:
    return all(np.array_equal(artifact.item(name, "logits"), made.items[name]["logits"]) for name in made.ids)


@pytest.mark.parametrize("before", ["opened", "closed"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_reading_in_several_processes(made, tmp_path, method, before):
    assert run(PROCESSES, tmp_path, method, str(made.path), before) == "equal"


def test_a_forked_child_opens_the_file_itself(made, tmp_path):
    assert run(DESCRIPTORS, tmp_path, str(made.path)) == "apart"


def test_forking_while_the_writing_thread_works(made, tmp_path):
    assert run(FORK_WHILE_WRITING, tmp_path, str(made.path)) == "written"


def test_a_pickle_holds_no_file(made):
    with open_artifact(made.path) as artifact:
        copy = pickle.loads(pickle.dumps(artifact))
        assert copy._handle is None
        assert equal(copy, made)
        assert copy._handle is not artifact._handle
        copy.close()
        assert equal(artifact, made)


def test_a_closed_artifact_opens_again(made):
    artifact = open_artifact(made.path)
    artifact.close()
    artifact.close()
    assert equal(artifact, made)
    artifact.close()


def test_no_descriptor_stays_open(made):
    def count():
        return sum(entry.resolve() == made.path for entry in Path("/proc/self/fd").iterdir())

    with open_artifact(made.path) as artifact:
        artifact.item(made.ids[0], "logits")
        assert count() == 1
    assert count() == 0
    with pytest.raises(ArtifactError):
        open_artifact(made.path, "metrics")
    assert count() == 0


def test_two_readers_do_not_disturb_each_other(made):
    with open_artifact(made.path) as first:
        with open_artifact(made.path) as second:
            assert equal(first, made)
            assert equal(second, made)
        assert equal(first, made)


def test_threads_read_the_same_values(made):
    wrong = []

    def read(artifact):
        for _ in range(30):
            if not equal(artifact, made):
                wrong.append(1)

    with open_artifact(made.path) as artifact:
        threads = [threading.Thread(target=read, args=(artifact,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_reading_one_file_while_another_is_written(store, made, tmp_path):
    with (
        open_artifact(made.path) as source,
        ArtifactWriter(tmp_path / "b.h5", "logits", meta=store.META, ids=made.ids) as writer,
    ):
        for name, logits in source.items("logits"):
            writer.add_item(name, {"logits": logits}, source.geometry(name), image_digest=source.image_digest(name))
        assert equal(source, made)
    assert writer.digest == made.digest


def test_an_open_reader_keeps_what_it_opened(store, made):
    """A name that is given to a new file leaves the old file to those who read it."""
    with open_artifact(made.path) as artifact:
        store.write(made.path, store.make_items(3, seed=9, size=(60, 50)), force=True)
        assert equal(artifact, made)
        artifact.close()
        with pytest.raises(ArtifactError, match="was replaced while it was being read"):
            artifact.item(made.ids[0], "logits")


def test_a_replaced_file_is_noticed_even_at_the_same_size_and_time(store, made):
    with open_artifact(made.path) as artifact:
        travelling = pickle.dumps(artifact)
    before = made.path.stat()
    content = made.path.read_bytes()
    other = made.path.with_name("other.h5")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(made.path)
    copy = pickle.loads(travelling)
    with pytest.raises(ArtifactError, match="was replaced"):
        copy.item(made.ids[0], "logits")


def test_a_deleted_file_is_noticed(made):
    with open_artifact(made.path) as artifact:
        artifact.close()
        made.path.unlink()
        with pytest.raises(ArtifactError, match=r"a\.h5"):
            artifact.item(made.ids[0], "logits")


def test_a_file_system_without_locks(made, caplog):
    """NFS and Lustre answer as if somebody else held it; then it is read without a lock, and that is said."""
    with made.path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with caplog.at_level(logging.WARNING), open_artifact(made.path) as artifact:
            assert equal(artifact, made)
    assert "reading without one" in caplog.text
