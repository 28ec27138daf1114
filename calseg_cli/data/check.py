"""Owns the check of a dataset: everything in a split's folders opened once, and what is wrong with it counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.data.items import all_files, find_images, find_labels, folder_role
from calseg_cli.data.labels import classified, mend_hint, read_image, read_raw, value_name
from calseg_cli.data.layout import IGNORE, Layout
from calseg_cli.data.patterns import fixed_folder, has_split
from calseg_cli.errors import DataError

Progress = Callable[[int, int], None]
_EXAMPLES = 5


@dataclass
class Finding:
    """How often something is wrong, and the first places."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class CheckReport:
    """What a split holds: counts, sizes, class frequencies, and findings by kind.

    `labelled` counts the images whose label was read and is of their size; `class_pixels` and `class_images`, both by
    class index, and `ignored_pixels` are over those. Pixels of unknown value count as ignored. `sizes` counts images
    by (height, width).
    """

    root: Path
    role: str
    class_names: tuple[str, ...]
    images: int = 0
    labelled: int = 0
    unpaired_images: Finding = field(default_factory=Finding)
    unpaired_labels: Finding = field(default_factory=Finding)
    unreadable: Finding = field(default_factory=Finding)
    size_mismatch: Finding = field(default_factory=Finding)
    unknown_ids: Finding = field(default_factory=Finding)
    unknown_values: dict[str, int] = field(default_factory=dict)
    unknown_hint: str = ""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    class_pixels: list[int] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    ignored_pixels: int = 0

    @property
    def empty_classes(self) -> list[str]:
        """Classes without a pixel, where there are labels at all."""
        named = zip(self.class_names, self.class_pixels, strict=True)
        return [name for name, pixels in named if not pixels] if self.labelled else []

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line a kind; empty when all is well.

        A class that never occurs is a problem in train, where it cannot be learnt, and a remark elsewhere.
        """
        lines = [
            _line(self.unpaired_images, "image without a label", "images without a label"),
            _line(self.unpaired_labels, "label without an image", "labels without an image"),
            _line(self.unreadable, "unreadable file", "unreadable files"),
            _line(self.size_mismatch, "label of another size than its image", "labels of another size"),
            self._unknown_line(),
            self._empty_line() if self.role == "train" else "",
        ]
        return [line for line in lines if line]

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing and not wrong."""
        return [self._empty_line()] if self.role != "train" and self.empty_classes else []

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON; class counts by class name, sizes as "HEIGHTxWIDTH"."""
        kinds = ("unpaired_images", "unpaired_labels", "unreadable", "size_mismatch", "unknown_ids")
        return {
            "root": str(self.root),
            "split": self.role,
            "images": self.images,
            "labelled": self.labelled,
            "sizes": {f"{height}x{width}": count for (height, width), count in sorted(self.sizes.items())},
            "classes": {
                name: {"pixels": pixels, "images": images}
                for name, pixels, images in zip(self.class_names, self.class_pixels, self.class_images, strict=True)
            },
            "ignored_pixels": self.ignored_pixels,
            **{kind: {"count": getattr(self, kind).count, "examples": getattr(self, kind).examples} for kind in kinds},
            "unknown_values": self.unknown_values,
            "empty_classes": self.empty_classes,
            "problems": self.problems,
            "remarks": self.remarks,
        }

    def _unknown_line(self) -> str:
        if not self.unknown_ids.count:
            return ""
        values = ", ".join(f"{value} ({count} pixels)" for value, count in list(self.unknown_values.items())[:8])
        more = f" and {len(self.unknown_values) - 8} more" if len(self.unknown_values) > 8 else ""
        return (
            f"{_line(self.unknown_ids, 'label', 'labels')} with values that are not known: {values}{more}; "
            f"{self.unknown_hint}"
        )

    def _empty_line(self) -> str:
        return f"no pixel of {', '.join(self.empty_classes)}" if self.empty_classes else ""


def check_items(layout: Layout, root: Path, role: str, progress: Progress | None = None) -> CheckReport:
    """Every image and label of a role, opened and counted; `progress(done, total)` is told after each image.

    Where no label exists, as for a target to adapt to, images alone are checked. Raises DataError when there is
    nothing to check.
    """
    images = find_images(layout, root, role)
    labels = _labels_if_any(layout, root, role)
    count = layout.num_classes
    report = CheckReport(
        root, role, layout.class_names, len(images), class_pixels=[0] * count, class_images=[0] * count
    )
    unknown: Counter[int] = Counter()
    if labels:
        _compare_names(report, layout, images, labels)
    for done, (name, path) in enumerate(images.items(), start=1):
        _check_one(report, layout, path, labels.get(name), unknown)
        if progress is not None:
            progress(done, len(images))
    by_count = dict(unknown.most_common())
    report.unknown_values = {value_name(value, layout): pixels for value, pixels in by_count.items()}
    report.unknown_hint = mend_hint(by_count, layout) if by_count else ""
    return report


def _labels_if_any(layout: Layout, root: Path, role: str) -> dict[str, Path]:
    if layout.labels is None or not layout.class_names:
        return {}
    folder, _ = fixed_folder(root, layout.labels, layout.splits.get(folder_role(layout, root, role)))
    return find_labels(layout, root, role) if folder.is_dir() else {}


def _compare_names(report: CheckReport, layout: Layout, images: dict[str, Path], labels: dict[str, Path]) -> None:
    for name, path in images.items():
        if name not in labels:
            report.unpaired_images.add(str(path))
    if has_split(layout.images) and not has_split(layout.labels or ""):
        return  # one folder holds the labels of all splits; the others are no strays
    # A list or a holdout picks some images of a folder; a label of one that was not picked is no stray either.
    source = folder_role(layout, report.root, report.role)
    known = all_files(layout, report.root, source, layout.images)
    for name, path in labels.items():
        if name not in known:
            report.unpaired_labels.add(str(path))


def _check_one(report: CheckReport, layout: Layout, path: Path, label: Path | None, unknown: Counter[int]) -> None:
    size = _image_size(report, path)
    if label is None:
        return
    try:
        raw = read_raw(label, layout)
    except DataError as error:
        report.unreadable.add(error.message)
        return
    if size is not None and raw.shape != size:
        report.size_mismatch.add(f"{path} is {size[0]}x{size[1]}, {label} is {raw.shape[0]}x{raw.shape[1]}")
        return
    classes, strange = classified(raw, layout)
    if strange:
        unknown.update(strange)
        report.unknown_ids.add(str(label))
    if size is None:
        return
    pixels = np.bincount(classes.ravel(), minlength=IGNORE + 1)
    report.labelled += 1
    report.ignored_pixels += int(pixels[IGNORE])
    for index in range(layout.num_classes):
        report.class_pixels[index] += int(pixels[index])
        report.class_images[index] += int(pixels[index] > 0)


def _image_size(report: CheckReport, path: Path) -> tuple[int, int] | None:
    try:
        height, width = read_image(path).shape[:2]
    except DataError as error:
        report.unreadable.add(error.message)
        return None
    report.sizes[height, width] += 1
    return height, width


def _line(finding: Finding, one: str, many: str) -> str:
    if not finding.count:
        return ""
    shown = ", ".join(finding.examples[:2]) + (", ..." if finding.count > 2 else "")
    return f"{finding.count} {one if finding.count == 1 else many} ({shown})"
