"""Owns the two roads to the same numbers: logits streamed from a network, and logits read from an artifact."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from calseg_cli.artifacts.kinds import class_hash
from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.config import Predict
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import evaluation_samples
from calseg_cli.engine.infer import Prediction, Views, predict
from calseg_cli.engine.windows import Windows
from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.stages.networks import LoadedNetwork


class Road(Protocol):
    """A source of predictions for the images of a dataset."""

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    dataset: SegmentationDataset
    protocol: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, Path]
    network_digest: str | None

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Prediction]:
        """Predictions of all images in their order, or of those picked."""


class NetworkRoad:
    """Predictions computed now."""

    def __init__(
        self,
        loaded: LoadedNetwork,
        dataset: SegmentationDataset,
        options: Predict,
        *,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.class_names, self.palette = loaded.class_names, loaded.palette
        self.dataset, self._network, self._device = dataset, loaded.network, device
        self._views = views_of(options)
        if self._views.windows is not None:
            self._views.windows.check(loaded.network)
        self._options, self._workers = options, workers
        self.parents = {"checkpoint": loaded.digest}
        self.files = {"checkpoint": loaded.checkpoint.path}
        self.network_digest: str | None = loaded.digest
        self.stride = loaded.network.stride
        self.protocol = {
            "network_input": f"{dataset.size[0]}x{dataset.size[1]}" if dataset.size else "the image's own size",
            "grid": f"logits at stride {loaded.network.stride}, bilinear to the label's full size"
            f"{', align_corners' if loaded.network.align_corners else ''}",
            "values": self._views.describe(),
            "stored_as": options.logits_dtype,
            "scales": list(self._views.scales),
            "flip": self._views.flip,
            "amp": options.amp,
            "temperature": None,
            "network": str(loaded.checkpoint.facts.get("stage", "unknown")),
            "weights": "student",
            **{name: value for name, value in loaded.checkpoint.facts.items() if name == "labels_used_for"},
        }

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Prediction]:
        """Compute them, one image at a time, so that no neighbour changes a result."""
        chosen = self.dataset if indices is None else self.dataset.subset(indices)
        return predict(
            self._network,
            evaluation_samples(chosen, self._workers),
            device=self._device,
            views=self._views,
            dtype=self._options.logits_dtype,
            amp=self._options.amp,
        )


def views_of(options: Predict, *, plain: bool = False) -> Views:
    """How images are looked at; `plain` for one view as they are, by windows where these are asked for."""
    windows = None if options.window is None else Windows(options.window, options.window_overlap)
    return Views(windows=windows) if plain else Views(tuple(options.scales), options.flip, windows)


def window_options(options: Predict) -> dict[str, Any]:
    """What a recipe says of windows: nothing where images are seen whole."""
    if options.window is None:
        return {}
    return {"window": list(options.window), "window_overlap": options.window_overlap}


class ArtifactRoad:
    """Predictions read from a logits artifact; labels come from the dataset."""

    def __init__(self, path: Path, dataset: SegmentationDataset) -> None:
        self.artifact = open_artifact(path, "logits")
        self.dataset = dataset
        self.class_names = tuple(self.artifact.class_names)
        self.palette = palette_of(self.artifact)
        self.protocol = dict(self.artifact.meta["protocol"])
        self.parents = {"logits": self.artifact.digest}
        self.files = {"logits": path}
        self.network_digest = network_of(self.artifact.meta.get("provenance", {}))
        self._check_images()

    def _check_images(self) -> None:
        missing = [item.id for item in self.dataset.items if item.id not in self.artifact]
        if missing:
            raise ArtifactError(
                f"{self.artifact.path} lacks {len(missing)} of the {len(self.dataset.items)} images, such as "
                f"{missing[0]!r}",
                "was it made from another split, or with --max-items? Give the same to both commands",
            )

    def _check_image(self, name: str, path: Path) -> None:
        """The same id may stand for another picture in another split or dataset."""
        recorded = self.artifact.image_digest(name)
        if recorded and recorded != file_digest(path):
            raise ArtifactError(
                f"the logits of {name!r} in {self.artifact.path} were made from another image than {path}",
                "was it made from another split or dataset? Give the same --domain and --split to both commands",
            )

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Prediction]:
        """Read them in the dataset's order."""
        for index in range(len(self.dataset)) if indices is None else indices:
            item = self.dataset.items[index]
            geometry = self.artifact.geometry(item.id)
            self._check_image(item.id, item.image)
            label = self.dataset.read_label(index)
            if label is not None and label.shape != geometry.out_hw:
                raise DataError(
                    f"the label of {item.id} is {label.shape[0]}x{label.shape[1]}, but its logits were made for "
                    f"{geometry.out_hw[0]}x{geometry.out_hw[1]}",
                    "use the dataset that the logits were made from",
                )
            yield Prediction(item.id, torch.from_numpy(self.artifact.item(item.id, "logits")), geometry, label)


def network_of(provenance: Mapping[str, Any]) -> str | None:
    """The digest of the network that an artifact was made by, where its provenance tells."""
    digest = provenance.get("parents", {}).get("checkpoint")
    return str(digest) if digest else None


def palette_of(artifact: Artifact) -> tuple[tuple[int, int, int], ...]:
    """The palette an artifact was written with."""
    return tuple((int(r), int(g), int(b)) for r, g, b in artifact.meta["classes"]["palette"])


def classes_table(names: Iterable[str], palette: Iterable[Sequence[int]], ignore: int) -> dict[str, Any]:
    """The `classes` table of an artifact."""
    listed = list(names)
    return {
        "names": listed,
        "palette": [list(color) for color in palette],
        "ignore": ignore,
        "hash": class_hash(listed, ignore),
    }
