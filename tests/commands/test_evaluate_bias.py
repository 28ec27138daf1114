"""`calseg eval --report bias`, as a user types it."""

import math

import numpy as np
import pytest

from calseg_cli.metrics.bias import class_bias
from calseg_cli.stages.tally_file import read_tally


def test_bias_is_shown_drawn_and_kept(workspace, calseg):
    folder = workspace / "runs/sample/6-evaluate/pretrain-target-test"
    plain = calseg("eval", "--json", cwd=workspace)
    assert plain.code == 0, plain.err
    assert not (folder / "bias.png").exists()
    before = read_counts(folder)
    shown = calseg("eval", "--report", "bias", "--html", cwd=workspace)
    assert shown.code == 0, shown.err
    for words in ("spread of bias", "by logits", "own logit", "anchors:", "above 0 is"):
        assert words in shown.out
    assert (folder / "bias.png").read_bytes().startswith(b"\x89PNG")
    assert 'id="bias"' in (folder / "report.html").read_text(encoding="utf-8")
    after = read_counts(folder)
    assert set(after) - set(before) == {"logits_counts", "logits_exponent"}
    assert all(np.array_equal(before[name], after[name]) for name in before)

    more = calseg("eval", "--report", "bias", "--json", cwd=workspace).json
    assert more["scores"] == plain.json["scores"]
    assert [row["bias"] for row in more["classes"]] == class_bias(np.array(more["confusion"])).tolist()
    assert [row["bias"] for row in plain.json["classes"]] == [row["bias"] for row in more["classes"]]
    assert "logits" not in plain.json
    told = more["logits"]
    assert [row["name"] for row in told["classes"]] == more["class_names"]
    assert math.fsum(row["bias_by_logits"] for row in told["classes"]) == pytest.approx(0, abs=1e-9)
    assert told["anchors"]["positive"]["mean"] > told["anchors"]["negative"]["mean"]


def read_counts(folder):
    tally, artifact = read_tally(folder / "metrics.h5")
    artifact.close()
    return tally.to_arrays()


def test_bias_and_spreads_have_intervals_and_can_be_compared(workspace, calseg):
    ran = calseg(
        "eval", "--intervals", "100", "--report", "bias", "--json", "--fail-if", "bias_spread>1", cwd=workspace
    )
    assert ran.code == 0, ran.err
    for name in ("bias_spread", "iou_spread", "accuracy_spread"):
        low, high = ran.json["intervals"]["scores"][name]
        assert low <= high
    found = calseg("compare", "pretrain", "pretrain", "--resamples", "100", "--json", cwd=workspace)
    assert found.code == 0, found.err
    (first, _) = found.json["results"]
    assert first["scores"]["bias_spread"]["value"] == ran.json["scores"]["bias_spread"]
    assert [row["bias"]["value"] for row in first["classes"]] == [row["bias"] for row in ran.json["classes"]]
