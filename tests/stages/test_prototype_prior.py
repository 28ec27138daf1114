"""Prototypes that begin with the source's: what is stored and merged, the table of the shift, and what is refused."""

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods.prototype_state import PrototypeState
from calseg_cli.stages.calibrate_prototypes import calibrate_prototypes
from calseg_cli.stages.corrections import load_correction
from calseg_cli.stages.merging import merge_artifacts
from calseg_cli.stages.online_prototypes import correct_online
from calseg_cli.stages.prototype_input import Asked

PROTOCOL = {"domain": "source", "split": "train", "network": "pretrain", "grid": "logits at stride 4"}


def load(**options):
    return load_config(None, flags={f"prototypes.{key}": value for key, value in options.items()}, environ={})


def run(*, logits=None, source=None, out=None, force=False, **options):
    return calibrate_prototypes(load(**options), Asked(logits), source=source, out=out, force=force, progress=Silent())


def source_logits(classes: int = 4, lost: int | None = 0) -> np.ndarray:
    """All classes are predicted, the last too, but for one."""
    logits = np.random.default_rng(50).normal(0, 2, (classes, 8, 9)).astype(np.float32)
    if lost is not None:
        logits[lost] = -60
    return logits


def write_source(bench, path, *, protocol=None, checkpoint=None, lost=0):
    meta = {
        "classes": {"names": list(bench.names), "palette": [list(color) for color in bench.palette], "ignore": 255},
        "protocol": protocol or PROTOCOL,
        "provenance": {"parents": {"checkpoint": checkpoint}} if checkpoint else {},
    }
    with ArtifactWriter(path, "logits", meta=meta, ids=["one"]) as writer:
        writer.add_item(
            "one", {"logits": source_logits(lost=lost)}, Geometry(in_hw=(32, 36), out_hw=(32, 36), stride=4)
        )
    return path


@pytest.fixture
def source(bench, folder):
    """Prototypes of the source: no pixel of it is road, and some are ghost, which the target never has."""
    return run(logits=write_source(bench, folder / "source-logits.h5"), out=folder / "source.h5", shrink=0.5).artifact


def means(*images):
    """C (4,4) by a loop over pixels in float64, NaN where no pixel is."""
    sums, weights = np.zeros((4, 4)), np.zeros(4)
    for logits in images:
        z = logits.reshape(4, -1).T.astype(np.float64)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        for p in e / e.sum(axis=1, keepdims=True):
            sums[p.argmax()] += p.max() * p
            weights[p.argmax()] += p.max()
    with np.errstate(invalid="ignore"):
        return sums / weights[:, None], weights


@pytest.mark.parametrize("prior", [0.0, 12.0])
def test_the_artifact_has_all_it_needs(bench, folder, source, prior):
    done = run(prior_from=source, prior=prior)
    begin, _ = means(source_logits())
    counted, weights = means(*(bench.logits_of(number) for number in range(5)))
    begin[0] = np.eye(4)[0]
    counted[3] = 0
    wanted = (weights[:, None] * counted + prior * begin) / np.maximum(weights + prior, 1e-9)[:, None]
    wanted[3] = begin[3]
    np.testing.assert_allclose(done.prototypes.rows, wanted, atol=1e-6)
    with open_artifact(source) as artifact, open_artifact(done.artifact) as made:
        digest = artifact.digest
        assert made.meta["provenance"]["parents"]["prior"] == digest
        assert made.meta["provenance"]["files"]["prior"].endswith("source.h5")
        assert made.meta["protocol"]["correction"]["fitted_on"]["prior"] == digest
        state = PrototypeState(4)
        for number in range(5):
            state.add(torch.from_numpy(bench.logits_of(number)))
        np.testing.assert_array_equal(made.array("sums"), state.sums)
    source.unlink()
    again = load_correction(done.artifact, "prototypes").correction
    logits = torch.from_numpy(bench.logits_of(0)).float()
    assert torch.equal(again(logits), done.prototypes(logits))
    np.testing.assert_array_equal(again.rows, done.prototypes.rows)


