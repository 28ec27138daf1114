"""What is read is what was written, to the last bit; and the digest depends on all of it and on nothing else."""

import hashlib
import importlib.util
import json
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import MOST_CLASSES
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError

PACKINGS = ["gzip", "none"] + (["zstd", "bitshuffle"] if importlib.util.find_spec("hdf5plugin") else [])
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

sides = st.one_of(st.integers(1, 9), st.sampled_from([31, 32, 33, 64, 65, 127, 129]))
names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=12)
ids = names.filter(lambda name: not name.startswith("/") and ".." not in name.split("/") and name.strip("./"))
geometries = st.builds(
    Geometry,
    in_hw=st.tuples(st.integers(1, 16384), st.integers(1, 16384)),
    out_hw=st.tuples(st.integers(1, 16384), st.integers(1, 16384)),
    pad=st.tuples(st.integers(0, 512), st.integers(0, 512)),
    stride=st.integers(1, 64),
    align_corners=st.booleans(),
)


def class_table(count):
    palette = [[n % 256, n // 256, 0] for n in range(count)]
    return {"names": [f"class {n}" for n in range(count)], "palette": palette, "ignore": 255}


@st.composite
def logits_files(draw):
    """(number of classes, {id: arrays}, {id: geometry}) of a file of logits."""
    classes = draw(st.one_of(st.integers(1, 5), st.sampled_from([19, 150])))
    dtype = draw(st.sampled_from(["float16", "float32"]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    items, where = {}, {}
    for name in draw(st.lists(ids, min_size=1, max_size=3, unique=True)):
        values = rng.normal(scale=draw(st.sampled_from([0, 1, 1e4])), size=(classes, draw(sides), draw(sides)))
        items[name] = {"logits": np.clip(values, -60000, 60000).astype(dtype)}
        where[name] = draw(geometries)
    return classes, items, where


def write(path, kind, meta, items, where=None, arrays=None, **options):
    with ArtifactWriter(path, kind, meta=meta, **options) as writer:
        for name, values in items.items():
            writer.add_item(name, values, (where or {}).get(name), image_digest=f"sha256:{len(name)}")
        for name, array in (arrays or {}).items():
            writer.add_array(name, array)
    return writer.digest


@pytest.mark.parametrize("packing", PACKINGS)
@SETTINGS
@given(file=logits_files())
def test_logits_come_back_bit_for_bit(store, tmp_path_factory, packing, file):
    classes, items, where = file
    path = tmp_path_factory.mktemp("r") / "a.h5"
    write(path, "logits", {"classes": class_table(classes)}, items, where, compression=packing)
    with open_artifact(path, "logits") as artifact:
        assert artifact.ids == list(items)
        assert artifact.class_names == class_table(classes)["names"]
        for name in items:
            assert artifact.geometry(name) == where[name]
            assert store.told(artifact.item(name, "logits")) == store.told(items[name]["logits"])
            assert type(artifact.geometry(name).stride) is int


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("confidence", [None, np.uint8, np.float16])
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (513, 1), (37, 53), (1024, 1100)])
def test_pseudo_labels_come_back_bit_for_bit(store, tmp_path, packing, confidence, size):
    rng = np.random.default_rng(0)
    arrays = {"label": np.where(rng.random(size) < 0.3, 255, rng.integers(0, 19, size)).astype(np.uint8)}
    if confidence is not None:
        arrays["confidence"] = (rng.random(size) * (255 if confidence is np.uint8 else 1)).astype(confidence)
    geometry = Geometry(size, size)
    path = tmp_path / "a.h5"
    write(path, "pseudo_labels", {"classes": class_table(19)}, {"x": arrays}, {"x": geometry}, compression=packing)
    with open_artifact(path, "pseudo_labels") as artifact:
        assert artifact.keys("x") == sorted(arrays)
        assert artifact.has("x", "confidence") == (confidence is not None)
        for key, values in arrays.items():
            assert store.told(artifact.item("x", key)) == store.told(values)


LEFT_OUT = {
    "all": (0b111, bytes),
    "shuffle and checksum": (0b101, zlib.compress),
    "shuffle and deflate": (0b011, lambda raw: raw + b"\0\0\0\0"),
}


@pytest.mark.parametrize(("mask", "packed"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_chunks_whose_filters_were_left_out_come_back(store, tmp_path, mask, packed):
    """Other programs may leave a chunk as it is where packing does not pay, and say so in a mask."""
    made = store.write(tmp_path / "a.h5", 1)
    values = made.items[made.ids[0]]["logits"]

    def pack(file):
        del file["items/000000/logits"]
        dataset = file.create_dataset(
            "items/000000/logits",
            values.shape,
            "f2",
            chunks=values.shape,
            compression="gzip",
            shuffle=True,
            fletcher32=True,
        )
        dataset.id.write_direct_chunk((0, 0, 0), packed(values.tobytes()), filter_mask=mask)

    store.edit(made.path, pack)
    store.reseal(made.path)
    with open_artifact(made.path) as artifact:
        assert store.told(artifact.item(made.ids[0], "logits")) == store.told(values)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "int64", "uint64", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (7, 5), (2, 3, 4), (40_000, 3), (9, 3, 4000)])
def test_arrays_of_the_whole_come_back(store, tmp_path, packing, dtype, shape):
    array = (np.random.default_rng(1).random(shape) * 200).astype(dtype)
    write(tmp_path / "a.h5", "metrics", {}, {}, arrays={"x": array}, compression=packing)
    with open_artifact(tmp_path / "a.h5") as artifact:
        assert store.told(artifact.array("x")) == store.told(np.asarray(array))


@SETTINGS
@given(array=npst.arrays(st.sampled_from(["<f8", "<i8", "<u2", "?"]), npst.array_shapes(min_dims=0, max_side=9)))
def test_any_values_come_back(store, tmp_path_factory, array):
    path = tmp_path_factory.mktemp("r") / "a.h5"
    write(path, "metrics", {}, {}, arrays={"x": array})
    with open_artifact(path) as artifact:
        assert store.told(artifact.array("x")) == store.told(array)


@SETTINGS
@given(texts=st.lists(names.filter(lambda text: not text.endswith("\0")), max_size=6))
def test_any_texts_come_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("r") / "a.h5"
    write(path, "metrics", {}, {}, arrays={"x": np.array(texts, dtype=str)})
    with open_artifact(path) as artifact:
        assert artifact.array("x").tolist() == texts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@SETTINGS
@given(tables=st.dictionaries(st.sampled_from(["protocol", "provenance", "config"]), st.dictionaries(names, JSON)))
def test_any_tables_come_back(tmp_path_factory, tables):
    path = tmp_path_factory.mktemp("r") / "a.h5"
    write(path, "metrics", {"classes": class_table(2), **tables}, {})
    with open_artifact(path) as artifact:
        assert {name: artifact.meta[name] for name in tables} == tables


# ---- the digest ----


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plain_json(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of_array(array) -> str:
    if array.dtype.kind == "U":
        texts = json.dumps(array.ravel().tolist(), ensure_ascii=False, separators=(",", ":"))
        return sha(f"utf8 {','.join(map(str, array.shape))}\n{texts}")
    little = array.astype(array.dtype.newbyteorder("<"))
    head = f"{little.dtype.str} {','.join(map(str, array.shape))}\n"
    return hashlib.sha256(head.encode() + little.tobytes()).hexdigest()


def digest_by_hand(path) -> str:
    """The content digest from the file alone, with h5py, hashlib and json."""
    with h5py.File(path) as file:
        lines = [file.attrs["kind"].decode()]
        for name in ("classes", "protocol"):
            text = file["meta"][name][()].decode() if name in file["meta"] else ""
            lines.append(f"{name}={sha(text)}")
        for key in sorted(file.get("items", {}), key=int):
            group = file["items"][key]
            facts = json.loads(group.attrs["facts"].decode())
            del facts["digest"]
            assert facts["arrays"] == {name: digest_of_array(group[name][()]) for name in group}
            lines.append(f"{int(key)}={sha(plain_json(facts))}")
        for name in sorted(file.get("arrays", {})):
            values = file["arrays"][name][()]
            values = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
            lines.append(f"{name}={digest_of_array(values)}")
    return f"sha256:{sha(''.join(line + chr(10) for line in lines))}"


@SETTINGS
@given(file=logits_files(), protocol=st.dictionaries(names, JSON, max_size=3))
def test_the_digest_is_what_its_description_says(tmp_path_factory, file, protocol):
    classes, items, where = file
    path = tmp_path_factory.mktemp("r") / "a.h5"
    digest = write(path, "logits", {"classes": class_table(classes), "protocol": protocol}, items, where)
    assert digest_by_hand(path) == digest


def test_the_digest_of_arrays_is_what_its_description_says(tmp_path):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array(["x", "ü"]), "c": np.array(True), "z": np.zeros((0, 2))}
    digest = write(tmp_path / "a.h5", "metrics", {"protocol": {"grid": 1}}, {}, arrays=arrays)
    assert digest_by_hand(tmp_path / "a.h5") == digest


def test_the_digest_does_not_depend_on_how_it_was_written(store, tmp_path, monkeypatch):
    items = store.make_items(3, size=(40, 50))
    arrays = {"b": np.arange(5), "a": np.ones((2, 2))}
    first = store.write(tmp_path / "a.h5", items, arrays=arrays).digest
    for number, packing in enumerate(PACKINGS):
        assert store.write(tmp_path / f"{number}.h5", items, arrays=arrays, compression=packing).digest == first
    backwards = dict(reversed(arrays.items()))
    assert store.write(tmp_path / "b.h5", items, arrays=backwards).digest == first
    assert store.write(tmp_path / "c.h5", items, arrays=arrays, ids=list(items)).digest == first
    foreign = {name: {"logits": values["logits"].astype(">f2")} for name, values in items.items()}
    assert store.write(tmp_path / "d.h5", foreign, arrays=arrays).digest == first
    strided = {name: {"logits": np.asfortranarray(values["logits"])} for name, values in items.items()}
    assert store.write(tmp_path / "e.h5", strided, arrays=arrays).digest == first
    meta = {**store.META, "provenance": {"command": "other"}, "recipe": {"stage": "other"}, "config": {"a": 1}}
    assert store.write(tmp_path / "f.h5", items, arrays=arrays, meta=meta).digest == first


def test_values_of_another_byte_order_come_back_as_this_machine_has_them(store, tmp_path):
    items = {"x": {"logits": np.arange(12, dtype=">f4").reshape(2, 2, 3)}}
    made = store.write(tmp_path / "a.h5", items, arrays={"y": np.arange(3, dtype=">i4")})
    with open_artifact(made.path) as artifact:
        assert artifact.item("x", "logits").dtype == np.dtype("=f4")
        assert artifact.array("y").dtype == np.dtype("=i4")
        np.testing.assert_array_equal(artifact.item("x", "logits"), items["x"]["logits"])


def changes(store):
    """Everything that the digest covers, each changed a little."""
    items = store.make_items(2)
    first, second = items

    def with_value(place, value):
        logits = items[first]["logits"].copy()
        logits[place] = value
        return {**items, first: {"logits": logits}}

    yield "a value", {"items": with_value((1, 4, 6), 9)}
    yield "a sign", {"items": with_value((0, 0, 0), -items[first]["logits"][0, 0, 0])}
    yield "zero's sign", {"items": with_value((0, 0, 0), -0.0)}
    yield "zero", {"items": with_value((0, 0, 0), 0.0)}
    yield "the type", {"items": {name: {"logits": v["logits"].astype("float32")} for name, v in items.items()}}
    yield "the shape", {"items": {**items, first: {"logits": items[first]["logits"].reshape(2, 7, 5)}}}
    yield "a name", {"items": {"other": items[first], second: items[second]}}
    yield "the order", {"items": dict(reversed(items.items()))}
    yield "one less", {"items": {first: items[first]}}
    for field, value in {
        "in_hw": (33, 46),
        "out_hw": (67, 90),
        "pad": (3, 4),
        "stride": 8,
        "align_corners": False,
    }.items():
        yield field, {"geometry": Geometry(**{**vars(store.GEOMETRY), field: value})}
    table = store.META["classes"]
    yield "a class", {"meta": {**store.META, "classes": {**table, "names": ["road", "sea"]}}}
    yield "a colour", {"meta": {**store.META, "classes": {**table, "palette": [[1, 2, 3], [4, 5, 7]]}}}
    yield "the ignored class", {"meta": {**store.META, "classes": {**table, "ignore": 254}}}
    yield "the protocol", {"meta": {**store.META, "protocol": {"stride": 8}}}
    yield "an array", {"arrays": {"x": np.arange(3), "y": np.array(["a"])}}
    yield "an array's value", {"arrays": {"x": np.array([0, 1, 3]), "y": np.array(["a"])}}
    yield "an array's type", {"arrays": {"x": np.arange(3, dtype=np.int32), "y": np.array(["a"])}}
    yield "an array's name", {"arrays": {"z": np.arange(3), "y": np.array(["a"])}}
    yield "an array's text", {"arrays": {"x": np.arange(3), "y": np.array(["b"])}}


def test_the_digest_depends_on_everything(store, tmp_path):
    digests = {"nothing": store.write(tmp_path / "0.h5", store.make_items(2)).digest}
    for number, (what, change) in enumerate(changes(store), start=1):
        options = {"items": store.make_items(2), **change}
        digests[what] = store.write(tmp_path / f"{number}.h5", **options).digest
    assert len(set(digests.values())) == len(digests)


def test_the_digest_depends_on_the_image_it_is_of(store, tmp_path):
    digests = set()
    for number, image in enumerate(["", "sha256:a", "sha256:b"]):
        with ArtifactWriter(tmp_path / f"{number}.h5", "logits", meta=store.META) as writer:
            writer.add_item("x", {"logits": np.zeros((2, 3, 3), np.float16)}, store.GEOMETRY, image_digest=image)
        digests.add(writer.digest)
    assert len(digests) == 3


# ---- what is not written ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_no_numbers_are_refused_with_the_images_name(store, tmp_path, value, dtype):
    items = store.make_items(3, dtype=dtype)
    items["city/ünï 1"]["logits"][1, 2, 3] = value
    with pytest.raises(ArtifactError, match=r"logits of 'city/ünï 1' holds values that are not finite"):
        store.write(tmp_path / "a.h5", items)
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize(
    "shape", [(0, 3, 3), (2, 0, 3), (MOST_CLASSES + 1, 1, 1), (1, 1, 16385), (1, 16385, 1)], ids=str
)
def test_sizes_that_cannot_be_read_again_are_not_written(store, tmp_path, shape):
    with pytest.raises(ArtifactError, match="logits of 'x' is"):
        store.write(tmp_path / "a.h5", {"x": {"logits": np.zeros(shape, np.float16)}})


@pytest.mark.parametrize("shape", [(MOST_CLASSES, 1, 1), (1, 1, 16384), (1, 16384, 1)], ids=str)
def test_the_largest_sizes_come_back(store, tmp_path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    meta = {"classes": class_table(shape[0])}
    write(tmp_path / "a.h5", "logits", meta, {"x": {"logits": values}}, {"x": store.GEOMETRY})
    with open_artifact(tmp_path / "a.h5") as artifact:
        assert store.told(artifact.item("x", "logits")) == store.told(values)


def test_an_artifact_without_items(store, tmp_path):
    """A shard of a small set may have none."""
    made = store.write(tmp_path / "a.h5", 0)
    with open_artifact(made.path) as artifact:
        assert (len(artifact), artifact.ids, artifact.digest) == (0, [], made.digest)
    assert digest_by_hand(made.path) == made.digest


@pytest.mark.parametrize("number", [999, 1_000_000])
def test_places_beyond_six_digits(store, tmp_path, number):
    """A shard keeps the places of the whole."""
    items = store.make_items(2)
    made = store.write(tmp_path / "a.h5", items, ids=list(items), positions=[number, number + 1])
    with open_artifact(made.path) as artifact:
        assert list(artifact.positions.values()) == [number, number + 1]
        for name in items:
            assert store.told(artifact.item(name, "logits")) == store.told(items[name]["logits"])
    assert digest_by_hand(made.path) == made.digest
