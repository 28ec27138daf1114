"""Owns `calseg calibrate --from`: a calibrator that balances classes, made before, is written with another strength."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.config import Resolved
from calseg_cli.config.calibrate import Calibrate
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.methods.calibrators import BALANCING, CALIBRATORS
from calseg_cli.methods.tau_sweep import Curve
from calseg_cli.stages.calibrate import Calibrated, flag_of, was_said
from calseg_cli.stages.corrections import FACTS, load_correction, write_correction
from calseg_cli.stages.roads import palette_of

_KEPT = ("method", "tau", "tau_for")
_UNMEASURED = "nothing: only the strength was changed"


def with_strength(
    resolved: Resolved,
    source: Path,
    *,
    checkpoint: str | None,
    logits: Path | None,
    out: Path | None,
    force: bool,
    progress: Progress,
) -> Calibrated:
    """The calibrator of `source` with the configured tau; "auto" reads the table of strengths that `source` keeps.

    No image, label or network is opened. Raises ConfigError for options that would need one, ArtifactError for a file
    that has no strength, or no table of them, and for what is in the way.
    """
    options = resolved.config.calibrate
    _check_options(resolved, checkpoint, logits)
    loaded = load_correction(source, "calibrator")
    method = loaded.correction.facts()["method"]
    if method not in BALANCING:
        raise ArtifactError(f"{source} holds a {method} calibrator, which has no tau", "leave --from out to fit one")
    if was_said(resolved, "method") and options.method != method:
        raise ConfigError(f"{source} was made by {method}, not by {options.method}", "leave --method out")
    tau, facts = _strength(source, loaded.correction.facts(), options)
    target = out or source.with_name(f"{source.name.removesuffix('.h5')}-tau-{tau:g}.h5")
    if target.exists() and not force:
        raise ArtifactError(f"{target} exists already", "--force replaces it, -o names another file")
    with open_artifact(source, "calibrator") as artifact:
        arrays, names, palette = artifact.arrays(), artifact.class_names, palette_of(artifact)
        made = artifact.meta.get("provenance", {})
    calibrator = CALIBRATORS[method].from_artifact({**arrays, "tau": np.array([tau])}, facts)
    progress.note(f"{method} of {source} with tau {tau:g}")
    digest = write_correction(
        target,
        calibrator,
        resolved,
        class_names=names,
        palette=palette,
        protocol={name: value for name, value in loaded.protocol.items() if name != FACTS},
        parents={**made.get("parents", {}), "calibrator": loaded.digest},
        files={**_files(source, made.get("files", {})), "calibrator": source},
        force=force,
    )
    return Calibrated(target, digest, calibrator, None, None)


def _strength(source: Path, facts: Mapping[str, Any], options: Calibrate) -> tuple[float, dict[str, Any]]:
    """The strength, and what the new file tells of it."""
    fit = {name: value for name, value in facts["fit"].items() if name != "sweep"}
    if options.tau == "auto":
        sweep = facts["fit"].get("sweep")
        if not sweep:
            raise ArtifactError(
                f"{source} keeps no table of strengths, for its own was given", "give --tau NUMBER, or leave --from out"
            )
        columns = {name: np.array([row[name] for row in sweep]) for name in ("miou", "macc", "accuracy_spread")}
        tau = Curve(**columns).best(options.tau_for, [row["tau"] for row in sweep])
        fit |= {"status": "tau chosen", "sweep": sweep}
    else:
        tau = float(options.tau)
        fit["status"] = "tau given"
    changed = {"tau": options.tau, "tau_for": options.tau_for}
    return tau, {**facts, "options": {**facts["options"], **changed}, "fit": fit, "measured_on": _UNMEASURED}


def _files(source: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """What `source` was made from, where it lies as seen from there."""
    return {role: source.parent / file for role, file in files.items()}


def _check_options(resolved: Resolved, checkpoint: str | None, logits: Path | None) -> None:
    """An option that asks for a fit is a misunderstanding: nothing is fitted."""
    asked = [name for name, value in (("checkpoint", checkpoint), ("logits", logits)) if value is not None]
    asked += [name for name in Calibrate.model_fields if name not in _KEPT and was_said(resolved, name)]
    if asked:
        raise ConfigError(f"--from fits nothing, so {flag_of(asked[0])} has no effect", "leave one of them out")
    if was_said(resolved, "tau_for") and resolved.config.calibrate.tau != "auto":
        raise ConfigError("--tau-for has no effect where tau is given", "--tau auto chooses one")
