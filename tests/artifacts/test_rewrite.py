"""Merging and repacking: the same content in another file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.diff import diff
from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.rewrite import convert, merge
from calseg_cli.artifacts.shards import write_manifest
from calseg_cli.artifacts.verify import verify
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError

CLASSES = {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}
IDS = [f"city/{number}" for number in range(7)]


def meta(**protocol) -> dict:
    return {
        "classes": CLASSES,
        "protocol": {"values": "logits", "split": "test", **protocol},
        "recipe": {"stage": "predict", "options": protocol},
    }


def logits_of(name: str) -> np.ndarray:
    number = sum(map(ord, name))
    return np.random.default_rng(number).normal(size=(2, 3 + number % 4, 5)).astype(np.float16)


def write(path: Path, names=IDS, *, positions=None, tables=None, kind="logits", **options) -> str:
    writer = ArtifactWriter(path, kind, meta=tables or meta(), ids=names, positions=positions, **options)
    with writer:
        for name in names:
            grid = logits_of(name)
            geometry = Geometry((grid.shape[1] * 4, 20), (grid.shape[1] * 4, 20), stride=4)
            writer.add_item(name, {"logits": grid}, geometry, image_digest=f"sha256:{name}")
    return writer.digest


def nothing() -> None:
    pass


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(owners=st.lists(st.integers(0, 2), min_size=len(IDS), max_size=len(IDS)))
def test_merged_shards_are_the_unsharded_file(tmp_path, owners):
    """Whatever image is in whichever shard."""
    whole = write(tmp_path / "whole.h5", force=True)
    files = []
    for rank in sorted(set(owners)):
        places = [place for place, owner in enumerate(owners) if owner == rank]
        files.append(tmp_path / f"s{rank}.h5")
        write(files[-1], [IDS[place] for place in places], positions=places, force=True)
    shards = [open_artifact(path) for path in files]
    assert write_manifest(tmp_path / "s.manifest.json", shards) == whole
    assert merge(shards, tmp_path / "merged.h5", force=True, told=nothing) == whole
    with open_artifact(tmp_path / "merged.h5") as merged, open_artifact(tmp_path / "whole.h5") as one:
        assert merged.ids == IDS
        assert merged.digest == whole
        assert diff(merged, one).equal
        assert not [wrong for _, wrong in verify(merged) if wrong]
        for name in IDS:
            assert merged.geometry(name) == one.geometry(name)
            assert merged.image_digest(name) == one.image_digest(name)
    for shard in shards:
        shard.close()


def test_different_splits_follow_each_other(tmp_path):
    write(tmp_path / "a.h5", ["x", "y"])
    write(tmp_path / "b.h5", ["a"], tables=meta(split="val"))
    with open_artifact(tmp_path / "a.h5") as a, open_artifact(tmp_path / "b.h5") as b:
        merge([a, b], tmp_path / "m.h5", force=False, told=nothing)
    with open_artifact(tmp_path / "m.h5") as merged:
        assert merged.ids == ["x", "y", "a"]
        assert merged.meta["protocol"]["split"] == "test+val"
        np.testing.assert_array_equal(merged.item("a", "logits"), logits_of("a"))


@pytest.mark.parametrize(
    ("tables", "names", "says"),
    [
        (meta(flip=True), ["z"], "flip was absent, is true"),
        (meta(), ["x"], "more than one"),
        ({**meta(), "classes": {**CLASSES, "names": ["road", "tree"]}}, ["z"], "class 1 is 'tree' there and 'sky'"),
    ],
)
def test_what_does_not_fit_is_not_merged(tmp_path, tables, names, says):
    write(tmp_path / "a.h5", ["x", "y"])
    write(tmp_path / "b.h5", names, tables=tables)
    with (
        open_artifact(tmp_path / "a.h5") as a,
        open_artifact(tmp_path / "b.h5") as b,
        pytest.raises(ArtifactError, match=says),
    ):
        merge([a, b], tmp_path / "m.h5", force=False, told=nothing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def flip(path: Path, name: str) -> None:
    """Damage one bit of an image's values, which are not packed."""
    content = bytearray(path.read_bytes())
    content[bytes(content).find(logits_of(name).tobytes()[:8])] ^= 1
    path.write_bytes(content)


