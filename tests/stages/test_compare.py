"""Comparing evaluations: only what fits is compared, on the images that are shared, and nothing is called by chance."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.commands._session import plain
from calseg_cli.config import load_config
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import merge, tally_image
from calseg_cli.stages.compare import CompareOptions, compare
from calseg_cli.stages.compare_tables import document, explanation, tables
from calseg_cli.stages.compared_files import find_metrics, groups_of
from calseg_cli.stages.tally_file import read_tally, write_tally

NAMES = ("road", "car", "sky")
IDS = tuple(f"drive{number // 4}/{number:02}" for number in range(12))
PROTOCOL = {
    "domain": "target",
    "split": "test",
    "grid": "logits at stride 4",
    "values": "logits",
    "scales": [1.0],
    "labels_used_for": "measuring only",
    "evaluated_classes": "all",
}
QUICK = CompareOptions(resamples=200)


def labels_of(name, size=(16, 20)):
    return np.random.default_rng(sum(map(ord, name))).choice([0, 0, 1, 1, 1, 255], size=size).astype(np.uint8)


def evaluation(path, *, ids=IDS, skill=1.0, size=(16, 20), names=NAMES, edges="right", **protocol):
    """An evaluation of a network that finds the right class the surer, the larger its skill."""
    parts = []
    for name in ids:
        label = labels_of(name, size)
        noise = np.random.default_rng(7).normal(size=(len(names), *size))
        right = np.eye(len(names))[np.where(label == 255, 0, label)].transpose(2, 0, 1)
        logits = torch.from_numpy((noise + skill * right).astype(np.float32))
        parts.append(tally_image(logits, label, image_id=name, ignore=255, edges=edges))
    meta = {
        "classes": {"names": list(names), "palette": [[0, 0, 0]] * len(names), "ignore": 255},
        "protocol": {**PROTOCOL, **protocol},
    }
    write_tally(path, merge(parts), meta)
    return path


@pytest.fixture
def pair(tmp_path):
    """Two evaluations, the second one clearly better."""
    return [evaluation(tmp_path / "weak/metrics.h5"), evaluation(tmp_path / "strong/metrics.h5", skill=1.5)]


def rows_of(found, *, classes=False):
    return [{row[0]: row[1:] for row in rows} for _, _, rows in tables(found, classes=classes)]


def test_scores_are_those_of_the_evaluations(pair):
    found = compare(pair, QUICK)
    for result, path in zip(found.results, pair, strict=True):
        scores = read_scores(read_tally(path)[0], class_names=NAMES)
        assert all(getattr(scores, name) == value.value for name, value in result.scores.items())
        assert [row["iou"].value for row in result.classes][:2] == [row.iou for row in scores.classes][:2]
    assert [result.source.name for result in found.results] == ["weak", "strong"]
    (against,) = found.against
    for name, apart in against.scores.items():
        assert apart.value == found.results[1].scores[name].value - found.results[0].scores[name].value


def test_what_is_better_is_marked(pair):
    (rows,) = rows_of(compare(pair, QUICK))
    assert rows["mIoU"][-1] == rows["NLL"][-1] == rows["accuracy"][-1] == "better"
    assert rows["mean confidence"][-1] == "higher"
    (rows,) = rows_of(compare(pair[::-1], QUICK))
    assert rows["mIoU"][-1] == rows["NLL"][-1] == "worse"
    assert rows["mean confidence"][-1] == "lower"


def test_a_result_against_itself(pair):
    found = compare([pair[0], pair[0]], QUICK)
    assert all(apart.value == apart.low == apart.high == 0 for apart in found.against[0].scores.values())
    (rows,) = rows_of(found)
    assert {row[-1] for row in rows.values()} == {""}
    assert {row[3] for row in rows.values()} == {"0.0000 to 0.0000"}
    assert len({result.source.name for result in found.results}) == 2


def test_more_than_two_are_each_compared_with_the_first(pair, tmp_path):
    third = evaluation(tmp_path / "third/metrics.h5", skill=2.0)
    found = compare([*pair, third], QUICK)
    assert [(one.first.source.name, one.second.source.name) for one in found.against] == [
        ("weak", "strong"),
        ("weak", "third"),
    ]
    alone = compare([pair[0], third], QUICK)
    assert alone.against[0].scores == found.against[1].scores


def test_only_shared_images_are_compared(pair, tmp_path):
    part = evaluation(tmp_path / "part/metrics.h5", ids=IDS[3:], skill=1.5)
    found = compare([pair[0], part], QUICK)
    assert found.num_images == 9
    assert "3 of 12 images of weak are not in all, and left out" in found.notes
    scores = read_scores(read_tally(evaluation(tmp_path / "same/metrics.h5", ids=IDS[3:]))[0], class_names=NAMES)
    assert found.results[0].scores["ece"].value == scores.ece
    assert found.curves[0].reliability.count.sum() == scores.num_valid
    with pytest.raises(ArtifactError, match=r"no image is in all of them \(weak: target test; other: source val\)"):
        compare(
            [pair[0], evaluation(tmp_path / "other/metrics.h5", ids=("x", "y"), domain="source", split="val")], QUICK
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ("road", "car", "tree")}, "another class list"),
        ({"edges": "left"}, "left edges"),
        ({"size": (32, 40)}, "320 and 1,280 pixels"),
        ({"evaluated_classes": ["road"]}, "averages over other classes"),
    ],
)
def test_what_does_not_fit_is_refused(pair, tmp_path, change, told):
    other = evaluation(tmp_path / "other/metrics.h5", **change)
    with pytest.raises(ArtifactError, match=told) as caught:
        compare([pair[0], other], QUICK)
    assert caught.value.hint


def test_the_same_names_of_other_images_are_refused(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(
        f"{__name__}.labels_of", lambda name, size: np.random.default_rng(1).integers(0, 3, size).astype(np.uint8)
    )
    other = evaluation(tmp_path / "other/metrics.h5", split="val")
    with pytest.raises(ArtifactError, match=r"the labels of 'drive0/00' differ .*target test.*target val.*of a class"):
        compare([pair[0], other], QUICK)


def test_another_manner_is_told(pair, tmp_path):
    other = evaluation(tmp_path / "other/metrics.h5", split="val", scales=[0.75, 1.0])
    told = compare([pair[0], other], QUICK).notes
    assert "not the same domain and split: weak target test; other target val" in told
    assert "not the same scales: weak [1.0]; other [0.75, 1.0]" in told
    assert not [note for note in told if "values" in note or "oracle" in note]
    assert compare(pair, QUICK).notes == ()


def test_an_oracle_is_called_one(pair, tmp_path):
    other = evaluation(tmp_path / "chosen/metrics.h5", labels_used_for="choosing the checkpoint")
    found = compare([pair[0], other], QUICK)
    ((title, headers, _),) = tables(found, classes=False)
    assert "chosen (oracle)" in title
    assert headers[2] == "chosen (oracle)"
    assert headers[1] == "weak"
    assert any("chosen is an oracle" in line and "choosing the checkpoint" in line for line in explanation(found))
    assert [result["oracle"] for result in document(found)["results"]] == [False, True]


def test_classes(pair):
    found = compare(pair, QUICK)
    _, by_class = rows_of(found, classes=True)
    assert list(by_class) == list(NAMES)
    assert by_class["sky"][:2] == ["n/a", "n/a"]
    assert by_class["sky"][3:] == ["n/a", "n/a", ""]
    assert by_class["road"][-1] == "better"


def test_means_follow_the_evaluated_classes(tmp_path):
    paths = [
        evaluation(tmp_path / f"{name}/metrics.h5", skill=skill, evaluated_classes=["car"])
        for name, skill in (("a", 1.0), ("b", 1.5))
    ]
    found = compare(paths, QUICK)
    assert found.results[0].scores["miou"].value == found.results[0].classes[1]["iou"].value
    assert list(rows_of(found, classes=True)[1]) == ["car"]
    with pytest.raises(ConfigError, match="does not know"):
        compare(paths, CompareOptions(resamples=200, eval_classes=13))


def test_sequences(pair):
    by_drive = compare(pair, CompareOptions(resamples=200, by="sequence"))
    by_pattern = compare(pair, CompareOptions(resamples=200, sequence_pattern=r"^(drive\d)/"))
    assert by_drive.num_groups == by_pattern.num_groups == 3
    assert by_drive.against[0].scores == by_pattern.against[0].scores
    assert "only 3 sequences" in by_drive.notes[0]
    assert "3 sequences with 12 images" in explanation(by_drive)[0]
    whole = compare(pair, CompareOptions(resamples=200, sequence_pattern="drive"))
    assert "all images are of one sequence" in whole.notes[0]
    assert math.isnan(whole.against[0].scores["ece"].low)
    assert {row[3] for row in rows_of(whole)[0].values()} == {"n/a"}


def test_groups():
    assert groups_of(["b/1", "a"], "image", None) == ("b/1", "a")
    assert groups_of(["x/y/1", "x/2"], "sequence", None) == ("x/y", "x")
    assert groups_of(["0001TP_0085", "0006R0_1"], "image", "^([^_]+)_") == ("0001TP", "0006R0")
    assert groups_of(["fog/a_1", "rain/a_2"], "sequence", r"(\w+)/(\w)_") == ("fog/a", "rain/a")
    assert groups_of(["ab1", "ab2"], "sequence", "ab(c)?") == ("ab", "ab")


@pytest.mark.parametrize(
    ("by", "pattern", "told"),
    [
        ("drive", None, "--by 'drive' is unknown"),
        ("sequence", None, "lies in no folder"),
        ("sequence", "(", "no regular expression"),
        ("sequence", "^x", "does not match 2 of 2"),
    ],
)
def test_groups_that_are_none(by, pattern, told):
    with pytest.raises(ConfigError, match=told):
        groups_of(["a_1", "a_2"], by, pattern)


@pytest.mark.parametrize(
    "change", [{"level": 95.0}, {"resamples": 1}, {"bins": 7}, {"method": "normal"}, {"by": "pixel"}]
)
def test_options_that_cannot_be(pair, change):
    with pytest.raises(ConfigError):
        compare(pair, CompareOptions(**change))


def test_one_is_not_enough(pair):
    with pytest.raises(ConfigError, match="two evaluations"):
        compare(pair[:1], QUICK)


def test_rare_classes_are_told(tmp_path, monkeypatch):
    original = labels_of

    def rare(name, size):
        label = original(name, size)
        label[0, 0] = 2 if name == IDS[5] else label[0, 0]
        return label

    monkeypatch.setattr(f"{__name__}.labels_of", rare)
    found = compare([evaluation(tmp_path / f"{n}/metrics.h5", skill=n) for n in (1, 2)], QUICK)
    missing = found.against[0].classes[2]["iou"].undefined
    assert 200 * 0.2 < missing < 200 * 0.5  # (11/12)**12 = 0.35
    assert f"draws without a pixel of a class, of 200: sky {missing}; left out for it" in found.notes


def test_seed_and_level(pair):
    one, same, other = (compare(pair, CompareOptions(resamples=200, seed=seed)) for seed in (0, 0, 1))
    assert plain(document(one)) == plain(document(same))
    assert one.against[0].scores["ece"].low != other.against[0].scores["ece"].low
    narrow = compare(pair, CompareOptions(resamples=200, level=0.5))
    for name, apart in narrow.against[0].scores.items():
        assert one.against[0].scores[name].low <= apart.low <= apart.high <= one.against[0].scores[name].high


def test_the_document_is_json_and_complete(pair):
    found = compare(pair, QUICK)
    read = json.loads(json.dumps(plain(document(found)), allow_nan=False))
    assert read["results"][0]["file"] == str(pair[0])
    entry = read["differences"][0]["scores"]["miou"]
    assert set(entry) == {"value", "low", "high", "median", "undefined", "share", "excludes_zero"}
    assert entry["excludes_zero"] is True
    assert [row["name"] for row in read["differences"][0]["classes"]] == list(NAMES)
    assert read["differences"][0]["classes"][2]["iou"]["value"] is None
    assert (read["resamples"], read["level"], read["seed"], read["resampled"]) == (200, 0.95, 0, "image")


def test_the_picture(pair, tmp_path):
    compare(pair, QUICK).draw(tmp_path / "new/curves.png")
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert picture.width > 600
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(47, 111, 222), (201, 138, 8)} <= colors


# Which file is meant


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain-target-test", "pretrain-source-val", "odd"):
        evaluation(tmp_path / f"runs/run/6-evaluate/{name}/metrics.h5", ids=IDS[:1])
    (tmp_path / "calseg.yaml").write_text("{}\n")
    return tmp_path / "runs/run/6-evaluate"


def configured(**flags):
    return lambda: load_config(None, flags=flags, environ={})


def never():
    raise AssertionError("the configuration was read")


def test_paths_need_no_configuration(run):
    for word in (run / "odd", run / "odd/metrics.h5"):
        assert find_metrics(str(word), never) == run / "odd/metrics.h5"


def test_names_are_looked_for_in_the_run(run):
    found = find_metrics("pretrain", configured())
    assert found.resolve() == run / "pretrain-target-test/metrics.h5"
    options = {"evaluate.domain": "source", "evaluate.split": "val"}
    assert find_metrics("pretrain", configured(**options)).resolve() == run / "pretrain-source-val/metrics.h5"
    assert find_metrics("odd", configured()).resolve() == run / "odd/metrics.h5"


def test_names_that_are_nowhere(run):
    with pytest.raises(ArtifactError, match="'adapt'") as caught:
        find_metrics("adapt", configured())
    assert "odd, pretrain-source-val, pretrain-target-test" in caught.value.hint
    with pytest.raises(ArtifactError, match=r"runs holds no metrics\.h5"):
        find_metrics("runs", never)
    for word in ("some/where", "gone.h5"):
        with pytest.raises(ArtifactError, match=f"there is no {word}"):
            find_metrics(word, never)
    with pytest.raises(ArtifactError, match="'x'") as caught:
        find_metrics("x", configured(name="new"))
    assert "calseg evaluate" in caught.value.hint


def test_names_tell_results_apart(tmp_path):
    paths = [
        evaluation(tmp_path / f"runs/{run}/6-evaluate/{stage}/metrics.h5", ids=IDS[:2])
        for run, stage in (("one", "a"), ("two", "a"), ("two", "b"))
    ]
    names = [[result.source.name for result in compare(some, QUICK).results] for some in (paths, paths[1:])]
    assert names == [["one/a", "two/a", "two/b"], ["a", "b"]]
