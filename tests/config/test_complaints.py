"""Every mistake at once, each in one line with its place and what was meant."""

from pathlib import Path

import pytest

from calseg_cli.config import load_config
from calseg_cli.errors import ConfigError

DOMAIN = "source:\n  root: x\n  "


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stepz: 3", "calseg.yaml:1: stepz is not a known key; did you mean pretrain.steps?"),
        ("steps: 3", "calseg.yaml:1: steps is not a known key; did you mean pretrain.steps?"),
        ("pretrain:\n\n  stepz: 3", "calseg.yaml:3: pretrain.stepz is not a known key; did you mean pretrain.steps?"),
        ("pretrian: {steps: 3}", "calseg.yaml:1: pretrian is not a known key; did you mean pretrain?"),
        ("adapt: {momentum: 1}", "calseg.yaml:1: adapt.momentum is not a known key; did you mean "),
        ("adapt: {zzz: 1}", "calseg.yaml:1: adapt.zzz is not a known key; known here: method, domain, split, adabn"),
        ("7: x", "calseg.yaml:1: 7 is not a known key; known here: name, "),
        ("seed: ten", "calseg.yaml:1: seed must be a whole number, not 'ten'"),
        ("seed: 1.5", "calseg.yaml:1: seed must be a whole number, not 1.5"),
        ("seed: true", "calseg.yaml:1: seed must be a whole number, not true"),
        ("seed: null", "calseg.yaml:1: seed must be a whole number, not null"),
        ("seed: -1", "calseg.yaml:1: seed must be at least 0, not -1"),
        ("seed: 4294967296", "calseg.yaml:1: seed must be at most 4294967295, not 4294967296"),
        ("seed: '3'", "calseg.yaml:1: seed must be a whole number, not '3'"),
        ("deterministic: 1", "calseg.yaml:1: deterministic must be true or false, not 1"),
        ("pretrain: {lr: true}", "calseg.yaml:1: pretrain.lr must be a number, not true"),
        ("pretrain: {lr: fast}", "calseg.yaml:1: pretrain.lr must be a number, not 'fast'"),
        ("pretrain: {lr: .inf}", "calseg.yaml:1: pretrain.lr must be a number, not '.inf'"),
        ("pretrain: {lr: 0}", "calseg.yaml:1: pretrain.lr must be above 0, not 0"),
        ("pretrain: {momentum: 1}", "calseg.yaml:1: pretrain.momentum must be below 1, not 1"),
        ("pretrain: {amp: true}", "calseg.yaml:1: pretrain.amp must be one of off, bf16, fp16, not true"),
        ("pretrain: {amp: bf61}", "not 'bf61'; did you mean bf16?"),
        ("pretrain: {class_weights: inverze}", "pretrain.class_weights must be none, inverse, sqrt-inverse, or a list"),
        ("pretrain: {class_weights: [1, -1]}", "pretrain.class_weights must be none, inverse"),
        ("pretrain: {class_weights: [0, 0]}", "not all 0"),
        ("pretrain: {augment: {scale: [2, 1]}}", "pretrain.augment.scale must be [smallest, largest], not [2, 1]"),
        ("pretrain: {augment: {scale: [1]}}", "pretrain.augment.scale must be a list of two numbers, not of 1"),
        ("pretrain: {augment: {crop: [0, 3]}}", "pretrain.augment.crop.0 must be at least 1, not 0"),
        ("pretrain: {clip_norm: 0}", "pretrain.clip_norm must be above 0, not 0"),
        ("pretrain: 3", "calseg.yaml:1: pretrain must be a section of keys and values, not 3"),
        ("name: 3", "calseg.yaml:1: name must be text, not 3; put it in quotes"),
        ("name: a/b", "calseg.yaml:1: name must be usable as a folder's name"),
        ("name: ..", "name must be usable as a folder's name"),
        ("name: nul", "name must be usable as a folder's name"),
        ("name: ''", "name must be usable as a folder's name"),
        ("device: gpu", "calseg.yaml:1: device must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ("runs: [a]", "calseg.yaml:1: runs must be a path, not [a]"),
        ("runs: ''", "calseg.yaml:1: runs must not be empty"),
        ("threads: 0", "calseg.yaml:1: threads must be at least 1, not 0"),
        ("source: {size: [1, 1]}", "calseg.yaml:1: source.root is missing"),
        ("source: data", "calseg.yaml:1: source must be a section of keys and values, not 'data'"),
        (f"{DOMAIN}size: [1, 2, 3]", "calseg.yaml:3: source.size must be a list of two numbers, not of 3"),
        (f"{DOMAIN}size: 240", "calseg.yaml:3: source.size must be a list, not 240"),
        (f"{DOMAIN}classes: [a, true]", "calseg.yaml:3: source.classes.1 must be text, not true; put it in quotes"),
        (f"{DOMAIN}classes: []", "calseg.yaml:3: source.classes must not be empty"),
        (f"{DOMAIN}classes: [a,\n    b,\n    a]", "calseg.yaml:5: source.classes.2 lists the class 'a' twice"),
        (f"{DOMAIN}palette: [null]", "calseg.yaml:3: source.palette.0 must be a colour"),
        (f"{DOMAIN}palette: ['#12345g']", "calseg.yaml:3: source.palette.0 must be a colour"),
        (f"{DOMAIN}palette: [[1, 2, 256]]", "calseg.yaml:3: source.palette.0 must be a colour"),
        (
            f"{DOMAIN}classes: [a]\n  palette: ['#000000', '#ffffff']",
            "calseg.yaml:4: source.palette has 2 colours for 1",
        ),
        (f"{DOMAIN}ids: {{road: 3}}", "calseg.yaml:3: source.ids.road must be a whole number, not 'road'"),
        (f"{DOMAIN}ids: {{3: [a]}}", "calseg.yaml:3: source.ids.3 must be a class name, its index"),
        (f"{DOMAIN}ids: {{70000: a}}", "calseg.yaml:3: source.ids.70000 must be at most 65535"),
        (
            f"{DOMAIN}classes: [a]\n  ids:\n    1: b",
            "calseg.yaml:5: source.ids.1 is 'b', which is none of the 1 classes",
        ),
        (f"{DOMAIN}classes: [a]\n  ids: {{1: 1}}", "calseg.yaml:4: source.ids.1 is 1, which is none of the 1 classes"),
        (f"{DOMAIN}colors: {{'1,2': a}}", "calseg.yaml:3: source.colors.1,2 must be a colour"),
        (f"{DOMAIN}ids: {{3: a}}\n  ignore: [3]", "calseg.yaml:4: source.ignore holds 3, which ids maps to a class"),
        (f"{DOMAIN}encoding: color\n  ids: {{3: a}}", "calseg.yaml:4: source.ids is for labels that hold numbers"),
        (f"{DOMAIN}encoding: index\n  colors: {{'1,2,3': a}}", "calseg.yaml:4: source.colors is for labels painted"),
        (
            f"{DOMAIN}splits: {{trainn: x}}",
            "source.splits.trainn must be one of train, val, test, not 'trainn'; did you mean",
        ),
        (f"{DOMAIN}holdout: 1", "calseg.yaml:3: source.holdout must be at least 2, not 1"),
        ("evaluate: {bins: 7}", "calseg.yaml:1: evaluate.bins must divide 300, which 7 does not; near it: "),
        ("evaluate: {eval_classes: 12}", "calseg.yaml:1: evaluate.eval_classes must be one of 13, 16, 19, not 12"),
        ("evaluate: {eval_classes: 13, classes: [a]}", "evaluate.eval_classes and evaluate.classes exclude each other"),
        (
            "evaluate: {fail_if: [ece]}",
            "evaluate.fail_if.0 must be a condition on a score, such as 'ece>0.1', not 'ece'",
        ),
        ("predict: {scales: []}", "calseg.yaml:1: predict.scales must not be empty"),
        ("predict: {scales: [1, 0]}", "calseg.yaml:1: predict.scales.1 must be above 0, not 0"),
        (
            f"{DOMAIN}classes: [a]\nevaluate:\n  classes: [b]",
            "calseg.yaml:5: evaluate.classes names 'b', which is none",
        ),
        (
            f"{DOMAIN}classes: [a]\npretrain:\n  class_weights: [1, 2]",
            "calseg.yaml:5: pretrain.class_weights has 2 numb",
        ),
        (
            f"{DOMAIN}classes: [a]\nadapt:\n  self_training: {{class_weights: [1, 2]}}",
            "calseg.yaml:5: adapt.self_training.class_weights has 2 numb",
        ),
        ("seed: 1\nseed: 2", "calseg.yaml:2: seed is given twice; the first is in line 1"),
    ],
)
def test_one_mistake_is_one_line(complaints, text, told):
    (line,) = complaints(text)
    assert told in line
    assert line.startswith("calseg.yaml:")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sets": ["pretrain.steps"]}, "--set: 'pretrain.steps' is not KEY=VALUE, such as pretrain.lr=1e-4"),
        ({"sets": ["=3"]}, "--set: '=3' is not KEY=VALUE"),
        ({"sets": ["pretrain.stepz=3"]}, "--set: pretrain.stepz is not a known key; did you mean pretrain.steps?"),
        ({"sets": ["pretrain.steps.x=3"]}, "--set: pretrain.steps.x is not a known key"),
        ({"sets": ["pretrain.steps=x"]}, "--set: pretrain.steps must be a whole number, not 'x'"),
        ({"sets": ["predict.scales=[1"]}, "--set: predict.scales: '[1' cannot be read: broken YAML"),
        ({"sets": ["predict.scales.7=1"]}, "--set: predict.scales.7: predict.scales is a list of 1"),
        ({"sets": ["pretrain={steps: 3, stepz: 4}"]}, "--set: pretrain.stepz is not a known key"),
        ({"sets": ["network.options={a: 1, a: 2}"]}, "a is given twice"),
        ({"environ": {"CALSEG_FOO": "1"}}, "CALSEG_FOO: foo is not a known key"),
        ({"environ": {"CALSEG_PRETRAIN_STEPS": "1"}}, "CALSEG_PRETRAIN_STEPS: pretrain_steps is not a known key"),
        ({"environ": {"CALSEG_PRETRAIN__STEPS": "0"}}, "CALSEG_PRETRAIN__STEPS: pretrain.steps must be at least 1"),
        ({"flags": {"pretrain.steps": 0}}, "--steps: pretrain.steps must be at least 1, not 0"),
        (
            {"flags": {"pretrain.batch_size": True}},
            "--batch-size: pretrain.batch_size must be a whole number, not true",
        ),
        ({"flags": {"network.name": 3}}, "--network: network.name must be text"),
    ],
)
def test_what_is_said_outside_the_file_is_named(complaints, given, told):
    (line,) = complaints("", **given)
    assert line.startswith(told) or told in line


def test_all_mistakes_are_told_at_once_in_order(complaints):
    text = "seed: x\npretrain:\n  steps: 0\n  steps: -1\n  lrr: 3\nevaluate: {bins: 7}\nsource: {root: 3}\n"
    lines = complaints(text, sets=["a.b=1", "c"], environ={"CALSEG_NAME": "a/b"}, flags={"workers": -1})
    assert [line.split(": ")[0] for line in lines] == [
        "calseg.yaml:1",
        "calseg.yaml:4",
        "calseg.yaml:4",
        "calseg.yaml:5",
        "calseg.yaml:6",
        "calseg.yaml:7",
        "CALSEG_NAME",
        "--set",
        "--set",
        "--workers",
    ]


def test_long_values_are_cut(complaints):
    (line,) = complaints(f"seed: {'x' * 500}")
    assert len(line) < 140


def test_a_complaint_names_the_file_as_the_user_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match=r"^sub/my\.yaml:1: a is not a known key"):
        load_config(Path("sub/my.yaml"), environ={})
