"""Owns the pictures of a self-training run: the same few target images again and again while the network learns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.config.self_training import SelfTraining as Options
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.loader import Batch, TrainStream
from calseg_cli.data.mixing import mixed
from calseg_cli.methods.self_training import Look, SelfTraining
from calseg_cli.report.drawing import save_png
from calseg_cli.report.pictures import colorize
from calseg_cli.report.training_figure import Panel, taught_classes, training_figure
from calseg_cli.stages.networks import LoadedNetwork
from calseg_cli.stages.pictures import Palette, safe_name

FOLDER = "pictures"


@dataclass
class TrainingPictures:
    """Draws the first target images that the stream shows, as many as are asked for, into `folder`/ID-step-N.png.

    Each time they stand in the batch, and are mixed with the source images, in which the stream shows them first.
    """

    folder: Path
    method: SelfTraining
    stream: TrainStream
    loaded: LoadedNetwork
    options: Options
    device: torch.device

    def __call__(self, done: int) -> None:
        """Draw, where it is time to after so many steps."""
        warm_up = max([self.options.hard_steps, *(plugin.warm_up_steps for plugin in self.method.openings)])
        if done not in moments(self.options, warm_up):
            return
        for batch, chosen in first_images(self.stream, self.options.visualize):
            self._draw(batch, chosen, done, warming=done <= warm_up)

    def _draw(self, batch: Batch, chosen: Sequence[int], done: int, *, warming: bool) -> None:
        look = self.method.look(batch.to(self.device))
        temperatures = self._temperatures(look)
        pictures = [item for plugin in self.method.openings for item in plugin.pictures(look.view).items()]
        for place in chosen:
            upper, lower = _taught(look, place, self.loaded.palette), _mix(look, place, self.loaded.palette)
            if temperatures is not None:
                upper.append(_temperature(temperatures[place], warming=warming))
            lower += [Panel(name, _picture(images[place])) for name, images in pictures]
            name = batch.target_ids[place]
            title = f"{name}, step {done}"
            figure = training_figure(title, [upper, lower], self.loaded.class_names, self.loaded.palette)
            save_png(figure, self.folder / f"{safe_name(name)}-step-{done:06d}.png")

    def _temperatures(self, look: Look) -> Tensor | None:
        found = [plugin.temperatures(look.believed, look.view.dense) for plugin in self.method.openings]
        return next((one for one in found if one is not None), None)


def moments(options: Options, warm_up: int) -> set[int]:
    """After how many steps pictures are drawn: every so many, else at the end of warm-up, half way; and at the end."""
    every = options.visualize_every
    found = {warm_up, options.steps // 2} if every is None else set(range(every, options.steps, every))
    return {done for done in found if 0 < done < options.steps} | {options.steps}


def first_images(stream: TrainStream, count: int) -> Iterator[tuple[Batch, list[int]]]:
    """The first batches of the stream with the places of target images not shown before, `count` images in all."""
    assert stream.target is not None
    shown: set[str] = set()
    step = 0
    while len(shown) < min(count, len(stream.target)):
        batch, chosen = stream.batch(step), []
        for place, name in enumerate(batch.target_ids):
            if name not in shown and len(shown) < count:
                shown.add(name)
                chosen.append(place)
        if chosen:
            yield batch, chosen
        step += 1


def _taught(look: Look, place: int, palette: Palette) -> list[Panel]:
    """The target image and what the teacher says of it."""
    view = look.view
    confidence = view.dense(view.teacher_logits).softmax(dim=1).amax(dim=1)[place]
    weight = view.target_weights[place]
    classes = taught_classes(_array(view.teacher_labels[place]), _array(weight), palette, IGNORE)
    return [
        Panel("target image", _picture(view.target_images[place])),
        Panel(f"teacher's labels, mean weight {float(weight.mean()):.2f}", classes, "classes"),
        Panel(f"teacher's confidence, mean {float(confidence.mean()):.2f}", _array(confidence), "confidence"),
    ]


def _mix(look: Look, place: int, palette: Palette) -> list[Panel]:
    """The mix that the student sees, what it is taught there, and what it says."""
    view = look.view
    labels = mixed(view.source_labels[:, None], view.teacher_labels[:, None], view.masks)[place, 0]
    said = _array(view.dense(look.student)[place].argmax(dim=0))
    taught = taught_classes(_array(labels), _array(view.weights[place]), palette, IGNORE)
    return [
        Panel("the student's mix", _picture(view.mixed_images[place])),
        Panel("classes taught there", taught, "classes"),
        Panel("the student's prediction", colorize(said, palette, IGNORE), "classes"),
    ]


def _temperature(temperatures: Tensor, *, warming: bool) -> Panel:
    low, high = float(temperatures.min()), float(temperatures.max())
    told = "temperature, not used yet" if warming else f"temperature, {low:.2f} to {high:.2f}"
    return Panel(told, _array(temperatures[0]), "temperature")


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.detach().cpu().numpy()
    return array


def _picture(image: Tensor) -> NDArray[np.uint8]:
    """Pixels (H,W,3) of an image (3,H,W) in [0,1]."""
    return _array(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0))
