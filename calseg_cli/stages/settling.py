"""Owns how an adapted network ends: its logits divided for good by the one temperature that DA-Cal's judge asks for.

Li et al. 2026, arXiv 2602.20860, temper pseudo-labels in training alone. Self-training leaves a network surer than it
is right, whichever labels it was taught; what judges temperatures there can judge the finished network too.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from calseg_cli.config import Resolved
from calseg_cli.methods.expected_confidence import divide_logits
from calseg_cli.networks.network import Network
from calseg_cli.stages.calibrate_dacal import FrozenFit
from calseg_cli.stages.target_training import Setting
from calseg_cli.stages.training import StageFolder


@dataclass(frozen=True)
class Settling:
    """One temperature for a network that is trained to the end, without a label of the target.

    Images and steps are those of `calseg calibrate --method dacal`. Raises ConfigError for a network that DA-Cal cannot
    judge or without a source, DataError without its images: before any training.
    """

    setting: Setting

    def __post_init__(self) -> None:
        self._fit(self.setting.loaded.network)

    def __call__(self, trained: nn.Module, stage: StageFolder) -> None:
        """Find it and divide the network's last layer by it; what came of it is logged and said.

        Raises StoppedError when asked to stop; the weights are then as they were.
        """
        network = cast(Network, trained.eval())
        found = self._fit(network).fit({}, stop=self.setting.stop)
        temperature = float(found.network(torch.zeros(1, found.network.classes, 1, 1)))
        divided = divide_logits(network, temperature)
        stage.log({"event": "settled", "temperature": temperature, "divided": divided, **found.facts()["fit"]})
        self.setting.progress.note(
            f"the result's logits are divided by {temperature:.3f}, as labelled source images in mixes ask"
            if divided
            else f"the last layer of {network.name} cannot be divided by {temperature:.3f}: the result is as it was "
            "trained; calseg calibrate --method dacal writes a calibrator for it"
        )

    def _fit(self, network: Network) -> FrozenFit:
        setting = self.setting
        return FrozenFit(
            _with_one_temperature(setting.resolved),
            replace(setting.loaded, network=network),
            setting.images,
            setting.device,
            setting.progress,
        )


def _with_one_temperature(resolved: Resolved) -> Resolved:
    """A last layer holds one number for all pixels, and no map of them."""
    changes: dict[str, Any] = {"dacal": resolved.config.adapt.dacal.model_copy(update={"width": 0})}
    adapt = resolved.config.adapt.model_copy(update=changes)
    return replace(resolved, config=resolved.config.model_copy(update={"adapt": adapt}))
