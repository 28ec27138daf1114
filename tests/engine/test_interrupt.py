"""Stopping on request: what a first and a second signal do, alone and under torchrun."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.data.catalog import find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import TrainStream, evaluation_samples, sweep
from calseg_cli.data.transforms import PLAIN
from calseg_cli.engine.distributed import ALONE
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.train import Hooks, Plan, asked_to_stop, train
from calseg_cli.engine.train import sweep as show
from tests.engine.test_train import Fit

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def before():
    """Handlers of the test's own, that tell what reaches them; pytest's come back."""
    reached = []
    kept = {number: signal.signal(number, lambda signum, frame: reached.append(signum)) for number in (INT, TERM)}
    yield reached
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def together(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("first", [INT, TERM])
@pytest.mark.parametrize("second", [INT, TERM])
def test_alone_a_second_signal_strikes_at_once(before, first, second):
    with stop_on_signals() as stop:
        signal.raise_signal(first)
        assert stop.signum == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    signal.raise_signal(TERM)
    assert before == [TERM]


def test_under_torchrun_sigterm_may_come_twice(before, together):
    with stop_on_signals() as stop:
        for _ in range(3):
            signal.raise_signal(TERM)
        assert stop.error("x", "y").exit_code == 143
    signal.raise_signal(TERM)  # torchrun's own, while the process says that it stopped
    assert before == []
    signal.raise_signal(INT)
    assert before == [INT]


def test_under_torchrun_a_second_ctrl_c_strikes_at_once(before, together):
    with stop_on_signals() as stop:
        signal.raise_signal(INT)
        signal.raise_signal(TERM)
        assert stop.error("x", "y").exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(INT)


def test_under_torchrun_nothing_stays_where_nobody_asked(before, together):
    with stop_on_signals():
        pass
    signal.raise_signal(TERM)
    assert before == [TERM]


class Told(type(ALONE)):
    """One of two processes, the other of which was sent SIGTERM."""

    def largest(self, values):
        return [max(value, TERM) for value in values]


@pytest.mark.parametrize("signum", [INT, TERM])
def test_another_process_being_asked_is_no_first_signal(before, together, signum):
    with stop_on_signals() as stop:
        assert asked_to_stop(stop, Told(0, 2))
        signal.raise_signal(signum)
        assert stop.signum == TERM


def test_no_request_comes_outside_the_main_thread():
    found = []

    def work():
        with stop_on_signals() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        for kind, shape in (("images", (8, 8, 3)), ("labels", (8, 8))):
            (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / kind / f"{number}.png")
    layout = make_layout(find_layout("folders"), classes=["a", "b", "c"])
    return SegmentationDataset(
        find_items(layout, tmp_path, "train", with_labels=True), layout, size=None, with_labels=True
    )


def training(images, workers, stop):
    """A training that is asked to stop while it validates; the steps that were saved."""
    saved = []

    def validate(step):
        samples = evaluation_samples(images, workers)
        next(samples)
        signal_the_group()
        assert len(list(samples)) == 5

    done = train(
        Fit(),
        TrainStream(images, None, batch_size=2, augmentation=PLAIN, seed=0, workers=workers),
        Plan(steps=9, validate_every=2, log_every=0),
        device=torch.device("cpu"),
        hooks=Hooks(log=lambda record: None, validate=validate, save=lambda step, state: saved.append(step)),
        progress=Silent(),
        stop=stop,
    )
    assert (done, saved, stop.signum) == (2, [2], TERM)


def sweeping(images, workers, stop):
    """A sweep that is asked to stop after its first batch."""
    seen = []

    class Looks(Fit):
        def forward(self, batch):
            seen.append(batch.step)
            signal_the_group()
            return {}

    show(
        Looks(),
        sweep(images, 2, workers=workers),
        device=torch.device("cpu"),
        progress=Silent(),
        stop=stop,
    )
    assert (seen, stop.signum) == ([0], TERM)


def signal_the_group():
    """SIGTERM to this process and all that it started, by another one, as torchrun and schedulers do."""
    killer = os.fork()
    if not killer:
        os.killpg(0, TERM)
        os._exit(0)  # not reached: it is of the group
    os.waitpid(killer, 0)
    time.sleep(0.1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("work", [training, sweeping])
def test_a_signal_to_the_whole_group_ends_the_work_and_no_reader(images, tmp_path, work, workers):
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            torch.set_num_threads(1)
            with stop_on_signals() as stop:
                work(images, workers, stop)
            code = 0
        except BaseException as error:
            (tmp_path / "error").write_text(repr(error))
        finally:
            os._exit(code)
    end = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.02)
    if not ended[0]:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = (tmp_path / "error").read_text() if (tmp_path / "error").exists() else ""
    assert ended[0], "it hung"
    assert (os.waitstatus_to_exitcode(ended[1]), said) == (0, "")


def test_a_request_that_nobody_made():
    stop = StopRequest()
    assert not stop
    assert not asked_to_stop(stop, ALONE)
