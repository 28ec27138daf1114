"""How self-training is fed and built: held-out images, options, corrections, the frozen encoder."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import DataError
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.networks.build import NETWORKS
from calseg_cli.stages import self_training
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.run_folder import RESUME
from calseg_cli.stages.self_training import (
    _class_weights,
    _label_correction,
    _reference,
    _warm_up,
    frame_of,
    open_source,
    rare_pixels,
)
from tests.ranks import together

CLASSES = ("road", "car", "sky")


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    """A function that loads a configuration of 17 source training images, 2 to validate and one of the target."""
    for folder, count in (("source/train", 17), ("source/val", 2), ("target/train", 1)):
        for number in range(count):
            for kind, shape in (("images", (6, 8, 3)), ("labels", (6, 8))):
                path = tmp_path / folder / kind / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full(shape, number % 3, np.uint8)).save(path)
    (tmp_path / "calseg.yaml").write_text(
        f"source: {{root: source, classes: [{', '.join(CLASSES)}]}}\ntarget: {{root: target}}\n"
    )
    monkeypatch.chdir(tmp_path)

    def load(**options):
        flags = {f"adapt.self_training.{key}": value for key, value in options.items()}
        return load_config(None, flags={"adapt.method": "self-training", **flags}, environ={})

    return load


def opened(resolved, *, needs_held_out):
    target = open_domain(resolved, "target", CLASSES).dataset("train", with_labels=False)
    return open_source(resolved, CLASSES, target, needs_held_out=needs_held_out)


def test_what_is_held_out_is_not_trained_on(resolved):
    whole = opened(resolved(held_out="fold"), needs_held_out=False)
    assert (len(whole.training), whole.held_out) == (17, None)
    fold = opened(resolved(held_out="fold"), needs_held_out=True)
    kept, away = ([item.id for item in part.items] for part in (fold.training, fold.held_out))
    assert away == ["07", "15"]
    assert sorted(kept + away) == [item.id for item in whole.training.items]
    val = opened(resolved(), needs_held_out=True)
    assert (len(val.training), len(val.held_out)) == (17, 2)
    assert all("val" in Path(item.label).parts for item in val.held_out.items)
    assert len({whole.digest, fold.digest, val.digest}) == 3


def test_without_a_validation_split_it_names_the_other_way(resolved):
    shutil.rmtree("source/val")
    with pytest.raises(DataError, match="not trained on") as raised:
        opened(resolved(), needs_held_out=True)
    assert "held_out: fold" in raised.value.hint


def test_too_few_images_cannot_be_folded(resolved):
    for path in sorted(Path("source/train/images").glob("*"))[7:]:
        path.unlink()
    with pytest.raises(DataError, match="7 source images are too few"):
        opened(resolved(held_out="fold"), needs_held_out=True)


def test_the_domains_sizes_are_looked_at_before_anything_is_done(resolved):
    config = resolved()
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save("target/train/images/00.png")
    with pytest.raises(DataError, match="6x8 and 6x9"):
        opened(config, needs_held_out=False)
    opened(resolved(**{"augment.crop": (4, 4)}), needs_held_out=False)


def test_a_rare_classs_pixels_are_a_share_of_the_input(resolved):
    dataset = opened(resolved(), needs_held_out=False).training
    assert rare_pixels(dataset) == 1
    dataset.size = (512, 512)
    assert rare_pixels(dataset) == 3000
    dataset.size = (240, 320)
    assert rare_pixels(dataset) == 879


def test_classes_weigh_as_in_pretraining_unless_asked_otherwise(resolved):
    """17 training images, of which the classes have 6, 6 and 5; every image shows one."""
    inverse = torch.tensor([1 / 6, 1 / 6, 1 / 5])

    def weights(pretrain, own=None):
        flags = {"pretrain.class_weights": pretrain, "adapt.self_training.class_weights": own}
        config = load_config(None, flags={"adapt.method": "self-training", **flags}, environ={})
        return _class_weights(config, opened(config, needs_held_out=False).training)

    assert weights("none") is None
    assert weights("inverse", "none") is None
    torch.testing.assert_close(weights("inverse"), 3 * inverse / inverse.sum())
    torch.testing.assert_close(weights("none", "inverse"), 3 * inverse / inverse.sum())
    assert weights("inverse", (1.0, 2.0, 0.0)).tolist() == [1, 2, 0]


def test_the_sections_defaults_are_the_methods(resolved):
    assert frame_of(resolved().config.adapt.self_training, CLASSES) == Frame()


def test_every_option_reaches_the_method(resolved):
    frame = frame_of(
        resolved(
            base="mic",
            labels="soft",
            quality="image",
            threshold=0.5,
            threshold_labels=True,
            ignore_top=1,
            ignore_bottom=2,
            statistics="shared",
            keep="teacher",
            hard_steps=3,
            mask_block=5,
            mask_ratio=0.25,
            mask_weight=2.0,
            masked_labels="same",
            feature_classes=["sky", "road"],
            **{"strong.blur": 0.0},
        ).config.adapt.self_training,
        CLASSES,
    )
    assert (frame.base, frame.labels, frame.statistics, frame.keep, frame.hard_steps) == (
        *("mic", "soft", "shared", "teacher", 3),
    )
    trust, masking = frame.trust, frame.masking
    assert (trust.quality, trust.threshold, trust.threshold_labels) == ("image", 0.5, True)
    assert (trust.ignore_top, trust.ignore_bottom) == (1, 2)
    assert (masking.block, masking.ratio, masking.weight, masking.labels) == (5, 0.25, 2.0, "same")
    assert (frame.feature_classes, frame.strong.blur) == ((2, 0), 0.0)


def test_a_correction_that_looks_at_the_image_gets_it():
    class Brightened:
        needs_image = True

        def __call__(self, logits, image=None):
            return logits + image.mean()

    correct = _label_correction([SimpleNamespace(correction=Brightened())])
    logits, image = torch.zeros(3, 2, 2), torch.full((3, 8, 8), 0.5)
    assert torch.equal(correct(logits, image), logits + 0.5)
    assert _label_correction([]) is None


def test_the_reference_is_imagenets_where_there_are_weights(resolved, monkeypatch):
    notes = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)

    def loaded(name):
        facts = {"network": {"name": name, "num_classes": 3, "options": {}}}
        return SimpleNamespace(checkpoint=SimpleNamespace(facts=facts))

    options = resolved(base="daformer").config.adapt.self_training
    assert _reference(options, loaded("tiny"), progress) is None
    assert len(notes) == 1
    assert "tiny" in notes[0]
    assert _reference(resolved().config.adapt.self_training, loaded("tiny"), progress) is None
    if NETWORKS["efficientnet-lite0"].load("has_imagenet_weights")():
        first, second = (_reference(options, loaded("efficientnet-lite0"), progress) for _ in range(2))
        states = [encoder.state_dict() for encoder in (first, second)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])  # nothing is random in it
    assert len(notes) == 1


@pytest.mark.parametrize("state_of", ["0", "1"])
def test_whether_it_goes_on_is_the_main_processs_look(tmp_path, monkeypatch, state_of):
    """Measuring the target's statistics is done by all processes or by none."""
    (tmp_path / state_of).mkdir()
    (tmp_path / state_of / RESUME).touch()

    def work(ranks):
        told = []
        monkeypatch.setattr(self_training, "remeasure", lambda setting, title: told.append(title))
        method = SimpleNamespace(restart_teacher=lambda: told.append("teacher"))
        stage = SimpleNamespace(path=tmp_path / str(ranks.rank))
        _warm_up(SimpleNamespace(ranks=ranks), stage, method, resume=True)
        return len(told)

    assert together(work, seconds=40) == [(0, 0 if state_of == "0" else 2)] * 2
