"""Owns the choice of device, determinism, and what is said when memory runs out."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from calseg_cli.engine.compiling import compile_error
from calseg_cli.errors import DeviceError

# torch 2.4 has it under torch.cuda only; any device raises it since.
_OUT_OF_MEMORY: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one. Raises DeviceError for one that is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name}: this torch sees no CUDA device", "--device cpu, or install a CUDA build")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {name}: there are {torch.cuda.device_count()} CUDA devices", "count from cuda:0")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # whose generator is saved, and whose memory is asked for, is the current one's
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps: not available here", "--device cpu")
    return device


def seed_everything(seed: int, *, deterministic: bool, threads: int | None = None) -> None:
    """Fix the generators of torch, numpy and random; ask torch for repeatable kernels where it has them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass: "off", "bf16" or "fp16"."""
    if amp == "off":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AMP[amp])


@contextmanager
def memory_errors(advice: Callable[[], str] | str) -> Iterator[None]:
    """Turn "out of memory" below into one line with `advice`, asked for only then: what to change, by how much.

    What torch.compile could not do becomes one line too.
    """
    try:
        yield
    except _OUT_OF_MEMORY as error:
        raise DeviceError("the device is out of memory", _said(advice)) from error
    except RuntimeError as error:
        if "not enough memory" in str(error) or "DefaultCPUAllocator" in str(error):
            raise DeviceError("this machine is out of memory", _said(advice)) from error
        if (told := compile_error(error)) is not None:
            raise told from error
        raise


def _said(advice: Callable[[], str] | str) -> str:
    return advice if isinstance(advice, str) else advice()
