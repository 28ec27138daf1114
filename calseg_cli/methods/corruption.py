"""Owns corruption of images: darker, brighter, another gamma, less contrast, noise, blur, by random numbers handed in.

A network is rightly sure of images like those that it was trained on; what is to learn when it is not must see worse
ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_CHANGES = 2  # after the loader's two streams: what a random stream is for
_MOST = 2  # changes of one image


def corrupt(image: Tensor, kind: str, strength: float, rng: np.random.Generator) -> Tensor:
    """An image (3,H,W) in [0,1] changed by `kind` of KINDS at a strength from 0, which changes nothing, to 1.

    The strengths of all kinds are relative to the image: a blur of 1 has a sigma of one hundredth of its height.
    """
    return KINDS[kind](image, strength, rng).clamp(0, 1)


def corrupt_batch(
    images: Tensor, *, probability: float, strength: float, seed: int, step: int, first: int = 0
) -> tuple[Tensor, list[str]]:
    """Images (B,3,H,W), each changed with `probability` by one or two kinds of a strength drawn from 0 to `strength`.

    What is drawn follows from (seed, step, place in the batch) alone, whatever the device; `first` is the place of the
    first image, where these are a share of a batch. Also the names of what was done to each image, "" for none.
    """
    changed, names = [], []
    for place, image in enumerate(images, first):
        rng = np.random.default_rng((seed, _CHANGES, step, place))
        chosen = _drawn(rng, probability)
        for kind in chosen:
            image = corrupt(image, kind, strength * float(rng.random()), rng)
        changed.append(image)
        names.append("+".join(chosen))
    return torch.stack(changed), names


def _drawn(rng: np.random.Generator, probability: float) -> Sequence[str]:
    if rng.random() >= probability:
        return []
    number = int(rng.integers(1, _MOST + 1))
    return [str(kind) for kind in rng.choice(list(KINDS), size=number, replace=False)]


def _darker(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    return image * (1 - 0.7 * strength)


def _brighter(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    return image * (1 + strength)


def _gamma(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Shadows sink, lights stay."""
    power: Tensor = image.clamp(0, 1) ** (1 + 1.5 * strength)
    return power


def _contrast(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    mean = image.mean()
    return mean + (image - mean) * (1 - 0.75 * strength)


def _noise(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
    return image + 0.06 * strength * torch.from_numpy(noise).to(image)


def _blur(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Two passes of a Gaussian, the borders continued."""
    sigma = 0.01 * strength * image.shape[-2]
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in image.shape[-2:]))
    if sigma <= 0 or reach < 1:
        return image
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=image.device)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = (weights / weights.sum()).to(image.dtype)
    channels = image.unsqueeze(1)
    rows = F.conv2d(F.pad(channels, (0, 0, reach, reach), mode="replicate"), weights.view(1, 1, -1, 1))
    both = F.conv2d(F.pad(rows, (reach, reach, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
    return both.squeeze(1)


KINDS: Mapping[str, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "darker": _darker,
    "brighter": _brighter,
    "gamma": _gamma,
    "contrast": _contrast,
    "noise": _noise,
    "blur": _blur,
}
