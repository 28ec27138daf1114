"""The choice of device, and what is said when memory runs out."""

import random

import numpy as np
import pytest
import torch

from calseg_cli.engine.device import autocast, choose_device, memory_errors, seed_everything
from calseg_cli.errors import DeviceError


def test_auto_is_cuda_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_an_absent_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="cuda:1"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="1 CUDA"):
        choose_device("cuda:1")


def test_the_device_that_is_named_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_becomes_advice(error):
    with pytest.raises(DeviceError) as caught, memory_errors("lower --batch-size"):
        raise error
    assert caught.value.hint == "lower --batch-size"
    assert caught.value.exit_code == 6


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="bug"), memory_errors("x"):
        raise RuntimeError("bug")


def test_a_seed_fixes_every_generator():
    def draw():
        seed_everything(5, deterministic=True)
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    assert draw() == draw()


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_does_what_it_says(amp, dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), amp):
        assert layer(torch.rand(2, 4)).dtype == dtype
