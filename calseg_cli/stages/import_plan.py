"""Owns what an import will write, known before a value is read: ids, sizes, places, images; all that can be refused."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from calseg_cli.artifacts.foreign import ArrayFile
from calseg_cli.artifacts.foreign_values import AXES, DTYPES, VALUES, Place, grid_size, stored_place, stored_type
from calseg_cli.artifacts.geometry import Geometry, Size
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import Layout
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.stages.class_lists import ClassList, find_classes, labels_layout
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.foreign_sources import KINDS, ForeignItem, ForeignSource, find_source
from calseg_cli.stages.id_matching import Matching, match_ids

_LISTED = 20  # names in an error
_LABEL_BYTES = 0.1  # a pixel: labels pack to a tenth and less
_ONLY_LOGITS = ("axes", "values", "dtype")
_CHOICES = {"kind": tuple(KINDS), "axes": AXES, "values": VALUES, "dtype": DTYPES}


@dataclass(frozen=True)
class ImportOptions:
    """What the command line says of the source; None where it says nothing. `place` holds for every image."""

    kind: str | None = None
    key: str | None = None
    axes: str | None = None
    values: str | None = None
    dtype: str | None = None
    classes: str | None = None
    ids: str | None = None
    domain: str | None = None
    split: str | None = None
    place: Place = field(default_factory=Place)


@dataclass(frozen=True)
class PlannedItem:
    """One item as it will be: its id and place, the image it is of where one was found, and its size before packing.

    `image_digest` is what the source itself says of the image, `dtype` the type that its values are stored in.
    """

    id: str
    item: ForeignItem
    geometry: Geometry
    image: Path | None
    image_digest: str
    raw_bytes: float
    dtype: str


@dataclass(frozen=True)
class ImportPlan:
    """Everything that is decided before the first value is read.

    `domain` and `split` name the images that the ids were matched to, None where they were not; `lacking` counts those
    that the source has nothing for.
    """

    path: Path
    options: ImportOptions
    source: ForeignSource
    classes: ClassList
    layout: Layout | None
    items: list[PlannedItem]
    domain: str | None = None
    split: str | None = None
    lacking: int = 0

    @property
    def kind(self) -> str:
        """The artifact's kind."""
        return self.source.kind


class OpenFiles:
    """A context manager that opens the source's array files one at a time: an .npz of many images only once."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self._file: ArrayFile | None = None

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def open(self, path: Path) -> ArrayFile:
        """The file, open until another one is asked for."""
        if self._file is None or self._file.path != path:
            self._held.close()
            self._file = self._held.enter_context(ArrayFile(path))
        return self._file


@dataclass(frozen=True)
class _Declared:
    """What the head of an item's file says: rows and columns, where they lie, and bytes before packing.

    A label map is `full`: it has its image's own size.
    """

    size: Size
    place: Place
    raw_bytes: float
    dtype: str
    full: bool


def plan_import(resolved: Resolved | None, path: Path, options: ImportOptions) -> ImportPlan:
    """Look at every file of the source and decide where each goes; no value is read, nothing is written.

    Raises ConfigError for options that mean nothing here, DataError and ArtifactError for files that do not fit.
    """
    _check_choices(options)
    source = find_source(path, KINDS[options.kind] if options.kind else None, options.key)
    _check_used(options, source.kind)
    classes = find_classes(options.classes, resolved, source.folder)
    layout = None
    if source.kind == "pseudo_labels":
        layout = labels_layout(options.ids or "train", classes, resolved, options.domain)
    with OpenFiles() as files:
        declared = [_declared(item, source.kind, options, len(classes.names), files) for item in source.items]
    plan = ImportPlan(path, options, source, classes, layout, [])
    sized = all(one.place.out_hw is not None for one in declared)
    if resolved is None or (sized and options.domain is None and options.split is None):
        pairs = zip(source.items, declared, strict=True)
        return replace(plan, items=[_planned(item, one, item.id, None) for item, one in pairs])
    return _matched(plan, declared, resolved)


def image_size(path: Path) -> Size:
    """Height and width of an image or label file, from its head. Raises DataError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image", "copy it again or take it out") from error


