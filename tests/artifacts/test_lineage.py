"""Whether what an artifact was made from is still what it was."""

import pytest

from calseg_cli.artifacts.lineage import parents, stale_note
from calseg_cli.artifacts.provenance import beside, file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter


def made_from(path, file, digest, role="checkpoint"):
    meta = {
        "classes": {"names": ["a"], "palette": [[0, 0, 0]], "ignore": 255},
        "protocol": {},
        "provenance": {"parents": {role: digest}, "files": {role: file} if file else {}},
    }
    with ArtifactWriter(path, "metrics", meta=meta, force=True):
        pass
    return open_artifact(path)


def test_a_checkpoint_that_was_trained_again_is_told(tmp_path):
    network = tmp_path / "1-pretrain" / "network.safetensors"
    network.parent.mkdir()
    network.write_bytes(b"first")
    with made_from(tmp_path / "5-predict" / "a.h5", "../1-pretrain/network.safetensors", file_digest(network)) as made:
        assert parents(made)[0]["state"] == "unchanged"
        assert stale_note(made) is None
        network.write_bytes(b"second")
        assert parents(made)[0]["state"] == "changed"
        note = stale_note(made)
        assert "is stale: its checkpoint" in note
        assert file_digest(network)[:19] in note
        network.unlink()
        assert parents(made)[0]["state"] == "not there"
        assert stale_note(made) is None


def test_an_artifact_is_known_by_its_content(tmp_path):
    with made_from(tmp_path / "logits.h5", None, "sha256:0") as parent:
        digest = parent.digest
    with made_from(tmp_path / "labels.h5", "logits.h5", digest, "logits") as made:
        assert parents(made)[0]["state"] == "unchanged"


@pytest.mark.parametrize("file", ["/etc/passwd", "../" * 9 + "etc/passwd", None, 3])
def test_a_stranger_sends_nobody_about_the_disk(tmp_path, file):
    with made_from(tmp_path / "a.h5", file, "sha256:0") as made:
        assert parents(made)[0]["state"] == "not there"


def test_places_outside_the_working_directory_are_cut_to_their_name(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "runs").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert beside(here / "runs/1/n.safetensors", here / "runs/5") == "../1/n.safetensors"
    assert beside(tmp_path / "secret/n.safetensors", here / "runs/5") == "n.safetensors"
    assert beside(here / "runs/1/n.safetensors", tmp_path / "elsewhere") == "n.safetensors"
