"""Owns the loading of a configuration: default < file < CALSEG_* < --set < named option, all complaints at once."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from calseg_cli.config.complaints import complaints_of, raise_all
from calseg_cli.config.draft import Draft, Place, Rank
from calseg_cli.config.keys import known_keys
from calseg_cli.config.layout_file import merge_layout_files
from calseg_cli.config.paths import anchor_paths
from calseg_cli.config.resolved import Resolved, leaf_keys, plain_values
from calseg_cli.config.schema import Config
from calseg_cli.config.settings import apply_environment, apply_flags, apply_sets
from calseg_cli.config.yaml_file import read_keys
from calseg_cli.errors import ConfigError

FILE_NAME = "calseg.yaml"
_NONE: Mapping[str, Any] = MappingProxyType({})


def load_config(
    path: Path | None,
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] = _NONE,
    environ: Mapping[str, str] = os.environ,
) -> Resolved:
    """The configuration of `path`, or of CALSEG_CONFIG, or of ./calseg.yaml, with all that was said over it.

    `sets` are texts KEY=VALUE; `flags` maps dotted keys to values, None where not given. A relative path is relative
    to the file that holds it, elsewhere to the working directory. Raises one ConfigError with every mistake.
    """
    path = _find(path, environ)
    values, places, complaints = read_keys(path)
    draft = Draft(values, places, Place(str(path), Rank.FILE, path.parent))
    draft.complaints += complaints
    _fill_empty_sections(draft.values)
    apply_environment(draft, environ)
    apply_sets(draft, sets)
    apply_flags(draft, flags)
    merge_layout_files(draft)
    anchor_paths(draft, path.parent)
    config = _validate(draft)
    keys = leaf_keys(plain_values(config, path.parent))
    return Resolved(config, {".".join(key): draft.source_of(key) for key in keys}, path, path.parent)


def _find(path: Path | None, environ: Mapping[str, str]) -> Path:
    if path is not None:
        return path
    if environ.get("CALSEG_CONFIG"):
        return Path(environ["CALSEG_CONFIG"])
    if not Path(FILE_NAME).exists():
        raise ConfigError(
            f"no {FILE_NAME} in this folder",
            "`calseg sample-data` writes one with images to try, `calseg init` one to fill in, -c FILE names another",
        )
    return Path(FILE_NAME)


def _fill_empty_sections(values: dict[Any, Any]) -> None:
    """A section whose keys are all commented out is null in YAML; it means the defaults, except for a domain."""
    for key, info in known_keys().items():
        if info.section is not None and not info.is_optional:
            holder: Any = values
            for part in key[:-1]:
                holder = holder.get(part) if isinstance(holder, dict) else None
            if isinstance(holder, dict) and key[-1] in holder and holder[key[-1]] is None:
                holder[key[-1]] = {}


def _validate(draft: Draft) -> Config:
    try:
        config = Config.model_validate(draft.values)
    except ValidationError as error:
        draft.complaints += complaints_of(error, draft)
        raise_all(draft.complaints)
        raise
    raise_all(draft.complaints)
    return config
