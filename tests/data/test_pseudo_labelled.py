"""Images with labels that a network gave them."""

import pickle

import numpy as np
import pytest
from PIL import Image

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import class_hash
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.data.items import Item
from calseg_cli.data.loader import TrainStream
from calseg_cli.data.pseudo_labelled import PseudoLabelledDataset
from calseg_cli.data.transforms import PLAIN
from calseg_cli.errors import ArtifactError

HASH = class_hash(["road", "sky"])


@pytest.fixture
def layout():
    from calseg_cli.data.catalog import find_layout, make_layout

    return make_layout(find_layout("folders"), class_names=("road", "sky"))


@pytest.fixture
def files(tmp_path):
    """Two images of 8x6 with labels of 4x3, the second of which is ignored in its first row."""
    rng = np.random.default_rng(0)
    meta = {
        "classes": {"names": ["road", "sky"], "palette": [[0, 0, 0], [9, 9, 9]], "ignore": 255, "hash": HASH},
        "protocol": {},
        "provenance": {},
    }
    items, labels = [], {}
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        items.append(Item(name, tmp_path / f"{name}.png", tmp_path / "annotated.png"))
        labels[name] = rng.integers(0, 2, (4, 3)).astype(np.uint8)
    labels["b"][0] = 255
    with ArtifactWriter(tmp_path / "p.h5", "pseudo_labels", meta=meta, ids=["a", "b"]) as writer:
        for name, label in labels.items():
            writer.add_item(name, {"label": label}, Geometry(in_hw=(4, 3), out_hw=(4, 3)))
    return items, labels, tmp_path / "p.h5"


def test_labels_come_from_the_artifact_at_the_input_size(files, layout):
    items, labels, path = files
    with open_artifact(path) as artifact:
        dataset = PseudoLabelledDataset(items, layout, size=(4, 3), labels=artifact)
        for index, name in enumerate(("a", "b")):
            sample = dataset.read(index)
            assert sample.image.shape == (4, 3, 3)
            assert np.array_equal(sample.label, labels[name])
        full = PseudoLabelledDataset(items, layout, size=None, labels=artifact).read(1)
        assert np.array_equal(full.label, labels["b"].repeat(2, axis=0).repeat(2, axis=1))


def test_the_annotated_label_is_forgotten(files, layout):
    items, _, path = files
    with open_artifact(path) as artifact:
        dataset = PseudoLabelledDataset(items, layout, size=None, labels=artifact)
        assert all(item.label is None for item in dataset.items)


def test_a_batch_carries_them_as_target_labels(files, layout):
    items, labels, path = files
    with open_artifact(path) as artifact:
        dataset = PseudoLabelledDataset(items, layout, size=(4, 3), labels=artifact)
        batch = TrainStream(None, dataset, batch_size=2, augmentation=PLAIN, seed=0).batch(0)
        for place, name in enumerate(batch.target_ids):
            assert np.array_equal(batch.target_labels[place].numpy(), labels[name])
        assert batch.source_labels is None
        copied = pickle.loads(pickle.dumps(dataset))  # as a worker gets it
        assert np.array_equal(copied.read(0).label, labels["a"])


def test_annotated_labels_of_a_target_never_reach_a_batch(tmp_path, files, layout):
    from calseg_cli.data.dataset import SegmentationDataset

    items, _, _ = files
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "annotated.png")
    annotated = SegmentationDataset(items, layout, size=None, with_labels=True)
    batch = TrainStream(None, annotated, batch_size=1, augmentation=PLAIN, seed=0).batch(0)
    assert batch.target_labels is None


def test_an_image_without_a_label_is_refused(files, layout):
    items, _, path = files
    extra = Item("c", items[0].image, None)
    with open_artifact(path) as artifact, pytest.raises(ArtifactError, match="'c'"):
        PseudoLabelledDataset([*items, extra], layout, size=None, labels=artifact)
