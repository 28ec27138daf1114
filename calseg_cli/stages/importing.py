"""Owns `calseg artifact import`: other tools' arrays and label files become an artifact that every command takes."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calseg_cli.artifacts.digests import list_digest
from calseg_cli.artifacts.foreign import ArrayFile
from calseg_cli.artifacts.foreign_values import SMALLEST, as_confidence, as_label_map, as_logits
from calseg_cli.artifacts.provenance import file_digest, provenance
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE, Layout
from calseg_cli.data.labels import classified, read_raw, value_name
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.stages.chain import recipe
from calseg_cli.stages.import_plan import ImportOptions, ImportPlan, OpenFiles, PlannedItem, plan_import
from calseg_cli.stages.predict import check_stop
from calseg_cli.stages.roads import classes_table

Array = NDArray[Any]
_LISTED = 8  # label values in an error
_STORED_AS = {
    "logits": "logits",
    "probabilities": f"log-probabilities (of imported probabilities, not below {SMALLEST:g})",
    "log-probabilities": "log-probabilities",
}


@dataclass(frozen=True)
class Imported:
    """What import leaves. `lacking` counts the images of the split that the source has nothing for."""

    artifact: Path
    kind: str
    images: int
    classes: int
    digest: str
    domain: str | None
    split: str | None
    lacking: int


def import_artifact(
    resolved: Resolved | None,
    path: Path,
    target: Path,
    options: ImportOptions,
    *,
    resume: bool,
    force: bool,
    progress: Progress,
) -> Imported:
    """Write what another tool left in `path` as the artifact `target`. No label of a dataset is opened.

    Raises DataError for files that cannot be used, by name; ArtifactError where the target is in the way.
    """
    if target.suffix != ".h5":
        raise ArtifactError(f"{target} would be no artifact", "end the name with .h5")
    plan = plan_import(resolved, path, options)
    progress.note(f"{path}: {plan.kind} of {len(plan.items)} images, {len(plan.classes.names)} classes")
    if plan.lacking:
        progress.note(f"{plan.lacking} images of {plan.domain} {plan.split} have nothing there")
    meta = _meta(plan, resolved, _source_digest(plan, progress))
    with stop_on_signals() as stop:
        _write(plan, target, meta, resume=resume, force=force, progress=progress, stop=stop)
    with open_artifact(target, plan.kind) as written:
        names = len(plan.classes.names)
        return Imported(target, plan.kind, len(written), names, written.digest, plan.domain, plan.split, plan.lacking)


def _write(
    plan: ImportPlan,
    target: Path,
    meta: Mapping[str, Any],
    *,
    resume: bool,
    force: bool,
    progress: Progress,
    stop: StopRequest,
) -> None:
    writer = ArtifactWriter(
        target,
        plan.kind,
        meta=meta,
        ids=[planned.id for planned in plan.items],
        force=force,
        resume=resume,
        estimate=int(sum(planned.raw_bytes for planned in plan.items)),
    )
    try:
        with writer, OpenFiles() as files:
            if writer.finished:
                progress.note(f"{target} is up to date; nothing to do")
                return
            todo = set(writer.todo)
            progress.start("importing", len(plan.items), done=writer.done)
            for planned in plan.items:
                if planned.id in todo:
                    digest = _image_digest(planned)
                    writer.add_item(planned.id, _arrays(plan, planned, files), planned.geometry, image_digest=digest)
                    progress.advance()
                    check_stop(stop, writer)
            progress.finish()
    except DataError:
        # Whatever mends the source makes it another source, so nothing can go on with what was begun.
        writer.partial.unlink(missing_ok=True)
        raise


def _source_digest(plan: ImportPlan, progress: Progress) -> str:
    """The digest of the source's files by name. Reading them twice costs little beside packing them."""
    files = plan.source.files
    progress.start("reading", len(files))
    digests = []
    for file in files:
        name = file.name if plan.path.is_file() else file.relative_to(plan.path).as_posix()
        digests.append(f"{name} {file_digest(file)}")
        progress.advance()
    progress.finish()
    return list_digest(digests)


def _image_digest(planned: PlannedItem) -> str:
    """The digest of the image's file. Raises DataError where the source was made from another file."""
    if planned.image is None:
        return planned.image_digest
    digest = file_digest(planned.image)
    if planned.image_digest not in ("", digest):
        raise DataError(
            f"{planned.item.where} was made from another image than {planned.image}",
            "is it of another split or dataset? --domain and --split name it",
        )
    return digest


