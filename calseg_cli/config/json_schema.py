"""Owns the JSON schema of calseg.yaml, for editors that complete and check as one types."""

import json

from calseg_cli.config.schema import Config


def json_schema() -> str:
    """The schema as JSON text; point an editor's YAML plug-in at it."""
    schema = Config.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "calseg.yaml"}
    return json.dumps(schema, indent=2) + "\n"
