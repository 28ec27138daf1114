"""Owns how stages hang together: what a result depends on, and what a stage demands of its input."""

from collections.abc import Mapping, Sequence
from typing import Any

from calseg_cli.artifacts.digests import list_digest
from calseg_cli.artifacts.reader import Artifact, check_classes
from calseg_cli.config import Resolved
from calseg_cli.stages.domains import domain_layout


def recipe(stage: str, parents: Mapping[str, str], ids: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The table by which a later run tells whether a result is the one that it would make."""
    return {"stage": stage, "parents": dict(parents), "images": list_digest(ids), "options": dict(options)}


def check_configured_classes(artifact: Artifact, resolved: Resolved) -> None:
    """Raise ArtifactError for an artifact whose class list is not that of the configured source."""
    if resolved.config.source is None:
        return
    names = domain_layout(resolved.config, "source").class_names
    if names:
        check_classes(artifact, names)
