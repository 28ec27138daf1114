"""Logits for prototypes, what is counted of them, and their soft labels by numpy alone."""

import numpy as np
import torch

from calseg_cli.methods.prototype_state import PixelRule, PrototypeState


def image(seed: int, classes: int = 5, size: tuple[int, int] = (9, 11), spread: float = 3.0) -> torch.Tensor:
    """Logits whose classes have a scale and a bias of their own, so that prototypes differ in shape."""
    random = np.random.default_rng(seed)
    scale, bias = random.uniform(0.5, 2, (classes, 1, 1)), random.normal(0, 0.5, (classes, 1, 1))
    return torch.from_numpy((random.normal(0, spread, (classes, *size)) * scale + bias).astype(np.float32))


def state_of(*images: torch.Tensor, rule: PixelRule | None = None) -> PrototypeState:
    """The sums of these images, which are called by their number."""
    state = PrototypeState(images[0].shape[0], rule)
    for number, one in enumerate(images):
        state.add(one, name=f"image {number}")
    return state


def softmax64(logits: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    """Rows of float64 probabilities (n,C), by numpy alone."""
    z = logits.flatten(1).double().numpy().T / temperature
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
