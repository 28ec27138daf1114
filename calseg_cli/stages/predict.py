"""Owns `calseg predict`: a network and a folder of images become a logits artifact, and pictures on request."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import file_digest, provenance
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE, Item, Layout, find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.infer import Prediction
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import DataError
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.networks import LoadedNetwork, load_network
from calseg_cli.stages.pictures import write_prediction
from calseg_cli.stages.roads import NetworkRoad, classes_table
from calseg_cli.stages.run_folder import find_network, run_folder, short_name

OUT_OF_MEMORY = "set a smaller size for the domain, or fewer predict.scales"


@dataclass(frozen=True)
class Predicted:
    """What predict leaves."""

    artifact: Path
    pictures: Path | None
    images: int
    digest: str


def predict(
    resolved: Resolved,
    *,
    checkpoint: str | None,
    images: Path | None,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Predicted:
    """Write the logits of a split (or of any folder of images) as an artifact. No label is opened."""
    config, options = resolved.config, resolved.config.predict
    run = run_folder(resolved)
    path = find_network(run, checkpoint)
    device = choose_device(config.device)
    seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
    loaded = load_network(path, device, resolved)
    dataset, origin = _dataset(resolved, loaded, images)
    place = "-".join(origin.values())
    road = NetworkRoad(loaded, dataset, options, device=device, workers=config.workers)
    target = out or run.predict / f"{short_name(path, run)}-{place}.h5"
    pictures = target.with_name(f"{target.stem}-pictures") if options.png else None
    drawing = pictures.with_name(f"{pictures.name}.partial") if pictures is not None else None
    if drawing is not None:
        shutil.rmtree(drawing, ignore_errors=True)  # what a killed run left
    writer = ArtifactWriter(
        target, "logits", meta=_meta(resolved, road, origin, str(device)), compression=options.compression, force=force
    )
    progress.note(f"network {path}, {len(dataset)} images of {place}")
    progress.start("predicting", len(dataset))
    with memory_errors(OUT_OF_MEMORY), writer:
        for number, prediction in enumerate(_told(road.stream(), progress)):
            writer.add_item(
                prediction.id,
                {"logits": prediction.logits.numpy()},
                prediction.geometry,
                image_digest=file_digest(dataset.items[number].image),
            )
            if drawing is not None:
                write_prediction(drawing, prediction, dataset, road.palette)
    if pictures is not None and drawing is not None:
        shutil.rmtree(pictures, ignore_errors=True)
        drawing.rename(pictures)
    progress.finish()
    return Predicted(target, pictures, len(dataset), writer.digest)


def _dataset(
    resolved: Resolved, loaded: LoadedNetwork, images: Path | None
) -> tuple[SegmentationDataset, dict[str, str]]:
    """The images, and where they are from: a domain and a split, or a folder."""
    options = resolved.config.predict
    if images is None:
        domain = open_domain(resolved, options.domain, loaded.class_names)
        dataset = domain.dataset(options.split, with_labels=False, max_items=options.max_items)
        return dataset, {"domain": options.domain, "split": options.split}
    layout = make_layout(find_layout("folders"), images="{path}.*", labels=None, class_names=loaded.class_names)
    items = _given_images(layout, images)[: options.max_items]
    configured = getattr(resolved.config, options.domain)
    size = configured.size if configured is not None else None
    return SegmentationDataset(items, layout, size=size, with_labels=False), {"folder": images.resolve().name}


def _given_images(layout: Layout, path: Path) -> list[Item]:
    """One image file, or every image below a folder."""
    if path.is_file():
        return [Item(path.stem, path, None)]
    if not path.is_dir():
        raise DataError(f"there is no image or folder {path}", "name an image file or a folder that holds images")
    return find_items(layout, path, "test", with_labels=False)


def _meta(resolved: Resolved, road: NetworkRoad, origin: dict[str, str], device: str) -> dict[str, Any]:
    config = resolved.config
    return {
        "classes": classes_table(road.class_names, road.palette, IGNORE),
        "protocol": {**road.protocol, **origin},
        "provenance": provenance(
            sys.argv,
            seed=config.seed,
            config_digest=resolved.digest,
            parents=road.parents,
            device=device,
        ),
        "config": resolved.to_dict(),
    }


def _told(predictions: Iterator[Prediction], progress: Progress) -> Iterator[Prediction]:
    for prediction in predictions:
        yield prediction
        progress.advance()
