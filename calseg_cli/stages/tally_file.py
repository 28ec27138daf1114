"""Owns the metrics artifact: the counts that scores are read off, so that a report needs only the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.metrics.tally import Tally


def write_tally(path: Path, tally: Tally, meta: Mapping[str, Any], *, force: bool = False) -> str:
    """Write a tally as an artifact of kind "metrics"; its content digest."""
    writer = ArtifactWriter(path, "metrics", meta=meta, force=force)
    with writer:
        for name, array in tally.to_arrays().items():
            writer.add_array(name, array)
    return writer.digest


def read_tally(path: Path) -> tuple[Tally, Artifact]:
    """The tally of a metrics artifact, and the artifact for its protocol and provenance."""
    artifact = open_artifact(path, "metrics")
    return Tally.from_arrays(artifact.arrays()), artifact
