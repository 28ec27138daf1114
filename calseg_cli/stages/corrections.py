"""Owns corrections on the road: how one is read, checked, and put between logits and all that reads them."""

import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from calseg_cli.artifacts.provenance import beside, provenance
from calseg_cli.artifacts.reader import check_classes, open_artifact
from calseg_cli.artifacts.recipe import changes
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.config import Resolved
from calseg_cli.data.catalog import IGNORE
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.data.loader import image_tensor
from calseg_cli.engine.infer import Prediction
from calseg_cli.errors import ArtifactError, CalsegError
from calseg_cli.methods.correction import Correction
from calseg_cli.stages.roads import Road, classes_table, network_of

_log = logging.getLogger(__name__)
FACTS = "correction"
"""The table of the protocol that holds a correction's facts."""


@dataclass(frozen=True)
class Loaded:
    """A correction, and the artifact that it came from."""

    correction: Correction
    path: Path
    digest: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    network_digest: str | None = None
    """Of the network whose logits it was fitted on, where its file tells."""

    @property
    def role(self) -> str:
        """As what it counts among the parents of a result."""
        return self.correction.kind

    @property
    def suffix(self) -> str:
        """What a result's name says of it."""
        name = self.path.name.removesuffix(".h5")
        return f"-{name}{'-oracle' if self.correction.oracle and 'oracle' not in name else ''}"


def load_corrections(prototypes: Path | None, calibrator: Path | None) -> list[Loaded]:
    """The corrections of two files, in the order in which they act: prototypes, then the calibrator."""
    wanted = (("prototypes", prototypes), ("calibrator", calibrator))
    return [load_correction(path, kind) for kind, path in wanted if path is not None]


def load_correction(path: Path, kind: str) -> Loaded:
    """The correction of an artifact. Raises ArtifactError for another kind, or what is none."""
    with open_artifact(path, kind) as artifact:
        facts = artifact.meta.get("protocol", {}).get(FACTS)
        if not isinstance(facts, dict) or "method" not in facts:
            raise ArtifactError(f"{path} does not say by which method it was made", "make it again")
        try:
            correction = _class_of(kind, str(facts["method"])).from_artifact(artifact.arrays(), facts)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} holds no {kind}: {error}", "make it again") from error
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error.message}", error.hint) from error
        made_by = network_of(artifact.meta.get("provenance", {}))
        return Loaded(correction, path, artifact.digest, artifact.meta["protocol"], made_by)


def _class_of(kind: str, method: str) -> type[Correction]:
    """Imported when needed: most runs have no correction."""
    if kind == "prototypes":
        found: type[Correction] = importlib.import_module("calseg_cli.methods.prototypes").Prototypes
        return found
    known: Mapping[str, type[Correction]] = importlib.import_module("calseg_cli.methods.calibrators").CALIBRATORS
    if method not in known:
        raise ArtifactError(f"the calibrator's method {method!r} is unknown", "upgrade calseg")
    return known[method]


def write_correction(
    path: Path,
    correction: Correction,
    resolved: Resolved,
    *,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    protocol: Mapping[str, Any],
    parents: Mapping[str, str],
    files: Mapping[str, Path],
    device: str = "cpu",
    force: bool = False,
) -> str:
    """Write a correction as an artifact of its kind; its content digest.

    `protocol` says how the logits were made that it was fitted on; `parents` and `files` name those by role.
    """
    meta = {
        "classes": classes_table(class_names, [list(color) for color in palette], IGNORE),
        "protocol": {**protocol, FACTS: correction.facts()},
        "provenance": provenance(
            sys.argv,
            seed=resolved.config.seed,
            config_digest=resolved.digest,
            parents=dict(parents),
            files={role: beside(file, path.parent) for role, file in files.items()},
            device=device,
        ),
        "config": resolved.to_dict(),
    }
    writer = ArtifactWriter(path, correction.kind, meta=meta, force=force)
    with writer:
        for name, array in correction.to_arrays().items():
            writer.add_array(name, array)
    return writer.digest