def _arrays(plan: ImportPlan, planned: PlannedItem, files: OpenFiles) -> dict[str, Array]:
    """The arrays of one item as the artifact holds them."""
    item, options = planned.item, plan.options
    if plan.layout is None:
        logits = as_logits(
            files.open(item.path).read(item.name),
            axes=options.axes or "chw",
            values=options.values or "logits",
            dtype=options.dtype,
            where=item.where,
        )
        return {"logits": logits}
    if item.path.suffix.lower() == ".png":
        return {"label": _classes_of(read_raw(item.path, plan.layout), plan.layout, item.where)}
    file = files.open(item.path)
    label = _classes_of(as_label_map(file.read(item.name), item.where), plan.layout, item.where)
    if not (item.alone and "confidence" in file.names):
        return {"label": label}
    return {"label": label, "confidence": _confidence(file, label)}


def _confidence(file: ArrayFile, label: Array) -> Array:
    height, width = label.shape
    return as_confidence(file.read("confidence"), (height, width), file.where("confidence"))


def _classes_of(raw: Array, layout: Layout, where: str) -> NDArray[np.uint8]:
    """The class indices (H,W) of raw values. Raises DataError, with counts, for values that stand for nothing."""
    outside = (raw < 0) | (raw >= (1 << 24 if layout.encoding == "color" else 1 << 16))
    if outside.any():
        values, counts = np.unique(raw[outside], return_counts=True)
        classes, unknown = raw, dict(zip(values.tolist(), counts.tolist(), strict=True))
    else:
        classes, unknown = classified(raw.astype(np.int64), layout)
    if unknown:
        told = [f"{value_name(value, layout)} ({count} pixels)" for value, count in list(unknown.items())[:_LISTED]]
        more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
        raise DataError(
            f"{where} holds values that are no class: {', '.join(told)}{more}",
            f"values are class indices below {layout.num_classes}, or 255 for ignored; --ids dataset, or a list "
            "RAW=CLASS,RAW=ignore, says what others mean",
        )
    return classes


def _meta(plan: ImportPlan, resolved: Resolved | None, digest: str) -> dict[str, Any]:
    origin = {"domain": plan.domain, "split": plan.split} if plan.domain else {}
    parents = {"source": digest}
    return {
        "classes": classes_table(plan.classes.names, plan.classes.palette, IGNORE),
        "protocol": {**_protocol(plan), **origin},
        "recipe": recipe("import", parents, [planned.id for planned in plan.items], _used(plan)),
        "provenance": provenance(
            sys.argv,
            config_digest=resolved.digest if resolved is not None else None,
            parents=parents,
        ),
        "config": resolved.to_dict() if resolved is not None else {},
    }


def _protocol(plan: ImportPlan) -> dict[str, Any]:
    """How the values came about, as far as calseg knows: what it did with them, and that it made none of them."""
    if plan.layout is not None:
        return {"network": "imported", "pseudo_labels": {"imported": True, "values": _label_values(plan)}}
    strides = sorted({planned.geometry.stride for planned in plan.items})
    corners = any(planned.geometry.align_corners for planned in plan.items)
    return {
        "network": "imported",
        "network_input": _sizes(plan),
        "grid": f"logits at stride {' and '.join(map(str, strides))}, bilinear to the label's full size"
        f"{', align_corners' if corners else ''}",
        "values": _STORED_AS[plan.options.values or "logits"],
        "stored_as": " and ".join(sorted({planned.dtype for planned in plan.items})),
        "imported_values": plan.options.values or "logits",
        "imported_axes": plan.options.axes or "chw",
    }


def _sizes(plan: ImportPlan) -> str:
    sizes = sorted({planned.geometry.in_hw for planned in plan.items})
    return " and ".join(f"{height}x{width}" for height, width in sizes[:3]) + (" and others" if len(sizes) > 3 else "")


def _label_values(plan: ImportPlan) -> str | dict[str, int]:
    """What each raw value stood for, where they were not class indices."""
    if plan.options.ids in (None, "train") or plan.layout is None:
        return "class indices"
    return {value_name(raw, plan.layout): index for raw, index in sorted(plan.layout.raw_classes().items())}


def _used(plan: ImportPlan) -> Mapping[str, Any]:
    """The options that decide the content; classes and label values are in tables of their own."""
    place = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(plan.options.place).items()}
    kept = {name: getattr(plan.options, name) for name in ("key", "axes", "values", "dtype")}
    return {"kind": plan.kind, **kept, **place, "domain": plan.domain, "split": plan.split}
