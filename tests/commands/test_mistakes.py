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

from calseg_cli.errors import DataError
from tests.commands.outcomes import draw_few


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
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['transformers'] = None\n")
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
    assert (workspace / "runs/sample/1-pretrain/network.safetensors").read_bytes() == before
    assert not (workspace / "runs/sample/1-pretrain.replaced").exists()
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


def test_a_failed_force_leaves_the_old_network_in_place(workspace, calseg):
    explained(calseg("pretrain", "--force", "--network", "nonsense", cwd=workspace), 2, "nonsense")
    assert (workspace / "runs/sample/1-pretrain/network.safetensors").exists()


def test_bins_are_refused_before_anything_runs(workspace, calseg):
    explained(calseg("pretrain", "--name", "x", "--set", "evaluate.bins=16", cwd=workspace), 2, "evaluate.bins")
    assert not (workspace / "runs/x").exists()


def test_sample_data_force_replaces_its_own_and_nothing_else(tmp_path, calseg):
    assert calseg("sample-data", "d", cwd=tmp_path).code == 0
    assert len(list((tmp_path / "d/data").rglob("*.png"))) == 600
    draw_few(tmp_path / "few", 2)
    first = "data/source/train/images/0000.png"
    before = (tmp_path / "few" / first).read_bytes()
    assert (tmp_path / "d" / first).read_bytes() == before
    with pytest.raises(DataError, match="exists already"):
        draw_few(tmp_path / "few", 2, seed=1)
    draw_few(tmp_path / "few", 2, seed=1, force=True)
    assert (tmp_path / "few" / first).read_bytes() != before
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/data/precious.png").write_bytes(b"x")
    explained(calseg("sample-data", "mine", "--force", cwd=tmp_path), 4, "did not write")
    assert (tmp_path / "mine/data/precious.png").exists()


def test_signs_of_markup_in_paths_are_printed_as_they_are(workspace, calseg):
    ran = calseg("predict", "--max-items", "1", "-o", "[red]x [b].h5", cwd=workspace)
    assert ran.code == 0, ran.err
    assert ran.out == "[red]x [b].h5\n"
    assert "--logits '[red]x [b].h5'" in ran.err


def test_pictures_never_take_the_artifacts_place(workspace, calseg):
    ran = calseg("predict", "--png", "--max-items", "1", "-o", "plain", cwd=workspace)
    assert ran.code == 0, ran.err
    assert (workspace / "plain").is_file()
    assert (workspace / "plain-pictures/label").is_dir()


@pytest.mark.parametrize(
    "words", [("predict", "-o", "file/x.h5"), ("evaluate", "-o", "file"), ("init", "file"), ("sample-data", "file/x")]
)
def test_places_that_cannot_be_written(workspace, calseg, words):
    (workspace / "file").write_text("x")
    ran = calseg(*words, cwd=workspace)
    assert ran.code in (1, 2, 4), ran.err
    assert "Traceback" not in ran.err
    assert (workspace / "file").read_text() == "x"


def test_the_next_command_speaks_of_the_same_run(workspace, calseg):
    ran = calseg("pretrain", "--name", "other", "--steps", "2", "--set", "pretrain.log_every=1", cwd=workspace)
    assert "next: calseg adapt --method adabn --name other --set pretrain.log_every=1" in ran.err


def test_a_finished_run_is_not_resumed_into_something_else(workspace, calseg):
    ran = calseg("pretrain", "--resume", "--steps", "31", cwd=workspace)
    explained(ran, 3, "pretrain.steps: was 30, is 31")


def test_a_folder_called_like_a_stage_hides_nothing(workspace, calseg):
    (workspace / "pretrain").mkdir()
    assert calseg("evaluate", "--checkpoint", "pretrain", "--max-items", "1", cwd=workspace).code == 0


