"""Owns the anchors that a run of BLDA is given: read from statistics of logits, held against the network, fitted."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.reader import Artifact, check_classes, open_artifact
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.logit_anchors import anchor_mixtures
from calseg_cli.methods.logit_mixtures import Mixtures
from calseg_cli.metrics.logit_statistics import LogitStatistics
from calseg_cli.stages.logit_statistics import KIND

_log = logging.getLogger(__name__)
ROLE = "anchors"
"""As what the file counts among the parents of a result."""


@dataclass(frozen=True)
class Anchors:
    """Two mixtures (2,K), float64, and the file that they are fitted to."""

    mixtures: Mixtures
    path: Path
    digest: str
    used_for: str | None
    """What a result has to say of labels of the target; None where none were used."""


def read_anchors(path: Path, class_names: Sequence[str], components: int, network_digest: str) -> Anchors:
    """The anchors of a file of logit statistics.

    Raises ArtifactError for another kind of file, other classes, logits that were corrected or averaged, and where the
    network has learned nothing: its own logits are not above the others.
    """
    with open_artifact(path, KIND) as artifact:
        check_classes(artifact, class_names)
        protocol = artifact.meta.get("protocol", {})
        _check_raw(path, protocol)
        statistics, digest = read_statistics(artifact), artifact.digest
    other = protocol.get("network_digest")
    if other and other != network_digest:
        _log.warning("%s counts the logits of another network than this one", path)
    mixtures = anchor_mixtures(statistics.histograms, components)
    if not float(mixtures.mean[0] - mixtures.mean[1]) > 0:
        raise ArtifactError(
            f"{path}: the logits of a pixel's own class are not above the others, so there is nothing to align to",
            "count the logits of a trained network",
        )
    used_for = str(protocol.get("labels_used_for", ""))
    return Anchors(mixtures, path, digest, used_for if used_for.startswith("oracle") else None)


def read_statistics(artifact: Artifact) -> LogitStatistics:
    """The statistics of an open artifact. Raises ArtifactError for arrays that no counting gives."""
    try:
        statistics = LogitStatistics.from_arrays(artifact.arrays())
    except (ArtifactError, KeyError, TypeError, ValueError) as error:
        told = error.message if isinstance(error, ArtifactError) else str(error)
        raise ArtifactError(f"{artifact.path}: {told}", "make it again with `calseg logit-statistics`") from error
    if statistics.histograms.num_classes != len(artifact.class_names) or not statistics.pixels.any():
        raise ArtifactError(
            f"{artifact.path} counts no pixel of its {len(artifact.class_names)} classes",
            "make it again with `calseg logit-statistics`",
        )
    return statistics


def _check_raw(path: Path, protocol: dict[str, Any]) -> None:
    """Training sees a network's own logits; averages of views and corrected logits lie elsewhere."""
    if protocol.get("values", "logits") != "logits" or protocol.get("corrected_by"):
        raise ArtifactError(
            f"{path} counts logits that were averaged over views or corrected, which is not what a network learns",
            "count a network's own: without predict.scales, flip and window, prototypes and calibrator",
        )
