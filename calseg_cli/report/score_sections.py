"""Owns the sections of the page that show the result as a whole: comparison, calibration, scores, runs, protocol."""

from collections.abc import Mapping

from calseg_cli.report.calibration_figures import confidence_figure, reliability_figure
from calseg_cli.report.data import ReportData
from calseg_cli.report.drawing import svg_text
from calseg_cli.report.markup import Cell, definitions, table, text
from calseg_cli.report.run_figures import comparison_figure, training_curves
from calseg_cli.report.tables import comparison_rows, interval_cells, interval_headers, ordered_scores
from calseg_cli.report.wording import NOT_AVAILABLE, SCORES, number, plain, score_label, score_text

_GROUPS = (
    ("accuracy", "Right and wrong"),
    ("calibration", "Can its confidence be trusted?"),
    ("likelihood", "Both at once (proper scores)"),
    ("", "Other"),
)


def comparison(data: ReportData) -> str:
    """Several results side by side; empty when there is only one."""
    if len(data.comparison) < 2:
        return ""
    headers, rows = comparison_rows(data.comparison)
    cells = [[Cell(text(row[0])), *(_plain_cell(value) for value in row[1:])] for row in rows]
    figure = svg_text(comparison_figure(data.comparison), "comparison", "Scores and reliability curves of the results")
    return (
        '<p class="guide">The same images, measured the same way. A method helps only where mIoU rises <b>and</b> ECE '
        "falls: a low ECE alone can also come from a network that is unsure of everything. Reliability curves below "
        f"the dashed diagonal are over-confident; bins of fewer than 0.1 % of the pixels are left out."
        f"</p><figure>{figure}</figure>"
        f"{table([(name, '') for name in headers], cells)}"
    )


def calibration(data: ReportData) -> str:
    """The reliability diagram and the histogram of confidence."""
    diagram = svg_text(
        reliability_figure(data.reliability, data.scores, intervals=data.intervals),
        "reliability",
        f"Reliability diagram: ECE {number(data.scores.get('ece'))}",
    )
    histogram = ""
    if data.confidence_histogram is not None:
        drawn = svg_text(confidence_figure(data.confidence_histogram), "confidence", "Histogram of confidence")
        histogram = f"<figure>{drawn}</figure>"
    return (
        '<p class="guide">When the network says 80 % it should be right 80 % of the time: then every dot lies on the '
        "dashed diagonal. <b>Red gaps below it are over-confidence</b> (surer than right), <b>teal gaps above it are "
        "under-confidence</b>. A gap matters as much as its bin has pixels: the middle panel multiplies the two and "
        "adds up to the ECE. Pale bins hold fewer than 0.1 % of the pixels. On the right, wrong pixels (red) at high "
        f'confidence are the dangerous ones.</p><div class="pair"><figure>{diagram}</figure>{histogram}</div>'
    )


def scores(data: ReportData) -> str:
    """Every score with its meaning, by what it speaks of."""
    rows: list[list[Cell]] = []
    intervals = [(name, _interval_meaning(data)) for name in interval_headers(data)]
    for subject, heading in _GROUPS:
        keys = [key for key in ordered_scores(list(data.scores)) if _subject(key) == subject]
        if keys:
            rows.append([Cell(heading, tone="group"), *[Cell("")] * (len(intervals) + 3)])
        rows += [_score_row(data, key) for key in keys]
    headers = [("score", ""), ("value", ""), *intervals, ("better", ""), ("what it says", "")]
    return (
        '<p class="guide">Compare numbers only between reports with the same convention and protocol (see below). '
        "The <b>noise floor</b> is the ECE that a perfectly calibrated network would show on as many pixels: "
        "differences of its size mean nothing. <b>n/a</b> means that there was nothing to measure; it is never "
        f"counted as 0.{_interval_guide(data)}</p>{table(headers, rows, kind='scores')}"
    )


def _subject(key: str) -> str:
    return SCORES[key].subject if key in SCORES else ""


def _interval_guide(data: ReportData) -> str:
    if data.intervals is None:
        return ""
    return (
        " An <b>interval</b> says how far a score moves when the images are drawn anew; it is n/a for scores that need "
        "finer counts than are kept of each image, and knows nothing of another training seed."
    )


def _interval_meaning(data: ReportData) -> str:
    if data.intervals is None:
        return ""
    drawn = f"{data.intervals.resamples} resamples of whole images, seed {data.intervals.seed}"
    return f"Where the score would lie with other images of the same kind: {drawn}"


def _score_row(data: ReportData, key: str) -> list[Cell]:
    known = SCORES.get(key)
    better = text(known.better) if known else ""
    return [
        Cell(text(score_label(key))),
        _plain_cell(score_text(key, data.scores[key])),
        *(_plain_cell(shown) for shown in interval_cells(data, key)),
        Cell(better),
        Cell(text(known.meaning) if known else ""),
    ]


def _plain_cell(shown: str) -> Cell:
    return Cell(text(shown), tone="none" if shown == NOT_AVAILABLE else "")


def training(data: ReportData) -> str:
    """The curves of the training that led here; empty without a log."""
    if not data.training:
        return ""
    figure = svg_text(training_curves(data.training), "training", "Training curves")
    return (
        '<p class="guide">Loss terms and learning rate by step, and the scores on the validation split while training. '
        "A validation ECE that rises while mIoU still grows is a network that becomes too sure of itself.</p>"
        f"<figure>{figure}</figure>"
    )


def protocol(data: ReportData) -> str:
    """Convention, protocol and provenance: what must agree before two reports may be compared."""
    blocks = [("Protocol", data.protocol), ("Provenance", data.provenance)]
    lists = "".join(f"<div><h3>{title}</h3>{_facts(facts)}</div>" for title, facts in blocks if facts)
    command = f"<h3>Command</h3><pre>{text(data.command)}</pre>" if data.command else ""
    return (
        '<p class="guide">Two reports may be compared when convention and protocol agree; provenance says how to make '
        f'this one again.</p><p class="convention">{text(data.convention)}</p><div class="pair">{lists}</div>{command}'
    )


def _facts(facts: Mapping[str, object]) -> str:
    return definitions((name.replace("_", " "), plain(value)) for name, value in facts.items())
