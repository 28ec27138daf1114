"""Owns the section of a dataset: where its files are, and what its labels mean."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import (
    IGNORED,
    MOST_CLASSES,
    ClassReference,
    ColorKey,
    ColorValue,
    Int,
    Location,
    RawId,
    Size,
    Split,
    Text,
    wrong_together,
)

Encoding = Literal["index", "color", "first-channel-16bit"]


class Domain(Section):
    """A dataset: a layout (built in, or a YAML file with these same keys) and what differs from it here."""

    layout: Text = key("folders", "Built-in layout, or a YAML file whose keys are the base of those given here.")
    root: Location = key(..., "The dataset's folder; calseg never writes into it.")
    images: Text | None = key(
        None, "Pattern of the images below root; {path} spans folders, other names in braces do not."
    )
    labels: Text | None = key(None, "Pattern of the labels below root; the same names in braces as the images'.")
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST_CLASSES)] | None = key(
        None, "Class names, unique, in the order of their indices; a target without them has the source's."
    )
    ids: dict[RawId, ClassReference] | None = key(
        None, "Raw label value to class name, index, or ignore; several values may go to one class."
    )
    colors: dict[ColorKey, ClassReference] | None = key(
        None, 'Label colour ("#rrggbb" or "r,g,b") to class name, index, or ignore, for painted labels.'
    )
    ignore: tuple[RawId, ...] | None = key(None, "Raw label values that count for nothing.")
    encoding: Encoding | None = key(None, "How labels are stored: index, color or first-channel-16bit.")
    palette: tuple[ColorValue, ...] | None = key(None, 'One colour a class for pictures, "#rrggbb" or [r, g, b].')
    splits: dict[Split, Text] | None = key(None, "Name that {split} stands for, by split: train, val, test.")
    lists: dict[Split, Location] | None = key(None, "Text file of item ids, one a line, by split: train, val, test.")
    holdout: Annotated[Int, Field(ge=2)] | None = key(
        None, "Every N-th training image is val, where a dataset has no val split of its own; at least 2."
    )
    size: Size | None = key(None, "Network input [height, width] in pixels; images are resized to it.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = [*self._class_list_problems(), *self._label_problems()]
        if problems:
            raise wrong_together(problems)
        return self

    def _class_list_problems(self) -> Iterator[tuple[str, str]]:
        classes = self.classes
        if classes is None:
            return
        for number, name in enumerate(classes):
            if name in classes[:number]:
                yield f"classes.{number}", f"lists the class {name!r} twice"
        if self.palette is not None and len(self.palette) != len(classes):
            yield "palette", f"has {len(self.palette)} colours for {len(classes)} classes"
        for name, table in (("ids", self.ids), ("colors", self.colors)):
            for raw, reference in _unknown_classes(table or {}, classes):
                yield f"{name}.{raw}", f"is {reference!r}, which is none of the {len(classes)} classes"

    def _label_problems(self) -> Iterator[tuple[str, str]]:
        if self.encoding == "color" and self.ids is not None:
            yield "ids", "is for labels that hold numbers, but encoding is color; use colors"
        if self.encoding not in (None, "color") and self.colors is not None:
            yield "colors", f"is for labels painted in colours, but encoding is {self.encoding}; use ids"
        mapped = {raw for raw, reference in (self.ids or {}).items() if reference != IGNORED}
        both = sorted(mapped & {*(self.ignore or ())})
        if both:
            yield "ignore", f"holds {', '.join(map(str, both))}, which ids maps to a class"


def _unknown_classes(
    table: Mapping[int, str | int] | Mapping[ColorKey, str | int], classes: tuple[str, ...]
) -> Iterator[tuple[str, str | int]]:
    for raw, reference in table.items():
        known = reference in (*classes, IGNORED) if isinstance(reference, str) else reference < len(classes)
        if not known:
            yield str(raw), reference
