"""Reading ahead: in order, with errors as they are, and nothing left running."""

import multiprocessing
import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import _utils as torchs
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from calseg_cli.data.ordered import check_wanted, closing_reader, end_readers, read_ahead
from calseg_cli.errors import CalsegError, DataError


def square(key):
    time.sleep(0.002 * (key % 3))
    return key * key


def fail_at_five(key):
    if key == 5:
        raise DataError("five is broken", "mend five")
    return key


def bug_at_two(key):
    return 1 // (key - 2)


def die_at_three(key):
    if key == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def signalled(key):
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), signum)
    return key


def own_pid(key):
    return os.getpid()


def needs_three_hands(key):
    raise RuntimeError("a bug of its own")


def looks_often(monkeypatch):
    """Torch looks after its workers every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("calseg-reader")]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("keys", [range(12), range(7, 9), [3, 1, 2], []], ids=str)
def test_order(workers, keys):
    assert list(read_ahead(square, keys, workers)) == [key * key for key in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_mistake_comes_out_whole_and_in_its_place(workers):
    seen = []
    with pytest.raises(DataError) as caught:
        for value in read_ahead(fail_at_five, range(10), workers):
            seen.append(value)
    assert seen == [0, 1, 2, 3, 4]
    assert (caught.value.message, caught.value.hint) == ("five is broken", "mend five")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_stays_a_bug(workers):
    children = set(multiprocessing.active_children())
    with pytest.raises(ZeroDivisionError) as held:
        list(read_ahead(bug_at_two, range(5), workers))
    assert held.traceback
    assert set(multiprocessing.active_children()) <= children


def test_a_killed_worker_names_memory(monkeypatch):
    looks_often(monkeypatch)
    with pytest.raises(CalsegError, match="memory") as caught:
        list(read_ahead(die_at_three, range(6), 1))
    assert "fewer workers" in caught.value.hint


def test_signals_of_others_end_no_worker():
    assert list(read_ahead(signalled, range(3), 1)) == [0, 1, 2]


_STRUCK_AT_BIRTH = threading.Event()
os.register_at_fork(after_in_child=lambda: _STRUCK_AT_BIRTH.is_set() and signalled(0))


def test_not_even_in_its_first_moment():
    _STRUCK_AT_BIRTH.set()
    try:
        assert list(read_ahead(square, range(3), 2)) == [0, 1, 4]
    finally:
        _STRUCK_AT_BIRTH.clear()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not {signal.SIGINT, signal.SIGTERM} & mask


def test_a_signal_while_workers_are_started_is_answered_when_they_run(monkeypatch):
    """In the midst of it torch would be left half made, and workers that nobody knows of."""
    reached, born = [], []

    def struck(self, *arguments):
        made(self, *arguments)
        thread = threading.Thread(target=signal.pthread_kill, args=(unblocked.ident, signal.SIGTERM))
        thread.start()
        thread.join()
        time.sleep(0.1)  # Python would call the handler here
        born.append(len(reached))

    made = _MultiProcessingDataLoaderIter._try_put_index
    ends = threading.Event()
    unblocked = threading.Thread(target=ends.wait)
    unblocked.start()
    before = signal.signal(signal.SIGTERM, lambda signum, frame: reached.append(signum))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(_MultiProcessingDataLoaderIter, "_try_put_index", struck)
            values = read_ahead(square, range(2), 1)
            assert next(values) == 0
        assert born[:2] == [0, 0]
        assert reached
        assert list(values) == [1]
    finally:
        signal.signal(signal.SIGTERM, before)
        ends.set()


def test_an_error_that_a_worker_hands_on_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="a bug of its own"):
        list(read_ahead(needs_three_hands, range(3), 1))


def test_a_dead_worker_is_told_of_where_it_is_read_from(monkeypatch):
    """Not in the midst of whatever the main process does when it hears of the death."""
    looks_often(monkeypatch)
    values = read_ahead(own_pid, range(20), 1)
    os.kill(next(values), signal.SIGKILL)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        time.sleep(0.01)
    with pytest.raises(CalsegError, match="was killed"):
        list(values)


def in_a_process(work, seconds=20):
    """The exit status of a process forked to do `work`; it is killed when it takes too long."""
    child = os.fork()
    if not child:
        multiprocessing.process._children.clear()  # those are not its own
        try:
            work()
        finally:
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "it hung"


@pytest.mark.parametrize("read", [square, signalled])
def test_a_process_that_ends_waits_for_no_reader(read):
    def work():
        values = read_ahead(read, range(1000), 2)
        next(values)
        if read is signalled:  # all the time, so that a signal of the parent's may be lost among them
            end_readers()
        multiprocessing.util._exit_function()  # SIGTERM, and wait
        os._exit(0 if values else 1)

    assert in_a_process(work) == 0


def test_readers_do_not_outlive_a_main_process_that_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(torchs.worker, "MP_STATUS_CHECK_INTERVAL", 0.1)

    def work():
        (tmp_path / "pid").write_text(str(next(read_ahead(own_pid, [0, 1], 1))))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process(work) == -signal.SIGKILL
    reader, end = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while is_alive(reader):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")  # nobody asked for its status


def test_an_error_keeps_no_reader():
    """Its traceback knows the iterator, and would hold its workers."""
    children = set(multiprocessing.active_children())
    values = read_ahead(square, range(1000), 2)
    with pytest.raises(ZeroDivisionError) as held, closing_reader(values):
        for value in values:
            assert value // 0
    assert held.traceback
    assert set(multiprocessing.active_children()) <= children
    with closing_reader([1]):
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_when_the_consumer_stops(workers):
    # Children of an earlier test may end meanwhile: what counts is that no new one stays.
    threads, children = set(readers()), set(multiprocessing.active_children())
    values = read_ahead(square, range(1000), workers)
    next(values)
    values.close()
    assert set(readers()) <= threads
    assert set(multiprocessing.active_children()) <= children
    with pytest.raises(KeyboardInterrupt):
        for _ in read_ahead(square, range(1000), workers):
            raise KeyboardInterrupt
    assert set(readers()) <= threads
    assert set(multiprocessing.active_children()) <= children


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(read_ahead(square, range(4), workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_reads_only_a_little_ahead():
    started = []
    values = read_ahead(started.append, range(100), 0)
    next(values)
    time.sleep(0.05)
    assert len(started) <= 5
    values.close()


def test_what_is_being_read_is_given_up_with_its_reader():
    """One batch may take minutes to read; a signal is not to wait for it."""
    begun, ended, main = threading.Event(), threading.Event(), threading.main_thread().ident

    def read(key):
        begun.set()
        try:
            for _ in range(600):
                check_wanted()
                time.sleep(0.05)
        finally:
            ended.set()

    def struck():
        with closing_reader(values := read_ahead(read, [0, 1], 0)):
            threading.Thread(target=lambda: (begun.wait(), signal.pthread_kill(main, signal.SIGUSR1))).start()
            next(values)

    def strike(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        since = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            struck()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended.wait(5)
    assert time.monotonic() - since < 10


def test_outside_a_reader_everything_is_wanted():
    check_wanted()
