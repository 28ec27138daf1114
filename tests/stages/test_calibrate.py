"""From logits and labels to a calibrator's file: scipy's temperature, whose labels, what is refused, what is read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.data.catalog import Item, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.forward import upsample_logits
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, DataError
from calseg_cli.methods.pseudocal import mixing_pairs
from calseg_cli.methods.scenes import GRID
from calseg_cli.methods.temperature import fit_temperature
from calseg_cli.stages.calibrate import ORACLE, calibrate
from calseg_cli.stages.corrections import corrected, load_correction
from calseg_cli.stages.fitting_data import Mixer
from calseg_cli.stages.roads import ArtifactRoad

NAMES = ("road", "car", "sky")
PALETTE = ((128, 64, 128), (0, 0, 142), (70, 130, 180))
SIZES = ((24, 32), (20, 12), (24, 32), (16, 16))
FIT = {"local": {"epochs": 2}, "selective": {"epochs": 2, "wrong_temperature": 3.0}}


def geometry_of(number):
    """The second image is padded, and the third was resized: neither grid is a plain enlargement."""
    height, width = SIZES[number]
    if number == 1:
        return Geometry(in_hw=(height, width), out_hw=(height, width), pad=(4, 4), stride=4)
    return Geometry(in_hw=(16, 24) if number == 2 else (height, width), out_hw=(height, width), stride=4)


def logits_of(number):
    height, width = geometry_of(number).padded_hw
    return np.random.default_rng(number).normal(0, 3, (3, height // 4, width // 4)).astype(np.float16)


def label_of(number, *, kind="noisy"):
    """Labels that follow the softened softmax of the enlarged logits; a tenth has none."""
    z = upsample_logits(torch.from_numpy(logits_of(number)), geometry_of(number)).double()
    generator = torch.Generator().manual_seed(number)
    if kind == "right":
        return z.argmax(0).numpy().astype(np.uint8)
    p = (z / 2.2).softmax(0).flatten(1).T
    label = torch.multinomial(p, 1, generator=generator).reshape(SIZES[number])
    label[torch.rand(SIZES[number], generator=generator) < (2 if kind == "void" else 0.1)] = 255
    return label.numpy().astype(np.uint8)


def write_domain(root, *, kind="noisy"):
    for number, (height, width) in enumerate(SIZES):
        for folder, pixels in (
            ("images", np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)),
            ("labels", label_of(number, kind=kind)),
        ):
            path = root / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def write_logits(path, images, *, names=NAMES, **protocol):
    meta = {
        "classes": {"names": list(names), "palette": [list(color) for color in PALETTE], "ignore": 255},
        "protocol": protocol,
        "recipe": {"stage": "predict"},
        "provenance": {},
        "config": {},
    }
    ids = [str(number) for number in range(len(SIZES))]
    with ArtifactWriter(path, "logits", meta=meta, ids=ids, force=True) as writer:
        for number, name in enumerate(ids):
            digest = file_digest(images / f"{name}.png")
            writer.add_item(name, {"logits": logits_of(number)}, geometry_of(number), image_digest=digest)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a labelled source and target, and the logits of both."""
    for role, split in (("source", "val"), ("target", "test")):
        write_domain(tmp_path / role / split)
        write_logits(
            tmp_path / f"{role}-{split}.h5", tmp_path / role / split / "images", domain=role, split=split, network="x"
        )
    (tmp_path / "calseg.yaml").write_text(
        f"source: {{root: source, classes: [{', '.join(NAMES)}]}}\ntarget: {{root: target}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Notes(Silent):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def run(folder, *, logits="source-val.h5", out=None, force=False, progress=None, **options):
    flags = {f"calibrate.{key}": value for key, value in options.items()}
    resolved = load_config(None, flags=flags, environ={})
    return calibrate(
        resolved, checkpoint=None, logits=folder / logits, out=out, force=force, progress=progress or Silent()
    )


def all_pixels():
    """Logits (N,C) float64 and labels (N,) of all labelled pixels, by torch's own enlargement."""
    pairs = []
    for number in range(len(SIZES)):
        z = upsample_logits(torch.from_numpy(logits_of(number)), geometry_of(number)).double().flatten(1).T
        y = torch.from_numpy(label_of(number)).flatten().long()
        pairs.append((z[y != 255], y[y != 255]))
    return torch.cat([z for z, _ in pairs]).numpy(), torch.cat([y for _, y in pairs]).numpy()


def mean_loss(z, y):
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y]))


