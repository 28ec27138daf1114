"""`predict.amp` holds wherever a network is looked at as `predict` does: in training's own validation too."""

import pytest

from calseg_cli.engine.progress import Silent
from calseg_cli.stages.evaluate import evaluate
from calseg_cli.stages.select_checkpoint_measure import _changed_settings
from tests.stages.small_run import configured, make_folder, trained

DATA = {"evaluate__domain": "source", "evaluate__split": "val"}


def validated(folder, name, amp):
    """Scores that training recorded of its own validation."""
    flags = {"name": name, "pretrain__validate_every": 3, "predict__amp": amp}
    return trained(folder, **flags).scores


def measured(folder, name, amp):
    resolved = configured(folder, name=name, predict__amp=amp, **DATA)
    done = evaluate(
        resolved, checkpoint=None, logits=None, out=folder / "measured" / f"{name}-{amp}", progress=Silent()
    )
    return done.document()["scores"]


def test_validation_answers_as_predict_does(tmp_path, monkeypatch):
    folder = make_folder(tmp_path, images=2)
    monkeypatch.chdir(folder)
    half, full = (validated(folder, name, amp) for name, amp in (("half", "bf16"), ("full", "off")))
    assert half["nll"] != full["nll"]
    for name, scores in (("half", half), ("full", full)):
        amp = "bf16" if name == "half" else "off"
        again = measured(folder, name, amp)
        assert {key: scores[key] for key in ("miou", "ece", "nll")} == {
            key: pytest.approx(again[key], abs=1e-12) for key in ("miou", "ece", "nll")
        }


def test_counts_kept_by_training_are_not_those_of_another_precision(tmp_path):
    folder = make_folder(tmp_path, images=1)
    before = configured(folder).to_dict()
    assert _changed_settings(before, configured(folder)) is None
    assert _changed_settings(before, configured(folder, predict__amp="bf16")) == "predict.amp"