def test_a_set_aside_result_counts_until_its_successor_is_whole(workspace, calseg):
    """After a kill within --force it is the last result that there is."""
    folder = workspace / "runs/sample/4-adapt-adabn.replaced"
    shutil.copytree(workspace / "runs/sample/1-pretrain", folder)
    (folder / "network.safetensors").touch()
    ran = calseg("evaluate", "--max-items", "1", cwd=workspace)
    assert "adapt-adabn-target-test" in ran.err
    shutil.copytree(workspace / "runs/sample/1-pretrain", workspace / "runs/sample/4-adapt-adabn")
    (workspace / "runs/sample/1-pretrain/network.safetensors").touch()
    ran = calseg("evaluate", "--max-items", "1", "--checkpoint", "adapt-adabn", "--force", "--json", cwd=workspace)
    assert "replaced" not in ran.out + ran.err


def test_a_reader_that_leaves_early_is_no_error(workspace):
    line = f"{sys.executable} -m calseg_cli evaluate --max-items 2 --fail-if 'ece>0' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_standard_output_is_one_line(workspace):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    line = f"{sys.executable} -m calseg_cli config schema > /dev/full"
    done = subprocess.run(["bash", "-c", line], cwd=workspace, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr


def test_training_on_nothing_is_refused(workspace, calseg):
    for path in (workspace / "data/source/train/labels").iterdir():
        Image.fromarray(np.full((96, 160), 255, np.uint8)).save(path)
    explained(calseg("pretrain", "--name", "x", cwd=workspace), 4, "single pixel of a class")


def test_images_too_small_for_batch_norm(workspace, calseg):
    ran = calseg("adapt", "--batch-size", "1", "--set", "target.size=[2, 2]", cwd=workspace)
    explained(ran, 4, "too small for batch normalisation")


def test_commands_without_a_configuration_take_none(tmp_path, calseg):
    assert calseg("init", "--set", "a=1", cwd=tmp_path).code == 2
    assert not (tmp_path / "calseg.yaml").exists()


def test_unknown_domain(workspace, calseg):
    explained(calseg("data", "check", "--domain", "moon", cwd=workspace), 2, "moon")


def test_init_takes_one_start(tmp_path, calseg):
    explained(calseg("init", "--full", "--sample", "sample", cwd=tmp_path), 2, "exclude each other")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("6-evaluate/x/scores.json", '{"num_images": 40, "protocol": 3}'),
        ("1-pretrain/log.jsonl", "{bad}\n[1]\n{}\n"),
    ],
)
def test_damaged_files_beside_do_not_stop_a_measurement(workspace, calseg, name, damage):
    path = workspace / "runs/sample" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(damage)
    ran = calseg("evaluate", "--html", "--max-items", "3", cwd=workspace)
    assert ran.code == 0, ran.err


def test_damaged_results_are_named(workspace, calseg):
    path = workspace / "runs/sample/6-evaluate/x/scores.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    explained(calseg("results", cwd=workspace), 3, "scores.json", "damaged")


def test_class_weights_of_another_number(workspace, calseg):
    ran = calseg("pretrain", "--name", "x", "--set", "pretrain.class_weights=[1, 2]", cwd=workspace)
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err


def test_a_class_counts_once_in_a_mean(workspace, calseg):
    ran = calseg("evaluate", "--set", "evaluate.classes=[road, road]", cwd=workspace)
    assert ran.code == 2, ran.err
    assert "twice" in ran.err


def test_a_failed_adapt_leaves_the_adapted_network(workspace, calseg):
    assert calseg("adapt", cwd=workspace).code == 0
    network = workspace / "runs/sample/4-adapt-adabn/network.safetensors"
    before = network.read_bytes()
    ran = calseg("adapt", "--force", "--batch-size", "1", "--set", "target.size=[2, 2]", cwd=workspace)
    assert ran.code == 4, ran.err
    assert network.read_bytes() == before


def test_pictures_of_an_earlier_run_do_not_linger(workspace, calseg):
    for number in ("3", "1"):
        assert calseg("predict", "--png", "--max-items", number, "--force", cwd=workspace).code == 0
    assert len(list((workspace / "runs/sample/5-predict").rglob("label/*.png"))) == 1
