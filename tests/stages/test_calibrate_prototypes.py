"""From logits to prototypes: loops in float64, padding, online modes, changed pixels, what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, DataError, StoppedError
from calseg_cli.methods.online_prototypes import OnlinePrototypes
from calseg_cli.methods.prototype_state import PrototypeState
from calseg_cli.methods.prototypes import PrototypeOptions, Prototypes
from calseg_cli.stages.calibrate_prototypes import calibrate_prototypes, report_changed
from calseg_cli.stages.corrections import load_correction
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.online_prototypes import correct_online
from calseg_cli.stages.prototype_input import Asked, image_cells

MADE = "runs/run/5-prototypes/x-target-train.h5"


def resolved(**options):
    return load_config(None, flags={f"prototypes.{key}": value for key, value in options.items()}, environ={})


def run(*, logits=None, asked=None, source=None, out=None, force=False, progress=None, **options):
    return calibrate_prototypes(
        resolved(**options), asked or Asked(logits), source=source, out=out, force=force, progress=progress or Silent()
    )


def online(*, out=None, force=False, progress=None, **options):
    return correct_online(resolved(**options), Asked(), out=out, force=force, progress=progress or Silent())


def report(prototypes, *, out=None, logits=None, progress=None, **options):
    return report_changed(resolved(**options), prototypes, Asked(logits), out=out, progress=progress or Silent())


def counted(bench, numbers=range(5)):
    state = PrototypeState(4)
    for number in numbers:
        state.add(torch.from_numpy(bench.logits_of(number)))
    return state


# What is written


def test_the_artifact_holds_the_sums_of_all_images(bench, folder):
    done = run()
    assert done.artifact == (folder / MADE).relative_to(folder)
    state = counted(bench)
    with open_artifact(done.artifact, "prototypes") as artifact:
        np.testing.assert_array_equal(artifact.array("sums"), state.sums)
        np.testing.assert_array_equal(artifact.array("weights"), state.weights)
        np.testing.assert_array_equal(artifact.array("pixels"), state.pixels)
        assert [name.split()[0] for name in sorted(artifact.array("images").tolist())] == list(bench.ids)
        assert artifact.digest == done.digest
        facts = artifact.meta["protocol"]["correction"]
        assert facts["labels"] == "none"
        assert facts["fitted_on"] == {"domain": "target", "split": "train", "images": 5}
        assert artifact.meta["protocol"]["network"] == "pretrain"
        with open_artifact(folder / "runs/run/5-predict/x-target-train.h5") as parent:
            assert artifact.meta["provenance"]["parents"] == {"logits": parent.digest}
    again = load_correction(done.artifact, "prototypes").correction
    logits = torch.from_numpy(bench.logits_of(0)).float()
    assert torch.equal(again(logits), done.prototypes(logits))


def test_the_table_has_every_class(bench, folder):
    title, headers, rows = run().table()
    assert "x-target-train.h5" in title
    assert [row[0] for row in rows] == list(bench.names)
    assert all(len(row) == len(headers) for row in rows)
    assert rows[3][-1] == "no prototype of its own: mask"
    assert rows[3][3:7] == ["n/a", "n/a", "", "n/a"]
    assert rows[0][-1] == "few pixels"
    made = run(force=True).prototypes
    assert float(rows[0][3]) == pytest.approx(made.rows[0, 0], abs=1e-4)
    apart = np.sqrt(((made.rows[0] - made.rows[1:3]) ** 2).sum(axis=1))
    assert float(rows[0][6]) == pytest.approx(apart.min(), abs=1e-4)
    assert rows[0][5] == bench.names[1 + int(apart.argmin())]


def test_the_document_says_the_same(bench, folder):
    document = run().document()
    assert [row["name"] for row in document["classes"]] == list(bench.names)
    assert sum(row["pixels"] for row in document["classes"]) == counted(bench).pixels.sum()
    assert document["changed"] is None
    assert document["options"]["distance"] == "l2"


def test_images_in_another_order_give_the_same_arrays(bench, folder):
    first = run()
    path = bench.write_logits(folder / "reversed.h5", bench.ids[::-1], images=folder / "target/train/images")
    second = run(logits=path)
    with open_artifact(first.artifact) as one, open_artifact(second.artifact) as other:
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(array, other.array(name))


def test_a_top_share_of_each_class_counts(bench, folder):
    done = run(top_frac=0.3)
    all_pixels = counted(bench).pixels
    for kept, total in zip(done.prototypes.state.pixels[:3], all_pixels[:3], strict=True):
        assert kept == np.ceil(0.3 * total - 1e-9)
    again = load_correction(done.artifact, "prototypes").correction
    assert again.state == done.prototypes.state


def test_further_iterations_assign_to_the_nearest_prototype(bench, folder):
    once, twice = run(out=folder / "1.h5").prototypes, run(out=folder / "2.h5", iterations=2).prototypes
    state = PrototypeState(4)
    for number in range(5):
        logits = torch.from_numpy(bench.logits_of(number))
        state.add(logits, classes=once.labels(logits))
    np.testing.assert_array_equal(twice.state.sums, state.sums)
    assert twice.state.pixels.sum() == once.state.pixels.sum()


def test_padding_is_left_out(folder):
    logits = np.random.default_rng(0).normal(0, 2, (4, 4, 6)).astype(np.float32)
    geometry = Geometry(in_hw=(12, 17), out_hw=(12, 17), pad=(4, 7), stride=4)
    meta = {
        "classes": {"names": list("abcd"), "palette": [[0, 0, 0]] * 4, "ignore": 255},
        "protocol": {"domain": "target", "split": "train"},
    }
    with ArtifactWriter(folder / "padded.h5", "logits", meta=meta, ids=["one"]) as writer:
        writer.add_item("one", {"logits": logits}, geometry)
    state = PrototypeState(4)
    state.add(torch.from_numpy(logits[:, :3, :4]))  # centres at 2, 6, 10 | 14 of 12 rows; 2 .. 14 | 18 of 17 columns
    np.testing.assert_array_equal(run(logits=folder / "padded.h5").prototypes.state.sums, state.sums)


def test_cells_with_aligned_corners():
    geometry = Geometry(in_hw=(5, 5), out_hw=(5, 5), pad=(4, 0), stride=4, align_corners=True)
    assert image_cells(geometry, (3, 2)).tolist() == [[True, True], [True, True], [False, False]]
    assert image_cells(Geometry(in_hw=(5, 5), out_hw=(9, 9)), (2, 2)) is None


def test_a_mask_leaves_pixels_out(bench, folder):
    path = bench.write_logits(folder / "alike.h5", [name for name in bench.ids if name[-1] in "03"])  # of one size
    wanted = np.zeros((12, 16), np.uint8)
    wanted[:8, 4:] = 255
    Image.merge("LA", (Image.fromarray(wanted), Image.new("L", (16, 12), 255))).save(folder / "mask.png")
    state = PrototypeState(4)
    for number in (0, 3):
        state.add(torch.from_numpy(bench.logits_of(number))[:, :2, 1:])
    options = {"prior": 1.0}
    done = run(asked=Asked(path, mask=folder / "mask.png"), **options)
    np.testing.assert_array_equal(done.prototypes.state.sums, state.sums)
    assert done.prototypes.fitted_on["mask"].startswith("sha256:")
    top = run(asked=Asked(path, mask=folder / "mask.png"), top_frac=1.0, force=True, **options)
    np.testing.assert_array_equal(top.prototypes.state.sums, state.sums)
    with pytest.raises(DataError, match="mask is 12x16 and an image is 9x7"):
        run(asked=Asked(mask=folder / "mask.png"), out=folder / "x.h5")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        run(asked=Asked(mask=folder / "calseg.yaml"), out=folder / "x.h5")


def test_a_mask_of_the_images_own_size_and_of_padding():
    geometry = Geometry(in_hw=(4, 4), out_hw=(8, 12), pad=(2, 0), stride=2)
    wanted = np.zeros((8, 12), bool)
    wanted[:, 6:] = True
    assert image_cells(geometry, (3, 2), wanted).tolist() == [[False, True], [False, True], [False, False]]


def test_the_source_stands_in_for_unseen_classes(bench, folder):
    other = bench.write_logits(folder / "source.h5", protocol={"domain": "source", "split": "train"})
    made = run(logits=other, out=folder / "source-prototypes.h5", prior=5.0)
    done = run(source=made.artifact, unseen="source")
    np.testing.assert_array_equal(done.prototypes.rows[3], made.prototypes.rows[3])
    again = load_correction(done.artifact, "prototypes").correction
    np.testing.assert_array_equal(again.rows, done.prototypes.rows)
    with open_artifact(done.artifact) as artifact:
        assert artifact.meta["provenance"]["parents"]["source_prototypes"] == made.digest


# Online


@pytest.mark.parametrize("mode", ["causal", "inclusive"])
@pytest.mark.parametrize("forget", [None, 0.5])
def test_online_logits_are_those_of_one_image_after_the_other(bench, folder, mode, forget):
    done = online(online=mode, forget=forget, prior=0.05)
    assert done.artifact.name == f"x-target-train-{mode}.h5"
    running = OnlinePrototypes(4, PrototypeOptions(prior=0.05), mode, forget)
    changed = 0
    with open_artifact(done.artifact, "logits") as artifact:
        assert artifact.ids == list(bench.ids)
        for number, name in enumerate(bench.ids):
            logits = torch.from_numpy(bench.logits_of(number)).float()
            wanted = running.correct(logits).half()
            np.testing.assert_array_equal(artifact.item(name, "logits"), wanted.numpy())
            changed += int((wanted.float().argmax(dim=0) != logits.argmax(dim=0)).sum())
        assert mode in artifact.meta["protocol"]["corrected_by"][0]
        assert artifact.meta["protocol"]["online_prototypes"]["forget"] == forget
    assert done.changed == changed
    assert done.changed > 0 or mode == "causal"


def test_online_needs_a_prior_and_one_pass(folder):
    with pytest.raises(ConfigError, match="prior"):
        online(online="causal")
    with pytest.raises(ConfigError, match="once"):
        online(online="causal", prior=1.0, top_frac=0.5)
    with pytest.raises(ConfigError, match="png"):
        online(online="causal", prior=1.0, png=True)


# Changed pixels


def brute_changes(bench, made):
    counts = np.zeros((4, 4), int)
    for number in range(5):
        geometry = Geometry(in_hw=bench.sizes[number], out_hw=bench.sizes[number], stride=4)
        logits = torch.from_numpy(bench.logits_of(number))
        labels = []
        for one in (logits, made(logits.float()).half()):
            full = torch.nn.functional.interpolate(
                one[None].float(), size=geometry.padded_hw, mode="bilinear", align_corners=False
            )[0]
            labels.append(full[:, : geometry.out_hw[0], : geometry.out_hw[1]].argmax(dim=0))
            assert label_grid(one, geometry)[1].out_hw == geometry.out_hw
        np.add.at(counts, (labels[0].numpy().ravel(), labels[1].numpy().ravel()), 1)
    return counts


def test_changes_are_counted_at_the_size_of_the_label(bench, folder):
    made = run()
    found = report(made.artifact)
    wanted = brute_changes(bench, made.prototypes)
    assert np.abs(found.counts - wanted).sum() <= 4  # pixels between two cells that are equal but for rounding
    assert found.counts.sum() == sum(height * width for height, width in bench.sizes)
    assert found.share == pytest.approx(1 - found.counts.trace() / found.counts.sum())
    assert 0 < found.share < 0.5
    assert found.pictures is None
    document = found.document()
    assert sum(row["pixels"] for row in document["changes"]) == document["changed"]
    assert sum(row["after"] for row in document["classes"]) == document["pixels"]
    pixels = [int(row[2]) for row in found.table()[2]]
    assert pixels == sorted(pixels, reverse=True)


def test_pictures_show_changed_pixels_in_the_colour_of_their_new_class(bench, folder):
    done = run(png=True)
    assert (done.changed.pictures / "changed.png").exists()
    pictures = sorted((done.changed.pictures / "images").rglob("*.png"))
    assert pictures
    marked = 0
    for path in pictures:
        with Image.open(path) as picture:
            pixels = np.asarray(picture).reshape(-1, 3)
        marked += int((pixels != pixels[:, :1]).any(axis=1).sum())
    colourful = [index for index, color in enumerate(bench.palette) if len(set(color)) > 1]
    changed = done.changed.counts - np.diag(done.changed.counts.diagonal())
    assert marked == changed[:, colourful].sum()
    again = report(done.artifact, png=True, out=done.changed.pictures)
    np.testing.assert_array_equal(again.counts, done.changed.counts)


def test_the_report_refuses_other_classes(bench, folder):
    made = run()
    fewer = bench.write_logits(folder / "three.h5", classes=bench.names[:3])
    with pytest.raises(ArtifactError, match="class list"):
        report(made.artifact, logits=fewer)


def test_the_report_warns_of_logits_that_were_made_differently(bench, folder):
    alike, other = bench.notes(), bench.notes()
    protocol = {"domain": "target", "split": "train", "network": "pretrain"}
    fine = bench.write_logits(folder / "fine.h5", protocol={**protocol, "network_input": "512x1024"})
    made = run(logits=fine)
    report(made.artifact, logits=fine, progress=alike)
    assert not any("differently" in note for note in alike.told)
    report(made.artifact, logits=bench.write_logits(folder / "c.h5", protocol=protocol), progress=other)
    assert any("differently: network_input was 512x1024" in note for note in other.told)


# What is refused


def test_a_result_is_not_replaced_without_force_and_logits_never(bench, folder):
    run()
    with pytest.raises(ArtifactError, match="exists already"):
        run()
    run(force=True)
    logits = folder / "runs/run/5-predict/x-target-train.h5"
    with pytest.raises(ArtifactError, match="is what is read"):
        run(out=logits, force=True)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"min_confidence": 1.0}, DataError, "no pixel counts"),
        ({"unseen": "error"}, DataError, "no prototype for ghost"),
        ({"unseen": "source"}, ConfigError, "needs the source"),
        ({"min_pixels": 25}, DataError, "only class with a prototype"),
        ({"tau": 0.5}, ConfigError, "--tau has no effect"),
        ({"forget": 0.5}, ConfigError, "--forget has no effect"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_leave_nothing(bench, folder, options, error, said):
    if "min_pixels" in options:
        options = {"min_pixels": int(np.sort(counted(bench).pixels)[-1])}
    with pytest.raises(error, match=said) as caught:
        run(**options)
    assert "\n" not in caught.value.message
    assert not (folder / MADE).exists()


def test_no_class_with_a_prototype_is_argmax_and_said(bench, folder):
    made = run(min_pixels=10**6)
    assert any("no class has a prototype" in note for note in made.prototypes.notes())
    assert report(made.artifact).share == 0
    assert made.document()["mean_other_mass"] != made.document()["mean_other_mass"]


def test_logits_that_are_corrected_already_are_not_counted_unasked(bench, folder):
    protocol = {"domain": "target", "split": "train", "corrected_by": ["something"]}
    path = bench.write_logits(folder / "runs/run/5-predict/x-target-train.h5", protocol=protocol)
    with pytest.raises(ArtifactError, match="corrected already"):
        run()
    notes = bench.notes()
    run(logits=path, progress=notes)
    assert any("corrected already" in note for note in notes.told)


def test_a_source_that_has_no_effect_or_other_classes(bench, folder):
    made = run()
    with pytest.raises(ConfigError, match="--source has no effect"):
        run(source=made.artifact, force=True)
    fewer = bench.write_logits(folder / "three.h5", classes=bench.names[:3])
    three = run(logits=fewer, out=folder / "three-made.h5")
    with pytest.raises(ArtifactError, match="class list"):
        run(source=three.artifact, unseen="source", force=True)


@pytest.mark.parametrize("after", [1, 3])
def test_a_signal_stops_it_and_nothing_is_left(bench, folder, after):
    with pytest.raises(StoppedError, match="nothing was written"):
        run(progress=bench.breaker(after))
    assert not (folder / MADE).exists()


def test_a_file_that_is_no_prototypes(bench, folder):
    with pytest.raises(ArtifactError, match="holds logits, not prototypes"):
        load_correction(folder / "runs/run/5-predict/x-target-train.h5", "prototypes")
    (folder / "text.h5").write_text("not hdf5")
    with pytest.raises(ArtifactError):
        load_correction(folder / "text.h5", "prototypes")
    write_arrays(folder / "nan.h5", sums=np.full((4, 4), np.nan), weights=np.ones(4), pixels=np.ones(4, np.int64))
    with pytest.raises(ArtifactError, match=r"nan\.h5.*NaN") as caught:
        load_correction(folder / "nan.h5", "prototypes")
    assert "\n" not in caught.value.message
    write_arrays(folder / "none.h5", sums=np.zeros((4, 4)), weights=np.zeros(4), pixels=np.zeros(4, np.int64))
    with pytest.raises(ArtifactError, match="counts no pixel"):
        load_correction(folder / "none.h5", "prototypes")


def write_arrays(path, **arrays):
    meta = {
        "classes": {"names": list("abcd"), "palette": [[0, 0, 0]] * 4, "ignore": 255},
        "protocol": {"correction": {"method": "prototypes", "options": {}}},
    }
    with ArtifactWriter(path, "prototypes", meta=meta) as writer:
        for name, array in arrays.items():
            writer.add_array(name, array)


def test_a_network_counts_what_its_logits_would(monkeypatch, folder):
    """Counting needs no more of an input than this; which network it is does not matter."""
    from calseg_cli.stages import calibrate_prototypes as stage
    from calseg_cli.stages.prototype_input import Counted

    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2, (4, 6, 6)).astype(np.float32))
    given = SimpleNamespace(
        ids=["one"], class_names=list("abcd"), protocol={"folder": "photos"}, image_digest=lambda name: "",
        network_digest=None, stream=lambda: iter([Counted("one", logits, Geometry(in_hw=(6, 6), out_hw=(6, 6)))]),
    )  # fmt: skip
    made = stage.fit(given, PrototypeOptions(), stage._Teller(Silent(), False))
    state = PrototypeState(4)
    state.add(logits, name="one")
    assert made.state == state
    assert made.fitted_on == {"folder": "photos", "images": 1}
    assert torch.equal(made(logits), Prototypes(state)(logits))
