"""The benchmark of the store runs, prints what it promises, and the page quotes what it prints."""

import json
import re
import subprocess
import sys

import pytest


def run(repository, *words):
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / "artifacts.py"), *words],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


SMALL = ("--network", "tiny", "--images", "3", "--size", "32", "48", "--classes", "4", "--repeats", "1", "--reads", "1")


@pytest.fixture(scope="module")
def found(repository):
    return json.loads(run(repository, *SMALL, "--compression", "none", "--json"))


def test_json_has_the_three_figures(found):
    assert {"write_overhead", "read_ratio", "bytes_per_image"} <= set(found)
    parts = {"write_overhead": ("write", "ratio"), "read_ratio": ("read", "ratio_again")}
    for figure, (part, kind) in {**parts, "first_read_ratio": ("read", "ratio")}.items():
        ratio = found[part][kind]
        assert 0 < ratio["least"] <= ratio["median"] <= ratio["most"]
        assert found[figure] == ratio["median"]


def test_the_work_is_what_was_asked_for(found):
    work = found["work"]
    assert work["logits"] == "4x8x12 float16"
    assert work["raw_bytes_per_image"] == 4 * 8 * 12 * 2
    assert work["logits_standard_deviation"] > 0.01  # dead logits would pack to nothing
    assert found["bytes_per_image"] == round(work["packed_to"] * work["raw_bytes_per_image"])
    assert found["bytes_per_image"] > work["raw_bytes_per_image"]


def test_the_table_has_them_too(repository):
    table = run(repository, *SMALL)
    for row in ("bytes per image", "write overhead", "read ratio", "machine", "versions"):
        assert re.search(rf"^{row} +\S", table, re.MULTILINE)


def test_the_sizes_on_the_page_are_those_it_prints(repository):
    page = (repository / "docs" / "artifacts.md").read_text(encoding="utf-8")
    printed = run(repository, "--sizes")
    assert f"```text\n{printed}```" in page
    # 19 classes, 256x512 answers, two bytes, 2975 images
    assert "14.8 GB" in next(line for line in printed.splitlines() if line.startswith("Cityscapes train"))
    by_hand = 19 * 256 * 512 * 2 * 2975
    assert by_hand == pytest.approx(14.8e9, rel=0.01)
