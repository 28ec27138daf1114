"""Reading ahead: in order, with errors as they are, and nothing left running."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from calseg_cli.data.ordered import read_ahead
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


def ignores_ctrl_c(key):
    os.kill(os.getpid(), signal.SIGINT)
    return key


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
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(bug_at_two, range(5), workers))


@pytest.mark.slow  # torch looks after its workers every five seconds
def test_a_killed_worker_names_memory():
    with pytest.raises(CalsegError, match="memory") as caught:
        list(read_ahead(die_at_three, range(6), 1))
    assert "fewer workers" in caught.value.hint


def test_ctrl_c_does_not_reach_workers():
    assert list(read_ahead(ignores_ctrl_c, range(3), 1)) == [0, 1, 2]


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