@pytest.mark.parametrize("prior", [0.0, 7.0])
def test_merged_parts_hold_the_prior_once_and_are_the_whole_bit_for_bit(bench, folder, source, prior):
    whole = run(prior_from=source, prior=prior)
    parts = []
    for number, ids in enumerate((bench.ids[:2], bench.ids[2:])):
        logits = bench.write_logits(folder / f"l{number}.h5", ids, images=folder / "target/train/images")
        parts.append(run(logits=logits, out=folder / f"p{number}.h5", prior_from=source, prior=prior).artifact)
    merge_artifacts(parts, folder / "all.h5", command=["calseg"], force=False, told=lambda: None)
    found, wanted = (load_correction(path, "prototypes").correction for path in (folder / "all.h5", whole.artifact))
    assert found.rows.tobytes() == wanted.rows.tobytes()
    with open_artifact(folder / "all.h5") as one, open_artifact(whole.artifact) as other:
        assert sorted(one.array_names) == sorted(other.array_names)
        for name, array in other.arrays().items():
            np.testing.assert_array_equal(one.array(name), array)
        assert one.meta["provenance"]["parents"]["prior"] == other.meta["provenance"]["parents"]["prior"]


def test_parts_that_begin_with_others_are_not_merged(bench, folder, source):
    second = write_source(bench, folder / "second-logits.h5", lost=1)
    other = run(logits=second, out=folder / "second.h5").artifact
    halves = [bench.write_logits(folder / f"l{n}.h5", ids) for n, ids in enumerate((bench.ids[:2], bench.ids[2:]))]
    begun = run(logits=halves[0], out=folder / "a.h5", prior_from=source).artifact
    for number, options in enumerate(({"prior_from": other}, {})):
        part = run(logits=halves[1], out=folder / f"b{number}.h5", **options).artifact
        with pytest.raises(ArtifactError, match="prior was sha256"):
            merge_artifacts([begun, part], folder / "all.h5", command=["calseg"], force=False, told=lambda: None)


def test_the_table_of_the_shift(bench, folder, source):
    done = run(prior_from=source, prior=1000.0, shrink=0.3)
    before, _ = means(source_logits())
    after, _ = means(*(bench.logits_of(number) for number in range(5)))
    rows = done.document()["shift"]
    assert [row["name"] for row in rows] == list(bench.names)
    for index in (1, 2):
        assert rows[index]["source"] == pytest.approx(before[index, index], abs=1e-6)
        assert rows[index]["target"] == pytest.approx(after[index, index], abs=1e-6)
        assert rows[index]["difference"] == pytest.approx((after - before)[index, index], abs=1e-6)
        assert rows[index]["most_to"] == "road"  # of which the source has nothing
        assert rows[index]["taken"] == pytest.approx(after[index, 0] - before[index, 0], abs=1e-6)
    assert (rows[0]["most_to"], rows[3]["most_to"]) == (None, None)
    assert np.isnan([rows[0]["source"], rows[0]["difference"], rows[3]["target"], rows[3]["taken"]]).all()
    _, headers, lines = done.shift.table()
    assert all(len(line) == len(headers) for line in lines)
    assert lines[0][1] == lines[0][3] == lines[3][2] == lines[3][4] == lines[3][5] == "n/a"
    assert lines[1][1] == f"{before[1, 1]:.4f}"
    assert done.table()[2][3][-1] == "the source's prototype"
    assert run(force=True).document()["shift"] is None


def test_a_relative_path_in_the_file_is_relative_to_it(bench, folder, source, monkeypatch):
    (folder / "sub").mkdir()
    (folder / "calseg.yaml").write_text("target: {root: target}\nprototypes: {prior_from: source.h5}\n")
    monkeypatch.chdir(folder / "sub")
    resolved = load_config(folder / "calseg.yaml", environ={})
    assert resolved.config.prototypes.prior_from == source
    assert resolved.to_dict()["prototypes"]["prior_from"] == "source.h5"


