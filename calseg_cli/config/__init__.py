"""Owns calseg.yaml: its schema, how it is read, and where each value came from."""

from calseg_cli.config.domain import Domain
from calseg_cli.config.json_schema import json_schema
from calseg_cli.config.keys import KeyInfo, explain
from calseg_cli.config.loading import load_config
from calseg_cli.config.methods import AdaBN, Adapt
from calseg_cli.config.resolved import Resolved
from calseg_cli.config.schema import Config, Evaluate, Network, Predict
from calseg_cli.config.template import template, write_template
from calseg_cli.config.training import Augment, Pretrain

__all__ = [
    "AdaBN",
    "Adapt",
    "Augment",
    "Config",
    "Domain",
    "Evaluate",
    "KeyInfo",
    "Network",
    "Predict",
    "Pretrain",
    "Resolved",
    "explain",
    "json_schema",
    "load_config",
    "template",
    "write_template",
]
