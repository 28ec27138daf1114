"""A stranger's file is refused by name, at once, and without a cost: one malicious or broken file for each rule.

Each is tried twice: as it was edited, where its seal is broken and another process looks at it, and sealed anew by the
attacker, where the rules of this process have to find it.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from calseg_cli.artifacts.describe import describe
from calseg_cli.artifacts.examine import examined
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.errors import ArtifactError

LOGITS = "items/000000/logits"
SECRET = "/etc/hostname"


def link_out(place):
    def plant(file):
        del file[place]
        file[place] = h5py.ExternalLink("/tmp/other.h5", "/x")

    return plant


def link_within(place, target):
    def plant(file):
        del file[place]
        file[place] = h5py.SoftLink(target)

    return plant


def hard_link(place, target):
    def plant(file):
        file[place] = file[target]

    return plant


def swap(place, **options):
    """Put another dataset in place of one."""

    def plant(file):
        del file[place]
        file.create_dataset(place, **options)

    return plant


def group_for_dataset(place):
    def plant(file):
        del file[place]
        file.create_group(place)

    return plant


def dataset_for_group(place):
    return swap(place, data=np.zeros((2, 5, 7), np.float16))


def virtual(place, shape, dtype):
    def plant(file):
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource("/tmp/other.h5", "x", shape)
        del file[place]
        file.create_virtual_dataset(place, layout)

    return plant


def low_level(place, shape, kind, *, chunks=None, late=False, compact=False, filters=()):
    """A dataset that h5py's comfortable side does not make."""

    def plant(file):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if chunks:
            properties.set_chunk(chunks)
        if compact:
            properties.set_layout(h5py.h5d.COMPACT)
        if late:
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
        for code, values in filters:
            properties.set_filter(code, h5py.h5z.FLAG_OPTIONAL, values)
        del file[place]
        h5py.h5d.create(file.id, place.encode(), kind, h5py.h5s.create_simple(shape), properties)

    return plant


def inflating(file):
    """A chunk of 140 declared bytes whose stream holds 300 MB."""
    packer = zlib.compressobj(9)
    stream = b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(300)), packer.flush()])
    del file[LOGITS]
    dataset = file.create_dataset(LOGITS, (2, 5, 7), "f2", chunks=(2, 5, 7), compression="gzip")
    dataset.id.write_direct_chunk((0, 0, 0), stream)


def big_and_real(file):
    """5 GiB of zeros, all there, in 5 MB: within deflate's ratio, beyond what an item may have."""
    del file[LOGITS]
    side = 4096
    dataset = file.create_dataset(LOGITS, (80, side, side), "f4", chunks=(1, side, side), compression="gzip")
    stream = zlib.compress(bytes(side * side * 4), 9)
    for plane in range(80):
        dataset.id.write_direct_chunk((plane, 0, 0), stream)


def long_rows(file):
    del file["index/id"]
    length = 20_000_000
    column = file.create_dataset("index/id", (3,), f"S{length}", chunks=(1,), compression="gzip")
    for row in range(3):
        column.id.write_direct_chunk((row,), zlib.compress(b"a" * length, 1))


def long_column(file):
    del file["index/digest"]
    column = file.create_dataset("index/digest", (30_000_000,), "S1", chunks=(10_000_000,), compression="gzip")
    for row in range(3):
        column.id.write_direct_chunk((row * 10_000_000,), zlib.compress(b"a" * 10_000_000, 1))


def long_table(file):
    del file["meta/classes"]
    length = 60_000_000
    file.create_dataset("meta/classes", data=np.bytes_(b" " * length), dtype=f"S{length}")


def table(name, text):
    def plant(file):
        raw = text if isinstance(text, bytes) else json.dumps(text).encode()
        if f"meta/{name}" in file:
            del file[f"meta/{name}"]
        file.create_dataset(f"meta/{name}", data=np.bytes_(raw))

    return plant