# What is refused


def target_logits(bench, folder, **changes):
    return bench.write_logits(folder / "t.h5", protocol={**PROTOCOL, "domain": "target", **changes})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_power": 2.0}, "weight_power was 1.0, is 2.0"),
        ({"temperature": 2.0}, "temperature was 1.0"),
        ({"min_confidence": 0.2}, "min_confidence"),
        ({"top_frac": 0.5}, "top_frac was absent, is 0.5"),
        ({"iterations": 2}, "iterations"),
    ],
    ids=str,
)
def test_another_rule(bench, folder, source, options, said):
    with pytest.raises(ArtifactError, match=rf"source\.h5 was counted by another rule: {said}") as caught:
        run(prior_from=source, out=folder / "x.h5", **options)
    assert "\n" not in caught.value.message
    assert not (folder / "x.h5").exists()


def test_options_of_labelling_may_differ(bench, folder, source):
    run(prior_from=source, distance="kl", shrink=0.1, min_pixels=1, unseen="onehot", confidence="distance", tau=0.3)


@pytest.mark.parametrize(
    "changes", [{"grid": "logits at stride 8"}, {"network": "adapt"}, {"corrected_by": ["something"]}], ids=str
)
def test_logits_that_were_made_differently(bench, folder, source, changes):
    logits = target_logits(bench, folder, **changes)
    with pytest.raises(ArtifactError, match=f"made differently: {next(iter(changes))} was"):
        run(logits=logits, prior_from=source, out=folder / "x.h5")


def test_images_of_another_size_are_fine(bench, folder, source):
    run(logits=target_logits(bench, folder, network_input="512x1024"), prior_from=source, out=folder / "x.h5")


def test_the_logits_of_another_network(bench, folder):
    made = {}
    for name in ("one", "other"):
        logits = write_source(bench, folder / f"{name}-logits.h5", checkpoint=f"sha256:{name}")
        made[name] = run(logits=logits, out=folder / f"{name}.h5").artifact
    logits = folder / "one-logits.h5"
    run(logits=logits, prior_from=made["one"], out=folder / "fine.h5")
    with pytest.raises(ArtifactError, match=r"other\.h5 was counted from the logits of another network"):
        run(logits=logits, prior_from=made["other"], out=folder / "x.h5")


def test_files_that_are_no_prototypes_of_these_classes(bench, folder, source):
    fewer = bench.write_logits(folder / "three-logits.h5", classes=bench.names[:3])
    three = run(logits=fewer, out=folder / "three.h5").artifact
    (folder / "text.h5").write_text("no HDF5")
    damaged = folder / "damaged.h5"
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    for path, said in (
        (three, "another class list"),
        (fewer, "holds logits, not prototypes"),
        (folder / "text.h5", r"text\.h5"),
        (folder / "nowhere.h5", r"nowhere\.h5"),
        (damaged, r"damaged\.h5"),
    ):
        with pytest.raises(ArtifactError, match=said) as caught:
            run(prior_from=path, out=folder / "x.h5")
        assert "\n" not in caught.value.message
    assert not (folder / "x.h5").exists()


def test_the_source_is_not_written_over(folder, source):
    with pytest.raises(ArtifactError, match="is what is read"):
        run(prior_from=source, out=source, force=True)


def test_what_has_no_effect_together(folder, source):
    with pytest.raises(ConfigError, match="both stand in"):
        run(prior_from=source, source=source, unseen="source")
    with pytest.raises(ConfigError, match="--prior-from has no effect with --online causal"):
        correct_online(
            load(prior_from=source, online="causal", prior=5.0), Asked(), out=None, force=False, progress=Silent()
        )
