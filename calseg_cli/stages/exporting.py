"""Owns `calseg artifact export`: an artifact becomes files that other programs and benchmark servers take."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from calseg_cli.artifacts.foreign import check_id
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.config import Resolved
from calseg_cli.engine.interrupt import stop_on_signals
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError, DataError, disk_errors
from calseg_cli.methods.pseudo_labels import votes
from calseg_cli.report.pictures import IGNORED_COLOR, write_label_png
from calseg_cli.stages.class_lists import CLASSES_FILE, ClassList, raw_values
from calseg_cli.stages.foreign_sources import INDEX_COLUMNS, INDEX_FILE, ITEM_KEYS, index_row
from calseg_cli.stages.label_grid import label_grid
from calseg_cli.stages.pictures import safe_name
from calseg_cli.stages.roads import palette_of
from calseg_cli.stages.whole_folder import whole_folder

FORMATS = ("npz", "npy", "png")
_WRITTEN = frozenset({CLASSES_FILE, INDEX_FILE})


@dataclass(frozen=True)
class ExportOptions:
    """What the command line says; `ids`, `ignore_id` and `palette` are for PNG alone, None or False where not given.

    `domain` says whose values `--ids dataset` are, else what the artifact was predicted from.
    """

    to: str
    ids: str | None = None
    ignore_id: int | None = None
    palette: bool = False
    suffix: str = ""
    flat: bool = False
    domain: str | None = None


@dataclass(frozen=True)
class Exported:
    """What export leaves; for PNG the value that stands for each class, and for ignored pixels."""

    folder: Path
    kind: str
    to: str
    images: int
    values: dict[str, int] | None
    ignore_id: int | None


@dataclass(frozen=True)
class _Values:
    """What is written for each class index and for IGNORE."""

    by_class: tuple[int, ...]
    ignored: int

    def table(self) -> NDArray[np.uint8]:
        table = np.full(256, self.ignored, np.uint8)
        table[: len(self.by_class)] = self.by_class
        return table


def export_artifact(
    path: Path, folder: Path, options: ExportOptions, *, resolved: Resolved | None, force: bool, progress: Progress
) -> Exported:
    """Write every item of a logits or pseudo-labels artifact into `folder`, which appears when it is whole.

    Raises ArtifactError for another kind and for a folder in the way; ConfigError for options that mean nothing here;
    DataError for ids that name no file below the folder.
    """
    with stop_on_signals() as stop, open_artifact(path) as artifact:
        _check(artifact, options)
        values = _values(artifact, options, resolved) if options.to == "png" else None
        names = _file_names(artifact, options)
        listed = dict(zip(artifact.class_names, values.by_class, strict=True)) if values else None
        done = Exported(
            folder, artifact.kind.name, options.to, len(artifact), listed, values.ignored if values else None
        )
        mark = {**_facts(done), "content_digest": artifact.digest}
        endings = [f".{ending}" for ending in FORMATS]
        with whole_folder(folder, force=force, mark=mark, endings=endings, names=_WRITTEN) as drawing:
            progress.start("exporting", len(artifact))
            for name, file in names.items():
                _write_item(drawing / file, artifact, name, options, values)
                progress.advance()
                if stop:
                    raise stop.error("stopped; nothing was written", "run the command again")
            progress.finish()
            if values is None:
                _describe(drawing, artifact, names)
        return done


def _facts(done: Exported) -> dict[str, Any]:
    """What stays true of a folder that is renamed or sent to somebody."""
    return {name: value for name, value in vars(done).items() if name != "folder"}


def _check(artifact: Artifact, options: ExportOptions) -> None:
    kind = artifact.kind.name
    if options.to not in FORMATS:
        raise ConfigError(f"--to {options.to} is not known", f"known: {', '.join(FORMATS)}")
    if kind not in ITEM_KEYS:
        raise ArtifactError(f"{artifact.path} holds {kind}", "export takes logits and pseudo-labels")
    if kind == "pseudo_labels" and options.to == "npy":
        raise ConfigError("--to npy holds one array an image, and a pseudo-label may have two", "--to npz or --to png")
    given = {"--ids": options.ids is not None, "--ignore-id": options.ignore_id is not None}
    unused = [name for name, there in {**given, "--palette": options.palette}.items() if there]
    if unused and options.to != "png":
        raise ConfigError(f"{', '.join(unused)} has no effect with --to {options.to}", "--to png writes label files")


def _values(artifact: Artifact, options: ExportOptions, resolved: Resolved | None) -> _Values:
    classes = ClassList(tuple(artifact.class_names), palette_of(artifact))
    recorded = artifact.meta.get("protocol", {}).get("domain")
    domain = options.domain or (recorded if recorded in ("source", "target") else None)
    by_class, ignored = raw_values(options.ids or "train", classes, resolved, domain)
    if options.ignore_id is not None:
        ignored = options.ignore_id
    if not 0 <= ignored <= 255:
        raise ConfigError(f"--ignore-id {ignored} does not fit an 8-bit file", "0 to 255")
    if ignored in by_class and (options.ignore_id is not None or artifact.kind.name == "pseudo_labels"):
        name = classes.names[by_class.index(ignored)]
        raise ConfigError(f"{ignored} stands for ignored pixels and for {name!r}", "--ignore-id gives another value")
    return _Values(by_class, ignored)


def _file_names(artifact: Artifact, options: ExportOptions) -> dict[str, str]:
    """The file of each id below the folder. Raises DataError for an id that leaves it, and for two in one file."""
    if "/" in options.suffix:
        raise ConfigError(f"--suffix {options.suffix} holds a slash", "it stands between a name and its ending")
    check_id(f"name{options.suffix}", "--suffix")
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name in artifact.ids:
        safe_name(check_id(name, str(artifact.path)))
        stem = name.rpartition("/")[2] if options.flat else name
        file = f"{stem}{options.suffix}.{options.to}"
        if file in owners:
            raise DataError(f"{owners[file]!r} and {name!r} would both be {file}", "leave --flat out")
        names[name], owners[file] = file, name
    return names


def _write_item(file: Path, artifact: Artifact, name: str, options: ExportOptions, values: _Values | None) -> None:
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if values is not None:
            _write_png(file, values.table()[_labels(artifact, name)], artifact, options, values)
        elif options.to == "npy":
            np.save(file, artifact.item(name, "logits"))
        else:
            # Labels pack to a fiftieth, logits hardly, for ten times the time.
            save = np.savez if artifact.kind.name == "logits" else np.savez_compressed
            save(file, **_item_arrays(artifact, name))


def _item_arrays(artifact: Artifact, name: str) -> dict[str, Any]:
    geometry, digest = artifact.geometry(name), artifact.image_digest(name)
    return {
        **{key: artifact.item(name, key) for key in artifact.keys(name) if key in artifact.kind.item},
        **{key: np.array(value) for key, value in geometry.to_attrs().items()},
        **({"image_digest": np.array(digest)} if digest else {}),
    }


def _labels(artifact: Artifact, name: str) -> NDArray[np.uint8]:
    """The class indices (H,W) at the label's full size, IGNORE where a pseudo-label is not believed."""
    if artifact.kind.name == "logits":
        logits = torch.from_numpy(artifact.item(name, "logits"))
        native, grid = label_grid(logits, artifact.geometry(name))
        classes: NDArray[np.uint8] = votes(native, grid=grid).classes.byte().numpy()
        return classes
    labels: NDArray[np.uint8] = artifact.item(name, "label")  # of classes in the list: reading it checks that
    return labels


def _write_png(
    file: Path, labels: NDArray[np.uint8], artifact: Artifact, options: ExportOptions, values: _Values
) -> None:
    if not options.palette:
        Image.fromarray(labels).save(file, format="png")
        return
    colors = [IGNORED_COLOR] * 256
    for raw, color in zip(values.by_class, palette_of(artifact), strict=True):
        colors[raw] = color
    write_label_png(file, labels, colors)


def _describe(folder: Path, artifact: Artifact, names: dict[str, str]) -> None:
    """The class list, and where each image lies, for programs that read neither HDF5 nor .npz."""
    classes = {"kind": artifact.kind.name, **artifact.meta["classes"], "content_digest": artifact.digest}
    write_whole(folder / CLASSES_FILE, json.dumps(classes, ensure_ascii=False, indent=2) + "\n")
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, INDEX_COLUMNS, lineterminator="\n")
    table.writeheader()
    for name, file in names.items():
        table.writerow(index_row(name, file, artifact.geometry(name), artifact.image_digest(name)))
    write_whole(folder / INDEX_FILE, stream.getvalue())
