"""Owns the header of a safetensors checkpoint, read without torch so that `calseg inspect` is instant."""

import hashlib
import json
from pathlib import Path
from typing import Any

from calseg_cli.errors import ArtifactError

CHECKPOINT_FORMAT = "calseg-checkpoint"
CHECKPOINT_SCHEMA = (1, 0)
FACTS = "calseg"  # the metadata key under which calseg keeps its JSON
_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format itself


def read_header(path: Path) -> dict[str, Any]:
    """The whole JSON header of a safetensors file: one entry a tensor, and `__metadata__`.

    Raises ArtifactError when the file is missing, truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ArtifactError(f"{path} is no safetensors file, or it is cut short", "write it again")
            header = json.loads(stream.read(length))
    except FileNotFoundError as error:
        raise ArtifactError(f"there is no file {path}", "check the path, or run the stage that writes it") from error
    except IsADirectoryError as error:
        raise ArtifactError(f"{path} is a folder, not a file", "name the file in it") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no safetensors file: its header cannot be read", "write it again") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} is no safetensors file: its header is not a table", "write it again")
    _check_length(path, header, size - 8 - length)
    return header


def _check_length(path: Path, header: dict[str, Any], present: int) -> None:
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        [int(length) for name, entry in header.items() if name != "__metadata__" for length in entry["shape"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _damaged(path, "its table of tensors cannot be read") from error
    if max(ends, default=0) != present:
        raise ArtifactError(
            f"{path} is incomplete: {present} bytes of tensors, {max(ends, default=0)} announced", "write it again"
        )


def read_facts(path: Path) -> dict[str, Any]:
    """What a calseg checkpoint says of itself: network, classes, step, config, provenance.

    Raises ArtifactError for a file of another kind, of a newer format, or with a damaged description.
    """
    metadata = read_header(path).get("__metadata__") or {}
    if not isinstance(metadata, dict) or FACTS not in metadata:
        raise ArtifactError(
            f"{path} holds tensors but is no calseg checkpoint", "give it as network.init to start from its weights"
        )
    digest, _, text = str(metadata[FACTS]).partition("\n")
    if digest != text_digest(text):
        raise _damaged(path, "its description is not the one that was written")
    try:
        facts = json.loads(text)
        schema = int(str(facts["schema"]).split(".")[0])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "its description cannot be read") from error
    if facts.get("format") != CHECKPOINT_FORMAT:
        raise ArtifactError(f"{path} is no calseg checkpoint", "name the network.safetensors of a stage")
    if schema > CHECKPOINT_SCHEMA[0]:
        raise ArtifactError(f"{path} was written in format {facts['schema']} by a newer calseg", "upgrade calseg")
    if not _describes_a_network(facts):
        raise _damaged(path, "it does not say which network and classes it holds")
    return dict(facts)


def text_digest(text: str) -> str:
    """sha256 of a text, which stands on the line before it."""
    return hashlib.sha256(text.encode()).hexdigest()


def _describes_a_network(facts: dict[str, Any]) -> bool:
    network, classes = facts.get("network"), facts.get("classes")
    if not isinstance(network, dict) or not isinstance(classes, dict):
        return False
    names, palette = classes.get("names"), classes.get("palette")
    return (
        isinstance(network.get("name"), str)
        and isinstance(network.get("options"), dict)
        and isinstance(names, list)
        and isinstance(palette, list)
        and len(names) == len(palette) == network.get("num_classes")
        and all(isinstance(color, list) and len(color) == 3 for color in palette)
        and isinstance(facts.get("config"), dict)
        and isinstance(facts.get("tensors_sha256"), str)
    )


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: {what}", "write or copy it again")
