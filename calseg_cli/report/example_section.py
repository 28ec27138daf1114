"""Owns the section of the page that shows images: the best, median and worst with what was predicted of them."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

from calseg_cli.report.data import ImageExample, Picture, ReportData
from calseg_cli.report.markup import chip, drawing, photo, ramp, text
from calseg_cli.report.pictures import (
    CONFIDENCE_COLORS,
    CORRECT_SURE,
    CORRECT_UNSURE,
    HONEST,
    TOO_SURE,
    TOO_UNSURE,
    UNLABELLED,
    WRONG_SURE,
    WRONG_UNSURE,
    confidence_error,
    confidence_error_map,
    confidence_map,
    error_map,
    scale_to,
    shrink,
)
from calseg_cli.report.wording import number

WIDTH = 480


def examples(data: ReportData) -> str:
    """The examples, their legends, and how to read them; empty without examples."""
    if not data.examples:
        return ""
    return (
        '<p class="guide">Chosen by mIoU. In the error map everything right is nearly white; <b>the redder a pixel, '
        "the surer the network was of a wrong class</b>. The last picture is confidence minus right (1) or wrong (0): "
        "<b>red where it claimed too much, teal where it was right and did not trust itself</b>, nearly white where "
        "confidence and outcome agree. Where a large image is shown small, that is the mean over each area. Scales are "
        "the same for all images, so that they can be compared. Click a picture to enlarge it, click beside it to go "
        "back.</p>"
        f"{_legends(data)}{''.join(_example(example) for example in data.examples)}"
    )


def _legends(data: ReportData) -> str:
    names = "".join(f"<span>{chip(row.color)}{text(row.name)}</span>" for row in data.classes)
    stops = (np.array(colormaps[CONFIDENCE_COLORS](np.linspace(0, 1, 9)))[:, :3] * 255).round().astype(int).tolist()
    scales = (
        f"<span>confidence: {ramp(stops, '0', '1')}</span>"
        f"<span>wrong: {ramp([WRONG_UNSURE, WRONG_SURE], 'unsure', 'sure')}</span>"
        f"<span>right: {ramp([CORRECT_UNSURE, CORRECT_SURE], 'unsure', 'sure')}</span>"
        f"<span>confidence error: {ramp([TOO_UNSURE, HONEST, TOO_SURE], '−1 too unsure', '+1 too sure')}</span>"
        f"<span>{chip(UNLABELLED)}not labelled (left out)</span>"
    )
    return f'<div class="legend">{names}</div><div class="legend">{scales}</div>'


def _example(example: ImageExample) -> str:
    width = min(WIDTH, example.image.shape[1])
    errors = error_map(example.wrong, example.confidence, example.ignored)
    trust = confidence_error(example.wrong, example.confidence, example.ignored)
    tiles = (
        ("image", photo(_reduced(example.image, width), f"image {example.id}")),
        ("label", drawing(scale_to(example.label_colors, width, smooth=False), "label")),
        ("prediction", drawing(scale_to(example.prediction_colors, width, smooth=False), "prediction")),
        ("confidence", photo(_reduced(confidence_map(example.confidence), width), "confidence")),
        ("errors", photo(_reduced(errors, width), "errors")),
        ("confidence error", photo(confidence_error_map(shrink(trust, width)), "confidence error")),
    )
    pictures = "".join(
        f'<figure tabindex="0">{picture}<figcaption>{name}</figcaption></figure>' for name, picture in tiles
    )
    facts = f"mIoU {number(example.miou, decimals=3)} · accuracy {number(example.accuracy, decimals=3)}"
    return (
        f'<article class="example"><h3><i class="role {text(example.role)}">{text(example.role)}</i>{text(example.id)}'
        f"<span>{facts} · ECE {number(example.ece, decimals=3)}</span></h3>"
        f'<div class="tiles">{pictures}</div></article>\n'
    )


def _reduced(picture: Picture, width: int) -> Picture:
    """Smaller by whole areas, so that thin errors pale and do not vanish."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
