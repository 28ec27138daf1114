"""The chain on the sample data, typed as a user types it."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from calseg_cli.artifacts.reader import open_artifact
from tests.commands.outcomes import keep_few


def test_eval_with_nothing_more_on_the_line(workspace, calseg):
    ran = calseg("eval", "--report", "ece", cwd=workspace)
    assert ran.code == 0, ran.err
    assert "ECE" in ran.out
    assert "15 equal-width bins (lo,hi]" in ran.out
    assert "pretrain-target-test" in ran.err


def test_both_roads_give_the_same_numbers(workspace, calseg):
    predicted = calseg("predict", "--json", cwd=workspace)
    assert predicted.code == 0, predicted.err
    from_network = calseg("evaluate", "--json", cwd=workspace).json
    from_artifact = calseg("evaluate", "--json", "--logits", predicted.json["artifact"], cwd=workspace).json
    for part in ("scores", "classes", "confusion", "images", "reliability"):
        assert from_network[part] == from_artifact[part]
    assert from_network["provenance"]["parents"] != from_artifact["provenance"]["parents"]


def test_adapt_predict_evaluate_results(workspace, calseg):
    adapted = calseg("adapt", "--method", "adabn", "--json", cwd=workspace)
    assert adapted.code == 0, adapted.err
    assert adapted.json["network"].endswith("4-adapt-adabn/network.safetensors")
    before = calseg("eval", "--json", "--checkpoint", "pretrain", cwd=workspace).json
    after = calseg("eval", "--json", "--html", cwd=workspace)
    assert "adapt-adabn-target-test" in after.err
    assert after.json["scores"]["ece"] != before["scores"]["ece"]
    page = workspace / "runs/sample/6-evaluate/adapt-adabn-target-test/report.html"
    assert page.stat().st_size > 50_000
    rows = calseg("results", "--json", cwd=workspace).json["results"]
    assert [row["name"] for row in rows] == ["sample/pretrain-target-test", "sample/adapt-adabn-target-test"]
    table = calseg("results", cwd=workspace)
    assert "sample/adapt-adabn-target-test" in table.out


def test_adaptation_repeats_and_refuses_to_overwrite(workspace, calseg):
    network = workspace / "runs/sample/4-adapt-adabn/network.safetensors"
    assert calseg("adapt", cwd=workspace).code == 0
    first = open_tensors(network)
    refused = calseg("adapt", cwd=workspace)
    assert refused.code == 3
    assert "--force" in refused.err
    assert calseg("adapt", "--force", cwd=workspace).code == 0
    second = open_tensors(network)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not (workspace / "runs/sample/4-adapt-adabn.replaced").exists()


def open_tensors(path):
    from safetensors.numpy import load_file

    return load_file(path)


def test_predict_writes_pictures_of_every_image(workspace, calseg):
    ran = calseg("predict", "--png", "--max-items", "3", "--json", cwd=workspace)
    assert ran.code == 0, ran.err
    artifact = open_artifact(workspace / ran.json["artifact"], "logits")
    assert len(artifact) == 3
    for name in artifact.ids:
        folder = workspace / ran.json["pictures"]
        with Image.open(folder / "label" / f"{name}.png") as label:
            assert label.mode == "P"
            assert (label.height, label.width) == artifact.geometry(name).out_hw
        for kind in ("overlay", "confidence"):
            with Image.open(folder / kind / f"{name}.png") as picture:
                assert (picture.height, picture.width) == artifact.geometry(name).out_hw


def test_predict_takes_any_folder_of_images(workspace, calseg, tmp_path):
    odd = tmp_path / "mine" / "deep"
    odd.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 101, 3), np.uint8)).save(odd / "a b.jpg")
    ran = calseg("predict", str(tmp_path / "mine"), "--json", cwd=workspace)
    assert ran.code == 0, ran.err
    artifact = open_artifact(workspace / ran.json["artifact"])
    assert artifact.ids == ["deep/a b"]
    assert artifact.geometry("deep/a b").out_hw == (75, 101)


def test_views_are_averaged_and_said(workspace, calseg):
    plain = calseg("predict", "--max-items", "2", "--json", cwd=workspace).json
    ran = calseg("predict", "--flip", "--scales", "0.75,1", "--max-items", "2", "-o", "v.h5", "--json", cwd=workspace)
    assert ran.code == 0, ran.err
    views = open_artifact(workspace / "v.h5")
    assert "log-probabilities" in views.meta["protocol"]["values"]
    name = views.ids[0]
    probs = np.exp(views.item(name, "logits").astype(np.float64))
    np.testing.assert_allclose(probs.sum(axis=0), 1, atol=5e-3)
    assert probs.shape == open_artifact(workspace / plain["artifact"]).item(name, "logits").shape


def test_inspect_reads_every_kind(workspace, calseg):
    calseg("predict", cwd=workspace)
    files = [*(workspace / "runs").rglob("*.h5"), *(workspace / "runs").rglob("*.safetensors")]
    assert len(files) >= 4
    for path in files:
        ran = calseg("inspect", "--json", path, cwd=workspace)
        assert ran.code == 0, ran.err
        assert ran.json["classes"]["names"]
        assert str(workspace) not in json.dumps({k: v for k, v in ran.json.items() if k != "file"})
    shown = calseg("inspect", files[0], cwd=workspace)
    assert re.search(r"kind: (logits|metrics)", shown.out)


def test_csv_and_json_are_whole_documents(workspace, calseg):
    lines = calseg("eval", "--csv", cwd=workspace).out.splitlines()
    assert lines[0] == "scope,name,score,value"
    assert any(line.startswith("dataset,,ece,") for line in lines)
    document = calseg("eval", "--json", cwd=workspace)
    assert document.json["scores"]["ece"] == pytest.approx(
        float(next(line for line in lines if line.startswith("dataset,,ece,")).split(",")[3]), abs=0
    )


def test_fail_if_exits_with_seven(workspace, calseg):
    assert calseg("eval", "--fail-if", "ece>0", cwd=workspace).code == 7
    assert calseg("eval", "--fail-if", "miou<0", cwd=workspace).code == 0
    assert calseg("eval", "--fail-if", "beauty<0", cwd=workspace).code == 2


def test_config_show_names_every_source(workspace, calseg):
    ran = calseg("config", "show", "--set", "pretrain.lr=1e-3", cwd=workspace, env={"CALSEG_PRETRAIN__STEPS": "7"})
    assert ran.code == 0, ran.err
    assert re.search(r"lr: 0\.001 +# --set", ran.out)
    assert re.search(r"steps: 7 +# CALSEG_PRETRAIN__STEPS", ran.out)
    assert re.search(r"name: sample +# calseg\.yaml:\d+", ran.out)


def test_data_check_of_the_sample_is_clean(workspace, calseg):
    ran = calseg("data", "check", cwd=workspace)
    assert ran.code == 0, ran.err
    assert "source train" in ran.out
    assert "target train" in ran.out


def test_init_writes_what_loads(tmp_path, calseg):
    assert calseg("init", cwd=tmp_path).code == 0
    assert calseg("config", "show", cwd=tmp_path).code == 0
    assert calseg("init", cwd=tmp_path).code == 2


def test_inspect_needs_no_torch(workspace):
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from calseg_cli.app import main\n"
        "sys.argv = ['calseg', 'inspect', 'runs/sample/1-pretrain/network.safetensors']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout


def test_the_shell_script_chains_the_stages(trained, tmp_path, repository, calseg):
    shutil.copytree(trained, tmp_path / "w", ignore=shutil.ignore_patterns("runs"))
    keep_few(tmp_path / "w")
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "calseg"
    client = repository / "tests/commands/client.py"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} {client} {calseg.address} "$@"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", repository / "sample_configs/chain.sh", "--steps", "5"],
        cwd=tmp_path / "w", capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("pretrain-source-test", "pretrain-target-test", "adapt-adabn-target-test"):
        assert name in done.stdout
