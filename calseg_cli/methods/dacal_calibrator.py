"""Owns DA-Cal's temperature network as a calibrator: each cell's logits over a temperature that it reads from them.

Li et al. 2026, arXiv 2602.20860, whose network is for training alone; kept for prediction it is this project's.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.errors import ArtifactError
from calseg_cli.methods.calibrator import Array, Calibrator, check_channels, read_array, read_number
from calseg_cli.methods.temperature_network import Inputs, TemperatureNetwork, calibrated

_LAYERS = ("first", "second", "last")
_AGAIN = "make it again with calseg calibrate --method dacal"


class DACalCalibrator(Calibrator):
    """z / T(z) in each cell, T by a temperature network. No cell changes its class; pixels between cells may.

    The network is of the form "tanh": T lies between 1 over its bound and the bound.
    """

    method: ClassVar[str] = "dacal"
    keeps_argmax: ClassVar[bool] = True

    def __init__(self, network: TemperatureNetwork, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__(origin)
        if network.form != "tanh":
            raise ValueError(f"the form {network.form!r} has no artifact")
        self.network = network

    @torch.no_grad()
    def __call__(self, logits: Tensor, image: Tensor | None = None) -> Tensor:
        """Logits (C,h,w) over temperatures (h,w). Raises ArtifactError for another number of classes."""
        check_channels(logits, self.network.classes, self.method)
        seen = logits.float()[None]
        corrected: Tensor = calibrated(seen, self.network.to(logits.device)(seen))
        return corrected[0]

    def parameters(self) -> dict[str, float | str]:
        """The highest temperature there can be, what is read of the logits, and how many numbers were fitted."""
        fitted = sum(parameter.numel() for parameter in self.network.parameters())
        return {"bound": self.network.bound, "inputs": self.network.inputs, "weights": str(fitted)}

    def facts(self) -> dict[str, Any]:
        """The method, what the network reads, its origin."""
        return {**super().facts(), "inputs": self.network.inputs}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """`classes`, `bound` and `level` (1,); unless the level is all there is, the convolutions too, float32."""
        network = self.network
        arrays: dict[str, Array] = {
            "classes": torch.tensor([network.classes]).numpy(),
            "bound": torch.tensor([network.bound], dtype=torch.float64).numpy(),
            "level": network.level.detach().cpu().flatten().numpy(),
        }
        for name, layer in zip(_LAYERS, network.layers, strict=False):
            for part, tensor in layer.named_parameters():
                arrays[f"{name}_{part}"] = tensor.detach().cpu().numpy()
        return arrays

    @classmethod
    def from_artifact(cls, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """Raises ArtifactError unless the arrays are the weights of a temperature network that reads what is known."""
        if facts.get("inputs") not in get_args(Inputs):
            raise ArtifactError(f"its inputs {facts.get('inputs')!r} are unknown", _AGAIN)
        network = _empty(arrays, facts["inputs"])
        try:
            network.load_state_dict(_state(arrays, network))
        except RuntimeError as error:
            raise ArtifactError("its arrays are not the weights of a temperature network", _AGAIN) from error
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.parameters()):
            raise ArtifactError("its weights are too large for float32", _AGAIN)
        return cls(network.eval().requires_grad_(False), facts)


def _empty(arrays: Mapping[str, Array], inputs: Inputs) -> TemperatureNetwork:
    """A network of the shape that the arrays tell; without any convolution, of the level alone."""
    classes, bound = read_number(arrays, "classes", least=2), read_number(arrays, "bound", above=1)
    if classes != int(classes):
        raise ArtifactError(f"its 'classes' is {classes}, which it cannot be", _AGAIN)
    width = 0
    if any(name.startswith(_LAYERS) for name in arrays):
        first = read_array(arrays, "first_weight", dimensions=4)
        width = first.shape[0]
        if first.shape[1] != classes:  # or a number of classes that is damaged could ask for any amount of memory
            raise ArtifactError(f"its 'classes' is {classes:.0f}, its weights are for {first.shape[1]}", _AGAIN)
    return TemperatureNetwork(int(classes), width=width, bound=bound, inputs=inputs)


def _state(arrays: Mapping[str, Array], network: TemperatureNetwork) -> dict[str, Tensor]:
    state = {"level": torch.tensor(read_number(arrays, "level")).view(1, 1, 1, 1)}
    for name, parameter in network.layers.named_parameters():
        place, part = name.split(".")
        found = read_array(arrays, f"{_LAYERS[int(place)]}_{part}", dimensions=parameter.ndim)
        state[f"layers.{name}"] = torch.from_numpy(found).float()
    return state
