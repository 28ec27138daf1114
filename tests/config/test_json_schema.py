"""The schema for editors."""

import json
import subprocess
import sys

from calseg_cli.config import explain, json_schema


def test_it_describes_every_key():
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False
    found = {}

    def walk(part, above):
        for name, field in part["properties"].items():
            found[f"{above}{name}"] = field
            choices = [*field.get("anyOf", []), *field.get("allOf", [])]  # pydantic 2.7 has the latter
            links = [field.get("$ref"), *(choice.get("$ref") for choice in choices)]
            for link in filter(None, links):
                walk(schema["$defs"][link.rsplit("/", 1)[1]], f"{above}{name}.")

    walk(schema, "")
    assert set(found) == {info.name for info in explain()}
    assert all(field.get("description") for field in found.values())


def test_the_configuration_needs_no_torch():
    code = "import sys, calseg_cli.config; print(sorted({'torch', 'numpy', 'h5py', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
