"""Owns the list of images of a split, each with its label where labels are asked for."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

from calseg_cli.data.layout import ROLES, Layout
from calseg_cli.data.patterns import find_files, fixed_folder, has_split, pattern_fields
from calseg_cli.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One image: its id (unique within the split, with forward slashes), its file, and its label's file if wanted."""

    id: str
    image: Path
    label: Path | None


def find_items(layout: Layout, root: Path, role: str, *, with_labels: bool) -> list[Item]:
    """The images of a role ("train", "val", "test") sorted by id; with labels, only those that have one.

    Without labels no label folder is touched. Raises DataError when a folder or the role is missing, when there is no
    image, or when no image has a label.
    """
    images = find_images(layout, root, role)
    if not with_labels:
        return [Item(name, path, None) for name, path in images.items()]
    labels = find_labels(layout, root, role)
    items = [Item(name, path, labels[name]) for name, path in images.items() if name in labels]
    if not items:
        raise _no_pair(layout, root, role, images, labels)
    if len(items) < len(images):
        _log.warning(
            "%d of %d images of %s %s have no label and are left out; run calseg data check",
            len(images) - len(items), len(images), root, role,
        )  # fmt: skip
    return items


def find_images(layout: Layout, root: Path, role: str) -> dict[str, Path]:
    """The images of a role by id, sorted. Raises DataError as `find_items` does."""
    source = folder_role(layout, root, role)
    found = all_files(layout, root, source, layout.images)
    if not found:
        folder, parts = fixed_folder(root, layout.images, layout.splits.get(source))
        raise DataError(f"{folder} holds no image that fits {'/'.join(parts)}", "check images, splits and root")
    if role in layout.lists:
        found = _listed(found, layout.lists[role])
    elif layout.holdout is not None and role in ("train", "val"):
        found = _held_out(found, layout.holdout, val=role == "val")
        if not found:
            raise DataError(f"{root}: too few images to hold out every {layout.holdout}th", "lower holdout")
    return found


def find_labels(layout: Layout, root: Path, role: str) -> dict[str, Path]:
    """The label files beside a role's images by id, sorted; with lists or a holdout also those of the other roles."""
    if layout.labels is None:
        raise DataError(
            f"labels of {root} are asked for, but the dataset {layout.name!r} has none", "set labels to their pattern"
        )
    return all_files(layout, root, folder_role(layout, root, role), layout.labels)


def all_files(layout: Layout, root: Path, role: str, pattern: str) -> dict[str, Path]:
    """Every file that fits the pattern in the role's folders, by id, sorted; before lists and holdout."""
    if not root.is_dir():
        raise DataError(f"the dataset's root {root} is not a folder", "check root; it is relative to the configuration")
    order = pattern_fields(layout.images)
    found: dict[str, Path] = {}
    for fields, path in find_files(root, pattern, layout.splits.get(role)):
        name = "/".join(fields[key] for key in order)
        if name in found:
            first, second = sorted((found[name], path))
            raise DataError(f"{first} and {second} have the same id {name!r}", "name one extension in the pattern")
        found[name] = path
    return dict(sorted(found.items()))


def folder_role(layout: Layout, root: Path, role: str) -> str:
    """The role whose folder holds this role's files. Raises DataError where the dataset has no such role."""
    if role not in ROLES:
        raise DataError(f"there is no split {role!r}", f"splits are {', '.join(ROLES)}")
    source = "train" if layout.holdout is not None and role == "val" else role
    if has_split(layout.images):
        if source not in layout.splits:
            raise DataError(
                f"{root} has no {role} split, only {', '.join(layout.splits) or 'none'}",
                f"name its folder: splits: {{{source}: FOLDER}}",
            )
        return source
    known = set(layout.lists) | ({"train", "val"} if layout.holdout else set()) or {"train", "test"}
    if role not in known:
        raise DataError(
            f"{root} has no {role} split, only {', '.join(r for r in ROLES if r in known)}",
            f"name its images (lists: {{{role}: FILE}})" + (", or set holdout" if role == "val" else ""),
        )
    return source


def _held_out(found: dict[str, Path], every: int, *, val: bool) -> dict[str, Path]:
    """Every N-th image, or the others."""
    return {name: path for place, (name, path) in enumerate(found.items()) if (place % every == every - 1) == val}


def _listed(found: dict[str, Path], file: Path) -> dict[str, Path]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list {file} cannot be read: {_reason(error)}", "check lists") from error
    wanted = {line for line in lines if line and not line.startswith("#")}
    missing = sorted(wanted - set(found))
    if missing:
        near = (difflib.get_close_matches(missing[0], list(found), n=1) or list(found))[0]
        raise DataError(
            f"{file} lists {len(missing)} ids without an image, such as {missing[0]!r}", f"ids look like {near!r}"
        )
    if not wanted:
        raise DataError(f"the list {file} is empty", "write one image id a line")
    return {name: path for name, path in found.items() if name in wanted}


def _no_pair(layout: Layout, root: Path, role: str, images: dict[str, Path], labels: dict[str, Path]) -> DataError:
    folder, parts = fixed_folder(root, layout.labels or "", layout.splits.get(role))
    what = f"none of the {len(images)} images of {root} {role} has a label"
    if not labels:
        return DataError(f"{what}: {folder} holds no file that fits {'/'.join(parts)}", "check the labels pattern")
    return DataError(f"{what}: images are called like {next(iter(images))!r}, labels like {next(iter(labels))!r}",
                     "check the images and labels patterns")  # fmt: skip


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8 text"
