"""Owns the report as one self-contained HTML page: it opens from disk, asks nothing of a network, and prints."""

import base64
import hashlib
from pathlib import Path

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.report import bias_section, class_sections, example_section, headline, score_sections, trust_sections
from calseg_cli.report.data import ReportData
from calseg_cli.report.markup import text
from calseg_cli.report.stylesheet import SCRIPT, STYLE

__all__ = ["ReportData", "render_page", "write_page"]


def render_page(data: ReportData) -> str:
    """The page as HTML, the same for the same data. Everything in `data` is shown as text, never as markup."""
    sections = [
        ("comparison", "Comparison", score_sections.comparison(data)),
        ("calibration", "Calibration", score_sections.calibration(data)),
        ("selection", "Risk and coverage", trust_sections.selection(data)),
        ("scores", "Scores", score_sections.scores(data)),
        ("classes", "Classes", class_sections.classes(data)),
        ("bias", "Bias", bias_section.bias(data)),
        ("class-calibration", "Calibration by class", trust_sections.class_calibration(data)),
        ("regions", "Regions", class_sections.regions(data)),
        ("confusion", "Confusion", class_sections.confusion(data)),
        ("images", "Images", class_sections.images(data)),
        ("examples", "Examples", example_section.examples(data)),
        ("training", "Training", score_sections.training(data)),
        ("protocol", "How it was measured", score_sections.protocol(data)),
    ]
    kept = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in kept)
    bodies = "".join(f'<section><h2 id="{name}">{title}</h2>{body}</section>\n' for name, title, body in kept)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_policy()}'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{text(data.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>{headline.headline(data)}</header>\n<nav><div>{links}</div></nav>\n<main>\n{bodies}</main>\n"
        "<footer>Made with calseg. One file: it can be sent, archived and printed as it is.</footer>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _policy() -> str:
    """Forbid the page every request, and every script but its own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    rules = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">\n'


def write_page(path: Path, data: ReportData) -> None:
    """Write the page whole or not at all, making its folder. Raises DiskFullError."""
    write_whole(path, render_page(data))
