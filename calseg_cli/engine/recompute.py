"""Owns gradient checkpointing: a network keeps what its blocks get, and computes what lies within again going backward.

Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv 1604.06174). It costs about one forward pass a
step more, and changes no number.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from calseg_cli.engine.compiling import refuse_compiled
from calseg_cli.errors import ConfigError

_MODES = ("training", "track_running_stats", "momentum", "ranks")
"""What of a layer decides how it answers, and may be another when the pass is done again."""


@contextmanager
def recomputing(network: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Inside, the blocks of `network` are computed again going backward where `wanted`; a copy of it does so too.

    Names of parameters and buffers stay, a pass without gradients is as ever, and so is one with other parameters in
    the place of the network's own (`functional_call`). Raises ConfigError for a network without blocks,
    and for a compiled one.
    """
    if wanted:
        refuse_compiled(network, "grad_checkpoint")
    blocks = blocks_of(network) if wanted else []
    if wanted and not blocks:
        raise ConfigError(
            f"grad_checkpoint: {getattr(network, 'name', type(network).__name__)} has no blocks to compute again",
            "its blocks must stand in nn.Sequential or nn.ModuleList; grad_checkpoint: false trains without",
        )
    for block in blocks:
        block.forward = _Again(block)
    try:
        yield
    except RuntimeError as error:
        if wanted and (isinstance(error, CheckpointError) or "modified by an inplace operation" in str(error)):
            raise _cannot("a block") from error
        raise
    finally:
        for block in blocks:
            del block.forward


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that are computed again as a whole: members of lists, of at least two layers with parameters each.

    A sequence without such members is a block itself, if it has two layers with parameters. A member that holds a list
    of larger blocks is a stage of them, not a block.
    """
    listed = isinstance(network, nn.Sequential | nn.ModuleList)
    parts = [part for part in network.children() if not listed or _layers(part) > 1]
    if isinstance(network, nn.Sequential) and len(parts) < 2:
        inner = blocks_of(parts[0]) if parts else []
        return inner if len(inner) > 1 else [network] if _layers(network) > 1 else []
    found: list[nn.Module] = []
    for part in parts:
        within = blocks_of(part)
        is_stage = isinstance(part, nn.Sequential | nn.ModuleList) or sum(_layers(one) > 3 for one in within) > 1
        found += within if is_stage or not listed else [part]
    return found


def _layers(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


class _Again:
    """Stands in the place of a block's `forward`. No function, so that a copy of the block calls the copy."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        block, forward = self._block, partial(type(self._block).forward, self._block)
        is_lent = not all(isinstance(own, nn.Parameter) for own in block.parameters())
        if is_lent or not torch.is_grad_enabled():
            return forward(*inputs, **named)
        # What is given is recorded now: by the time of the second pass the modes may be others.
        contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]] = (
            nullcontext(),
            _as_now(block, inputs),
        )
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: contexts, **named)


def _as_now(block: nn.Module, inputs: tuple[Any, ...]) -> AbstractContextManager[None]:
    """The context of the second pass: every layer in its mode of now, and buffers that only seem to move."""
    modes = [(layer, {name: vars(layer)[name] for name in _MODES if name in vars(layer)}) for layer in block.modules()]
    given = [(entering, entering._version) for entering in inputs if isinstance(entering, Tensor)]

    @contextmanager
    def second_pass() -> Iterator[None]:
        if any(entering._version != version for entering, version in given):
            raise _cannot(f"a {type(block).__name__}")
        before = [(layer, {name: vars(layer)[name] for name in mode}, layer._buffers) for layer, mode in modes]
        try:
            for layer, mode in modes:
                vars(layer).update(mode)
                layer._buffers = {name: None if one is None else one.clone() for name, one in layer._buffers.items()}
            yield
        finally:
            for layer, mode, buffers in before:
                vars(layer).update(mode)
                layer._buffers = buffers

    return second_pass()


def _cannot(block: str) -> ConfigError:
    return ConfigError(
        f"grad_checkpoint: {block} of this network answers otherwise when it is computed again, or what enters it was "
        "changed in place",
        "grad_checkpoint: false, or take inplace=True from the block's first layer",
    )
