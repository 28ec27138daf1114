"""Owns what turns values into HTML: escaped text, tables, pictures as data, colour chips."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from calseg_cli.report.data import Color, Picture
from calseg_cli.report.wording import is_missing


def text(value: Any) -> str:
    r"""A value from outside as HTML: nothing in it is markup, nothing in it is unprintable.

    >>> text("<b>&'\x00")
    '&lt;b&gt;&amp;&#x27;�'
    """
    return html.escape("".join(sign if sign.isprintable() else "\ufffd" for sign in str(value)))


@dataclass(frozen=True)
class Cell:
    """A table cell: what is shown (HTML), what it is sorted by, and the length of a bar behind it (0 to 1)."""

    shown: str
    value: Any = None
    bar: float | None = None
    tone: str = ""

    def html(self, tag: str = "td") -> str:
        """The cell as an element."""
        filled = self.bar is not None and not is_missing(self.bar)
        names = " ".join(name for name in (self.tone, "bar" if filled else "") if name)
        length = f"--length:{min(max(self.bar or 0.0, 0.0), 1.0):.3f}" if filled else ""
        value = "" if is_missing(self.value) else text(self.value)
        return f"<{tag}{_attributes(('class', names), ('data-value', value), ('style', length))}>{self.shown}</{tag}>"


def _attributes(*pairs: tuple[str, str]) -> str:
    """Attributes with values that are HTML already; empty ones are left out."""
    return "".join(f' {name}="{value}"' for name, value in pairs if value)


def table(
    headers: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Cell]],
    *,
    foot: Sequence[Cell] = (),
    sortable: bool = False,
    kind: str = "",
) -> str:
    """A table from (heading, explanation) pairs and rows of cells; a click on a heading sorts it where scripts run."""
    head = "".join(
        f"<th{_attributes(('scope', 'col'), ('title', text(meaning)))}>{text(name)}</th>" for name, meaning in headers
    )
    body = "".join(f"<tr>{''.join(cell.html() for cell in row)}</tr>\n" for row in rows)
    tail = f"<tfoot><tr>{''.join(cell.html() for cell in foot)}</tr></tfoot>" if foot else ""
    names = " ".join(name for name in (kind, "sortable" if sortable else "") if name)
    return (
        f'<div class="scroll"><table{_attributes(("class", names))}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{tail}</table></div>"
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and their values, both plain text."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in pairs)}</dl>"


def chip(color: Color) -> str:
    """A small square of a class's colour."""
    return f'<i class="chip" style="background:{css_color(color)}"></i>'


def css_color(color: Sequence[int]) -> str:
    """A colour of three bytes for a style sheet.

    >>> css_color((255, 0, 10))
    '#ff000a'
    """
    return "#" + "".join(f"{int(value) & 255:02x}" for value in color)


def ramp(colors: Sequence[Sequence[int]], start: str, stop: str) -> str:
    """A colour scale with a word at either end."""
    stops = ",".join(css_color(color) for color in colors)
    return (
        f'<span class="ramp">{text(start)}<i style="background:linear-gradient(90deg,{stops})"></i>{text(stop)}</span>'
    )


def photo(picture: Picture, alternative: str) -> str:
    """A picture within the page, compressed as a photograph."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="jpeg", quality=82, optimize=True)
    return _image("jpeg", stream.getvalue(), picture, alternative)


def drawing(picture: Picture, alternative: str) -> str:
    """A picture within the page with its exact colours; few colours make a small file."""
    image, stream = Image.fromarray(picture), io.BytesIO()
    if image.getcolors(256) is not None:
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    image.save(stream, format="png", optimize=True)
    return _image("png", stream.getvalue(), picture, alternative)


def _image(kind: str, content: bytes, picture: Picture, alternative: str) -> str:
    height, width = picture.shape[:2]
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{text(alternative)}">'
