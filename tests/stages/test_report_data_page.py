"""The page of a whole evaluation: intervals where they were asked for, and a class that nothing is predicted as."""

import json

import numpy as np
import pytest
from PIL import Image

from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.stages.evaluate import evaluate


@pytest.fixture
def evaluated(bench, folder):
    """Evaluates the logits of the folder against labels beside its images; one image has no class anywhere."""
    for name, size in zip(bench.ids, bench.sizes, strict=True):
        path = folder / "target" / "train" / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = np.random.default_rng(size[0]).integers(0, len(bench.names), size, np.uint8)
        Image.fromarray(labels if name != bench.ids[1] else np.full(size, 255, np.uint8)).save(path)

    def run(out, **options):
        names = ", ".join(bench.names)
        (folder / "calseg.yaml").write_text(f"target: {{root: target, classes: [{names}]}}\n")
        flags = {f"evaluate.{key}": value for key, value in options.items()} | {"evaluate.html": True}
        logits = folder / "runs/run/5-predict/x-target-train.h5"
        done = evaluate(
            load_config(None, flags=flags, environ={}),
            checkpoint=None,
            logits=logits,
            out=folder / out,
            progress=Silent(),
        )
        return done, (folder / out / "report.html").read_text(), json.loads((folder / out / "scores.json").read_text())

    return run


def test_bins_have_intervals_around_their_accuracy(evaluated):
    done, page, document = evaluated("a", intervals=100)
    intervals, bins = document["intervals"]["bin_accuracy"], document["reliability"]
    assert len(intervals) == len(bins["count"]) == 15
    for (low, high), count, accuracy in zip(intervals, bins["count"], bins["accuracy"], strict=True):
        assert (low is None) == (count == 0)
        assert low is None or 0 <= low <= accuracy <= high <= 1
    assert any(high > low for low, high in intervals if low is not None)
    assert "95 % intervals of 100 resamples of whole images" in page
    assert "95 % interval</th>" in page
    again, same, _ = evaluated("a", intervals=100)
    assert same == page
    np.testing.assert_array_equal(again.data.intervals.bin_accuracy, done.data.intervals.bin_accuracy)


def test_a_class_that_is_never_predicted_is_named(evaluated):
    done, page, document = evaluated("a")
    assert "Never predicted, so there is nothing to draw: ghost." in page
    assert "intervals" not in document
    assert "interval</th>" not in page
    assert page.count('alt="confidence error"') == len(done.data.examples) > 0


def test_one_image_has_no_intervals(evaluated):
    _, page, document = evaluated("one", intervals=100, max_items=1)
    assert document["intervals"]["bin_accuracy"] == [[None, None]] * 15
    assert "two images or more" in page
    assert "no labelled pixels" not in page