# What is fitted


def test_the_temperature_is_that_of_all_labelled_pixels_at_full_size(folder):
    z, y = all_pixels()
    best = minimize_scalar(lambda u: mean_loss(z * np.exp(u), y), bounds=(-3, 3), options={"xatol": 1e-10})
    done = run(folder)
    assert done.calibrator.parameters()["T"] == pytest.approx(np.exp(-best.x), rel=1e-5)
    assert done.facts["fit"]["pixels"] == len(y)
    assert done.before.nll == pytest.approx(mean_loss(z, y), rel=1e-5)
    assert done.after.nll == pytest.approx(best.fun, rel=1e-3)
    assert done.after.nll < done.before.nll
    assert done.after.ece < done.before.ece


@pytest.mark.parametrize("method", ["temperature", "vector", "meta", "selective", "local"])
def test_every_method_writes_what_evaluation_reads(folder, method):
    done = run(folder, method=method, **FIT.get(method, {}))
    assert done.artifact == (folder / f"runs/run/5-calibrate/source-val-{method}.h5").relative_to(folder)
    loaded = load_correction(done.artifact, "calibrator")
    assert loaded.digest == done.digest
    assert loaded.correction.facts() == done.facts
    assert not loaded.correction.oracle
    resolved = load_config(None, environ={})
    from calseg_cli.stages.domains import open_domain

    dataset = open_domain(resolved, "source", NAMES).dataset("val", with_labels=True)
    road = corrected(ArtifactRoad(folder / "source-val.h5", dataset), [loaded])
    from calseg_cli.metrics.scores import read_scores
    from calseg_cli.stages.measuring import measure

    tally = measure(road.stream(), len(SIZES), 3, edges="right", progress=Silent())
    scores = read_scores(tally, class_names=NAMES)
    assert (scores.nll, scores.ece) == (done.after.nll, done.after.ece)
    assert done.after.nll <= done.before.nll + (1 if method in ("meta", "selective") else 1e-3)


def test_the_file_says_where_it_is_from(folder):
    done = run(folder, split="val", method="vector", penalty=0.01)
    with open_artifact(done.artifact, "calibrator") as artifact, open_artifact(folder / "source-val.h5") as parent:
        protocol = artifact.meta["protocol"]
        assert artifact.class_names == list(NAMES)
        assert artifact.meta["provenance"]["parents"] == {"logits": parent.digest}
    assert protocol["labels_used_for"] == "fitting: source"
    assert protocol["network"] == "x"
    facts = protocol["correction"]
    assert facts["method"] == "vector"
    assert facts["options"] == {"penalty": 0.01}
    assert (facts["domain"], facts["split"], facts["images"], facts["labels"]) == ("source", "val", 4, "source")
    assert facts["grid"] == GRID


def test_two_runs_write_the_same_content(folder):
    for method in ("temperature", "selective", "local"):
        options = {"method": method, **FIT.get(method, {})}
        first, second = (run(folder, out=folder / f"{name}.h5", force=True, **options) for name in "ab")
        assert first.digest == second.digest


def test_the_table_says_that_it_is_of_the_data_fitted_on(folder):
    (title, headers, rows), (_, _, found) = run(folder).tables()
    assert "measured on what it was fitted on: source val, 4 images" in title
    assert headers == ["score", "before", "after"]
    assert [row[0] for row in rows][:2] == ["nll", "ece"]
    assert [row[0] for row in found] == ["T", "status", "passes", "pixels"]
    assert run(folder, force=True).document()["before"]["nll"] == run(folder, force=True).before.nll


