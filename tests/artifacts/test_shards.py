"""Shards are one artifact in several files: the same content digest however it is split, and nothing a manifest lists
may lie elsewhere or have changed.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.shards import joint_digest, read_manifest, write_manifest
from calseg_cli.errors import ArtifactError

COUNT = 7


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    return store.write(tmp_path_factory.mktemp("whole") / "a.h5", store.make_items(COUNT))


def write_shard(store, path, whole, places, **options):
    items = {whole.ids[place]: whole.items[whole.ids[place]] for place in places}
    return store.write(path, items, ids=list(items), positions=list(places), **options)


def write_shards(store, folder, whole, split, **options):
    """One shard for each list of places, and their manifest."""
    paths = [folder / f"a.rank{rank:02d}.h5" for rank in range(len(split))]
    for path, places in zip(paths, split, strict=True):
        write_shard(store, path, whole, places, **options)
    shards = [open_artifact(path) for path in paths]
    write_manifest(folder / "a.manifest.json", shards)
    return folder / "a.manifest.json"


@st.composite
def splits(draw):
    """Places dealt to shards, each in rising order; some shards may be empty."""
    number = draw(st.integers(1, 5))
    owner = [draw(st.integers(0, number - 1)) for _ in range(COUNT)]
    return [[place for place in range(COUNT) if owner[place] == rank] for rank in range(number)]


@settings(max_examples=15, deadline=None)
@given(split=splits(), packing=st.sampled_from(["gzip", "none"]))
def test_any_split_is_the_same_artifact(store, whole, tmp_path_factory, split, packing):
    manifest = write_shards(store, tmp_path_factory.mktemp("s"), whole, split, compression=packing)
    with open_artifact(manifest, "logits") as joint, open_artifact(whole.path) as single:
        assert joint.digest == single.digest == whole.digest
        assert joint.ids == single.ids
        assert joint.positions == single.positions
        assert joint.item_digests == single.item_digests
        for name in whole.ids:
            assert store.told(joint.item(name, "logits")) == store.told(whole.items[name]["logits"])
            assert joint.geometry(name) == single.geometry(name)
            assert joint.image_digest(name) == single.image_digest(name)
            assert joint.keys(name) == single.keys(name)
            assert joint.item_facts(name) == single.item_facts(name)
        assert joint.facts()["images"] == COUNT
        assert json.loads(manifest.read_text())["content_digest"] == whole.digest


def test_the_order_in_which_shards_are_listed_does_not_matter(store, whole, tmp_path):
    write_shards(store, tmp_path, whole, [[4, 6], [0, 1, 2], [3, 5]])
    shards = [open_artifact(path) for path in sorted(tmp_path.glob("*.h5"))]
    assert {joint_digest(shards), joint_digest(shards[::-1]), joint_digest(shards[1:] + shards[:1])} == {whole.digest}


def test_a_closed_and_travelling_artifact_of_shards(store, whole, tmp_path):
    import pickle

    manifest = write_shards(store, tmp_path, whole, [[0, 2, 4, 6], [1, 3, 5]])
    with open_artifact(manifest) as joint:
        copy = pickle.loads(pickle.dumps(joint))
        joint.close()
        for name in whole.ids:
            assert np.array_equal(copy.item(name, "logits"), joint.item(name, "logits"))
        with pytest.raises(ArtifactError, match="has no image 'nowhere'"):
            joint.item("nowhere", "logits")
        copy.close()


def test_shards_that_share_an_image_are_refused(store, whole, tmp_path):
    first = write_shard(store, tmp_path / "a.h5", whole, [0, 1, 2])
    second = write_shard(store, tmp_path / "b.h5", whole, [2, 3])
    with (
        open_artifact(first.path) as a,
        open_artifact(second.path) as b,
        pytest.raises(ArtifactError, match=rf"'{whole.ids[2]}' is in .*a\.h5 and in .*b\.h5"),
    ):
        write_manifest(tmp_path / "m.json", [a, b])
    assert not (tmp_path / "m.json").exists()


OTHER = {
    "classes": {"classes": {"names": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}},
    "protocol": {"protocol": {"stride": 8}},
    "recipe": {"recipe": {"stage": "predict", "options": {"flip": True}}},
}


@pytest.mark.parametrize("table", OTHER)
def test_shards_of_different_runs_are_refused(store, whole, tmp_path, table):
    first = write_shard(store, tmp_path / "a.h5", whole, [0, 1])
    second = write_shard(store, tmp_path / "b.h5", whole, [2, 3], meta={**store.META, **OTHER[table]})
    with (
        open_artifact(first.path) as a,
        open_artifact(second.path) as b,
        pytest.raises(ArtifactError, match=f"does not belong to .*{table}"),
    ):
        write_manifest(tmp_path / "m.json", [a, b])


@pytest.fixture
def manifest(store, whole, tmp_path):
    return write_shards(store, tmp_path, whole, [[0, 1, 2], [3, 4, 5, 6]])


def change(manifest, edit):
    document = json.loads(manifest.read_text())
    document = edit(document) or document
    manifest.write_text(json.dumps(document))


def shard(**entries):
    """Change the first entry."""
    return lambda document: document["shards"][0].update(entries)


def nested(document):
    value = 1
    for _ in range(40):
        value = {"a": value}
    document["more"] = value


BROKEN = {
    "no digest": (lambda d: d.pop("content_digest"), "no manifest"),
    "another digest": (lambda d: d.update(content_digest="sha256:0"), "does not fit its shards"),
    "another format": (lambda d: d.update(format="else"), "no manifest"),
    "a newer format": (lambda d: d.update(schema="9.0"), "newer"),
    "no version": (lambda d: d.update(schema="x"), "no manifest"),
    "no shards": (lambda d: d.update(shards=[]), "lists no shards"),
    "shards of text": (lambda d: d.update(shards="abc"), "no manifest"),
    "a list": (lambda d: [1, 2], "no manifest"),
    "text": (lambda d: "text", "no manifest"),
    "another shard digest": (shard(content_digest="sha256:0"), "is not the shard that"),
    "a folder above": (shard(file="../a.rank00.h5"), "does not lie beside it"),
    "an absolute path": (shard(file="/etc/passwd"), "does not lie beside it"),
    "a folder below": (shard(file="x/a.rank00.h5"), "does not lie beside it"),
    "a folder of Windows": (shard(file="..\\a.rank00.h5"), "does not lie beside it"),
    "the folder itself": (shard(file="."), "does not lie beside it"),
    "no name": (shard(file=""), "does not lie beside it"),
    "a number for a name": (shard(file=5), "no manifest"),
    "itself": (shard(file="a.manifest.json"), "is no HDF5 file"),
    "a file that is not there": (shard(file="b.h5"), "which is not there"),
    "a name with NUL": (shard(file="a\0.h5"), "which is not there"),
    "the same shard twice": (lambda d: d["shards"].append(d["shards"][0]), "is in .* and in"),
    "a shard left out": (lambda d: d["shards"].pop(), "does not fit its shards"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_manifest_that_lies_is_refused(store, manifest, name):
    edit, says = BROKEN[name]
    change(manifest, lambda document: edit(document) if name in ("a list", "text") else [edit(document), None][1])
    with store.frugal(), pytest.raises(ArtifactError, match=says):
        open_artifact(manifest)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 1000, b"null", b'{"a": 1}'], ids=range(6))
def test_a_manifest_that_is_none(store, tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with store.frugal(), pytest.raises(ArtifactError, match="no manifest"):
        read_manifest(tmp_path / "a.json")


def test_a_manifest_of_gigabytes_is_not_read(store, tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.truncate(10**11)
    with store.frugal(), pytest.raises(ArtifactError, match="too large"):
        open_artifact(tmp_path / "a.json")


def test_a_shard_that_was_written_again_is_noticed(store, whole, manifest):
    other = store.make_items(3, seed=8)
    store.write(manifest.with_name("a.rank00.h5"), other, ids=list(other), force=True)
    with pytest.raises(ArtifactError, match=r"a\.rank00\.h5 is not the shard that a\.manifest\.json lists"):
        open_artifact(manifest)


def test_a_damaged_shard_is_refused_by_name(store, manifest):
    path = manifest.with_name("a.rank01.h5")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"a\.rank01\.h5"):
        open_artifact(manifest)


def test_two_shards_may_not_claim_one_place(store, whole, tmp_path):
    """Other images in the places of some: their order would not be said."""
    first = write_shard(store, tmp_path / "a.h5", whole, [0, 1])
    others = store.make_items(2, seed=5, prefix="other ")
    second = store.write(tmp_path / "b.h5", others, ids=list(others), positions=[1, 2])
    with (
        open_artifact(first.path) as a,
        open_artifact(second.path) as b,
        pytest.raises(ArtifactError, match="place"),
    ):
        write_manifest(tmp_path / "m.json", [a, b])
