"""Owns the kinds of value a key can have: strict numbers, switches, colours, class names, sizes, names of folders."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field, PlainValidator, Strict, WithJsonSchema
from pydantic import StringConstraints as Constraints
from pydantic_core import PydanticCustomError

MOST_CLASSES = 254  # a label is one byte: 255 is ignored, 254 marks a value that has no meaning
IGNORED = "ignore"  # in place of a class: such pixels count for nothing
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_WEIGHTINGS = ("none", "inverse", "sqrt-inverse")
_COLOR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_CONDITION = re.compile(r"\s*\w+\s*(>=|<=|>|<)\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_COLOR_FORM = 'a colour, "#rrggbb" in quotes (a bare # begins a comment) or [r, g, b] with 0 to 255'


def wrong(message: str) -> PydanticCustomError:
    """An error to raise in a validator; `message` continues "KEY ..."."""
    return PydanticCustomError("wrong", "{text}", {"text": message})


def wrong_together(problems: Sequence[tuple[str, str]]) -> PydanticCustomError:
    """An error to raise for fields that do not fit each other: pairs of a key below the section and a message."""
    return PydanticCustomError("together", "{text}", {"text": problems[0][1], "problems": list(problems)})


class Color(NamedTuple):
    """A colour, each part 0 to 255; its text is "#rrggbb"."""

    red: int
    green: int
    blue: int

    def __str__(self) -> str:
        return f"#{self.red:02x}{self.green:02x}{self.blue:02x}"


def parse_color(value: Any) -> Color:
    """The colour meant by "#rrggbb", "r,g,b" or [r, g, b].

    >>> parse_color("#804080"), str(parse_color([128, 64, 128]))
    (Color(red=128, green=64, blue=128), '#804080')
    """
    if isinstance(value, str):
        match = _COLOR.fullmatch(value.strip())
        value = [int(part, 16) for part in match.groups()] if match else _numbers(value)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_byte(part) for part in value):
        raise wrong(f"must be {_COLOR_FORM}")
    return Color(*value)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    return [int(part) for part in parts] if all(part.isascii() and part.isdecimal() for part in parts) else []


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _switch(value: Any) -> Any:
    return _SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def _whole_key(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value


def _class_reference(value: Any) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise wrong("must be a class name, its index counted from 0, or ignore")
    if isinstance(value, int) and not 0 <= value < MOST_CLASSES:
        raise wrong(f"must be a class index from 0 to {MOST_CLASSES - 1}")
    return value


def _two(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise wrong(f"must be a list of two numbers, not of {len(value)}")
    return value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise wrong(f"must be [smallest, largest], not [{value[0]:g}, {value[1]:g}]")
    return value


def _weighting(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, str) and value in _WEIGHTINGS:
        return value
    if isinstance(value, list | tuple) and value and all(_is_weight(item) for item in value) and any(value):
        return tuple(float(item) for item in value)
    raise wrong("must be none, inverse, sqrt-inverse, or a list of numbers, one a class, not below 0, not all 0")


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]{0,99}", value) or value.endswith(".") or _RESERVED.fullmatch(value):
        raise wrong("must be usable as a folder's name: letters, digits, and . _ + - after the first, at most 100")
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value):
        raise wrong(f"must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _condition(value: str) -> str:
    if not _CONDITION.fullmatch(value):
        raise wrong(f"must be a condition on a score, such as 'ece>0.1', not {value!r}")
    return value


def _path(value: Any) -> Any:
    if value == "":
        raise wrong("must not be empty")
    return value


Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Bool = Annotated[bool, Strict(), BeforeValidator(_switch)]
Text = Annotated[str, Constraints(min_length=1)]
Location = Annotated[Path, BeforeValidator(_path)]
ColorValue = Annotated[Color, PlainValidator(parse_color), WithJsonSchema({"type": ["string", "array"]})]
ColorKey = Annotated[Color, PlainValidator(parse_color), WithJsonSchema({"type": "string"})]
ClassReference = Annotated[str | int, PlainValidator(_class_reference), WithJsonSchema({"type": ["string", "integer"]})]
RawId = Annotated[int, Strict(), Field(ge=0, le=65535), BeforeValidator(_whole_key)]
PixelCount = Annotated[Int, Field(ge=1, le=65536)]
Size = Annotated[tuple[PixelCount, PixelCount], BeforeValidator(_two)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Device = Annotated[str, AfterValidator(_device)]
Condition = Annotated[str, AfterValidator(_condition)]
Positive = Annotated[Float, Field(gt=0)]
Range = Annotated[tuple[Positive, Positive], BeforeValidator(_two), AfterValidator(_ordered)]
ClassWeights = Annotated[
    Literal["none", "inverse", "sqrt-inverse"] | tuple[float, ...],
    PlainValidator(_weighting),
    WithJsonSchema({"anyOf": [{"enum": list(_WEIGHTINGS)}, {"type": "array", "items": {"type": "number"}}]}),
]
Probability = Annotated[Float, Field(ge=0, le=1)]
DomainRole = Literal["source", "target"]
Split = Literal["train", "val", "test"]
