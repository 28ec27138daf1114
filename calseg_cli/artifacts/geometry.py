"""Owns where a grid of logits lies on its image: sizes, padding, stride, corner convention."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Everything needed to lay logits (C,h,w) back onto the label of the same image.

    The image of size `out_hw` was resized to `in_hw`, padded at the bottom and right by `pad`, and the network answered
    once every `stride` pixels. `align_corners` is the convention of the network's own up-sampling: off by one, and
    every boundary moves by half a stride.
    """

    in_hw: Size
    out_hw: Size
    pad: Size = (0, 0)
    stride: int = 1
    align_corners: bool = False

    @property
    def padded_hw(self) -> Size:
        """The size the network saw."""
        return self.in_hw[0] + self.pad[0], self.in_hw[1] + self.pad[1]

    def to_attrs(self) -> dict[str, Any]:
        """As plain values, for an artifact's attributes."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> "Geometry":
        """The inverse of `to_attrs`; numpy values are welcome."""

        def size(name: str) -> Size:
            height, width = (int(value) for value in attrs[name])
            return height, width

        return cls(size("in_hw"), size("out_hw"), size("pad"), int(attrs["stride"]), bool(attrs["align_corners"]))