def test_merging_copies_chunks_as_they_are(tmp_path):
    """Of a packing that this calseg would not choose; packed again it would be another."""
    write(tmp_path / "a.h5", compression="none")
    with open_artifact(tmp_path / "a.h5") as source:
        merge([source], tmp_path / "m.h5", force=False, told=nothing)
        with open_artifact(tmp_path / "m.h5") as merged:
            assert {merged.form(name, "logits") for name in IDS} == {source.form(name, "logits") for name in IDS}
            assert [wrong for _, wrong in verify(merged) if wrong] == []


def test_damage_is_not_merged(tmp_path):
    """A new seal would stand for it, and whoever then deletes the sources has lost the image."""
    write(tmp_path / "a.h5", compression="none")
    flip(tmp_path / "a.h5", IDS[2])
    with open_artifact(tmp_path / "a.h5") as damaged, pytest.raises(ArtifactError, match="damaged"):
        merge([damaged], tmp_path / "m.h5", force=False, told=nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_a_damaged_copy_is_not_called_equal(tmp_path):
    write(tmp_path / "a.h5", compression="none")
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes())
    flip(tmp_path / "b.h5", IDS[2])
    with open_artifact(tmp_path / "a.h5") as one, open_artifact(tmp_path / "b.h5") as other:
        assert diff(one, other, quick=True).equal  # by what is written of the values
        with pytest.raises(ArtifactError, match="damaged"):
            diff(one, other)
        with pytest.raises(ArtifactError, match="damaged"):
            diff(other, one)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_repacking_keeps_the_digest(tmp_path, compression):
    before = write(tmp_path / "a.h5")
    with open_artifact(tmp_path / "a.h5") as source:
        after = convert(
            source, tmp_path / "b.h5", compression=compression, dtype=None, force=False, resume=False, told=nothing
        )
        assert after == before
        with open_artifact(tmp_path / "b.h5") as packed:
            assert diff(source, packed).equal
            assert packed.form(IDS[0], "logits")[2] == compression


def test_another_type_keeps_the_values_and_changes_the_digest(tmp_path):
    before = write(tmp_path / "a.h5")
    with open_artifact(tmp_path / "a.h5") as source:
        after = convert(
            source, tmp_path / "b.h5", compression="gzip", dtype="float32", force=False, resume=False, told=nothing
        )
        assert after != before
        with open_artifact(tmp_path / "b.h5") as wide:
            found = diff(source, wide)
            assert len(found.changed) == len(IDS)
            assert all(item.differing == 0 and item.largest == 0 for item in found.changed)


def test_diff_says_what_and_by_how_much(tmp_path):
    write(tmp_path / "a.h5", IDS[:3])
    with ArtifactWriter(tmp_path / "b.h5", "logits", meta=meta(), ids=[IDS[0], "new", IDS[1]]) as writer:
        for name in (IDS[0], "new", IDS[1]):
            grid = logits_of(name)
            if name == IDS[1]:
                grid[0, 0, 0] += np.float16(2)
            geometry = Geometry((grid.shape[1] * 4, 20), (grid.shape[1] * 4, 20), stride=4)
            writer.add_item(name, {"logits": grid}, geometry, image_digest=f"sha256:{name}")
    with open_artifact(tmp_path / "a.h5") as a, open_artifact(tmp_path / "b.h5") as b:
        found = diff(a, b)
    assert (found.only_first, found.only_second, found.tables, found.order) == ([IDS[2]], ["new"], [], False)
    (changed,) = found.changed
    assert (changed.id, changed.how, changed.differing) == (IDS[1], "logits", 1)
    assert changed.largest == pytest.approx(2, abs=0.01)


def test_verify_reads_everything(tmp_path):
    """A value exchanged for another by a program that keeps the checksums right is found by its digest."""
    import h5py

    from calseg_cli.artifacts.seal import seal

    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["items/000003/logits"][0, 0, 0] = 7
        chunks = []
        for key in file["items"]:
            file[f"items/{key}/logits"].id.chunk_iter(lambda info: chunks.append((info.byte_offset, info.size)))
        end = file.id.get_filesize()
    with (tmp_path / "a.h5").open("r+b") as stream:
        stream.truncate(end)
    seal(tmp_path / "a.h5", chunks)
    with open_artifact(tmp_path / "a.h5") as artifact:
        with pytest.raises(ArtifactError, match="not what was written"):
            artifact.item(IDS[3], "logits")
        wrong = {what: why for what, why in verify(artifact) if why}
    assert list(wrong) == [IDS[3]]
    assert "not what was written" in wrong[IDS[3]]
