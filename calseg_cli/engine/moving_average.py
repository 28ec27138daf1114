"""Owns the moving average of a network over the steps of its training: the teacher of self-training."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def move_average(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher towards the student in place: t <- decay t + (1 - decay) s. Tarvainen & Valpola 2017.

    So for parameters and floating buffers, running statistics among them; buffers of whole numbers are copied. A
    teacher that equals its student stays bit for bit. Raises ValueError when their tensors differ in name or shape.
    """
    averages, values = _tensors(teacher), _tensors(student)
    if {name: value.shape for name, value in averages.items()} != {name: value.shape for name, value in values.items()}:
        raise ValueError("teacher and student are not of one kind")
    for name, average in averages.items():
        if average.is_floating_point():
            average.lerp_(values[name], 1 - decay)
        else:
            average.copy_(values[name])


def decay_at(step: int, decay: float) -> float:
    """min(1 - 1/(step + 1), decay): a plain mean over the first steps, then the decay. Tranheden et al. 2021 (DACS).

    >>> [decay_at(step, 0.99) for step in (0, 1, 3, 200)]
    [0.0, 0.5, 0.75, 0.99]
    """
    return min(1 - 1 / (step + 1), decay)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
