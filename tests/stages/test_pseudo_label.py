"""From logits to pseudo-labels: brute force in float64, stopping at any image, which logits, what is refused."""

import os
import signal
from math import ceil

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.errors import ArtifactError, ConfigError, StoppedError
from calseg_cli.stages.sharding import Shard, ShardedWork

RULES = {
    "none": {"threshold": "none"},
    "global": {"threshold": "global", "confidence": 0.6},
    "class-balanced": {"threshold": "class-balanced", "portion": 0.4},
    "ceiling": {"threshold": "class-balanced", "portion": 0.2, "ceiling": 0.55},
}


def brute_force(bench, options):
    """Labels by id, thresholds, pixels predicted and kept: from sorted lists in float64."""
    probs = {}
    for number, name in enumerate(bench.ids):
        geometry = Geometry(in_hw=bench.sizes[number], out_hw=bench.sizes[number], stride=4)
        full = upsample_logits(torch.from_numpy(bench.logits_of(number)), geometry).double()
        probs[name] = full.softmax(dim=0).max(dim=0)
    pools = [
        sorted((q for p, classes in probs.values() for q in p[classes == index].tolist()), reverse=True)
        for index in range(len(bench.names))
    ]
    if options["threshold"] == "class-balanced":
        wanted = [ceil(options["portion"] * len(pool) - 1e-9) for pool in pools]
        thresholds = [pool[count - 1] if pool else np.nan for pool, count in zip(pools, wanted, strict=True)]
        # The grid below 0.996, where all thresholds of this data are; float32 may lie a little below float64.
        thresholds = np.floor(np.minimum(thresholds, options.get("ceiling", 1)) * 2**16) / 2**16
    else:
        thresholds = np.full(len(bench.names), options.get("confidence", 0.0))
    labels = {
        name: np.where(p >= thresholds[classes] - 1e-6, classes, 255).astype(np.uint8)
        for name, (p, classes) in ((name, (p.numpy(), c.numpy())) for name, (p, c) in probs.items())
    }
    return labels, thresholds, [len(pool) for pool in pools]


# What is written


@pytest.mark.parametrize("rule", RULES)
def test_labels_and_thresholds_are_those_of_brute_force(bench, rule):
    done = bench.run(RULES[rule])
    labels, thresholds, predicted = brute_force(bench, RULES[rule])
    written = bench.labels_in(done.artifact)
    assert list(written) == list(bench.ids)
    for name in bench.ids:
        assert written[name].dtype == np.uint8
        np.testing.assert_array_equal(written[name], labels[name])
    np.testing.assert_array_equal(done.thresholds, thresholds)
    assert np.nanmax(thresholds) < 0.996
    assert done.predicted.tolist() == predicted


@pytest.mark.parametrize("rule", RULES)
def test_counts_are_those_of_the_labels(bench, rule):
    done = bench.run(RULES[rule])
    pixels = np.concatenate([label.ravel() for label in bench.labels_in(done.artifact).values()])
    assert done.kept.tolist() == [int((pixels == index).sum()) for index in range(len(bench.names))]
    assert done.predicted.sum() == len(pixels)
    with open_artifact(done.artifact) as artifact:
        arrays = artifact.arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "thresholds": "float64", "predicted": "int64", "kept": "int64"
    }  # fmt: skip
    assert arrays["kept"].tolist() == done.kept.tolist()


def test_each_class_keeps_its_portion(bench):
    done = bench.run(threshold="class-balanced", portion=0.4)
    for predicted, kept in zip(done.predicted[:3].tolist(), done.kept[:3].tolist(), strict=True):
        assert 0 <= kept - ceil(0.4 * predicted) <= 2  # at an image's border, enlarged pixels are equal


def test_no_threshold_keeps_all(bench):
    done = bench.run(threshold="none")
    assert not any((label == 255).any() for label in bench.labels_in(done.artifact).values())
    assert done.kept.tolist() == done.predicted.tolist()
    assert done.thresholds.tolist() == [0.0] * 4


def test_confidence_1_keeps_only_certainty(bench):
    assert bench.run(threshold="global", confidence=1.0).kept.sum() == 0


def test_one_class_is_always_certain(bench, folder):
    path = bench.write_logits(folder / "one.h5", classes=bench.names[:1])
    done = bench.run(threshold="global", confidence=1.0, logits=path)
    assert done.kept.tolist() == done.predicted.tolist()


def test_a_class_never_predicted_has_no_threshold(bench):
    done = bench.run(threshold="class-balanced")
    assert np.isnan(done.thresholds[3])
    assert done.document()["classes"][3]["predicted"] == 0
    row = done.table()[2][3]
    assert row == ["ghost", "0", "0.0 %", "n/a", "0", "n/a"]
    assert done.table()[2][-1][0] == "all"


def test_images_in_another_order_get_the_same_labels(bench, folder):
    first = bench.run(threshold="class-balanced", out=folder / "a.h5")
    path = bench.write_logits(folder / "reversed.h5", bench.ids[::-1])
    second = bench.run(threshold="class-balanced", logits=path, out=folder / "b.h5")
    np.testing.assert_array_equal(first.thresholds, second.thresholds)
    one, other = bench.labels_in(first.artifact), bench.labels_in(second.artifact)
    assert all(np.array_equal(one[name], other[name]) for name in bench.ids)