class CorrectedRoad:
    """A road whose logits are corrected. They are float32: float16 would make ties, and change classes, anew."""

    def __init__(self, road: Road, corrections: Sequence[Loaded]) -> None:
        self._road, self._corrections = road, tuple(corrections)
        self.class_names, self.palette, self.dataset = road.class_names, road.palette, road.dataset
        self.protocol = {**road.protocol, "stored_as": "float32", **told(corrections)}
        self.parents = {**road.parents, **{one.role: one.digest for one in corrections}}
        self.files = {**road.files, **{one.role: one.path for one in corrections}}
        self.network_digest = road.network_digest
        self._pictures = _Pictures(road.dataset, corrections)

    def stream(self, indices: Sequence[int] | None = None) -> Iterator[Prediction]:
        """The road's predictions, corrected."""
        for prediction in self._road.stream(indices):
            logits = correct(prediction.logits, self._corrections, prediction.id, self._pictures.of(prediction.id))
            yield replace(prediction, logits=logits)


def corrected(road: Road, corrections: Sequence[Loaded]) -> Road:
    """The road, corrected; itself where there is nothing to correct. Raises ArtifactError for what does not fit."""
    for one in corrections:
        check_fit(one, road.class_names, road.protocol)
        warn_of_another_network(one, road.network_digest)
    return CorrectedRoad(road, corrections) if corrections else road


def check_fit(one: Loaded, class_names: Sequence[str], protocol: Mapping[str, Any]) -> None:
    """Raise ArtifactError where a correction is for other classes, or for logits of another grid or meaning.

    Enlarging mixes classes at borders, so prototypes of one grid are not those of another.
    """
    with open_artifact(one.path, one.correction.kind) as artifact:
        check_classes(artifact, class_names)
    known = [key for key in ("grid", "values") if key in one.protocol and key in protocol]
    differs = changes({key: one.protocol[key] for key in known}, {key: protocol[key] for key in known})
    if differs:
        raise ArtifactError(
            f"{one.path} was fitted on logits that were made differently: {'; '.join(differs)}",
            "fit it on logits made like these",
        )


def warn_of_another_network(one: Loaded, digest: str | None) -> None:
    """Say that a correction was fitted on another network than the one at hand: allowed, and seldom meant."""
    if digest and one.network_digest and digest != one.network_digest:
        _log.warning("%s was fitted on the logits of another network than this one", one.path)


def told(corrections: Sequence[Loaded]) -> dict[str, Any]:
    """What the protocol of a result says of its corrections; nothing where there are none."""
    if not corrections:
        return {}
    oracle = any(one.correction.oracle for one in corrections)
    return {
        "corrected_by": [one.correction.describe() for one in corrections],
        **({"labels_used_for": "oracle: target labels fitted the correction"} if oracle else {}),
    }


def correct(logits: Tensor, corrections: Sequence[Loaded], name: str, image: Tensor | None = None) -> Tensor:
    """Logits (C,h,w) after all corrections, in float32. Raises CalsegError where one is no number."""
    result = logits.float()
    for one in corrections:
        result = one.correction(result, image if one.correction.needs_image else None)
    if not bool(torch.isfinite(result).all()):
        raise CalsegError(f"the corrected logits of {name} are not finite", "make the correction again")
    return result


class _Pictures:
    """The images at the network's input size, read only where a correction looks at them."""

    def __init__(self, dataset: SegmentationDataset, corrections: Sequence[Loaded]) -> None:
        self._dataset = dataset
        needed = any(one.correction.needs_image for one in corrections)
        self._places = {item.id: place for place, item in enumerate(dataset.items)} if needed else {}

    def of(self, name: str) -> Tensor | None:
        if name not in self._places:
            return None
        pixels: NDArray[Any] = self._dataset.read_for_evaluation(self._places[name]).image
        return image_tensor(pixels)
