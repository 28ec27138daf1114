"""What the options of an evaluation ask to be counted, and counting it in the one pass."""

from typing import get_args

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.config import Evaluate
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ConfigError
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.presets import PRESETS
from calseg_cli.metrics.regions import Distance, Region, Regions
from calseg_cli.stages.measuring import extra_counts, measure

NAMES = ["sky", "road", "car"]


def choices(name):
    """The words that a key of the configuration allows."""
    found, kinds = set(), [Evaluate.model_fields[name].annotation]
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, str):
            found.add(kind)
        kinds += get_args(kind)
    return found


def test_the_configuration_names_what_there_is():
    assert choices("preset") == set(PRESETS)
    assert choices("regions") == set(get_args(Region))
    assert choices("boundary_distance") == set(get_args(Distance))


def test_nothing_is_counted_besides_unless_it_is_asked_for():
    assert extra_counts(Evaluate(), NAMES) == Extra()
    assert extra_counts(Evaluate(boundary_band=7, background="nothing"), NAMES) == Extra()


def test_options_become_what_is_counted():
    options = Evaluate(
        preset="lts", classwise=True, regions=("fg-pred", "boundary"), background="road", boundary_band=4,
        boundary_distance="euclid", boundary_void=True,
    )  # fmt: skip
    rule = Regions(("fg-pred", "boundary"), 1, 4, "euclid", True)
    assert extra_counts(options, NAMES) == Extra(True, rule, "lts")


def test_a_background_that_is_no_class_is_named():
    with pytest.raises(ConfigError, match="no class 'train'") as caught:
        extra_counts(Evaluate(regions=("fg-true",), background="train"), NAMES)
    assert caught.value.hint == "its classes: sky, road, car"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": ("fg-true",)}, "must name the class"),
        ({"regions": ("boundary", "boundary")}, "twice"),
        ({"regions": ("edge",)}, "boundary"),
        ({"boundary_band": 0}, "greater"),
        ({"preset": "ours"}, "guo15"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Evaluate(**options)


def predictions(number, size=(12, 16)):
    generator = torch.Generator().manual_seed(0)
    for index in range(number):
        logits = torch.randn(3, *size, generator=generator)
        label = np.random.default_rng(index).integers(0, 3, size).astype(np.uint8)
        yield Prediction(f"{index}", logits, Geometry(in_hw=size, out_hw=size), label)


def test_one_pass_counts_it_all():
    extra = Extra(True, Regions(("boundary",)), "calsfda")
    plain = measure(predictions(3), 3, 3, edges="right", progress=Silent())
    more = measure(predictions(3), 3, 3, edges="right", progress=Silent(), extra=extra)
    assert more.extra.asked == extra
    assert plain.extra.asked == Extra()
    assert more.by_predicted == plain.by_predicted
    assert more.extra.classwise.num_pixels == 3 * more.num_valid
    assert measure([], 0, 3, edges="left", progress=Silent(), extra=extra).extra.asked == extra