@pytest.mark.parametrize(("kept", "kind", "slack"), [("u8", "uint8", 0.5 / 255), ("f16", "float16", 2.0**-12)])
def test_confidence_is_stored_on_request(bench, folder, kept, kind, slack):
    plain, with_confidence = bench.run(out=folder / "a.h5"), bench.run(out=folder / "b.h5", keep_confidence=kept)
    with open_artifact(plain.artifact) as one, open_artifact(with_confidence.artifact) as other:
        assert not one.has(bench.ids[0], "confidence")
        for number, name in enumerate(bench.ids):
            stored = other.item(name, "confidence")
            assert stored.dtype == kind
            full = (
                upsample_logits(torch.from_numpy(bench.logits_of(number)), other.geometry(name))
                .softmax(dim=0)
                .amax(dim=0)
            )
            scale = 255 if kept == "u8" else 1
            np.testing.assert_allclose(stored.astype(np.float64) / scale, full.numpy(), atol=slack + 1e-6)
            np.testing.assert_array_equal(one.item(name, "label"), other.item(name, "label"))


def test_the_artifact_says_where_it_is_from(bench, folder):
    done = bench.run(threshold="class-balanced", portion=0.25, ceiling=0.9)
    assert done.artifact == (folder / "runs/run/5-predict/x-target-train-pseudo.h5").relative_to(folder)
    with open_artifact(folder / "runs/run/5-predict/x-target-train.h5") as parent, open_artifact(done.artifact) as own:
        assert own.meta["classes"] == parent.meta["classes"]
        assert own.class_names == list(bench.names)
        assert own.meta["recipe"]["parents"] == {"logits": parent.digest}
        assert own.meta["recipe"]["options"] == {
            "threshold": "class-balanced", "portion": 0.25, "ceiling": 0.9, "keep_confidence": "none"
        }  # fmt: skip
        assert parent.meta["protocol"].items() <= own.meta["protocol"].items()
        assert own.meta["protocol"]["pseudo_labels"].items() >= own.meta["recipe"]["options"].items()
        for name in bench.ids:
            assert own.image_digest(name) == parent.image_digest(name)
            assert own.geometry(name).in_hw == own.geometry(name).out_hw == parent.geometry(name).out_hw
            assert own.item(name, "label").shape == own.geometry(name).out_hw


def test_options_that_are_not_used_do_not_make_a_result_stale(bench, folder):
    first = bench.run(threshold="global")
    (folder / "calseg.yaml").write_text("target: {root: target}\npseudo_label: {portion: 0.9}\n")
    again = bench.run(threshold="global", resume=True)
    assert again.digest == first.digest


# Which logits


def test_the_newest_logits_of_the_train_split_are_taken(bench, folder):
    predict = folder / "runs/run/5-predict"
    names = ("old-target-train", "new-target-train", "target-test", "source-train")
    for place, name in enumerate(names):
        domain, split = name.split("-")[-2:]
        bench.write_logits(predict / f"{name}.h5", protocol={"domain": domain, "split": split}, shift=place)
        os.utime(predict / f"{name}.h5", ns=(10**18 + place, 10**18 + place))
    os.utime(predict / "x-target-train.h5", ns=(10**18, 10**18))
    (predict / "broken-target-train.h5").write_bytes(b"no HDF5")
    assert bench.run().artifact.name == "new-target-train-pseudo.h5"
    assert bench.run(force=True).artifact.name == "new-target-train-pseudo.h5"  # its own labels are no logits


def test_logits_in_shards_are_taken_whole(bench, folder):
    """The manifest stands for its shards; none of them is mistaken for the newest logits."""
    predict = folder / "runs/run/5-predict"
    single = bench.run(out=folder / "single.h5")
    with open_artifact(predict / "x-target-train.h5") as artifact:
        meta, items = artifact.meta, {name: artifact.item(name, "logits") for name in bench.ids}
        where = {name: (artifact.geometry(name), artifact.image_digest(name)) for name in bench.ids}
    (predict / "x-target-train.h5").unlink()
    for rank in range(2):
        work = ShardedWork(predict / "y.h5", "logits", Shard(rank, 2), meta=meta, ids=bench.ids)
        with work.writer(resume=False, force=False) as writer:
            for name in writer.todo:
                geometry, digest = where[name]
                writer.add_item(name, {"logits": items[name]}, geometry, image_digest=digest)
        work.finish()
    os.utime(predict / "y.manifest.json", ns=(0, 0))
    done = bench.run()
    assert done.artifact.name == "y-pseudo.h5"
    one, other = bench.labels_in(single.artifact), bench.labels_in(done.artifact)
    assert all(np.array_equal(one[name], other[name]) for name in bench.ids)


def test_without_logits_of_train_others_are_taken_and_said(bench, folder):
    predict = folder / "runs/run/5-predict"
    (predict / "x-target-train.h5").unlink()
    bench.write_logits(predict / "x-target-test.h5", protocol={"domain": "target", "split": "test"})
    notes = bench.notes()
    assert bench.run(progress=notes).artifact.name == "x-target-test-pseudo.h5"
    assert "calseg predict --split train" in "\n".join(notes.told)


