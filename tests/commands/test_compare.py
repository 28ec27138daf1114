"""calseg compare, as a person types it."""

import json
import shutil

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def evaluated(trained, calseg, tmp_path_factory):
    """A run with two evaluations of the same images and one of fewer, and one of the source."""
    folder = tmp_path_factory.mktemp("evaluated") / "w"
    shutil.copytree(trained, folder)
    checkpoint = "runs/sample/1-pretrain/checkpoints/step-000015.safetensors"
    for name, *words in (
        ("last",),
        ("earlier", "--checkpoint", checkpoint, "--intervals", "200"),
        ("part", "--max-items", "4", "-o", "part"),
        ("source", "--domain", "source"),
    ):
        ran = calseg("eval", "--json", *words, cwd=folder)
        assert ran.code == 0, ran.err
        (folder / f"{name}.json").write_text(ran.out)
    return folder


def test_stages_of_the_run(calseg, evaluated):
    ran = calseg("compare", "pretrain-step-000015", "pretrain", cwd=evaluated)
    assert ran.code == 0, ran.err
    assert "pretrain-target-test against pretrain-step-000015-target-test" in ran.out
    assert "95 % interval" in ran.out
    assert "mIoU" in ran.out
    assert "95 % percentile intervals of 1000 draws of" in ran.out
    assert "ECE: top-label, 15 equal-width bins" in ran.out


def test_paths_without_a_configuration(calseg, evaluated, tmp_path):
    folders = [
        str(evaluated / f"runs/sample/6-evaluate/{name}-target-test") for name in ("pretrain-step-000015", "pretrain")
    ]
    ran = calseg("compare", *folders, "--classes", "--png", "new/curves.png", "--resamples", "200", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "IoU by class" in ran.out
    with Image.open(tmp_path / "new/curves.png") as picture:
        assert picture.format == "PNG"


def test_json_agrees_with_evaluate(calseg, evaluated):
    ran = calseg("compare", "pretrain-step-000015", "pretrain", "--resamples", "200", "--json", cwd=evaluated)
    assert ran.code == 0, ran.err
    assert ran.err == ""
    first, second = ran.json["results"]
    scores, alone = (json.loads((evaluated / f"{name}.json").read_text()) for name in ("last", "earlier"))
    assert second["scores"]["ece"]["value"] == scores["scores"]["ece"]
    assert first["scores"]["miou"]["value"] == alone["scores"]["miou"]
    assert alone["intervals"]["scores"]["miou"] == [first["scores"]["miou"][end] for end in ("low", "high")]
    assert (alone["intervals"]["resamples"], alone["intervals"]["level"]) == (200, 0.95)
    assert "intervals" not in scores


def test_a_part_of_the_images(calseg, evaluated):
    ran = calseg("compare", "pretrain", "part", "--json", cwd=evaluated)
    assert ran.code == 0, ran.err
    assert ran.json["num_images"] == 4
    assert "images of pretrain-target-test are not in all" in ran.json["notes"][0]
    assert all(apart["value"] in (0, None) for apart in ran.json["differences"][0]["scores"].values())


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("pretrain",), 2, "two evaluations"),
        (("pretrain", "nothing"), 3, "it has pretrain-source-test, pretrain-step-000015-target-test"),
        (("pretrain", "pretrain-source-test"), 3, "differ"),
        (("pretrain", "part", "--level", "95"), 2, "0.95 is usual"),
        (("pretrain", "part", "--resamples", "5"), 2, "100 to 100000"),
        (("pretrain", "part", "--bins", "16"), 2, "15 or 20"),
        (("pretrain", "part", "--by", "sequence"), 2, "--sequence-pattern"),
        (("pretrain", "part", "--png", "part/metrics.h5"), 2, ".png"),
        (("pretrain", "calseg.yaml"), 3, "calseg.yaml"),
    ],
)
def test_mistakes(calseg, evaluated, words, code, told):
    ran = calseg("compare", *words, cwd=evaluated)
    assert ran.code == code, ran.err
    assert told in ran.err
    assert ran.err.startswith("error: ")
    assert ran.out == ""


def test_evaluate_shows_intervals(calseg, evaluated):
    ran = calseg("eval", "--intervals", "150", "--report", "iou", "-o", "again", cwd=evaluated)
    assert ran.code == 0, ran.err
    assert "95 % interval" in ran.out
    ran = calseg("eval", "--intervals", "5", "-o", "never", cwd=evaluated)
    assert ran.code == 2
    assert "100 to 100000" in ran.err
    assert not (evaluated / "never").exists()