def test_a_part_has_a_name_of_its_own(folder):
    assert run(folder, max_items=2).artifact.name == "source-val-temperature-first2.h5"


# Whose labels


def test_labels_of_the_target_are_an_oracle_that_is_asked_for(folder):
    with pytest.raises(ConfigError, match="target") as caught:
        run(folder, logits="target-test.h5")
    assert "oracle" in caught.value.hint
    notes = Notes()
    done = run(folder, logits="target-test.h5", on="target", progress=notes)
    assert ORACLE in notes.told
    assert done.artifact.name.endswith("-oracle.h5")
    assert done.tables()[0][0].startswith("ORACLE")
    assert done.facts["labels"] == "target: oracle"
    loaded = load_correction(done.artifact, "calibrator")
    assert loaded.correction.oracle
    with open_artifact(done.artifact) as artifact:
        assert artifact.meta["protocol"]["labels_used_for"].startswith("oracle")


def test_on_target_is_not_served_with_the_sources_logits(folder):
    with pytest.raises(ConfigError, match="source"):
        run(folder, on="target")


# What is refused


def test_a_result_is_not_replaced_without_force(folder):
    first = run(folder)
    with pytest.raises(ArtifactError, match="exists"):
        run(folder, method="temperature")
    assert run(folder, force=True).digest == first.digest


@pytest.mark.parametrize(
    ("kind", "match"), [("right", "every .*pixel is (right|classified rightly)"), ("void", "no pixel")]
)
def test_data_without_a_temperature_leave_nothing(folder, kind, match):
    write_domain(folder / "source" / "val", kind=kind)
    with pytest.raises(DataError, match=match):
        run(folder)
    assert list((folder / "runs/run/5-calibrate").iterdir()) == []


def test_no_working_files_are_left(folder):
    done = run(folder)
    assert [path.name for path in done.artifact.parent.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"penalty": 0.1}, "--penalty has no effect with --method temperature"),
        ({"method": "vector", "epochs": 3}, "--epochs"),
        ({"method": "pseudocal"}, "network"),
    ],
)
def test_options_that_do_nothing_are_refused(folder, options, match):
    with pytest.raises(ConfigError, match=match):
        run(folder, **options)


def test_options_in_the_file_only_wait(folder):
    with (folder / "calseg.yaml").open("a") as stream:
        stream.write("calibrate: {penalty: 0.5}\n")
    assert run(folder).facts["options"] == {}


def test_logits_of_other_classes_are_refused(folder):
    path = write_logits(
        folder / "other.h5", folder / "source/val/images", names=("road", "car", "tree"), domain="source", split="val"
    )
    with pytest.raises(ArtifactError, match="tree"):
        run(folder, logits=path.name)


# A calibrator's file that is none


def one_line(caught):
    assert "\n" not in caught.value.message


def test_a_calibrator_of_other_classes_is_refused(folder):
    loaded = load_correction(run(folder).artifact, "calibrator")

    class Elsewhere:
        class_names, protocol = ("road", "car", "tree"), {}

    with pytest.raises(ArtifactError, match="class 2") as caught:
        corrected(Elsewhere(), [loaded])
    one_line(caught)


def test_another_kind_is_refused(folder):
    with pytest.raises(ArtifactError, match="logits, not calibrator") as caught:
        load_correction(folder / "source-val.h5", "calibrator")
    one_line(caught)


