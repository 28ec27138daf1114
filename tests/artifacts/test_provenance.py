"""Provenance says enough to repeat a result, and nothing about whose machine it was."""

import json
from pathlib import Path

from calseg_cli.artifacts.provenance import file_digest, provenance


def test_absolute_paths_are_cut(tmp_path):
    words = [str(tmp_path / "bin" / "calseg"), "adapt", f"--out={tmp_path}/x.h5", str(tmp_path / "y"), "--set", "a=b"]
    facts = provenance(words, seed=3, parents={"checkpoint": "sha256:0"})
    assert facts["command"] == "calseg adapt --out=x.h5 y --set a=b"
    assert str(tmp_path) not in json.dumps(facts)
    assert str(Path.home()) not in json.dumps(facts)
    assert facts["seed"] == 3
    assert "torch" in facts["packages"]


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a").startswith("sha256:ba7816bf8f01cfea")