def classes(**change):
    names = {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255}
    return table("classes", {**names, **change})


def column(name, values):
    def plant(file):
        del file[f"index/{name}"]
        if values is not None:
            file[f"index/{name}"] = values

    return plant


def attribute(name, value, place="/"):
    plain = np.bytes_(value) if isinstance(value, str) else value
    return lambda file: file[place].attrs.create(name, plain)


def many_attributes(file):
    for number in range(100):
        file["items/000000"].attrs[f"a{number}"] = number


def bad_attribute(file):
    space, kind = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5t.C_S1.copy()
    kind.set_size(2)
    kind.set_cset(h5py.h5t.CSET_UTF8)
    h5py.h5a.create(file.id, b"created", kind, space).write(np.array(b"\xff\xfe"), mtype=kind)


def huge_attribute(file):
    """Beyond 64 KB, which only the newest layout of groups takes."""
    del file["items/000000"]
    file.create_group("items/000000").attrs.create("huge", np.zeros(20_000))


def facts(change):
    """What an item says of itself, changed."""

    def plant(file):
        told = json.loads(file["items/000000"].attrs["facts"])
        text = change(told)
        file["items/000000"].attrs.create("facts", np.bytes_(text))

    return plant


def nested(file):
    file.create_group("items/000000/a/b/c/d")


def unprintable(file):
    file["items/000000/logits\nerror: \x1b[2J"] = file[LOGITS][()]


