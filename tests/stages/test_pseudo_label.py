"""From logits to pseudo-labels: brute force in float64, stopping at any image, what is refused, what is drawn."""

import os
import signal
from math import ceil

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, StoppedError
from calseg_cli.report.pseudo_pictures import STRIPE
from calseg_cli.stages.pseudo_label import pseudo_label
from calseg_cli.stages.sharding import Shard, ShardedWork

NAMES = ("road", "car", "sky", "ghost")  # nothing is ever predicted as the last
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180), (1, 1, 1))
SIZES = ((12, 16), (9, 7), (20, 13), (12, 16), (1, 1))
IDS = tuple(f"city/{number}" for number in range(len(SIZES)))
RULES = {
    "none": {"threshold": "none"},
    "global": {"threshold": "global", "confidence": 0.6},
    "class-balanced": {"threshold": "class-balanced", "portion": 0.4},
    "ceiling": {"threshold": "class-balanced", "portion": 0.2, "ceiling": 0.55},
}


def logits_of(number: int, classes: int = len(NAMES)) -> np.ndarray:
    height, width = (-(-side // 4) for side in SIZES[number])
    generator = np.random.default_rng(number)
    logits = generator.normal(0, 1.5, (classes, height, width)).astype(np.float16)
    logits[3:] = -60
    return logits


def write_logits(path, order=IDS, *, protocol=None, classes=NAMES, images=None, shift=0.0):
    meta = {
        "classes": {"names": list(classes), "palette": [list(c) for c in PALETTE[: len(classes)]], "ignore": 255},
        "protocol": protocol or {"domain": "target", "split": "train", "network": "pretrain"},
        "recipe": {"stage": "predict"},
        "provenance": {},
        "config": {},
    }
    with ArtifactWriter(path, "logits", meta=meta, ids=order, force=True) as writer:
        for name in order:
            number = IDS.index(name)
            geometry = Geometry(in_hw=SIZES[number], out_hw=SIZES[number], stride=4)
            digest = file_digest(images / f"{name}.png") if images else ""
            values = logits_of(number, len(classes)) + np.float16(shift)
            writer.add_item(name, {"logits": values}, geometry, image_digest=digest)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with target images, and the logits of the run."""
    for name, (height, width) in zip(IDS, SIZES, strict=True):
        path = tmp_path / "target" / "train" / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "calseg.yaml").write_text("target: {root: target}\n")
    monkeypatch.chdir(tmp_path)
    write_logits(tmp_path / "runs/run/5-predict/x-target-train.h5", images=tmp_path / "target/train/images")
    return tmp_path


def run(rule=None, *, logits=None, out=None, resume=False, force=False, progress=None, **options):
    """The stage with these options of the section, said as named options are."""
    flags = {f"pseudo_label.{key}": value for key, value in {**(rule or {}), **options}.items()}
    resolved = load_config(None, flags=flags, environ={})
    return pseudo_label(resolved, logits=logits, out=out, resume=resume, force=force, progress=progress or Silent())


def brute_force(options):
    """Labels by id, thresholds, pixels predicted and kept: from sorted lists in float64."""
    probs = {}
    for number, name in enumerate(IDS):
        geometry = Geometry(in_hw=SIZES[number], out_hw=SIZES[number], stride=4)
        full = upsample_logits(torch.from_numpy(logits_of(number)), geometry).double()
        probs[name] = full.softmax(dim=0).max(dim=0)
    pools = [
        sorted((q for p, classes in probs.values() for q in p[classes == index].tolist()), reverse=True)
        for index in range(len(NAMES))
    ]
    if options["threshold"] == "class-balanced":
        wanted = [ceil(options["portion"] * len(pool) - 1e-9) for pool in pools]
        thresholds = [pool[count - 1] if pool else np.nan for pool, count in zip(pools, wanted, strict=True)]
        # The grid below 0.996, where all thresholds of this data are; float32 may lie a little below float64.
        thresholds = np.floor(np.minimum(thresholds, options.get("ceiling", 1)) * 2**16) / 2**16
    else:
        thresholds = np.full(len(NAMES), options.get("confidence", 0.0))
    labels = {
        name: np.where(p >= thresholds[classes] - 1e-6, classes, 255).astype(np.uint8)
        for name, (p, classes) in ((name, (p.numpy(), c.numpy())) for name, (p, c) in probs.items())
    }
    return labels, thresholds, [len(pool) for pool in pools]


def labels_in(path):
    with open_artifact(path, "pseudo_labels") as artifact:
        return {name: artifact.item(name, "label") for name in artifact.ids}


# What is written


@pytest.mark.parametrize("rule", RULES)
def test_labels_and_thresholds_are_those_of_brute_force(folder, rule):
    done = run(RULES[rule])
    labels, thresholds, predicted = brute_force(RULES[rule])
    written = labels_in(done.artifact)
    assert list(written) == list(IDS)
    for name in IDS:
        assert written[name].dtype == np.uint8
        np.testing.assert_array_equal(written[name], labels[name])
    np.testing.assert_array_equal(done.thresholds, thresholds)
    assert np.nanmax(thresholds) < 0.996
    assert done.predicted.tolist() == predicted


@pytest.mark.parametrize("rule", RULES)
def test_counts_are_those_of_the_labels(folder, rule):
    done = run(RULES[rule])
    pixels = np.concatenate([label.ravel() for label in labels_in(done.artifact).values()])
    assert done.kept.tolist() == [int((pixels == index).sum()) for index in range(len(NAMES))]
    assert done.predicted.sum() == len(pixels)
    with open_artifact(done.artifact) as artifact:
        arrays = artifact.arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "thresholds": "float64", "predicted": "int64", "kept": "int64"
    }  # fmt: skip
    assert arrays["kept"].tolist() == done.kept.tolist()


def test_each_class_keeps_its_portion(folder):
    done = run(threshold="class-balanced", portion=0.4)
    for predicted, kept in zip(done.predicted[:3].tolist(), done.kept[:3].tolist(), strict=True):
        assert 0 <= kept - ceil(0.4 * predicted) <= 2  # at an image's border, enlarged pixels are equal


def test_no_threshold_keeps_all(folder):
    done = run(threshold="none")
    assert not any((label == 255).any() for label in labels_in(done.artifact).values())
    assert done.kept.tolist() == done.predicted.tolist()
    assert done.thresholds.tolist() == [0.0] * 4


def test_confidence_1_keeps_only_certainty(folder):
    assert run(threshold="global", confidence=1.0).kept.sum() == 0


def test_one_class_is_always_certain(folder):
    path = write_logits(folder / "one.h5", classes=NAMES[:1])
    done = run(threshold="global", confidence=1.0, logits=path)
    assert done.kept.tolist() == done.predicted.tolist()


def test_a_class_never_predicted_has_no_threshold(folder):
    done = run(threshold="class-balanced")
    assert np.isnan(done.thresholds[3])
    assert done.document()["classes"][3]["predicted"] == 0
    row = done.table()[2][3]
    assert row == ["ghost", "0", "0.0 %", "n/a", "0", "n/a"]
    assert done.table()[2][-1][0] == "all"


def test_images_in_another_order_get_the_same_labels(folder):
    first = run(threshold="class-balanced", out=folder / "a.h5")
    path = write_logits(folder / "reversed.h5", IDS[::-1])
    second = run(threshold="class-balanced", logits=path, out=folder / "b.h5")
    np.testing.assert_array_equal(first.thresholds, second.thresholds)
    one, other = labels_in(first.artifact), labels_in(second.artifact)
    assert all(np.array_equal(one[name], other[name]) for name in IDS)


@pytest.mark.parametrize(("kept", "kind", "slack"), [("u8", "uint8", 0.5 / 255), ("f16", "float16", 2.0**-12)])
def test_confidence_is_stored_on_request(folder, kept, kind, slack):
    plain, with_confidence = run(out=folder / "a.h5"), run(out=folder / "b.h5", keep_confidence=kept)
    with open_artifact(plain.artifact) as one, open_artifact(with_confidence.artifact) as other:
        assert not one.has(IDS[0], "confidence")
        for number, name in enumerate(IDS):
            stored = other.item(name, "confidence")
            assert stored.dtype == kind
            full = upsample_logits(torch.from_numpy(logits_of(number)), other.geometry(name)).softmax(dim=0).amax(dim=0)
            scale = 255 if kept == "u8" else 1
            np.testing.assert_allclose(stored.astype(np.float64) / scale, full.numpy(), atol=slack + 1e-6)
            np.testing.assert_array_equal(one.item(name, "label"), other.item(name, "label"))


def test_the_artifact_says_where_it_is_from(folder):
    done = run(threshold="class-balanced", portion=0.25, ceiling=0.9)
    assert done.artifact == (folder / "runs/run/5-predict/x-target-train-pseudo.h5").relative_to(folder)
    with open_artifact(folder / "runs/run/5-predict/x-target-train.h5") as parent, open_artifact(done.artifact) as own:
        assert own.meta["classes"] == parent.meta["classes"]
        assert own.class_names == list(NAMES)
        assert own.meta["recipe"]["parents"] == {"logits": parent.digest}
        assert own.meta["recipe"]["options"] == {
            "threshold": "class-balanced", "portion": 0.25, "ceiling": 0.9, "keep_confidence": "none"
        }  # fmt: skip
        assert parent.meta["protocol"].items() <= own.meta["protocol"].items()
        assert own.meta["protocol"]["pseudo_labels"].items() >= own.meta["recipe"]["options"].items()
        for name in IDS:
            assert own.image_digest(name) == parent.image_digest(name)
            assert own.geometry(name).in_hw == own.geometry(name).out_hw == parent.geometry(name).out_hw
            assert own.item(name, "label").shape == own.geometry(name).out_hw


def test_options_that_are_not_used_do_not_make_a_result_stale(folder):
    first = run(threshold="global")
    (folder / "calseg.yaml").write_text("target: {root: target}\npseudo_label: {portion: 0.9}\n")
    again = run(threshold="global", resume=True)
    assert again.digest == first.digest


# Which logits


def test_the_newest_logits_of_the_train_split_are_taken(folder):
    predict = folder / "runs/run/5-predict"
    names = ("old-target-train", "new-target-train", "target-test", "source-train")
    for place, name in enumerate(names):
        domain, split = name.split("-")[-2:]
        write_logits(predict / f"{name}.h5", protocol={"domain": domain, "split": split}, shift=place)
        os.utime(predict / f"{name}.h5", ns=(10**18 + place, 10**18 + place))
    os.utime(predict / "x-target-train.h5", ns=(10**18, 10**18))
    (predict / "broken-target-train.h5").write_bytes(b"no HDF5")
    assert run().artifact.name == "new-target-train-pseudo.h5"
    assert run(force=True).artifact.name == "new-target-train-pseudo.h5"  # its own labels are no logits


def test_logits_in_shards_are_taken_whole(folder):
    """The manifest stands for its shards; none of them is mistaken for the newest logits."""
    predict = folder / "runs/run/5-predict"
    single = run(out=folder / "single.h5")
    with open_artifact(predict / "x-target-train.h5") as artifact:
        meta, items = artifact.meta, {name: artifact.item(name, "logits") for name in IDS}
        where = {name: (artifact.geometry(name), artifact.image_digest(name)) for name in IDS}
    (predict / "x-target-train.h5").unlink()
    for rank in range(2):
        work = ShardedWork(predict / "y.h5", "logits", Shard(rank, 2), meta=meta, ids=IDS)
        with work.writer(resume=False, force=False) as writer:
            for name in writer.todo:
                geometry, digest = where[name]
                writer.add_item(name, {"logits": items[name]}, geometry, image_digest=digest)
        work.finish()
    os.utime(predict / "y.manifest.json", ns=(0, 0))
    done = run()
    assert done.artifact.name == "y-pseudo.h5"
    one, other = labels_in(single.artifact), labels_in(done.artifact)
    assert all(np.array_equal(one[name], other[name]) for name in IDS)


def test_without_logits_of_train_others_are_taken_and_said(folder):
    predict = folder / "runs/run/5-predict"
    (predict / "x-target-train.h5").unlink()
    write_logits(predict / "x-target-test.h5", protocol={"domain": "target", "split": "test"})
    notes = Notes()
    assert run(progress=notes).artifact.name == "x-target-test-pseudo.h5"
    assert "calseg predict --split train" in "\n".join(notes.told)


def test_without_logits_the_command_that_makes_them_is_named(folder):
    (folder / "runs/run/5-predict/x-target-train.h5").unlink()
    with pytest.raises(ArtifactError) as caught:
        run()
    assert "calseg predict --split train" in caught.value.hint


# What is refused


@pytest.mark.parametrize(
    ("rule", "option", "belongs"),
    [
        ("none", {"confidence": 0.5}, "global"),
        ("class-balanced", {"confidence": 0.5}, "global"),
        ("global", {"portion": 0.5}, "class-balanced"),
        ("global", {"ceiling": 0.5}, "class-balanced"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(folder, rule, option, belongs):
    with pytest.raises(ConfigError, match="no effect") as caught:
        run(threshold=rule, **option)
    assert f"--threshold {belongs}" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [("portion", 0.0), ("portion", 1.5), ("confidence", -0.1), ("ceiling", 2.0), ("threshold", "best"), ("png", 2)],
)
def test_values_out_of_range_are_refused(folder, wrong):
    with pytest.raises(ConfigError, match=f"--{wrong[0]}"):
        run(dict([wrong]))


def test_a_result_is_not_overwritten_without_force(folder):
    first = run()
    with pytest.raises(ArtifactError, match="exists already"):
        run()
    assert run(force=True).digest == first.digest


def test_the_logits_cannot_be_overwritten(folder):
    path = folder / "runs/run/5-predict/x-target-train.h5"
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="the logits themselves"):
        run(out=path, force=True)
    assert path.read_bytes() == before


def test_more_classes_than_a_byte_can_tell_are_refused(folder):
    meta = {
        "classes": {"names": [str(n) for n in range(256)], "palette": [[0, 0, 0]] * 256, "ignore": 255},
        "protocol": {},
    }
    with ArtifactWriter(folder / "many.h5", "logits", meta=meta, ids=["a"]) as writer:
        writer.add_item("a", {"logits": np.zeros((256, 1, 1), np.float16)}, Geometry((4, 4), (4, 4), stride=4))
    with pytest.raises(ArtifactError, match="256 classes"):
        run(logits=folder / "many.h5")


def test_logits_of_other_classes_than_configured_are_refused(folder):
    text = "target: {root: target}\nsource: {root: source, classes: [road, car, sky, cloud]}\n"
    (folder / "calseg.yaml").write_text(text)
    with pytest.raises(ArtifactError, match="'ghost' there and 'cloud' here"):
        run()


def test_another_kind_is_refused(folder):
    done = run()
    with pytest.raises(ArtifactError, match="pseudo_labels"):
        run(logits=done.artifact, out=folder / "x.h5")


# Stopping and going on


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.told, self.titles = [], []

    def note(self, text):
        self.told.append(text)

    def start(self, title, total, *, done=0):
        self.titles.append((title, done))


class Breaker(Notes):
    """Sends a signal after so many images."""

    def __init__(self, after, signum=signal.SIGINT):
        super().__init__()
        self.left, self.signum = after, signum

    def advance(self, units=1, **facts):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.signum)


# 5 images: rules that measure first go over them twice. A signal with the very last image comes too late to matter.
BREAKS = [(rule, after) for rule in RULES for after in range(1, 10 if "portion" in RULES[rule] else 5)]


@pytest.mark.parametrize(("rule", "after"), BREAKS)
def test_stopped_anywhere_and_resumed_is_the_unbroken_result(folder, rule, after):
    whole = run(RULES[rule], out=folder / "whole.h5")
    target = folder / "broken.h5"
    with pytest.raises(StoppedError) as caught:
        run(RULES[rule], out=target, progress=Breaker(after))
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert not target.exists()
    done = run(RULES[rule], out=target, resume=True)
    assert done.digest == whole.digest
    assert done.kept.tolist() == whole.kept.tolist()
    assert done.predicted.tolist() == whole.predicted.tolist()
    np.testing.assert_array_equal(done.thresholds, whole.thresholds)
    assert not list(folder.glob("*.partial"))


def test_sigterm_ends_with_its_own_code(folder):
    with pytest.raises(StoppedError) as caught:
        run(progress=Breaker(7, signal.SIGTERM))
    assert caught.value.exit_code == 143


def test_what_is_written_is_not_written_again(folder):
    with pytest.raises(StoppedError):
        run(threshold="class-balanced", progress=Breaker(8))
    notes = Notes()
    run(threshold="class-balanced", resume=True, progress=notes)
    assert notes.titles == [("measuring confidence", 0), ("writing labels", 3)]


def test_resuming_a_finished_result_does_nothing(folder):
    first = run()
    before = first.artifact.stat().st_mtime_ns
    notes = Notes()
    again = run(resume=True, progress=notes)
    assert "finished already" in "\n".join(notes.told)
    assert again.artifact.stat().st_mtime_ns == before
    assert again.digest == first.digest
    assert again.table() == first.table()


def test_resuming_with_another_option_says_which(folder):
    with pytest.raises(StoppedError):
        run(portion=0.4, progress=Breaker(8))
    with pytest.raises(ArtifactError, match=r"portion was 0\.4, is 0\.5"):
        run(portion=0.5, resume=True)


def test_other_logits_make_the_labels_stale(folder):
    run()
    write_logits(folder / "runs/run/5-predict/x-target-train.h5", shift=1.0)
    with pytest.raises(ArtifactError, match="logits was sha256"):
        run(resume=True)


# Pictures


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pictures_show_labels_and_what_is_ignored(folder):
    done = run(png=True)
    assert done.pictures == done.artifact.with_name("x-target-train-pseudo-pictures")
    for name, label in labels_in(done.artifact).items():
        np.testing.assert_array_equal(read(done.pictures / "label" / f"{name}.png"), label)
        striped = read(done.pictures / "ignored" / f"{name}.png")
        ignored = label == 255
        assert {tuple(color) for color in striped[ignored].tolist()} <= set(STRIPE)
        np.testing.assert_array_equal(striped[~ignored], np.array(PALETTE, np.uint8)[label[~ignored]])
        image = read(folder / "target/train/images" / f"{name}.png")
        overlay = read(done.pictures / "overlay" / f"{name}.png")
        assert overlay.shape == image.shape
        assert (overlay[ignored].min(axis=-1) == overlay[ignored].max(axis=-1)).all()
    assert not list(done.artifact.parent.glob("*pictures.partial"))


def test_images_that_are_not_those_of_the_logits_get_no_overlay(folder):
    other = folder / "target/train/images" / f"{IDS[1]}.png"
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(other)
    notes = Notes()
    done = run(png=True, progress=notes)
    assert {path.stem for path in (done.pictures / "overlay").rglob("*.png")} == {"0", "2", "3", "4"}
    assert len(list((done.pictures / "label").rglob("*.png"))) == len(IDS)
    assert any("1 image" in text and "overlay" in text for text in notes.told)


@pytest.mark.parametrize(
    "protocol",
    [{"folder": "photos"}, {"domain": "source", "split": "train"}, {"domain": "target", "split": "val"}],
    ids=["folder", "not configured", "no such split"],
)
def test_without_configured_images_there_are_labels_alone(folder, protocol):
    path = write_logits(folder / "elsewhere.h5", protocol=protocol)
    notes = Notes()
    done = run(png=True, logits=path, progress=notes)
    assert sorted(entry.name for entry in done.pictures.iterdir()) == ["ignored", "label", "made-from.txt"]
    assert any(text.startswith("no overlays:") for text in notes.told)


@pytest.mark.parametrize("after", [8, 11, 13])
def test_a_resumed_run_ends_with_all_pictures(folder, after):
    """5 images: measured up to 5, written up to 10, drawn up to 15."""
    whole = run(png=True, out=folder / "whole.h5")
    with pytest.raises(StoppedError) as caught:
        run(png=True, out=folder / "broken.h5", progress=Breaker(after))
    assert "--resume" in caught.value.hint
    assert not (folder / "broken-pictures").exists()
    done = run(png=True, out=folder / "broken.h5", resume=True)
    for path in whole.pictures.rglob("*.*"):
        assert path.read_bytes() == (done.pictures / path.relative_to(whole.pictures)).read_bytes()
    assert len(list(done.pictures.rglob("*.png"))) == 3 * len(IDS)


def test_pictures_asked_for_later_are_drawn_from_the_labels(folder):
    first = run()
    done = run(png=True, resume=True)
    assert done.digest == first.digest
    assert len(list((done.pictures / "label").rglob("*.png"))) == len(IDS)


def test_pictures_of_other_labels_are_drawn_anew(folder):
    first = run(png=True, portion=0.9)
    before = read(first.pictures / "label" / f"{IDS[0]}.png")
    with pytest.raises(StoppedError):
        run(png=True, portion=0.1, force=True, progress=Breaker(12))
    done = run(png=True, portion=0.1, resume=True)
    after = read(done.pictures / "label" / f"{IDS[0]}.png")
    np.testing.assert_array_equal(after, labels_in(done.artifact)[IDS[0]])
    assert not np.array_equal(before, after)


def test_nothing_but_images_of_the_target_is_opened(folder, monkeypatch):
    from calseg_cli.data import dataset, labels

    def opened(*arguments):
        raise AssertionError("a label was opened")

    monkeypatch.setattr(labels, "read_label", opened)
    monkeypatch.setattr(dataset, "read_label", opened)
    run(png=True)
