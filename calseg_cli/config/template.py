"""Owns the commented calseg.yaml to start from, made from the schema's own descriptions."""

from pathlib import Path
from typing import Any, Literal

from calseg_cli.config.keys import KeyInfo, known_keys
from calseg_cli.config.resolved import plain_values
from calseg_cli.config.yaml_text import Key, flow_yaml
from calseg_cli.errors import ConfigError, disk_errors

Kind = Literal["start", "full"]
_COMMENT_COLUMN = 32
_HEADER = """\
# calseg.yaml: one file for a whole run. Paths are relative to this file. Next: calseg data check, then calseg pretrain.
# A line that begins with # shows a default; take the # away to change it. `calseg config show` prints what holds.
"""
_FULL_HEADER = """\
# calseg.yaml with every key. Paths are relative to this file. Next: calseg data check, then calseg pretrain.
# A line that begins with # shows a default; take the # away to change it. `calseg config show` prints what holds.
"""
# What stands in the file as a value and not as a comment: what nobody else can know, and what is changed first.
_GIVEN: dict[Key, Any] = {
    ("name",): "run",
    ("source", "layout"): "folders",
    ("source", "root"): "data/source",
    ("source", "classes"): ["road", "building", "sky", "car", "person"],
    ("target", "layout"): "folders",
    ("target", "root"): "data/target",
    ("network", "name"): "tiny",
    ("pretrain", "steps"): 600,
    ("pretrain", "batch_size"): 4,
    ("adapt", "method"): "adabn",
}
# Further keys that the short form shows, as comments.
_COMMON: frozenset[Key] = frozenset(
    {
        *((name,) for name in ("seed", "device", "workers")),
        *(("source", name) for name in ("images", "labels", "ids", "ignore", "palette", "splits", "size")),
        *(("target", name) for name in ("splits", "size")),
        *(("network", name) for name in ("init", "options")),
        *(("pretrain", name) for name in ("lr", "head_lr", "amp", "class_weights", "validate_every")),
        *(("pretrain", "augment", name) for name in ("scale", "crop", "flip", "color")),
        *(("predict", name) for name in ("split", "scales", "flip", "png")),
        *(("pseudo_label", name) for name in ("threshold", "portion", "png")),
        *(("adapt", "adabn", name) for name in ("batch_size", "momentum")),
        *(("evaluate", name) for name in ("split", "bins", "report", "fail_if")),
    }
)
# What a comment shows where null, the default, would teach nothing.
_EXAMPLES: dict[str, Any] = {
    "images": "{split}/images/{path}.*",
    "labels": "{split}/labels/{path}.png",
    "ids": {0: "road", 1: "road", 7: "car"},
    "colors": {"#804080": "road"},
    "ignore": [255],
    "encoding": "index",
    "palette": ["#804080", "#464646", "#4682b4", "#00008e", "#dc143c"],
    "splits": {"train": "train", "val": "val", "test": "test"},
    "lists": {"train": "lists/train.txt"},
    "holdout": 10,
    "size": [240, 320],
    "crop": [256, 256],
    "window": [512, 512],
}

_OTHERWISE: frozenset[Key] = frozenset({("logit_statistics", "labels")})
"""Keys with a name of those that mean something else."""


def write_template(path: Path, kind: Kind = "start") -> None:
    """Write a commented configuration: "start" with the common keys, "full" with all. Raises ConfigError, CalsegError.

    It loads as it stands, and with the comment sign of any key taken away.
    """
    if kind not in ("start", "full"):
        raise ConfigError(f"unknown kind of template {kind!r}", "known: start, full")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template(kind), encoding="utf-8")


def template(kind: Kind = "start") -> str:
    """The text of a commented configuration."""
    lines = [_FULL_HEADER if kind == "full" else _HEADER]
    for key, info in known_keys().items():
        if info.section is not None:
            lines += [""] * (len(key) == 1) + [_heading(key, info)]
        elif kind == "full" or key in _GIVEN or key in _COMMON:
            lines.append(_line(key, info))
    return "\n".join(lines) + "\n"


def _heading(key: Key, info: KeyInfo) -> str:
    heading = f"{'  ' * (len(key) - 1)}{key[-1]}:"
    return f"{heading:<{_COMMENT_COLUMN}} # {info.description}"


def _line(key: Key, info: KeyInfo) -> str:
    given = key in _GIVEN
    example = None if key in _OTHERWISE else _EXAMPLES.get(key[-1])
    value = _GIVEN[key] if given else example if info.default is None else info.default
    written = flow_yaml(value if key[-1] in _EXAMPLES else plain_values(value, Path()))
    text = f"{'  ' * (len(key) - 1)}{'' if given else '# '}{key[-1]}: {written}"
    return f"{text:<{_COMMENT_COLUMN}} # {info.description}"