def too_deep(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


FLOAT = h5py.h5t.IEEE_F16LE
ODD = h5py.h5t.STD_I32LE.copy()
ODD.set_precision(20)
EDITED = (
    "changed or damaged after it was sealed"  # where only the seal is broken, as far as can be told without reading
)

ATTACKS = {
    # nothing from outside of the file
    "external link for items": (link_out("items"), "/items is an external link"),
    "external link for an item": (link_out("items/000000"), "/items/000000 is an external link"),
    "external link for logits": (link_out(LOGITS), "/items/000000/logits is an external link"),
    "external link for meta": (link_out("meta"), "/meta is an external link"),
    "external link for a table": (link_out("meta/classes"), "/meta/classes is an external link"),
    "external link for index": (link_out("index"), "/index is an external link"),
    "external link for a column": (link_out("index/id"), "/index/id is an external link"),
    "soft link for an item": (link_within("items/000000", "/items/000001"), "/items/000000 is a soft link"),
    "soft link for logits": (link_within(LOGITS, "/items/000001/logits"), "logits is a soft link"),
    "soft link to nowhere": (link_within("index", "/nowhere"), "/index is a soft link"),
    "external storage": (swap(LOGITS, shape=(2, 5, 7), dtype="f2", external=[(SECRET, 0, 140)]), "external storage"),
    "external storage of a column": (
        swap("index/digest", shape=(3,), dtype="S3", external=[(SECRET, 0, 9)]),
        "/index/digest keeps its data in external storage",
    ),
    "virtual dataset": (virtual(LOGITS, (2, 5, 7), "f2"), "logits is a virtual dataset"),
    "virtual column": (virtual("index/position", (3,), "i8"), "/index/position is a virtual dataset"),
    # nothing but plain numbers and text
    "references": (swap(LOGITS, shape=(2, 5, 7), dtype=h5py.ref_dtype), "object, reference or compound"),
    "region references": (swap(LOGITS, shape=(2, 5, 7), dtype=h5py.regionref_dtype), "object, reference or compound"),
    "lists in a dataset": (swap(LOGITS, shape=(2, 5, 7), dtype=h5py.vlen_dtype("i4")), "object, reference or comp"),
    "opaque bytes": (swap(LOGITS, shape=(2, 5, 7), dtype="V8"), "object, reference or compound"),
    "compound": (swap(LOGITS, shape=(2, 5, 7), dtype=[("a", "f2"), ("b", "f2")]), "object, reference or compound"),
    "arrays in a dataset": (swap(LOGITS, shape=(2, 5), dtype=np.dtype(("f2", 7))), "object, reference or compound"),
    "enumeration": (swap(LOGITS, shape=(2, 5, 7), dtype=h5py.enum_dtype({"a": 0}, "i1")), "enumeration"),
    "numbers of 20 bits": (low_level(LOGITS, (2, 5, 7), ODD, compact=True), "unusual number type"),
    "text of variable length": (swap("meta/classes", data="{}", dtype=h5py.string_dtype()), "variable length"),
    "attribute of references": (lambda f: f["items/000000"].attrs.create("r", f.ref), "object, reference or compound"),
    "type in place of a table": (lambda f: f.__setitem__("meta/x", np.dtype("f2")), "/meta/x is no dataset"),
    # nothing that is not there
    "never written chunks": (swap(LOGITS, shape=(1000, 10_000, 10_000), dtype="f2", chunks=(1, 100, 100)), "claims"),
    "a chunk missing": (swap(LOGITS, shape=(2, 512, 512), dtype="f2", chunks=(2, 256, 256)), "of 4 chunks are there"),
    "never written stretch": (low_level(LOGITS, (900, 16000, 16000), FLOAT, late=True), "claims"),
    "a little never written": (low_level(LOGITS, (2, 5, 7), FLOAT, late=True), "claims 140 bytes and stores 0"),
    "big, real and packed": (big_and_real, "claims 5368709120 bytes"),
    "a chunk that inflates": (inflating, "unpacks to another size"),
    "packed twice": (
        low_level(LOGITS, (2, 5, 7), FLOAT, chunks=(2, 5, 7), filters=[(1, (9,)), (1, (9,))]),
        "packed more than once",
    ),
    "shuffled twice": (
        low_level(LOGITS, (2, 5, 7), FLOAT, chunks=(2, 5, 7), filters=[(2, ()), (2, ())]),
        "packed more than once",
    ),
    "chunks of half a GB": (
        low_level(LOGITS, (1, 16384, 16384), FLOAT, chunks=(1, 16384, 16384), filters=[(1, (9,))]),
        "claims",
    ),
    "a long table": (long_table, "/meta/classes is no text of at most"),
    "long ids": (long_rows, "/index/id is no list of values of at most"),
    "a long column": (long_column, "do not fit"),
    "no shape": (swap(LOGITS, data=h5py.Empty("f2")), "without a shape"),
    "too many classes": (swap(LOGITS, data=np.zeros((1025, 1, 1), "f2"), chunks=(1025, 1, 1)), "1025x1x1"),
    "too wide": (swap(LOGITS, data=np.zeros((1, 1, 16385), "f2"), chunks=(1, 1, 16385)), "1x1x16385"),
    "unknown filter": (low_level(LOGITS, (2, 5, 7), FLOAT, chunks=(2, 5, 7), filters=[(305, ())]), "filter 305"),
    "filter not allowed": (low_level(LOGITS, (2, 5, 7), FLOAT, chunks=(2, 5, 7), filters=[(5, ())]), "filter 5"),
    "many tables": (lambda f: [f.__setitem__(f"meta/t{n}", b"{}") for n in range(20)], "/meta has 2. members"),
    # what the file says it is
    "newer format": (attribute("schema", f"9.\n{'0' * 1000}"), "newer"),
    "newer kind": (attribute("kind_version", 2), "newer"),
    "no version": (attribute("schema", "new"), "damaged"),
    "other format": (attribute("format", "else"), "no calseg artifact"),
    "unknown kind": (attribute("kind", "spells\n" * 1000), "unknown kind"),
    "unfinished": (attribute("complete", False), "unfinished"),
    "other number of items": (attribute("items", 4), "expected 4 items, found 3"),
    "no number of items": (lambda f: f.attrs.__delitem__("items"), "its root lacks items"),
    "no digest": (lambda f: f.attrs.__delitem__("content_digest"), "its root lacks content_digest"),
    "other kind": (attribute("kind", "prototypes"), "lacks the array"),
    # text
    "attribute that is no UTF-8": (bad_attribute, "not UTF-8"),
    "id that is no UTF-8": (column("id", np.array([b"a", b"b", b"\xff"])), "/index/id is not UTF-8"),
    "table that is no UTF-8": (table("classes", b'{"names": ["\xff"]}'), "/meta/classes is not UTF-8"),
    "member that is no UTF-8": (lambda f: f["meta"].create_group(b"\xff"), "a name in /meta is not UTF-8"),
    "half a character": (table("protocol", {"a": "\ud800"}), "/meta/protocol is damaged"),
    "name with control characters": (unprintable, "has a member of the name"),
    "huge attribute": (huge_attribute, "'huge' of /items/000000 is huge"),
    "many attributes": (many_attributes, "/items/000000 has 10. attributes"),
    # structure
    "deep nesting": (nested, "/items/000000/a is no dataset"),
    "a group inside itself": (hard_link("items/000000/loop", "items/000000"), "/items/000000/loop is no dataset"),
    "all items inside one": (hard_link("items/000000/loop", "items"), "/items/000000/loop is no dataset"),
    "the root inside": (hard_link("meta/loop", "/"), "/meta/loop is no dataset"),
    "items are the root": (
        lambda f: (f.__delitem__("items"), hard_link("items", "/")(f)),
        "do not fit|claims the size 3",
    ),
    "something else at the root": (lambda f: f.create_group("more"), "/more is nothing that an artifact has"),
    "group for logits": (group_for_dataset(LOGITS), "/items/000000/logits is no dataset"),
    "group for a table": (group_for_dataset("meta/classes"), "/meta/classes is no dataset"),
    "group for a column": (group_for_dataset("index/id"), "/index/id is no dataset"),
    "dataset for an item": (dataset_for_group("items/000000"), "/items/000000 is no group"),
    "dataset for items": (dataset_for_group("items"), "/items is no group"),
    "dataset for meta": (dataset_for_group("meta"), "/meta is no group"),
    "no description": (lambda f: f.__delitem__("meta"), "no description"),
    # the list of items
    "no list": (lambda f: f.__delitem__("index"), "its list lacks"),
    "an id twice": (column("id", np.array([b"a", b"b", b"a"])), "two items have the id 'a'"),
    "an id that leads out": (column("id", np.array([b"a", b"b", b"x/../../c"])), "'x/../../c' does not name a file"),
    "an absolute id": (column("id", np.array([b"a", b"b", b"/etc/passwd"])), "'/etc/passwd' does not name a file"),
    "an empty id": (column("id", np.array([b"a", b"b", b""])), "'' does not name a file"),
    "ids that are numbers": (column("id", np.arange(3)), "id in its list is no text"),
    "ids in a table": (column("id", np.array([[b"a", b"b"]] * 3)), "id in its list is no text"),
    "one id": (column("id", np.bytes_(b"a")), "/index/id is no list"),
    "column missing": (column("stride", None), "its list lacks stride"),
    "column too short": (column("stride", np.array([4, 4])), "do not fit"),
    "sizes that are fractions": (column("in_hw", np.full((3, 2), 0.5)), "in_hw of an image is not"),
    "negative size": (column("in_hw", np.full((3, 2), -1)), "in_hw of an image is not"),
    "size without a width": (column("in_hw", np.full((3, 1), 33)), "in_hw of an image is not"),
    "negative padding": (column("pad", np.full((3, 2), -3)), "pad of an image is not"),
    "absurd size": (column("out_hw", np.full((3, 2), 10**9)), "out_hw of an image is not"),
    "size beyond counting": (column("out_hw", np.full((3, 2), 2**64 - 1, np.uint64)), "out_hw of an image is not"),
    "no size": (column("out_hw", np.zeros((3, 2), int)), "out_hw of an image is not"),
    "stride of 0": (column("stride", np.zeros(3, int)), "stride of an image is not"),
    "a place twice": (column("position", np.array([0, 1, 1])), "positions are not those of the items"),
    "a place that is not there": (column("position", np.array([0, 1, 7])), "positions are not those of the items"),
    "a place below 0": (column("position", np.array([0, 1, -2])), "position of an image is not"),
    "digests that are numbers": (column("digest", np.arange(3)), "digest in its list is no text"),
    # JSON
    "no JSON": (table("protocol", b"{"), "/meta/protocol is damaged: it is no JSON"),
    "a list for a table": (table("protocol", [1]), "/meta/protocol is damaged: it is no table"),
    "tables in tables": (table("protocol", too_deep(60)), "nested too deep"),
    "tables without end": (table("protocol", b"[" * 100_000), "nested too deep"),
    "NaN": (table("protocol", b'{"a": NaN}'), "NaN is no number"),
    "infinite number": (table("protocol", b'{"a": 1e999}'), "1e999 is too large"),
    "number of many digits": (table("protocol", b'{"a": 1%s}' % (b"0" * 10_000)), "/meta/protocol is damaged"),
    "no class list": (lambda f: f.__delitem__("meta/classes"), "no class list"),
    "classes without colours": (classes(palette=[[1, 2, 3]]), "class list"),
    "classes that are numbers": (classes(names=[1, 2]), "class list"),
    "colours of text": (classes(palette=["red", "blue"]), "class list"),
    "colours beyond 255": (classes(palette=[[1, 2, 3], [4, 5, 256]]), "class list"),
    "colours of two": (classes(palette=[[1, 2], [4, 5]]), "class list"),
    "class names for a terminal": (classes(names=["road", "\x1b[2J"]), "class list"),
    "thousands of classes": (classes(names=["x"] * 2000, palette=[[1, 2, 3]] * 2000), "class list"),
    "ignored class of text": (classes(ignore="sky"), "class list"),
}

WHEN_READ = {
    # found only where the values are read; a broken seal says enough before
    "facts that are no JSON": (facts(lambda told: b"{"), "the facts of /items/000000 is damaged"),
    "facts that are a list": (facts(lambda told: b"[]"), "the facts of /items/000000 is damaged"),
    "facts without arrays": (facts(lambda told: b"{}"), "the facts of /items/000000 name no arrays"),
    "NaN in facts": (facts(lambda told: b'{"arrays": {}, "stride": NaN}'), "NaN is no number"),
    "facts of another item": (facts(lambda told: json.dumps({**told, "id": "x"})), "are not what was written"),
    "facts of other values": (
        facts(lambda told: json.dumps({**told, "arrays": {"logits": "0" * 64}})),
        "are not what was written",
    ),
    "facts of another size": (facts(lambda told: json.dumps({**told, "out_hw": [1, 1]})), "are not what was written"),
    "facts without a digest": (
        facts(lambda told: json.dumps({k: v for k, v in told.items() if k != "digest"})),
        "are not what was written",
    ),
    "more facts": (facts(lambda told: json.dumps({**told, "more": 1})), "are not what was written"),
    "facts that are not there": (lambda f: f["items/000000"].attrs.__delitem__("facts"), "the facts of /items/000000"),
    "other values": (lambda f: f[LOGITS].__setitem__((0, 0, 0), 7), "is not what was written"),
    "other shape": (swap(LOGITS, data=np.zeros((2, 5, 8), "f2"), chunks=(2, 5, 8)), "is not what was written"),
    "float64": (swap(LOGITS, data=np.zeros((2, 5, 7)), chunks=(2, 5, 7)), "is no logits of kind logits"),
    "two dimensions": (swap(LOGITS, data=np.zeros((5, 7), "f2"), chunks=(5, 7)), "is no logits of kind logits"),
    "a chunk that inflates": (inflating, "unpacks to another size"),
}


@pytest.fixture
def victim(store, tmp_path):
    return store.write(tmp_path / "a.h5").path


def read(path: Path) -> None:
    with open_artifact(path, explain=False) as artifact:
        for name in artifact.ids:
            artifact.geometry(name)
            artifact.item_facts(name)
            for key in artifact.keys(name):
                artifact.item(name, key)
        artifact.facts()


def is_one_line(error: ArtifactError) -> bool:
    return str(error).isprintable() and len(str(error)) < 1000


@pytest.mark.parametrize("name", ATTACKS)
def test_edited_files_are_refused_by_name(store, victim, name):
    plant, rule = ATTACKS[name]
    store.edit(victim, plant, libver="latest" if "huge" in name else None)
    with store.frugal():
        found = examined(victim, items=False)["refused"]
    if name in WHEN_READ:
        assert found is None  # no value is read; the broken seal speaks for itself
        return
    with pytest.raises(ArtifactError, match=rule):
        raise ArtifactError(found)


@pytest.mark.parametrize("name", sorted({*ATTACKS, *WHEN_READ}))
def test_files_that_the_attacker_sealed_are_refused_by_name(store, victim, name):
    plant, rule = {**ATTACKS, **WHEN_READ}[name]
    store.edit(victim, plant, libver="latest" if "huge" in name else None)
    store.reseal(victim)
    with store.frugal(), pytest.raises(ArtifactError, match=rule) as refused:
        read(victim)
    assert is_one_line(refused.value)
    assert str(victim) in str(refused.value)


def test_logits_of_other_classes_than_those_in_the_list(store, tmp_path):
    made = store.write(tmp_path / "a.h5", store.make_items(1))
    store.edit(made.path, classes(names=["a", "b", "c"], palette=[[0, 0, 0]] * 3))
    store.reseal(made.path)
    with pytest.raises(ArtifactError, match="/items/000000/logits has 2 classes, and its class list 3"):
        read(made.path)


def test_labels_of_classes_that_are_not_in_the_list(store, tmp_path):
    label = np.array([[0, 1, 255], [1, 1, 2]], np.uint8)
    meta = {"classes": {"names": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3, "ignore": 255}}
    made = store.write(tmp_path / "a.h5", {"x": {"label": label}}, kind="pseudo_labels", meta=meta)
    read(made.path)
    store.edit(made.path, classes())
    store.reseal(made.path)
    with pytest.raises(ArtifactError, match="/items/000000/label has the class 2, and its class list 2"):
        read(made.path)


SAMPLE = [
    "external link for logits",
    "never written chunks",
    "a group inside itself",
    "tables without end",
    "newer kind",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_opening_an_edited_file_names_the_rule(store, victim, name):
    plant, rule = ATTACKS[name]
    store.edit(victim, plant)
    with store.frugal(seconds=2), pytest.raises(ArtifactError, match=rule) as refused:
        open_artifact(victim)
    assert is_one_line(refused.value)


@pytest.mark.parametrize("name", WHEN_READ)
def test_what_only_reading_finds_is_stopped_by_the_seal(store, victim, name):
    store.edit(victim, WHEN_READ[name][0])
    with pytest.raises(ArtifactError, match=f"{EDITED}|bears no seal"):
        open_artifact(victim, explain=False)


def test_chunks_on_top_of_each_other(store, tmp_path):
    """Chunks that share one place in the file would multiply what is stored without storing it."""
    made = store.write(tmp_path / "a.h5", store.make_items(1, size=(300, 300)), compression="none")
    first, *others = store.chunks_of(made.path, LOGITS)
    content = made.path.read_bytes()
    for other in others:
        address = struct.pack("<Q", other[0])
        assert content.count(address) >= 1
        content = content.replace(address, struct.pack("<Q", first[0]))
    made.path.write_bytes(content)
    store.reseal(made.path)
    with store.frugal(), pytest.raises(ArtifactError, match="lie on each other"):
        read(made.path)


def made_elsewhere(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("model_weights").create_dataset("a", data=np.zeros((2, 5, 7), np.float16))


def with_userblock(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=2**20) as file:
        file.attrs["format"] = "calseg-artifact"


def tensors(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2) + b"{}")


def zipped_pickle(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(100))


def of_length(size):
    return lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"[:size].ljust(size, b"\0"))


FILES = {
    "another program's": (made_elsewhere, "an HDF5 file, but no calseg artifact"),
    "a megabyte before it": (with_userblock, "is no HDF5 file"),
    "a checkpoint": (tensors, "is no HDF5 file"),
    "a pickle": (zipped_pickle, "is no HDF5 file"),
    "empty": (of_length(0), "is no HDF5 file"),
    "a magic number": (of_length(8), "cut short|inner tables are damaged"),
    "a magic number and zeros": (of_length(4096), "cut short|inner tables are damaged"),
    "a pipe": (os.mkfifo, "no plain file"),
    "a folder": (os.mkdir, "a folder"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no plain file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "no file|cannot be read"),
}


@pytest.fixture
def patience():
    """A file that is waited for forever ends the test, not the suite."""

    def expired(number, frame):
        raise AssertionError("it does not come back")

    old = signal.signal(signal.SIGALRM, expired)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_artifact_at_all(store, tmp_path, patience, name):
    make, rule = FILES[name]
    path = tmp_path / "a.h5"
    make(path)
    with store.frugal(seconds=2), pytest.raises(ArtifactError, match=rule) as refused:
        open_artifact(path)
    assert is_one_line(refused.value)
    if name != "a checkpoint":
        with pytest.raises(ArtifactError):
            describe(path)


def test_unfinished_and_missing_files(store, tmp_path):
    made = store.write(tmp_path / "a.h5")
    made.path.rename(tmp_path / "b.h5.partial")
    with pytest.raises(ArtifactError, match="is unfinished"):
        open_artifact(tmp_path / "b.h5.partial")
    with pytest.raises(ArtifactError, match="no file") as missing:
        open_artifact(tmp_path / "b.h5")
    assert "--resume" in str(missing.value.hint)
    with pytest.raises(ArtifactError, match="cannot be read: file name too long"):
        open_artifact(tmp_path / ("x" * 300))


def test_a_file_that_may_not_be_read(store, tmp_path, monkeypatch):
    made = store.write(tmp_path / "a.h5")

    def denied(self, *words, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    with pytest.raises(ArtifactError, match="cannot be read: permission denied"):
        open_artifact(made.path)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calseg_cli", *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["external link for logits", "never written chunks", "tables without end"])
@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "sealed anew"])
def test_the_command_line_says_so_in_one_line(store, victim, name, sealed):
    plant, rule = ATTACKS[name]
    store.edit(victim, plant)
    if sealed:
        store.reseal(victim)
    ran = run("inspect", str(victim))
    assert ran.returncode == 3, ran.stderr
    assert ran.stdout == ""
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert rule in errors[0]
    assert "Traceback" not in ran.stderr


def test_the_command_line_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    ran = run("inspect", str(tmp_path / "a.h5"))
    assert ran.returncode == 3
    assert "no plain file" in ran.stderr


def test_pictures_of_a_hostile_id_stay_in_their_folder():
    """Where ids become file names the rule stands a second time: an id need not come from an artifact."""
    from calseg_cli.errors import DataError
    from calseg_cli.stages.pictures import safe_name

    for name in ("../x", "/etc/x", "a/../../x", "", ".", "a/.."):
        with pytest.raises(DataError, match="below a folder"):
            safe_name(name)
    assert safe_name("city/ünï 0") == "city/ünï 0"
