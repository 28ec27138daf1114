"""From logits and labels to a file of statistics, from several to one, and from a file to anchors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError, DataError, StoppedError
from calseg_cli.methods.logit_anchors import anchor_mixtures
from calseg_cli.metrics.logit_statistics import LogitStatistics
from calseg_cli.stages.adapt import _used_for
from calseg_cli.stages.logit_anchors import read_anchors
from calseg_cli.stages.logit_statistics import ORACLE, logit_statistics
from calseg_cli.stages.merging import merge_artifacts

BINS = 1024


@pytest.fixture
def work(bench, folder):
    """The folder with the same images as source and as target, labels to both, and logits of the source."""
    for number, (name, size) in enumerate(zip(bench.ids, bench.sizes, strict=True)):
        label = np.random.default_rng(number).integers(0, 5, size).astype(np.uint8)
        label[label == 4] = 255
        for role in ("source", "target"):
            for kind, pixels in (("labels", label), ("images", np.full((*size, 3), number, np.uint8))):
                path = folder / role / "train" / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    classes = ", ".join(bench.names)
    text = f"source: {{root: source, classes: [{classes}]}}\ntarget: {{root: target}}\n"
    (folder / "calseg.yaml").write_text(text)
    write(bench, folder, "s.h5", "source")
    write(bench, folder, "t.h5", "target")
    return folder


def write(bench, folder, name, role, ids=None, **more):
    protocol = {"domain": role, "split": "train", "network": "pretrain", "values": "logits", **more}
    images = folder / role / "train/images"
    return bench.write_logits(folder / name, ids or bench.ids, protocol=protocol, images=images)


def collect(logits, *, out=None, force=False, progress=None, **options):
    flags = {f"logit_statistics.{key}": value for key, value in options.items()}
    resolved = load_config(None, flags=flags, environ={})
    return logit_statistics(
        resolved, checkpoint=None, logits=logits, out=out, force=force, progress=progress or Silent()
    )


def merged(files, target):
    return merge_artifacts(files, target, command=["calseg"], force=False, told=lambda: None)


def label_of(folder, role, name):
    return np.asarray(Image.open(folder / role / "train/labels" / f"{name}.png"))


def counted_one_by_one(bench, folder, statistics, label_of_cell):
    """The same histograms by loops over images, cells and channels: a cell is 4 pixels wide."""
    counts = np.zeros_like(statistics.histograms.counts)
    width = 2.0**statistics.histograms.exponent
    for number, name in enumerate(bench.ids):
        logits = bench.logits_of(number).astype(np.float64)
        (height, wide), (rows, columns) = bench.sizes[number], logits.shape[1:]
        for row, column in np.ndindex(rows, columns):
            at = (int((row + 0.5) * height / rows), int((column + 0.5) * wide / columns))
            label = label_of_cell(name, logits[:, row, column], at)
            if label != 255:
                for channel, value in enumerate(logits[:, row, column]):
                    counts[label, channel, int(np.floor(value / width)) + BINS // 2] += 1
    return counts


def test_every_cell_counts_once_under_the_label_of_its_centre(bench, work):
    done = collect(work / "s.h5")
    labels = {name: label_of(work, "source", name) for name in bench.ids}
    expected = counted_one_by_one(bench, work, done.statistics, lambda name, _, at: labels[name][at])
    assert np.array_equal(done.statistics.histograms.counts, expected)
    assert done.place == "source train by labels"
    with open_artifact(done.artifact, "logit_statistics") as artifact:
        read = LogitStatistics.from_arrays(artifact.arrays())
        told = artifact.meta["protocol"]
    assert np.array_equal(read.histograms.counts, expected)
    assert read.images == done.statistics.images
    assert (told["labels"], told["labels_used_for"]) == ("true", "sorting logits: source")


def test_of_the_target_the_largest_logit_is_the_label_and_no_label_is_opened(bench, work):
    for path in (work / "target/train/labels").rglob("*.png"):
        path.write_bytes(b"no picture")
    done = collect(work / "t.h5")
    expected = counted_one_by_one(bench, work, done.statistics, lambda _, logits, __: int(logits.argmax()))
    assert np.array_equal(done.statistics.histograms.counts, expected)
    assert done.used_for == "none"
    assert collect(work / "s.h5", labels="pseudo").artifact.name == "s-pseudo.h5"


def test_labels_of_the_target_make_an_oracle_everywhere(bench, work):
    done = collect(work / "t.h5", labels="true")
    assert done.artifact.name == "t-oracle.h5"
    assert done.table()[0].startswith("ORACLE")
    assert done.document()["labels_used_for"] == ORACLE
    anchors = SimpleNamespace(used_for=ORACLE)
    assert _used_for(None, anchors) == {"labels_used_for": ORACLE}
    assert _used_for(SimpleNamespace(used_for="curves"), anchors) == {"labels_used_for": f"curves; {ORACLE}"}
    assert _used_for(None, SimpleNamespace(used_for=None)) == {}


def test_the_table_tells_of_each_class_and_of_the_anchors(bench, work):
    done = collect(work / "s.h5")
    rows, anchors = done.rows(), done.rows()[-1]
    assert [row["name"] for row in rows] == [*bench.names, "anchors"]
    assert sum(row["pixels"] for row in rows[:-1]) == anchors["pixels"] == int(done.statistics.pixels.sum())
    found = anchor_mixtures(done.statistics.histograms)
    assert anchors["own"]["mean"] == pytest.approx(float(found.mean[0]), abs=1e-6)
    assert anchors["others"]["mean"] == pytest.approx(float(found.mean[1]), abs=1e-6)
    _, headers, lines = done.table()
    assert all(len(line) == len(headers) for line in lines)


def test_merged_parts_are_the_whole_bit_for_bit(bench, work):
    whole = collect(work / "s.h5").artifact
    cuts = [bench.ids[:2], bench.ids[2:3], bench.ids[3:]]
    parts = []
    for number, ids in enumerate(cuts):
        for path in (work / "source").rglob("*.png"):
            path.rename(path.with_suffix(".png" if path.stem in [one.split("/")[1] for one in ids] else ".away"))
        logits = write(bench, work, f"l{number}.h5", "source", ids)
        parts.append(collect(logits, out=work / f"p{number}.h5").artifact)
        for path in (work / "source").rglob("*.away"):
            path.rename(path.with_suffix(".png"))
    merged(parts[::-1], work / "all.h5")
    with open_artifact(work / "all.h5", "logit_statistics") as found, open_artifact(whole) as wanted:
        assert sorted(found.array_names) == sorted(wanted.array_names)
        for name, array in wanted.arrays().items():
            assert found.array(name).tolist() == array.tolist()
        assert found.meta["protocol"]["labels_used_for"] == "sorting logits: source"
    again = merged([work / "all.h5"], work / "alone.h5")
    with open_artifact(work / "alone.h5") as alone:
        assert alone.digest == again


def test_what_cannot_be_merged(bench, work):
    one = collect(work / "s.h5").artifact
    with pytest.raises(DataError, match="counted twice"):
        merged([one, one], work / "m.h5")
    pseudo = collect(work / "s.h5", labels="pseudo").artifact
    with pytest.raises(ArtifactError, match="labels was true, is pseudo"):
        merged([one, pseudo], work / "m.h5")
    with pytest.raises(ArtifactError, match="domain was source, is target"):
        merged([one, collect(work / "t.h5").artifact], work / "m.h5")
    other = collect(write(bench, work, "o.h5", "source", network="other"), out=work / "other.h5").artifact
    with pytest.raises(ArtifactError, match="network was pretrain, is other"):
        merged([one, other], work / "m.h5")
    with pytest.raises(ArtifactError, match="holds logits, not logit_statistics"):
        merged([one, work / "s.h5"], work / "m.h5")
    copy_with(one, work / "renamed.h5", names=[*bench.names[:3], "spirit"])
    with pytest.raises(ArtifactError, match="class list"):
        merged([one, work / "renamed.h5"], work / "m.h5")
    copy_with(one, work / "elsewhere.h5", protocol={"network_digest": "sha256:0"})
    with pytest.raises(ArtifactError, match="network_digest was absent, is sha256:0"):
        merged([one, work / "elsewhere.h5"], work / "m.h5")
    assert not (work / "m.h5").exists()


def copy_with(path, target, *, names=None, protocol=None, arrays=None):
    """The same file with another class list, a changed protocol or other arrays."""
    with open_artifact(path) as artifact:
        meta, held = dict(artifact.meta), {**artifact.arrays(), **(arrays or {})}
    if names is not None:
        meta["classes"] = {**meta["classes"], "names": names}
    meta["protocol"] = {**meta["protocol"], **(protocol or {})}
    with ArtifactWriter(target, "logit_statistics", meta=meta) as writer:
        for name, array in held.items():
            writer.add_array(name, array)
    return target


def test_stopped_it_leaves_nothing(bench, work):
    with pytest.raises(StoppedError, match="nothing was written"):
        collect(work / "s.h5", progress=bench.breaker(2))
    assert not list(work.glob("runs/run/5-statistics/*"))
    first = collect(work / "s.h5")
    with pytest.raises(ArtifactError, match="exists already"):
        collect(work / "s.h5")
    assert collect(work / "s.h5", force=True).digest == first.digest
    with pytest.raises(ArtifactError, match="is what is read"):
        collect(work / "s.h5", out=work / "s.h5", force=True)


def test_what_cannot_be_counted(bench, work):
    with pytest.raises(ConfigError, match="excludes"):
        logit_statistics(
            load_config(None, environ={}), checkpoint="x", logits=work / "s.h5", out=None, force=False,
            progress=Silent(),
        )  # fmt: skip
    for path in (work / "source/train/labels").rglob("*.png"):
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)
    with pytest.raises(DataError, match="no pixel of source train by labels has a label"):
        collect(work / "s.h5")
    with pytest.raises(ArtifactError, match="lacks"):
        collect(write(bench, work, "part.h5", "source", bench.ids[:2]))


@pytest.fixture
def statistics(bench, work):
    """A file of statistics whose own logits lie above the others."""
    done = collect(work / "t.h5", out=work / "stat.h5")
    assert float(anchor_mixtures(done.statistics.histograms).mean.diff()) < 0
    return done.artifact


def test_anchors_are_those_of_the_file(bench, statistics):
    found = read_anchors(statistics, bench.names, 3, "sha256:any")
    with open_artifact(statistics) as artifact:
        expected = anchor_mixtures(LogitStatistics.from_arrays(artifact.arrays()).histograms, 3)
        assert found.digest == artifact.digest
    assert all(torch.equal(*pair) for pair in zip(found.mixtures.parts(), expected.parts(), strict=True))
    assert found.used_for is None
    assert read_anchors(copy_with(statistics, statistics.with_name("o.h5"), protocol={"labels_used_for": ORACLE}),
                        bench.names, 3, "").used_for == ORACLE  # fmt: skip


def test_another_networks_anchors_are_taken_with_a_word(bench, statistics, caplog):
    path = copy_with(statistics, statistics.with_name("n.h5"), protocol={"network_digest": "sha256:a"})
    read_anchors(path, bench.names, 3, "sha256:a")
    assert not caplog.records
    read_anchors(path, bench.names, 3, "sha256:b")
    assert "another network" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ("road", "sky", "car", "ghost")}, "class list"),
        ({"protocol": {"values": "log-probabilities"}}, "averaged over views or corrected"),
        ({"protocol": {"corrected_by": ["x"]}}, "averaged over views or corrected"),
        ({"arrays": {"pixels": np.ones(4, np.int64)}}, "its pixels are not"),
        ({"arrays": {"counts": np.zeros((4, 4, BINS), np.int64), "pixels": np.zeros(4, np.int64)}}, "no pixel"),
        ({"arrays": {"edges": np.zeros(3)}}, "edges"),
    ],
)
def test_files_that_give_no_anchors(bench, statistics, change, told):
    path = copy_with(statistics, statistics.with_name("changed.h5"), **change)
    with pytest.raises(ArtifactError, match=told):
        read_anchors(path, bench.names, 3, "")


def test_anchors_in_the_wrong_order_and_files_of_another_kind(bench, statistics, work):
    with open_artifact(statistics) as artifact:
        counts, edges = artifact.array("counts"), artifact.array("edges")
    turned = copy_with(statistics, work / "turned.h5", arrays={"counts": counts[:, :, ::-1].copy(), "edges": edges})
    with pytest.raises(ArtifactError, match="not above the others"):
        read_anchors(turned, bench.names, 3, "")
    with pytest.raises(ArtifactError, match="holds logits, not logit_statistics"):
        read_anchors(work / "s.h5", bench.names, 3, "")
