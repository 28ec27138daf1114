"""What a report is compared with: the same images by the same metric, and files that are readable."""

import json
import math

from calseg_cli.stages.comparison import earlier_results

PROTOCOL = {"domain": "target", "split": "test", "metric": "m", "evaluated_classes": "all"}
RELIABILITY = {"lower": [0.0], "upper": [1.0], "count": [0], "confidence": [None], "accuracy": [None]}


def write(folder, name, **changes):
    document = {"num_images": 4, "protocol": PROTOCOL, "scores": {"ece": 0.1, "nll": None}, "reliability": RELIABILITY}
    (folder / name).mkdir(parents=True)
    (folder / name / "scores.json").write_text(json.dumps({**document, **changes}))


def test_only_what_is_comparable(tmp_path):
    write(tmp_path, "same")
    write(tmp_path, "itself")
    write(tmp_path, "other-split", protocol={**PROTOCOL, "split": "val"})
    write(tmp_path, "other-bins", protocol={**PROTOCOL, "metric": "n"})
    write(tmp_path, "fewer", num_images=3)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.json").write_text("{")
    (found,) = earlier_results(tmp_path, "itself", PROTOCOL, 4)
    assert found.name == "same"
    assert found.scores["ece"] == 0.1
    assert math.isnan(found.scores["nll"])
    assert found.reliability is not None
    assert math.isnan(found.reliability.confidence[0])


def test_nothing_is_no_error(tmp_path):
    assert earlier_results(tmp_path / "nowhere", "x", PROTOCOL, 4) == []
