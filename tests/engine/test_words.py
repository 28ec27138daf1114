"""What processes leave each other: waiting for the main one, whatever becomes of it, and what counts as its end."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from calseg_cli.engine import lifeline, words
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.errors import DataError, StoppedError
from tests.ranks import together

SOON = 15  # seconds: far less than the 30 after which torchrun would kill


def test_a_main_process_that_is_killed_at_its_own_work_ends_the_others():
    """Its images' readers are forked from it, and one that outlives it must not look like it."""
    until, over = os.pipe()

    def killed():
        if os.fork() == 0:
            os.close(over)
            os.read(until, 1)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    def work(ranks):
        with stop_on_signals() as stop:
            if not ranks.is_main:
                signal.raise_signal(signal.SIGTERM)  # as torchrun sends it to all that are left
            ranks.main_does(killed, stop)

    begun = time.monotonic()
    ended = together(work, world=3, seconds=40)
    assert time.monotonic() - begun < SOON
    os.close(over), os.close(until)
    assert [code for code, _ in ended] == [-signal.SIGKILL, 5, 5]
    (said,) = [told for _, told in ended if told]
    assert "another process of this command was killed" in said


def test_who_is_asked_to_stop_while_it_waits_has_the_main_process_asked():
    def work(ranks):
        with stop_on_signals() as stop:

            def until_asked():
                end = time.monotonic() + SOON
                while not stop and time.monotonic() < end:
                    time.sleep(0.01)

            if not ranks.is_main:
                signal.raise_signal(signal.SIGTERM)
            ranks.main_does(until_asked, stop)
            return stop.signum

    assert together(work, seconds=40) == [(0, signal.SIGTERM)] * 2


def test_without_a_way_to_the_main_process_its_words_still_count(monkeypatch):
    monkeypatch.setattr(words, "hold_on", lambda host, port: False)

    def fails(ranks):
        assert ranks.main_does(lambda: ranks.rank) == (0 if ranks.is_main else None)

        def broken():
            raise DataError("no such image")

        ranks.main_does(broken)

    assert together(fails, seconds=40) == [(4, "no such image"), (4, None)]


def test_a_store_that_is_gone_ends_the_wait_in_one_line(monkeypatch):
    def check(keys):
        raise RuntimeError("[/torch/TCPStore.cpp:7] Connection reset by peer\nframe #0: c10")

    monkeypatch.setattr(words, "open_store", lambda: SimpleNamespace(check=check))
    with pytest.raises(StoppedError, match=r"does not answer \(Connection reset by peer\)$"):
        words.wait_for_main("done", StopRequest())


def test_a_machine_that_does_not_answer_is_no_wait_that_is_over(monkeypatch):
    def answer(error):
        def recv(size):
            raise error

        return SimpleNamespace(settimeout=lambda seconds: None, recv=recv)

    for error, lives in ((TimeoutError("timed out"), True), (TimeoutError(110, "Connection timed out"), False)):
        monkeypatch.setattr(lifeline, "_held", [answer(error)])
        assert lifeline.main_lives(1) is lives


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/"
LOST = [
    (f"{GLOO}pair.cc:534] ", "Connection closed by peer [127.0.0.1]:5"),
    (f"{GLOO}unbound_buffer.cc:81] ", "Timed out waiting 1800000ms for recv operation to complete"),
    (f"{GLOO}buffer.cc:72] ", "Application timeout caused pair closure"),
    (f"{GLOO}pair.cc:598] ", "Read error [127.0.0.1]:5: Connection reset by peer"),
    (f"{GLOO}pair.cc:412] ", "Broken pipe"),
    ("", "failed to recv, got 0 bytes. Connection was likely closed."),
    ("", "wait timeout after 300000ms, keys: /calseg/0/code"),
    ("", "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5"),
]


@pytest.mark.parametrize(("place", "cause"), LOST)
def test_what_tells_of_a_lost_process_becomes_one_line_that_names_the_cause(place, cause):
    with pytest.raises(StoppedError) as caught, words.talking():
        raise RuntimeError(f"{place}{cause}\nException raised from somewhere")
    assert caught.value.message.endswith(f" does not answer ({cause})")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB; see the socket"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError(f"{GLOO}socket.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ],
    ids=["cuda", "cpu", "gloo", "shape"],
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, words.talking():
        raise error
    assert str(error) in str(caught.value)


def test_lack_of_memory_within_nccl_is_lack_of_memory():
    with pytest.raises(torch.cuda.OutOfMemoryError), words.talking():
        raise RuntimeError(
            "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'; Socket closed"
        )
