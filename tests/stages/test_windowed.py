"""Stages that see images by windows: their results say so, and are not taken for those of another window."""

import numpy as np
import pytest

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.stages.evaluate import evaluate
from calseg_cli.stages.predict import predict
from calseg_cli.stages.select_checkpoint_measure import _changed_settings
from tests.stages.small_run import configured, make_folder, trained

SMALL = {"predict__window": (32, 32)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("windows"), images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained(folder)
        yield folder


def predicted(run, *, resume=False, out=None, **flags):
    options = {"checkpoint": None, "images": None, "out": out, "force": False, "progress": Silent()}
    return predict(configured(run, **flags), resume=resume, **options).artifact


def test_an_artifact_of_another_window_is_another_one(run):
    whole, windowed = predicted(run), predicted(run, out=run / "w.h5", **SMALL)
    with open_artifact(whole, "logits") as one, open_artifact(windowed, "logits") as other:
        values = [artifact.meta["protocol"]["values"] for artifact in (one, other)]
        assert values == ["logits", "logits (mean over windows of 32x32, overlap 0.333)"]
        assert "window" not in one.meta["recipe"]["options"]
        name = one.ids[0]
        assert one.geometry(name) == other.geometry(name)
        difference = np.abs(one.item(name, "logits").astype(np.float64) - other.item(name, "logits"))
        assert difference.max() > 0
    assert predicted(run, resume=True, out=run / "w.h5", **SMALL) == windowed
    for changed in ({}, {"predict__window": (32, 48)}, {**SMALL, "predict__window_overlap": 0.5}):
        with pytest.raises(ArtifactError, match="window"):
            predicted(run, resume=True, out=run / "w.h5", **changed)
    large = predicted(run, out=run / "l.h5", predict__window=(48, 64))
    with open_artifact(large, "logits") as same, open_artifact(whole, "logits") as one:
        assert all(np.array_equal(same.item(name, "logits"), one.item(name, "logits")) for name in one.ids)


def test_both_roads_give_the_same_scores(run):
    artifact = predicted(run, out=run / "roads.h5", **SMALL)
    options = {"checkpoint": None, "out": run / "e", "progress": Silent()}
    scores = [
        evaluate(configured(run, **SMALL), logits=logits, **options).document()["scores"] for logits in (None, artifact)
    ]
    assert scores[0] == scores[1]


def test_a_window_off_the_grid_is_refused_before_anything_is_written(run):
    with pytest.raises(ConfigError, match=r"predict\.window \[30, 32\]"):
        predicted(run, out=run / "none.h5", predict__window=(30, 32))
    assert not list(run.glob("none.h5*"))


def test_counts_kept_by_training_are_not_those_of_another_window(run):
    before = configured(run, **SMALL).to_dict()
    assert _changed_settings(before, configured(run, **SMALL)) is None
    assert _changed_settings(before, configured(run)) == "predict.window"
    assert _changed_settings(before, configured(run, **SMALL, predict__window_overlap=0.5)) == "predict.window_overlap"
    assert _changed_settings(configured(run).to_dict(), configured(run, predict__window_overlap=0.5)) is None