def test_without_logits_the_command_that_makes_them_is_named(bench, folder):
    (folder / "runs/run/5-predict/x-target-train.h5").unlink()
    with pytest.raises(ArtifactError) as caught:
        bench.run()
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
def test_an_option_that_would_do_nothing_is_refused(bench, rule, option, belongs):
    with pytest.raises(ConfigError, match="no effect") as caught:
        bench.run(threshold=rule, **option)
    assert f"--threshold {belongs}" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [("portion", 0.0), ("portion", 1.5), ("confidence", -0.1), ("ceiling", 2.0), ("threshold", "best"), ("png", 2)],
)
def test_values_out_of_range_are_refused(bench, wrong):
    with pytest.raises(ConfigError, match=f"--{wrong[0]}"):
        bench.run(dict([wrong]))


def test_a_result_is_not_overwritten_without_force(bench):
    first = bench.run()
    with pytest.raises(ArtifactError, match="exists already"):
        bench.run()
    assert bench.run(force=True).digest == first.digest


def test_the_logits_cannot_be_overwritten(bench, folder):
    path = folder / "runs/run/5-predict/x-target-train.h5"
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="the logits themselves"):
        bench.run(out=path, force=True)
    assert path.read_bytes() == before


def test_more_classes_than_a_byte_can_tell_are_refused(bench, folder):
    meta = {
        "classes": {"names": [str(n) for n in range(256)], "palette": [[0, 0, 0]] * 256, "ignore": 255},
        "protocol": {},
    }
    with ArtifactWriter(folder / "many.h5", "logits", meta=meta, ids=["a"]) as writer:
        writer.add_item("a", {"logits": np.zeros((256, 1, 1), np.float16)}, Geometry((4, 4), (4, 4), stride=4))
    with pytest.raises(ArtifactError, match="256 classes"):
        bench.run(logits=folder / "many.h5")


def test_logits_of_other_classes_than_configured_are_refused(bench, folder):
    text = "target: {root: target}\nsource: {root: source, classes: [road, car, sky, cloud]}\n"
    (folder / "calseg.yaml").write_text(text)
    with pytest.raises(ArtifactError, match="'ghost' there and 'cloud' here"):
        bench.run()


def test_another_kind_is_refused(bench, folder):
    done = bench.run()
    with pytest.raises(ArtifactError, match="pseudo_labels"):
        bench.run(logits=done.artifact, out=folder / "x.h5")


# Stopping and going on


# 5 images: rules that measure first go over them twice. A signal with the very last image comes too late to matter.
BREAKS = [(rule, after) for rule in RULES for after in range(1, 10 if "portion" in RULES[rule] else 5)]


@pytest.mark.parametrize(("rule", "after"), BREAKS)
def test_stopped_anywhere_and_resumed_is_the_unbroken_result(bench, folder, rule, after):
    whole = bench.run(RULES[rule], out=folder / "whole.h5")
    target = folder / "broken.h5"
    with pytest.raises(StoppedError) as caught:
        bench.run(RULES[rule], out=target, progress=bench.breaker(after))
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert not target.exists()
    done = bench.run(RULES[rule], out=target, resume=True)
    assert done.digest == whole.digest
    assert done.kept.tolist() == whole.kept.tolist()
    assert done.predicted.tolist() == whole.predicted.tolist()
    np.testing.assert_array_equal(done.thresholds, whole.thresholds)
    assert not list(folder.glob("*.partial"))


def test_sigterm_ends_with_its_own_code(bench):
    with pytest.raises(StoppedError) as caught:
        bench.run(progress=bench.breaker(7, signal.SIGTERM))
    assert caught.value.exit_code == 143


def test_what_is_written_is_not_written_again(bench):
    with pytest.raises(StoppedError):
        bench.run(threshold="class-balanced", progress=bench.breaker(8))
    notes = bench.notes()
    bench.run(threshold="class-balanced", resume=True, progress=notes)
    assert notes.titles == [("measuring confidence", 0), ("writing labels", 3)]


def test_resuming_a_finished_result_does_nothing(bench):
    first = bench.run()
    before = first.artifact.stat().st_mtime_ns
    notes = bench.notes()
    again = bench.run(resume=True, progress=notes)
    assert "finished already" in "\n".join(notes.told)
    assert again.artifact.stat().st_mtime_ns == before
    assert again.digest == first.digest
    assert again.table() == first.table()


def test_resuming_with_another_option_says_which(bench):
    with pytest.raises(StoppedError):
        bench.run(portion=0.4, progress=bench.breaker(8))
    with pytest.raises(ArtifactError, match=r"portion was 0\.4, is 0\.5"):
        bench.run(portion=0.5, resume=True)


def test_other_logits_make_the_labels_stale(bench, folder):
    bench.run()
    bench.write_logits(folder / "runs/run/5-predict/x-target-train.h5", shift=1.0)
    with pytest.raises(ArtifactError, match="logits was sha256"):
        bench.run(resume=True)
