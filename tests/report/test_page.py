"""The page: well-formed, self-contained, escaped, the same bytes for the same data, and honest about n/a."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calseg_cli.report.data import ReportData
from calseg_cli.report.page import render_page, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = '<script>alert("1")</script>&amp; $\\frac{1}{\' onload=x'


class Page(HTMLParser):
    """Checks that elements nest, and gathers attributes and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def source(report: ReportData) -> str:
    return render_page(report)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_section_is_there_and_linked(page: Page) -> None:
    links = [value[1:] for _, name, value in page.attributes if name == "href" and value and value.startswith("#")]
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    expected = {"comparison", "calibration", "scores", "classes", "confusion", "images", "examples", "training"}
    assert expected | {"protocol", "selection", "class-calibration"} <= set(links)
    assert set(links) <= set(ids)


def test_it_asks_nothing_of_a_network_or_a_disk(source: str, page: Page) -> None:
    assert not re.search(r"(?:https?|file|ftp)://", re.sub(r"base64,[^\"')]+", "", source))
    for value in page.values("src", "href", "xlink:href", "action", "poster", "srcset"):
        assert value.startswith(("#", "data:image/"))
    assert not re.search(r"@import|url\((?!#)", source)
    assert "default-src 'none'" in source
    assert not any(tag in ("link", "iframe", "object", "form") for tag, _, _ in page.attributes)


def test_references_within_figures_exist(source: str, page: Page) -> None:
    ids = set(page.values("id"))
    used = set(re.findall(r"url\(#([^)]+)\)", source))
    assert used
    assert used <= ids


def test_the_numbers_and_the_convention_are_shown(report: ReportData, page: Page) -> None:
    shown = " ".join(page.words)
    for key in ("miou", "accuracy", "ece", "nll"):
        assert f"{report.scores[key]:.4f}" in shown
    assert report.convention in shown
    assert report.command in shown
    assert "over-confident by" in shown
    for name in report.class_names:
        assert name in shown


def test_what_comes_from_data_is_text_and_never_markup(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_classes=2, num_images=3)
    data = dataclasses.replace(
        plain,
        title=NASTY,
        subtitle=NASTY,
        convention=NASTY,
        command=NASTY,
        protocol={NASTY: NASTY},
        provenance={NASTY: {NASTY: [NASTY]}},
        scores={**plain.scores, NASTY: 0.5},
        class_names=[NASTY, "b"],
        classes=[dataclasses.replace(row, name=NASTY) for row in plain.classes],
        examples=[dataclasses.replace(plain.examples[0], id=NASTY, role=NASTY)],  # type: ignore[arg-type]
        images=[{**row, "id": NASTY} for row in plain.images],
    )
    source = render_page(data)
    page = Page(source)
    assert source.count("<script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert " ".join(page.words).count('<script>alert("1")</script>') >= 10


def test_broken_text_from_a_file_system_can_be_written(tmp_path: Path, make_report: Callable[..., ReportData]) -> None:
    data = make_report(num_images=2, title="caf\udce9 \x00 日本")
    write_page(tmp_path / "new" / "page.html", data)
    written = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "caf� � 日本" in written
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_the_same_data_gives_the_same_bytes(report: ReportData, source: str) -> None:
    assert render_page(report) == source


def test_size(report: ReportData, source: str) -> None:
    assert len(render_page(dataclasses.replace(report, examples=[])).encode()) < 600_000
    assert len(source.encode()) < 3_000_000


def test_nine_large_noisy_examples_stay_below_three_megabytes(make_report: Callable[..., ReportData]) -> None:
    data = make_report(num_images=3, size=(512, 1024))
    source = render_page(dataclasses.replace(data, examples=[*data.examples] * 3))
    assert len(source.encode()) < 3_000_000
    assert max(int(width) for width in re.findall(r'<img [^>]*width="(\d+)"', source)) <= 480


def test_nothing_to_measure_is_not_zero(make_report: Callable[..., ReportData]) -> None:
    page = Page(render_page(make_report(num_images=0)))
    shown = " ".join(page.words)
    assert shown.count("n/a") > 20
    assert "nothing to measure" in shown
    assert "0.0000" not in shown
    assert not re.search(r"\bnan\b", shown.lower())


def test_an_absent_class_is_not_available_and_sorts_last(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_classes=3)
    absent = dataclasses.replace(plain.classes[1], pixels=0, iou=np.nan, accuracy=np.nan)
    source = render_page(dataclasses.replace(plain, classes=[plain.classes[0], absent, plain.classes[2]]))
    row = re.search(r"<tr>(?:(?!</tr>).)*sidewalk</td>.*?</tr>", source)
    assert row is not None
    cells = re.findall(r"<td([^>]*)>([^<]*)</td>", row[0])
    missing = [attributes for attributes, shown in cells if shown == "n/a"]
    assert len(missing) == 2
    assert not any("data-value" in attributes for attributes in missing)


@pytest.mark.parametrize("num_classes", [1, 2, 34])
def test_any_number_of_classes(make_report: Callable[..., ReportData], num_classes: int) -> None:
    Page(render_page(make_report(num_classes=num_classes, num_images=2)))


@pytest.mark.parametrize(
    ("gap", "word"), [(0.08, "over-confident by 8.0 points"), (-0.05, "under-confident by 5.0 points"), (0, "balanced")]
)
def test_the_verdict_follows_the_gap(make_report: Callable[..., ReportData], gap: float, word: str) -> None:
    plain = make_report(num_images=1)
    page = Page(render_page(dataclasses.replace(plain, scores={**plain.scores, "signed_gap": gap})))
    assert word in " ".join(page.words)


def test_long_lists_of_images_are_cut_to_the_worst(make_report: Callable[..., ReportData]) -> None:
    plain = make_report(num_images=2)
    rows: list[dict[str, Any]] = [{**plain.images[0], "id": f"image{i}", "miou": i / 1500} for i in range(1500)]
    source = render_page(dataclasses.replace(plain, images=rows))
    assert "the 1000 images of lowest mIoU" in source
    assert ">image999<" in source
    assert ">image1000<" not in source
