"""`calseg eval` with what is counted on request, as a user types it."""

import pytest

from calseg_cli.metrics.regions import Regions
from calseg_cli.stages.tally_file import read_tally


def test_everything_on_request(workspace, calseg):
    plain = calseg("eval", "--json", cwd=workspace)
    assert plain.code == 0, plain.err
    names = plain.json["class_names"]
    flags = ("--preset", "calsfda", "--classwise", "--region", "boundary", "--region", "fg-pred",
             "--boundary-band", "1", "--background", names[0])  # fmt: skip
    shown = calseg("eval", *flags, cwd=workspace)
    assert shown.code == 0, shown.err
    for words in ("class-wise ECE", "ECE by preset", "by region", "interior", "void counted as wrong", "within 1 px"):
        assert words in shown.out
    more = calseg("eval", "--json", *flags, cwd=workspace).json
    scores = more["scores"]
    assert {"cece", "cece_present", "preset_ece"} == set(scores) - set(plain.json["scores"])
    assert {key: scores[key] for key in plain.json["scores"]} == plain.json["scores"]
    regions = more["regions"]
    assert list(regions) == ["boundary", "interior", "fg-pred"]
    counted = sum(more["reliability"]["count"])
    assert regions["boundary"]["pixels"] + regions["interior"]["pixels"] == counted
    assert regions["fg-pred"]["pixels"] == counted - more["classes"][0]["predicted_pixels"]
    tally, artifact = read_tally(workspace / "runs/sample/6-evaluate/pretrain-target-test/metrics.h5")
    artifact.close()
    assert tally.extra.asked.preset == "calsfda"
    assert tally.extra.regions.rule == Regions(("boundary", "fg-pred"), background=0, band=1)
    assert "regions" not in plain.json


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--region", "fg-true"), "background"),
        (("--region", "fg-true", "--background", "unicorn"), "no class 'unicorn'"),
        (("--region", "edge"), "boundary"),
        (("--preset", "ours"), "guo15"),
        (("--fail-if", "cece_of>0"), "no condition on a score"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(workspace, calseg, flags, message):
    ran = calseg("eval", *flags, cwd=workspace)
    assert ran.code == 2, ran.out
    assert message in ran.err
    assert "measuring" not in ran.err
