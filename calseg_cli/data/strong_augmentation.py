"""Owns the strong augmentation of whole batches, wherever they lie: other colours and a blur, nothing that moves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calseg_cli.errors import ConfigError

# The colour jitter of `transforms.jittered`, for tensors.
_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_HUE_TURNS = 0.2
_DRAWS = 7
_TRUNCATE = 4.0  # where the blur's kernel ends, in standard deviations


@dataclass(frozen=True)
class StrongAugmentation:
    """How much mixed images are changed. `color` and `blur` are probabilities. Tranheden et al. 2021 (DACS).

    Brightness, contrast and saturation are multiplied by 1 +- `color_strength`, hue is turned by up to a fifth of
    that share of a whole turn (DACS: by up to that share). `blur_sigma` is the range of the blur in pixels. Raises
    ConfigError for anything else than probabilities, a strength from 0 and a range from 0.
    """

    color: float = 0.8
    color_strength: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.15, 1.15)

    def __post_init__(self) -> None:
        for name, value in (("color", self.color), ("blur", self.blur)):
            if not 0 <= value <= 1:
                raise ConfigError(f"strong augmentation: {name} {value} is no probability", "write 0 to 1")
        if not self.color_strength >= 0:
            raise ConfigError(f"strong augmentation: color_strength is {self.color_strength}", "write 0 or more")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise ConfigError(
                f"strong augmentation: blur_sigma {list(self.blur_sigma)} is not a range from 0", "write [low, high]"
            )

    def __call__(self, images: Tensor, generator: torch.Generator, first: int = 0) -> Tensor:
        """The changed images (B,3,H,W) in [0,1], on their device; the ones that nothing happens to bit for bit.

        `generator` is on the CPU. Every image takes the same number of draws whatever the settings, so that
        switching one off leaves the others as they were, and no image depends on those it shares the batch with. The
        first image's place is `first`, where these are a part of a batch.
        """
        count = first + len(images)
        draws = [torch.rand(_DRAWS, generator=generator, dtype=torch.float64).tolist() for _ in range(count)][first:]
        return torch.stack([self._changed(image, drawn) for image, drawn in zip(images, draws, strict=True)])

    def _changed(self, image: Tensor, draws: Sequence[float]) -> Tensor:
        if draws[0] < self.color:
            image = jittered_colors(image, self.color_strength, [2 * draw - 1 for draw in draws[1:5]])
        if draws[5] < self.blur:
            low, high = self.blur_sigma
            image = blurred(image, low + (high - low) * draws[6])
        return image


def jittered_colors(image: Tensor, strength: float, draws: Sequence[float]) -> Tensor:
    """The image (3,H,W) in [0,1] with another brightness, contrast, saturation and hue; four `draws` in [-1, 1].

    The same as `transforms.jittered`, which works on whole numbers of pixels: one affine map, cut to [0, 1] once.
    """
    brightness, contrast, saturation = (max(1 + strength * draw, 0.0) for draw in draws[:3])
    turn = 2 * math.pi * _HUE_TURNS * strength * draws[3]
    cosine, sine = math.cos(turn) * saturation, math.sin(turn) * saturation
    colors = _FROM_YIQ @ np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _TO_YIQ
    rows = (brightness * contrast * colors).tolist()
    means = image.mean(dim=(1, 2))
    grey = sum(weight * means[channel] for channel, weight in enumerate(_LUMA))
    shift = (1 - contrast) * brightness * grey  # contrast works around the mean grey
    # Written out: a matrix product of so few numbers may be rounded to ten bits on a GPU.
    changed = [row[0] * image[0] + row[1] * image[1] + row[2] * image[2] + shift for row in rows]
    return torch.stack(changed).clamp_(0, 1)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """The image (3,H,W) in [0,1] under a Gaussian of `sigma` pixels, mirrored at the centres of its outermost pixels.

    The kernel ends after four standard deviations. It may be wider than the image. 0 changes nothing.
    """
    if sigma <= 0:
        return image
    radius = int(_TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).tolist()
    return _filtered(_filtered(image, kernel, 1), kernel, 2).clamp_(0, 1)


def _filtered(image: Tensor, kernel: list[float], dim: int) -> Tensor:
    """Sums of shifted images and no convolution, whose precision would depend on the device and its settings."""
    length = image.shape[dim]
    padded = image.index_select(dim, _mirrored_places(length, len(kernel) // 2, image.device))
    result = torch.zeros_like(image)
    for shift, weight in enumerate(kernel):
        result.add_(padded.narrow(dim, shift, length), alpha=weight)
    return result


def _mirrored_places(length: int, radius: int, device: torch.device) -> Tensor:
    """-radius to length + radius - 1, folded back into 0 to length - 1."""
    period = max(1, 2 * (length - 1))
    places = torch.arange(-radius, length + radius, device=device).remainder(period)
    return torch.minimum(places, period - places).clamp_max_(length - 1)
