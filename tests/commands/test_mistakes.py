"""Every mistake gives one clear line, its exit code, no traceback, and loses nothing."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def explained(ran, code: int, *parts: str) -> None:
    """The command ended with `code` and one error line that says all of `parts`."""
    errors = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert len(errors) == 1, ran.err
    told = ran.err[ran.err.index("error:") :]
    for part in parts:
        assert part in told, told


def first(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


def test_no_configuration(tmp_path, calseg):
    explained(calseg("pretrain", cwd=tmp_path), 2, "calseg.yaml", "calseg init")


def test_missing_configuration_file(tmp_path, calseg):
    explained(calseg("pretrain", "-c", "nowhere.yaml", cwd=tmp_path), 2, "nowhere.yaml")


def test_wrong_path(workspace, calseg):
    ran = calseg("pretrain", "--name", "x", "--set", "source.root=data/nowhere", cwd=workspace)
    explained(ran, 4, "data/nowhere")


def test_empty_folder(workspace, calseg):
    shutil.rmtree(workspace / "data/source/train/images")
    (workspace / "data/source/train/images").mkdir()
    explained(calseg("pretrain", "--name", "x", cwd=workspace), 4, "no image")


def test_unknown_class_id(workspace, calseg):
    label = first(workspace / "data/source/train/labels")
    values = np.array(Image.open(label))
    values[:2] = 77
    Image.fromarray(values).save(label)
    explained(calseg("data", "check", "--domain", "source", cwd=workspace), 4)
    ran = calseg("pretrain", "--name", "x", "--steps", "30", cwd=workspace)
    explained(ran, 4, "77", label.name)


def test_image_and_label_of_different_size(workspace, calseg):
    label = first(workspace / "data/target/test/labels")
    Image.open(label).crop((0, 0, 20, 30)).save(label)
    explained(calseg("evaluate", cwd=workspace), 4, label.stem, "30x20")
    explained(calseg("data", "check", cwd=workspace), 4)


def test_truncated_png(workspace, calseg):
    image = first(workspace / "data/target/test/images")
    image.write_bytes(image.read_bytes()[:500])
    explained(calseg("predict", cwd=workspace), 4, image.name)
    assert not list((workspace / "runs/sample").rglob("*.h5.partial"))
    assert not (workspace / "runs/sample/5-predict/pretrain-target-test.h5").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pretrain: {steps: [", "calseg.yaml:1"),
        ("pretrain:\n  stepz: 3\n", "pretrain.steps"),
        ("pretrain:\n  steps: many\n", "calseg.yaml:2"),
        ("seed: 1\nseed: 2\n", "calseg.yaml:2"),
        ("- a\n- b\n", "calseg.yaml"),
    ],
)
def test_broken_yaml(tmp_path, calseg, text, says):
    (tmp_path / "calseg.yaml").write_text(text)
    explained(calseg("pretrain", cwd=tmp_path), 2, says)


def test_unknown_network(workspace, calseg):
    explained(calseg("pretrain", "--name", "x", "--network", "tinny", cwd=workspace), 2, "tinny", "tiny")


def test_missing_plugin(workspace, calseg):
    explained(calseg("pretrain", "--name", "x", "--network", "nowhere:net", cwd=workspace), 2, "nowhere")


def test_missing_extra(workspace, calseg, tmp_path):
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('no transformers', name='transformers')\n")
    ran = calseg("pretrain", "--name", "x", "--network", "segformer", cwd=workspace, env={"PYTHONPATH": str(tmp_path)})
    explained(ran, 2, "transformers", "calseg[hf]")


def test_unknown_method(workspace, calseg):
    explained(calseg("adapt", "--method", "magic", cwd=workspace), 2, "magic", "adabn")


def test_checkpoint_of_another_class_list(workspace, calseg):
    config = workspace / "calseg.yaml"
    config.write_text(config.read_text().replace("sky", "heaven"))
    explained(calseg("evaluate", cwd=workspace), 3, "another class list", "heaven")


def test_no_network_yet(workspace, calseg):
    explained(calseg("evaluate", "--name", "empty", cwd=workspace), 3, "calseg pretrain")


def test_cut_checkpoint(workspace, calseg):
    network = workspace / "runs/sample/1-pretrain/network.safetensors"
    network.write_bytes(network.read_bytes()[:-100])
    explained(calseg("evaluate", cwd=workspace), 3, "network.safetensors", "incomplete")


def test_logits_of_another_split(workspace, calseg):
    assert calseg("predict", "--split", "train", "-o", "l.h5", cwd=workspace).code == 0
    explained(calseg("evaluate", "--logits", "l.h5", "--split", "test", cwd=workspace), 3, "another image")


def test_target_without_labels_cannot_be_measured(workspace, calseg):
    explained(calseg("evaluate", "--split", "train", cwd=workspace), 4, "label")


def test_existing_results_are_kept(workspace, calseg):
    explained(calseg("pretrain", cwd=workspace), 3, "--force", "--resume")
    explained(calseg("sample-data", cwd=workspace), 4, "--force")
    assert calseg("predict", cwd=workspace).code == 0
    explained(calseg("predict", cwd=workspace), 3, "--force")


def test_absent_device(workspace, calseg):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    explained(calseg("evaluate", "--device", "cuda", cwd=workspace), 6, "cuda")


def test_wrong_flag_is_a_usage_error(workspace, calseg):
    ran = calseg("evaluate", "--reprot", "ece", cwd=workspace)
    assert ran.code == 2
    assert "--report" in ran.err
    assert calseg("evalute", cwd=workspace).code == 2


def test_wrong_report_and_bins(workspace, calseg):
    explained(calseg("evaluate", "--report", "fancy", cwd=workspace), 2, "fancy")
    explained(calseg("evaluate", "--bins", "7", cwd=workspace), 2, "bins")


FULL_DISK = """
import errno, os, sys
from calseg_cli.artifacts import whole_file
def fsync(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")
whole_file.os.fsync = fsync
from calseg_cli.app import main
sys.argv = ["calseg", *sys.argv[1:]]
main()
"""


def test_no_space_on_disk(workspace):
    before = (workspace / "runs/sample/1-pretrain/network.safetensors").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "pretrain", "--force", "--steps", "4"],
        cwd=workspace, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert os.strerror(errno.ENOSPC).lower()[:8] in done.stderr.lower()
    assert "Traceback" not in done.stderr
    kept = workspace / "runs/sample/1-pretrain.replaced/network.safetensors"
    assert kept.read_bytes() == before
    assert not list((workspace / "runs/sample").rglob("*.partial"))


def test_a_tiny_disk(workspace, calseg):
    """A real full disk, where this machine lets us have one."""
    small = workspace / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        ran = calseg("predict", "-o", small / "x.h5", cwd=workspace)
        assert ran.code in (1, 5), ran.err
        assert "x.h5" in ran.err
        assert "Traceback" not in ran.err
        assert not (small / "x.h5").exists()
    finally:
        subprocess.run(["umount", str(small)], check=False)