def _matched(plan: ImportPlan, declared: Sequence[_Declared], resolved: Resolved) -> ImportPlan:
    """The plan with each file given to the image it is of, in the images' order."""
    options = plan.options
    domain = options.domain or resolved.config.predict.domain
    split = options.split or resolved.config.predict.split
    images = _images(resolved, domain, split)
    matching = match_ids([item.id for item in plan.source.items], images)
    _check_matching(matching, images, len(plan.source.items), f"{domain} {split}")
    order = {name: number for number, name in enumerate(images)}
    found = [
        _planned(item, one, name := matching.pairs[item.id], images[name])
        for item, one in zip(plan.source.items, declared, strict=True)
    ]
    found.sort(key=lambda planned: order[planned.id])
    return replace(plan, items=found, domain=domain, split=split, lacking=len(images) - len(found))


def _images(resolved: Resolved, domain: str, split: str) -> Mapping[str, Path]:
    try:
        dataset = open_domain(resolved, domain).dataset(split, with_labels=False)
    except (ConfigError, DataError) as error:
        hint = f"{error.hint}; or " if error.hint else ""
        raise type(error)(
            error.message, f"{hint}--domain and --split name other images, --out-size HxW does without"
        ) from error
    return {item.id: item.image for item in dataset.items}


def _check_matching(matching: Matching, images: Mapping[str, Path], files: int, where: str) -> None:
    lines = []
    if matching.unmatched:
        lines.append(f"{len(matching.unmatched)} of {files} fit no image of {where}: {_some(matching.unmatched)}")
    if matching.ambiguous:
        told = [f"{name} ({' or '.join(others[:3])})" for name, others in sorted(matching.ambiguous.items())]
        lines.append(f"{len(told)} of {files} are not of one image of {where} alone: {_some(told)}")
    if lines:
        raise DataError(
            "; ".join(lines),
            f"its ids look like {next(iter(images))!r}; --domain and --split name other images, --out-size HxW does "
            "without",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _check_choices(options: ImportOptions) -> None:
    for name, known in _CHOICES.items():
        value = getattr(options, name)
        if value is not None and value not in known:
            raise ConfigError(f"--{name} {value} is not known", f"known: {', '.join(known)}")


def _check_used(options: ImportOptions, kind: str) -> None:
    """An option that has no effect is a misunderstanding."""
    if kind == "logits":
        unused = ["--ids"] if options.ids is not None else []
    else:
        unused = [f"--{name}" for name in _ONLY_LOGITS if getattr(options, name) is not None]
        place = options.place
        given = {"--stride": place.stride, "--pad": place.pad, "--align-corners": place.align_corners}
        unused += [name for name, value in {**given, "--input-size": place.in_hw}.items() if value is not None]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)} has no effect on {kind.replace('_', '-')}", "leave it out, or set --kind"
        )


def _declared(item: ForeignItem, kind: str, options: ImportOptions, classes: int, files: OpenFiles) -> _Declared:
    if item.path.suffix.lower() == ".png":
        return _label(image_size(item.path), options.place)
    file = files.open(item.path)
    header = file.header(item.name)
    place = options.place.over(stored_place(file) if item.alone else item.place)
    if kind == "logits":
        size = grid_size(header.shape, options.axes or "chw", classes, item.where)
        dtype = options.dtype or stored_type(header.dtype)
        return _Declared(size, place, classes * size[0] * size[1] * np.dtype(dtype).itemsize, dtype, full=False)
    sides = header.shape[1:] if len(header.shape) == 3 and header.shape[0] == 1 else header.shape
    if len(sides) != 2:
        raise DataError(
            f"{item.where} is {'x'.join(map(str, header.shape))}; a label map is (height, width)",
            "for logits give --kind logits",
        )
    return _label((sides[0], sides[1]), place)


def _label(size: Size, place: Place) -> _Declared:
    return _Declared(size, place, size[0] * size[1] * _LABEL_BYTES, "uint8", full=True)


def _planned(item: ForeignItem, declared: _Declared, name: str, image: Path | None) -> PlannedItem:
    place, size = declared.place, None if image is None else image_size(image)
    known = [hw for hw in (place.out_hw, size, declared.size if declared.full else None) if hw is not None]
    if len(set(known)) > 1:
        told = " and ".join(f"{height}x{width}" for height, width in dict.fromkeys(known))
        raise DataError(
            f"{item.where}{f' and its image {image}' if image else ''}: the full size is {told}",
            "is it of another dataset or size? --out-size is the label's full size",
        )
    place = replace(place, out_hw=known[0] if known else None)
    geometry = place.geometry(declared.size, item.where)
    return PlannedItem(name, item, geometry, image, place.image_digest, declared.raw_bytes, declared.dtype)
