"""The sample data: the same bytes for the same seed, the layout, and a shift that is one."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calseg_cli.data.street import FAR, HEIGHT, SKY, WIDTH, draw_street
from calseg_cli.data.synthetic import DAY, DUSK, SAMPLE_CLASSES, SAMPLE_PALETTE, photograph, write_sample_data
from calseg_cli.errors import DataError

COUNTS = {"train": 24, "val": 3, "test": 6}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample_data(folder, **COUNTS)
    return folder


def files(folder: Path) -> dict[str, str]:
    """Every file's digest by its path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def labels(folder: Path, domain: str = "source") -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / domain).glob("*/labels/*.png"))]


def test_the_same_seed_gives_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path / "again", **COUNTS)
    assert files(sample) == files(tmp_path / "again")


def test_another_seed_gives_other_images_under_the_same_names(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path / "other", seed=1, **COUNTS)
    ours, other = files(sample), files(tmp_path / "other")
    assert ours.keys() == other.keys()
    assert not set(ours.values()) & set(other.values())


def test_more_images_leave_the_first_ones_as_they_were(sample: Path, tmp_path: Path) -> None:
    write_sample_data(tmp_path / "few", train=2, val=1, test=1)
    assert files(tmp_path / "few").items() <= files(sample).items()


def test_the_target_s_training_images_have_no_labels(sample: Path) -> None:
    assert {path.name for path in (sample / "target" / "train").iterdir()} == {"images"}
    assert {path.name for path in (sample / "target").iterdir()} == {"train", "test"}
    counts = {
        part: len(list((sample / part).glob("*.png")))
        for part in ("source/train/images", "source/val/labels", "target/train/images", "target/test/labels")
    }
    assert list(counts.values()) == [24, 3, 24, 6]


def test_every_labelled_image_has_its_label_of_its_size(sample: Path) -> None:
    for image in sample.rglob("images/*.png"):
        with Image.open(image) as opened:
            assert (opened.mode, opened.size) == ("RGB", (WIDTH, HEIGHT))
        label = image.parent.parent / "labels" / image.name
        if "target/train" in image.as_posix():
            assert not label.exists()
        else:
            with Image.open(label) as opened:
                assert (opened.mode, opened.size) == ("L", (WIDTH, HEIGHT))


def test_all_classes_occur_some_of_them_thin_or_rare(sample: Path) -> None:
    assert len(SAMPLE_CLASSES) == len(set(SAMPLE_CLASSES)) == len(set(SAMPLE_PALETTE)) == 10
    for domain in ("source", "target"):
        pixels = sum(np.bincount(label.ravel(), minlength=256) for label in labels(sample, domain))
        share = pixels / pixels.sum()
        assert (share[:10] > 0).all()
        assert not pixels[10:].any()
        for name, most in (("person", 0.02), ("sign", 0.02), ("pole", 0.06)):
            assert share[SAMPLE_CLASSES.index(name)] < most
    assert any(SAMPLE_CLASSES.index("person") not in label for label in labels(sample))


def test_poles_are_thin_and_no_scene_is_drawn_twice(sample: Path) -> None:
    pole = SAMPLE_CLASSES.index("pole")
    uprights = [row for label in labels(sample) for row in (label == pole)[20:60] if row.any()]
    assert np.median([row.sum() for row in uprights]) <= 10
    everything = [label.tobytes() for domain in ("source", "target") for label in labels(sample, domain)]
    assert len(set(everything)) == len(everything)


def test_a_street_is_laid_out_in_perspective() -> None:
    for seed in range(5):
        street = draw_street(np.random.default_rng(seed))
        assert street.colors.shape == (HEIGHT, WIDTH, 3)
        assert (street.metres[street.labels == SKY] == FAR).all()
        road = np.where(street.labels == 0, street.metres, np.nan)
        rows = np.nanmedian(road[np.any(street.labels == 0, axis=1)], axis=1)
        assert (np.diff(rows) <= 0).all()  # nearer towards the bottom


def test_dusk_is_darker_hazier_and_noisier_than_day() -> None:
    street = draw_street(np.random.default_rng(0))
    looks = {
        name: np.stack([photograph(street, look, np.random.default_rng(seed)) for seed in range(8)]).astype(float)
        for name, look in (("day", DAY), ("dusk", DUSK))
    }
    far, near = street.metres > 60, street.metres < 15
    contrast = {name: images.std(axis=0, ddof=1).mean() for name, images in looks.items()}
    assert looks["dusk"].mean() < 0.8 * looks["day"].mean()
    assert contrast["dusk"] > contrast["day"]  # the looks of a scene differ more from dusk to dusk
    loss = {
        name: images.mean(axis=(0, 3))[far].std() / images.mean(axis=(0, 3))[near].std()
        for name, images in looks.items()
    }
    assert loss["dusk"] < loss["day"]  # what is far fades first


def test_progress_counts_every_image(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    write_sample_data(tmp_path, train=2, val=1, test=1, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(number, 7) for number in range(1, 8)]


def test_an_existing_domain_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_sample_data(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "mine.txt"]
