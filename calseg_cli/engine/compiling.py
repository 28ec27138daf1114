"""Owns torch.compile: a network that is called through compiled code, under its own names."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from calseg_cli.errors import ConfigError, DeviceError

BACKEND = "inductor"
_WHERE = ("torch._dynamo", "torch._inductor", "torch._functorch")
_TOLD = ("torch.compile", "Dynamo is not supported")


def compile_network(network: nn.Module, *, wanted: bool) -> None:
    """Let calls of `network` run compiled, where `wanted`, from its first call on; a copy of it is not compiled.

    Parameters and buffers keep their names, and `state_dict` is the same. Raises DeviceError where this torch cannot
    compile at all; what else keeps it from compiling shows at the first call, see `compile_error`.
    """
    if not wanted:
        return
    try:
        run = torch.compile(network._call_impl, backend=BACKEND)
        network._compiled_call_impl = _Unwatched(network, run)  # where Module.compile puts it; a copy is without
    except Exception as error:  # each release refuses in its own way: Python too new, Windows, no such backend
        raise _cannot(error) from error


class _Unwatched:
    """Calls compiled code, but the network itself while a layer has a hook: compiled code does not see later hooks."""

    def __init__(self, network: nn.Module, run: Callable[..., Any]) -> None:
        self._network, self._run = network, run
        self._parts: dict[str, Callable[..., Any]] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self._is_watched():
            return self._network._call_impl(*inputs, **named)  # type: ignore[no-untyped-call]
        return self._run(*inputs, **named)

    def part(self, name: str) -> Callable[..., Any]:
        """The network's method of that name, compiled by itself."""
        plain = getattr(self._network, name)
        if self._is_watched():
            return plain  # type: ignore[no-any-return]
        if name not in self._parts:
            self._parts[name] = torch.compile(plain, backend=BACKEND)
        return self._parts[name]

    def _is_watched(self) -> bool:
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self._network.modules())


def part_of(network: nn.Module, name: str) -> Callable[..., Any] | None:
    """A method that does part of the network's work, compiled where the network is; None where it has none."""
    whole = getattr(network, "_compiled_call_impl", None)
    has_it = getattr(network, name, None) is not None
    return whole.part(name) if has_it and isinstance(whole, _Unwatched) else getattr(network, name, None)


def is_compiled(network: nn.Module) -> bool:
    """Whether `compile_network` has been at it."""
    return getattr(network, "_compiled_call_impl", None) is not None


def compile_error(error: RuntimeError) -> DeviceError | None:
    """The one line to tell in place of an error of torch.compile; None for any other."""
    is_its_own = type(error).__module__.startswith(_WHERE) or any(told in str(error) for told in _TOLD)
    return _cannot(error) if is_its_own else None


def refuse_compiled(network: nn.Module, what: str) -> None:
    """Raise ConfigError where a compiled network stands in the way of `what`."""
    if is_compiled(network):
        raise ConfigError(f"{what} does not work with compile", f"compile: false, or {what}: false")


def _cannot(error: Exception) -> DeviceError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = (" ".join(lines[:2]) or type(error).__name__)[:200]  # the first may name the backend alone
    return DeviceError(
        f"torch.compile {torch.__version__} cannot compile this network here ({told})",
        "compile: false works everywhere; on a CPU it needs a C++ compiler such as g++",
    )
