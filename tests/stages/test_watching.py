"""Watching a run: when pictures are drawn, of which images, and what an oracle's curves are measured on."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calseg_cli.config import load_config
from calseg_cli.config.self_training import SelfTraining as Options
from calseg_cli.data.loader import TrainStream
from calseg_cli.data.transforms import Augmentation
from calseg_cli.errors import DataError
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.training_oracle import _groups, open_labelled
from calseg_cli.stages.training_pictures import first_images, moments

CLASSES = ("road", "car", "sky")


@given(st.integers(1, 400), st.integers(0, 500), st.none() | st.integers(1, 500))
def test_moments_lie_within_the_run_and_hold_its_end(steps, warm_up, every):
    found = moments(Options(steps=steps, visualize_every=every), warm_up)
    assert found <= set(range(1, steps + 1))
    assert steps in found
    if every is None:
        assert found <= {warm_up, steps // 2, steps}
        assert (warm_up in found) == (0 < warm_up <= steps)
    else:
        assert all(done % every == 0 for done in found - {steps})
        assert len(found) == -(-steps // every)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images to train on and two of each other split; labels of the target's test split alone."""
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for number in range(count):
            for kind, shape in (("images", (6, 8, 3)), ("labels", (6, 8))):
                if kind == "images" or split == "test":
                    path = tmp_path / "target" / split / kind / f"{number:02}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full(shape, number, np.uint8)).save(path)
    (tmp_path / "calseg.yaml").write_text(f"target: {{root: target, classes: [{', '.join(CLASSES)}]}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolve(method="dacal", **options):
    flags = {f"adapt.self_training.{key}": value for key, value in options.items()}
    return load_config(None, flags={"adapt.method": method, **flags}, environ={})


def labelled(**options):
    resolved = resolve(**options)
    return open_labelled(resolved, open_domain(resolved, "target", CLASSES))


@pytest.mark.parametrize(("count", "wanted"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_pictures_are_of_the_first_images_that_the_stream_shows(folder, count, wanted):
    images = open_domain(resolve(), "target", CLASSES).dataset("train", with_labels=False)
    stream = TrainStream(None, images, batch_size=2, augmentation=Augmentation(), seed=3)
    found = list(first_images(stream, count))
    names = [batch.target_ids[place] for batch, places in found for place in places]
    shown = [name for step in range(9) for name in stream.batch(step).target_ids]
    assert names == list(dict.fromkeys(shown))[:wanted]
    assert [batch.step for batch, _ in found] == list(range(-(-wanted // 2)))


def test_labels_are_opened_when_asked_for_alone(folder):
    assert labelled() is None
    assert labelled(method="tent", oracle=True) is None
    found = labelled(oracle=True)
    assert (len(found.images), found.place) == (2, "target test")
    assert len(labelled(oracle=True, oracle_images=1).images) == 1
    assert "oracle" in found.used_for
    assert "ORACLE" in found.warning
    with pytest.raises(DataError):
        labelled(oracle=True, oracle_split="val")
    (folder / "target/test/labels").rename(folder / "target/val/labels")
    assert labelled(oracle=True).place == "target val"


def test_groups_are_no_larger_than_a_batch_and_of_one_size():
    sizes = [1, 1, 1, 2, 1, 1]
    samples = [(str(place), SimpleNamespace(shape=size), None, None) for place, size in enumerate(sizes)]
    assert [[name for name, *_ in group] for group in _groups(samples, 2)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert list(_groups([], 2)) == []
