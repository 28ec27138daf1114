"""Pictures of pseudo-labels: what they show, where an overlay is missing, and that none is left out or left over."""

import numpy as np
import pytest
from PIL import Image

from calseg_cli.errors import StoppedError
from calseg_cli.report.pseudo_pictures import STRIPE


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pictures_show_labels_and_what_is_ignored(bench, folder):
    done = bench.run(png=True)
    assert done.pictures == done.artifact.with_name("x-target-train-pseudo-pictures")
    for name, label in bench.labels_in(done.artifact).items():
        np.testing.assert_array_equal(read(done.pictures / "label" / f"{name}.png"), label)
        striped = read(done.pictures / "ignored" / f"{name}.png")
        ignored = label == 255
        assert {tuple(color) for color in striped[ignored].tolist()} <= set(STRIPE)
        np.testing.assert_array_equal(striped[~ignored], np.array(bench.palette, np.uint8)[label[~ignored]])
        image = read(folder / "target/train/images" / f"{name}.png")
        overlay = read(done.pictures / "overlay" / f"{name}.png")
        assert overlay.shape == image.shape
        assert (overlay[ignored].min(axis=-1) == overlay[ignored].max(axis=-1)).all()
    assert not list(done.artifact.parent.glob("*pictures.partial"))


def test_images_that_are_not_those_of_the_logits_get_no_overlay(bench, folder):
    other = folder / "target/train/images" / f"{bench.ids[1]}.png"
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(other)
    notes = bench.notes()
    done = bench.run(png=True, progress=notes)
    assert {path.stem for path in (done.pictures / "overlay").rglob("*.png")} == {"0", "2", "3", "4"}
    assert len(list((done.pictures / "label").rglob("*.png"))) == len(bench.ids)
    assert any("1 image" in text and "overlay" in text for text in notes.told)


@pytest.mark.parametrize(
    "protocol",
    [{"folder": "photos"}, {"domain": "source", "split": "train"}, {"domain": "target", "split": "val"}],
    ids=["folder", "not configured", "no such split"],
)
def test_without_configured_images_there_are_labels_alone(bench, folder, protocol):
    path = bench.write_logits(folder / "elsewhere.h5", protocol=protocol)
    notes = bench.notes()
    done = bench.run(png=True, logits=path, progress=notes)
    assert sorted(entry.name for entry in done.pictures.iterdir()) == ["ignored", "label", "made-from.txt"]
    assert any(text.startswith("no overlays:") for text in notes.told)


@pytest.mark.parametrize("after", [8, 11, 13])
def test_a_resumed_run_ends_with_all_pictures(bench, folder, after):
    """5 images: measured up to 5, written up to 10, drawn up to 15."""
    whole = bench.run(png=True, out=folder / "whole.h5")
    with pytest.raises(StoppedError) as caught:
        bench.run(png=True, out=folder / "broken.h5", progress=bench.breaker(after))
    assert "--resume" in caught.value.hint
    assert not (folder / "broken-pictures").exists()
    done = bench.run(png=True, out=folder / "broken.h5", resume=True)
    for path in whole.pictures.rglob("*.*"):
        assert path.read_bytes() == (done.pictures / path.relative_to(whole.pictures)).read_bytes()
    assert len(list(done.pictures.rglob("*.png"))) == 3 * len(bench.ids)


def test_pictures_asked_for_later_are_drawn_from_the_labels(bench):
    first = bench.run()
    done = bench.run(png=True, resume=True)
    assert done.digest == first.digest
    assert len(list((done.pictures / "label").rglob("*.png"))) == len(bench.ids)


def test_pictures_of_other_labels_are_drawn_anew(bench):
    first = bench.run(png=True, portion=0.9)
    before = read(first.pictures / "label" / f"{bench.ids[0]}.png")
    with pytest.raises(StoppedError):
        bench.run(png=True, portion=0.1, force=True, progress=bench.breaker(12))
    done = bench.run(png=True, portion=0.1, resume=True)
    after = read(done.pictures / "label" / f"{bench.ids[0]}.png")
    np.testing.assert_array_equal(after, bench.labels_in(done.artifact)[bench.ids[0]])
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("resume", [False, True])
def test_pictures_of_a_run_that_was_given_up_are_not_kept(bench, folder, resume):
    """Some of them lie in the unfinished folder when other labels are made and drawn."""
    with pytest.raises(StoppedError):
        bench.run(png=True, portion=0.9, progress=bench.breaker(13))
    bench.run(portion=0.1, force=True)
    done = bench.run(png=True, portion=0.1, resume=resume, force=not resume)
    for name, label in bench.labels_in(done.artifact).items():
        np.testing.assert_array_equal(read(done.pictures / "label" / f"{name}.png"), label)


def test_nothing_but_images_of_the_target_is_opened(bench, monkeypatch):
    from calseg_cli.data import dataset, labels

    def opened(*arguments):
        raise AssertionError("a label was opened")

    monkeypatch.setattr(labels, "read_label", opened)
    monkeypatch.setattr(dataset, "read_label", opened)
    bench.run(png=True)
