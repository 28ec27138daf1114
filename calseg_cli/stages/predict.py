"""Owns `calseg predict`: a network and a folder of images become a logits artifact, and pictures on request."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.disk import free_bytes
from calseg_cli.artifacts.provenance import beside, file_digest, provenance
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.safe_open import PARTIAL
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE, Item, Layout, find_items, find_layout, make_layout
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.engine.device import choose_device, memory_errors, seed_everything
from calseg_cli.engine.interrupt import StopRequest, stop_on_signals
from calseg_cli.engine.launch import refuse_torchrun
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import DataError
from calseg_cli.stages.chain import recipe
from calseg_cli.stages.corrections import Loaded, corrected
from calseg_cli.stages.domains import open_domain
from calseg_cli.stages.memory_advice import inference_advice, input_size
from calseg_cli.stages.networks import LoadedNetwork, load_network
from calseg_cli.stages.pictures import draw_predictions
from calseg_cli.stages.roads import NetworkRoad, classes_table, window_options
from calseg_cli.stages.run_folder import find_network, run_folder, short_name
from calseg_cli.stages.sharding import ShardedWork, find_shard

GO_ON = "the same command with --resume goes on from there"
_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Predicted:
    """What predict leaves; with `digest` None the artifact is still to come, when the other shards are whole."""

    artifact: Path
    pictures: Path | None
    images: int
    digest: str | None


@dataclass(frozen=True)
class Plan:
    """What predict would do: where to, for how many images, and at most how many bytes."""

    target: Path
    state: str
    images: int
    classes: int
    raw_bytes: int
    free_bytes: int


class PreparedPrediction:
    """A prepared run of the stage: everything is opened and checked, nothing is written yet."""

    def __init__(
        self,
        resolved: Resolved,
        corrections: Sequence[Loaded] = (),
        *,
        checkpoint: str | None,
        images: Path | None,
        out: Path | None,
    ) -> None:
        config = resolved.config
        self.resolved, self.options = resolved, config.predict
        run = run_folder(resolved)
        path = find_network(run, checkpoint)
        self.device = choose_device(config.device)
        seed_everything(config.seed, deterministic=config.deterministic, threads=config.threads)
        loaded = load_network(path, self.device, resolved)
        self.dataset, self.origin = _dataset(resolved, loaded, images)
        road = NetworkRoad(loaded, self.dataset, self.options, device=self.device, workers=config.workers)
        self.stride, self.corrected = road.stride, bool(corrections)
        self.road = corrected(road, corrections)
        self.place = "-".join(self.origin.values())
        self.checkpoint = path
        suffix = "".join(one.suffix for one in corrections)
        self.target = out or run.predict / f"{short_name(path, run)}-{self.place}{suffix}.h5"
        self.ids = [item.id for item in self.dataset.items]

    def plan(self) -> Plan:
        """What would be done, without doing it."""
        return Plan(
            self.target,
            state_of(self.target),
            len(self.dataset),
            len(self.road.class_names),
            self.raw_bytes(),
            free_bytes(self.target.parent),
        )

    def raw_bytes(self) -> int:
        """The logits' size before packing, from the first image's size where the images keep their own."""
        height, width = input_size(self.dataset)
        grid = -(-height // self.stride) * -(-width // self.stride)
        stored = "float32" if self.corrected else self.options.logits_dtype
        return len(self.dataset) * len(self.road.class_names) * grid * _BYTES[stored]

    def advice(self) -> str:
        """What to change where memory does not suffice."""
        return inference_advice(self.resolved, self.options.domain, input_size(self.dataset))

    def meta(self) -> dict[str, Any]:
        """The tables of the artifact."""
        config, road = self.resolved.config, self.road
        options = {
            **self.origin,
            "size": list(self.dataset.size) if self.dataset.size else None,
            "scales": list(self.options.scales),
            "flip": self.options.flip,
            "logits_dtype": self.options.logits_dtype,
            **window_options(self.options),
            **({"amp": self.options.amp} if self.options.amp != "off" else {}),
            **({"compile": True} if config.compile else {}),
        }
        return {
            "classes": classes_table(road.class_names, road.palette, IGNORE),
            "protocol": {**road.protocol, **self.origin},
            "recipe": recipe("predict", road.parents, self.ids, options),
            "provenance": provenance(
                sys.argv,
                seed=config.seed,
                config_digest=self.resolved.digest,
                parents=road.parents,
                files={role: beside(path, self.target.parent) for role, path in road.files.items()},
                device=str(self.device),
            ),
            "config": self.resolved.to_dict(),
        }


def state_of(artifact: Path) -> str:
    """Whether an artifact exists, is unfinished, or new."""
    if artifact.exists():
        return "exists"
    return "unfinished" if artifact.with_name(artifact.name + PARTIAL).exists() else "new"


def plan_prediction(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    images: Path | None,
    out: Path | None,
) -> Plan:
    """What `predict` would do; opens everything, writes nothing."""
    refuse_torchrun("--dry-run")
    return PreparedPrediction(resolved, corrections, checkpoint=checkpoint, images=images, out=out).plan()


def predict(
    resolved: Resolved,
    corrections: Sequence[Loaded] = (),
    *,
    checkpoint: str | None,
    images: Path | None,
    out: Path | None,
    shard: str | None = None,
    resume: bool = False,
    force: bool,
    progress: Progress,
) -> Predicted:
    """Write the logits of a split (or of any folder of images), corrected on request, as an artifact.

    No label is opened.
    """
    ranks = find_shard(shard)
    work = PreparedPrediction(resolved, corrections, checkpoint=checkpoint, images=images, out=out)
    with stop_on_signals() as stop, memory_errors(work.advice):
        if ranks is None:
            artifact = _write_one(work, resume=resume, force=force, progress=progress, stop=stop)
        else:
            shards = ShardedWork(
                work.target,
                "logits",
                ranks,
                meta=work.meta(),
                ids=work.ids,
                compression=work.options.compression,
                estimate=work.raw_bytes() // ranks.ranks,
            )
            found = _write_shard(work, shards, resume=resume, force=force, progress=progress, stop=stop)
            if found is None:
                progress.note("this shard is whole; the manifest follows when the others are")
                return Predicted(shards.newest, None, len(work.dataset), None)
            artifact = found
        with artifact:
            pictures = _draw(work, artifact, progress, stop) if work.options.png else None
            return Predicted(artifact.path, pictures, len(work.dataset), artifact.digest)


def _write_one(
    work: PreparedPrediction, *, resume: bool, force: bool, progress: Progress, stop: StopRequest
) -> Artifact:
    with ArtifactWriter(
        work.target,
        "logits",
        meta=work.meta(),
        ids=work.ids,
        compression=work.options.compression,
        estimate=work.raw_bytes(),
        force=force,
        resume=resume,
    ) as writer:
        _write(work, writer, progress, stop)
    return open_artifact(work.target, "logits")


def _write_shard(
    work: PreparedPrediction, shards: ShardedWork, *, resume: bool, force: bool, progress: Progress, stop: StopRequest
) -> Artifact | None:
    shards.prepare(resume=resume, force=force)
    with shards.writer(resume=resume, force=force) as own:
        if own is not None:
            _write(work, own, progress, stop)
    return shards.finish()


def _write(work: PreparedPrediction, writer: ArtifactWriter, progress: Progress, stop: StopRequest) -> None:
    """Compute what is not in the file yet, in its order."""
    if writer.finished:
        progress.note(f"{writer.path} is up to date; nothing to do")
        return
    places = {name: place for place, name in enumerate(work.ids)}
    todo = [places[name] for name in writer.todo]
    own, whole = len(todo) + writer.done, len(work.dataset)
    share = f"{own} of {whole} images of {work.place}, for {writer.path.name}"  # several shards speak side by side
    progress.note(f"network {work.checkpoint}, {share if own < whole else f'{whole} images of {work.place}'}")
    progress.start("predicting", own, done=writer.done)
    for prediction in work.road.stream(todo):
        writer.add_item(
            prediction.id,
            {"logits": prediction.logits.numpy()},
            prediction.geometry,
            image_digest=file_digest(work.dataset.items[places[prediction.id]].image),
        )
        progress.advance()
        check_stop(stop, writer)
    progress.finish()


def check_stop(stop: StopRequest, writer: ArtifactWriter) -> None:
    """Leave with the signal's exit code after the item at hand, if somebody asked to stop and something is left."""
    if stop and writer.todo:
        kept = "1 item is" if writer.done == 1 else f"{writer.done} items are"
        raise stop.error(f"stopped; {kept} kept in {writer.partial}", GO_ON)


def _draw(work: PreparedPrediction, artifact: Artifact, progress: Progress, stop: StopRequest) -> Path:
    """Draw from the artifact, so that pictures show what it holds, and a stopped run has no gap."""
    folder = work.target.with_name(f"{work.target.stem}-pictures")
    with drawing_folder(folder) as drawing:
        draw_predictions(drawing, artifact, work.dataset, progress, stop)
    return folder


@contextmanager
def drawing_folder(folder: Path) -> Iterator[Path]:
    """FOLDER.partial to draw into, which takes the place of FOLDER at the end."""
    drawing = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(drawing, ignore_errors=True)  # what a killed run left
    drawing.mkdir(parents=True)
    yield drawing
    shutil.rmtree(folder, ignore_errors=True)
    drawing.rename(folder)


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