@pytest.mark.parametrize(
    ("arrays", "facts"),
    [
        ({}, {"method": "temperature"}),
        ({"temperature": np.array([np.nan])}, {"method": "temperature"}),
        ({"temperature": np.zeros(0)}, {"method": "temperature"}),
        ({"temperature": np.array([2.0])}, {"method": "no such method"}),
        ({"temperature": np.array([2.0])}, {}),
        ({"temperature": np.array([2.0])}, {"method": "vector"}),
    ],
)
def test_an_empty_or_broken_calibrator_is_refused(folder, arrays, facts):
    meta = {
        "classes": {"names": list(NAMES), "palette": [list(color) for color in PALETTE], "ignore": 255},
        "protocol": {"correction": facts},
        "provenance": {},
        "config": {},
    }
    with ArtifactWriter(folder / "bad.h5", "calibrator", meta=meta) as writer:
        for name, array in arrays.items():
            writer.add_array(name, array)
    with pytest.raises(ArtifactError, match=r"bad\.h5|calibrator") as caught:
        load_correction(folder / "bad.h5", "calibrator")
    one_line(caught)


# PseudoCal's data


class Stripes(torch.nn.Module):
    """A network of one convolution at stride 4."""

    num_classes, stride, divisor, align_corners = 3, 4, 4, False

    def __init__(self):
        super().__init__()
        self.look = torch.nn.Conv2d(3, 3, 4, stride=4)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.look.weight.copy_(torch.randn(self.look.weight.shape, generator=generator) * 2)
            self.look.bias.zero_()

    def forward(self, images):
        return self.look(images)


def test_pseudocals_data_are_those_of_brute_force(folder):
    """Every mix and every label of it by hand, in float64 and by another enlargement; and scipy's temperature."""
    resolved = load_config(None, environ={})
    path, size, share = folder / "target/test/images", (16, 24), 0.65
    dataset = SegmentationDataset(
        [Item(str(number), path / f"{number}.png", None) for number in range(4)],
        make_layout(find_layout("folders"), class_names=NAMES),
        size=size,
        with_labels=False,
    )
    network = Stripes().eval()
    loaded = SimpleNamespace(network=network)
    options = resolved.config.predict.model_copy(update={"logits_dtype": "float32"})
    mixer = Mixer(loaded, dataset, options, torch.device("cpu"), share, seed=3)
    work = folder / "work"
    work.mkdir()
    data = mixer.data(work, Silent())

    def full(image):
        logits = torch.nn.functional.conv2d(
            image[None].double(), network.look.weight.double(), network.look.bias.double(), stride=4
        )
        return torch.nn.functional.interpolate(logits, size=size, mode="bilinear")[0].detach()

    images = [torch.from_numpy(dataset.read(n).image.astype(np.float64)).permute(2, 0, 1) / 255 for n in range(4)]
    z, y = [], []
    for (first, second), scene in zip(mixing_pairs([size] * 4, 3), data.scenes(), strict=True):
        assert scene.id == f"{first}+{second}"
        seen = [full(images[place]).argmax(0) for place in (first, second)]
        expected = np.where((seen[0] != seen[1]).numpy(), seen[0].numpy(), 255)
        np.testing.assert_array_equal(scene.label.numpy(), expected)
        mix = full(images[first] * share + images[second] * (1 - share))
        found = torch.cat([block for block, _ in scene.blocks()], dim=1)
        torch.testing.assert_close(found.double(), mix[:, expected != 255], atol=1e-4, rtol=1e-4)
        z.append(mix[:, expected != 255].T.numpy())
        y.append(expected[expected != 255])
    z, y = np.concatenate(z), np.concatenate(y)
    assert 0 < len(y) < 4 * 16 * 24
    best = minimize_scalar(lambda u: mean_loss(z * np.exp(u), y), bounds=(-4, 4), options={"xatol": 1e-10})
    assert fit_temperature(data.scenes).temperature == pytest.approx(np.exp(-best.x), rel=1e-4)


def test_a_pass_is_told_and_a_mere_look_is_not(folder):
    class Bars(Silent):
        open, begun = 0, 0

        def start(self, title, total, *, done=0):
            self.open += 1
            self.begun += title == "pass"

        def finish(self):
            self.open -= 1

    bars = Bars()
    done = run(folder, method="vector", progress=bars)
    assert bars.open == 0
    assert bars.begun == done.facts["fit"]["passes"]
