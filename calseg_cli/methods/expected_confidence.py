"""Owns how confidence is brought to where it is expected to be right: the temperature for it, and dividing logits.

Self-training makes a network surer whether or not it becomes better. Cal-SFDA (arXiv 2308.03003) scales confidence by
1 - e, where e is the calibration error that is expected; here the same is done to the network that results.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from calseg_cli.engine.forward import native_logits

HIGHEST = 100.0
"""No temperature is above this."""
SAMPLED = 1_000_000
"""About so many pixels of all images together stand for all of them."""
_CLOSE = 1e-4  # relative, of a temperature
_PROBE = 64  # pixels a side of the image on which a divided layer is tried


class ConfidenceSample:
    """Logits of a regular part of every image's pixels, in memory; every image weighs the same."""

    def __init__(self, images: int) -> None:
        self._budget = max(64, SAMPLED // max(images, 1))
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, logits: Tensor) -> None:
        """Keep every k-th row and column of logits (C,h,w)."""
        step = max(1, math.ceil(math.sqrt(logits[0].numel() / self._budget)))
        self._kept.append(logits[:, ::step, ::step].flatten(1).cpu().clone())

    def means(self, temperature: float = 1.0) -> Iterator[float]:
        """The mean confidence of each image, in [1/C,1], with logits divided by `temperature`."""
        return (_confidence(logits, temperature) for logits in self._kept)

    def mean(self, temperature: float = 1.0) -> float:
        """The mean over images; NaN without any."""
        return math.fsum(self.means(temperature)) / len(self._kept) if self._kept else math.nan


def softening_temperature(mean_at: Callable[[float], float], wanted: float) -> float:
    """The T >= 1 at which the mean confidence `mean_at(T)`, which falls with T, is `wanted`; at most 100.

    1 where it is that low already: nothing is made surer. Found by bisection to 1e-4 of T.
    """
    low, high = 1.0, HIGHEST
    if not mean_at(low) > wanted:
        return low
    while high - low > _CLOSE * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_at(middle) > wanted else (low, middle)
    return high


def image_temperature(logits: Tensor, wanted: float) -> float:
    """The same for one image's logits (C,h,w), over all its pixels."""
    flat = logits.flatten(1)
    return softening_temperature(lambda temperature: _confidence(flat, temperature), wanted)


@torch.no_grad()
def divide_logits(network: nn.Module, temperature: float) -> bool:
    """Divide a network's logits for good, in the weights and biases of its last layer; whether that could be done.

    The layer is `network.head.classifier`, or `head` itself. It is tried on a random image: where the logits of the
    changed network are not the divided ones (the layer is not linear, or not the last), the weights are put back.
    """
    device = next(network.parameters()).device
    probe = torch.rand(1, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0)).to(device)
    network.eval()
    wanted = native_logits(network, probe)[0] / temperature  # type: ignore[arg-type]
    head = getattr(network, "head", None)
    for layer in (getattr(head, "classifier", None), head):
        if not isinstance(layer, nn.Module):
            continue
        before = [parameter.clone() for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.div_(temperature)
        if before and _near(native_logits(network, probe)[0], wanted):  # type: ignore[arg-type]
            return True
        for parameter, old in zip(layer.parameters(), before, strict=True):
            parameter.copy_(old)
    return False


def _near(logits: Tensor, wanted: Tensor) -> bool:
    """Equal up to what float32 loses on the way, by the size of the largest."""
    return bool((logits - wanted).abs().max() <= 1e-3 * wanted.abs().max())


def _confidence(flat: Tensor, temperature: float) -> float:
    return float((flat.float() / temperature).softmax(dim=0).amax(dim=0).double().mean())
