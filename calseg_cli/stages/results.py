"""Owns gathering the evaluations of a run; reads JSON only, so that it is instant."""

import json
from pathlib import Path
from typing import Any

from calseg_cli.errors import ArtifactError


def read_results(run: Path) -> list[dict[str, Any]]:
    """One row an evaluation: name, scores, images; the oldest first. Raises ArtifactError when there is none."""
    files = sorted((run / "6-evaluate").glob("*/scores.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ArtifactError(f"{run} holds no evaluation", "run `calseg evaluate` first, or name another run folder")
    return [_row(run, path) for path in files]


def _row(run: Path, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        name = f"{run.name}/{path.parent.name}"
        return {"name": name, "scores": dict(document["scores"]), "images": int(document["num_images"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged", "run `calseg evaluate` again") from error
