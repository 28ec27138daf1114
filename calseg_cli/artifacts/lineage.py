"""Owns whether what an artifact was made from is still what it was."""

from pathlib import Path
from typing import Any

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import Artifact, open_artifact
from calseg_cli.errors import ArtifactError

_FARTHEST = 4  # folders up


def parents(artifact: Artifact) -> list[dict[str, Any]]:
    """What it was made from: role, digest, file as seen from the artifact, and whether that is "unchanged", "changed"
    or "not there"; with `now`, the digest that a changed one has.
    """
    provenance = artifact.meta.get("provenance", {})
    digests, files = provenance.get("parents", {}), provenance.get("files", {})
    if not isinstance(digests, dict) or not isinstance(files, dict):
        return []
    return [_parent(artifact, str(role), str(digest), files.get(role)) for role, digest in digests.items()]


def _parent(artifact: Artifact, role: str, digest: str, file: Any) -> dict[str, Any]:
    now = _digest_now(artifact, role, str(file)) if file is not None else None
    state = "not there" if now is None else "unchanged" if now == digest else "changed"
    return {"role": role, "digest": digest, "file": file, "state": state, "now": now}


def _digest_now(artifact: Artifact, role: str, file: str) -> str | None:
    if Path(file).is_absolute() or Path(file).parts.count("..") > _FARTHEST:
        return None  # calseg writes no such way, and a stranger's file shall not send us about the disk
    path = artifact.path.parent / file
    try:
        if not path.is_file():
            return None
        if role == "checkpoint":
            return file_digest(path)
        with open_artifact(path, explain=False) as parent:
            return parent.digest
    except (OSError, ValueError, ArtifactError):
        return None


def stale_note(artifact: Artifact) -> str | None:
    """A line for a person where something that the artifact was made from has changed since, saying what."""
    stale = [
        f"its {parent['role']} {parent['file']} was {parent['digest'][:19]}, is {parent['now'][:19]}"
        for parent in parents(artifact)
        if parent["state"] == "changed"
    ]
    return f"{artifact.path} is stale: {'; '.join(stale)}; write it again with --force" if stale else None
