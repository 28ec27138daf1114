"""evaluate under torchrun: the tables, files and exit code of one process, told once."""

import shutil

import pytest

from calseg_cli.artifacts.reader import open_artifact
from tests.commands.outcomes import failed, keep_few
from tests.commands.side_by_side import by_torchrun, pair

NETWORK = ("--classwise", "--region", "boundary", "--preset", "calsfda", "--html", "--domain", "source")
FILE = ("--report", "bias", "--logits", "logits.h5", "--calibrator", "scale.h5", "--fail-if", "miou<0", "--csv")


@pytest.fixture(scope="module")
def alike(trained, tmp_path_factory, calseg):
    """Two folders with one network, logits of five images and a calibrator."""
    first, second = (tmp_path_factory.mktemp("alike") / name for name in "ab")
    shutil.copytree(trained, first)
    keep_few(first, 5)
    for words in (("predict", "--split", "test", "-o", "logits.h5"), ("calibrate", "--split", "val", "-o", "scale.h5")):
        ran = calseg(*words, *(("--method", "temperature") if words[0] == "calibrate" else ()), cwd=first)
        assert ran.code == 0, ran.err
    shutil.copytree(first, second)
    return first, second


def files_of(folder):
    """Every file's bytes by its name; of an artifact, which tells when it was written, its content's digest."""
    return {path.name: path.read_bytes() if path.suffix != ".h5" else digest(path) for path in folder.iterdir()}


def digest(path):
    with open_artifact(path, "metrics") as artifact:
        assert artifact.arrays()
        return artifact.digest


@pytest.mark.parametrize(("words", "world"), [(NETWORK, 2), (FILE, 3)], ids=["network", "file"])
def test_several_processes_say_and_write_what_one_does(alike, calseg, words, world):
    """To the last byte: images' rows for the intervals, regions, a preset's bins, pictures, and what is printed."""
    words = ("evaluate", *words, "--intervals", "100", "-o", f"result-{world}")
    one = calseg(*words, cwd=alike[0])
    assert one.code == 0, one.err
    main, *others = pair(calseg, alike[1], *words, world=world)
    assert [ran.code for ran in (main, *others)] == [0] * world, main.err
    assert all((ran.out, ran.err) == ("", "") for ran in others)
    assert (main.out, main.err) == (one.out, one.err)
    first, second = (files_of(folder / f"result-{world}") for folder in alike)
    assert first.keys() >= {"metrics.h5", "scores.json", "scores.csv"}
    assert first == second


def test_more_processes_than_images_and_a_condition_that_fails(alike, calseg):
    """All end with the code, after the main one has printed its table."""
    words = ("evaluate", "--max-items", "1", "--fail-if", "accuracy<2", "--json")
    main, other = pair(calseg, alike[1], *words)
    assert "accuracy<2" in failed(main, 7)
    assert main.json["num_images"] == 1
    assert (other.code, other.out, other.err) == (7, "", "")


def test_an_image_that_one_process_cannot_read_ends_both(alike, calseg, tmp_path):
    shutil.copytree(alike[1], tmp_path / "w")
    broken = sorted((tmp_path / "w/data/target/test/images").iterdir())[1]
    broken.write_bytes(b"no picture")
    main, other = pair(calseg, tmp_path / "w", "evaluate", "-o", "broken")
    assert (main.code, other.code) == (4, 4)
    assert broken.name in failed(other, 4)
    assert "error:" not in main.err
    assert not (tmp_path / "w/broken").exists()


@pytest.mark.slow
def test_torchrun_itself_starts_them(alike):
    ran = by_torchrun(alike[1], "evaluate", "--max-items", "2", "--report", "iou")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("(2 images)") == 1
    assert ran.stderr.count("report: ") == 1
