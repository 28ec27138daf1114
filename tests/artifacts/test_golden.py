"""Files written once, read as docs/artifacts.md says, by programs that know nothing of calseg's sources.

`benchmarks/make_golden.py` wrote them. A file of an older schema stays for ever: it must stay readable.
"""

import hashlib
import json
import re
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import KINDS, SCHEMA, class_hash
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.verify import verify
from calseg_cli.engine.forward import upsample_logits

FOLDER = Path(__file__).parent / "golden"
LOGITS = FOLDER / "artifact-1.0.h5"
LABELS = FOLDER / "artifact-1.0-pseudo_labels.h5"
ALL = sorted(FOLDER.glob("*.h5"))
PAGE = Path(__file__).parents[2] / "docs" / "artifacts.md"

# What the values are, stated here and in benchmarks/make_golden.py apart from each other.


def logits_of(number, height, width):
    return [
        [[number + c * (8 * x - 13) / 32 - y + x * x / 8 for x in range(width)] for y in range(height)]
        for c in range(3)
    ]


LABEL = [[255 if (y + x) % 4 == 3 else (y + x) % 4 for x in range(12)] for y in range(8)]
CONFIDENCE = [[7 * y + x for x in range(12)] for y in range(8)]


# A reader after the page: h5py, hashlib, json, struct and numpy, nothing of calseg's.


def text(value):
    return (value if isinstance(value, bytes) else bytes(value)).decode("utf-8")


def sha256(content):
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def canonical(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of(array):
    shape = ",".join(str(length) for length in array.shape)
    if array.dtype.kind == "S":
        texts = json.dumps([text(value) for value in array.ravel()], ensure_ascii=False, separators=(",", ":"))
        return sha256(f"utf8 {shape}\n{texts}")
    kind = {"f": "f", "i": "i", "u": "u"}[array.dtype.kind]
    order = "|" if array.itemsize == 1 else "<"
    values = array.astype(f"{order}{kind}{array.itemsize}").tobytes()
    return sha256(f"{order}{kind}{array.itemsize} {shape}\n".encode() + values)


def read_items(file):
    """{id: (row of the list, facts, arrays)} in the order of the list."""
    index = {name: column[()] for name, column in file["index"].items()}
    found = {}
    for row, position in enumerate(index["position"]):
        group = file[f"items/{position:06d}"]
        arrays = {name: group[name][()] for name in group}
        found[text(index["id"][row])] = (
            {name: column[row] for name, column in index.items()},
            json.loads(text(group.attrs["facts"])),
            arrays,
        )
    return found


def content_digest(file):
    lines = [text(file.attrs["kind"])]
    for name in ("classes", "protocol"):
        stored = file["meta"][name][()] if name in file["meta"] else b""
        lines.append(f"{name}={sha256(bytes(stored))}")
    items = read_items(file) if "index" in file else {}
    for row, facts, arrays in items.values():
        facts = {**facts, "arrays": {name: digest_of(array) for name, array in arrays.items()}}
        del facts["digest"]
        lines.append(f"{row['position']}={sha256(canonical(facts))}")
    for name in sorted(file["arrays"]) if "arrays" in file else ():
        lines.append(f"{name}={digest_of(file['arrays'][name][()])}")
    return "sha256:" + sha256("".join(f"{line}\n" for line in lines))


def check_seal(content):
    magic, length, number = struct.unpack("<8sQQ", content[-64:-40])
    assert magic == b"CALSEAL1"
    assert content[-40:-32] == bytes(8)
    assert length + 16 * number + 64 == len(content)
    hashed, end = hashlib.sha256(), 0
    for offset, extent in struct.iter_unpack("<QQ", content[length : length + 16 * number]):
        assert offset >= end
        assert extent > 0
        hashed.update(content[end:offset])
        end = offset + extent
    assert end <= length
    hashed.update(content[end:-32])
    assert hashed.digest() == content[-32:]


def resize(grid, height, width, align_corners):
    """Bilinear, an axis at a time, in float64."""
    for axis, wanted in ((1, height), (2, width)):
        given = grid.shape[axis]
        if given == wanted:
            continue
        out = np.arange(wanted)
        if align_corners:
            place = out * (given - 1) / (wanted - 1) if wanted > 1 else out * 0.0
        else:
            place = np.maximum((out + 0.5) * given / wanted - 0.5, 0)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, given - 1)
        part = (place - low)[:, None] if axis == 1 else place - low
        grid = (1 - part) * np.take(grid, low, axis) + part * np.take(grid, high, axis)
    return grid


def laid_out(logits, row):
    corners, (height, width) = bool(row["align_corners"]), row["out_hw"]
    grid = logits.astype(np.float64)
    if row["pad"].any():
        whole = row["in_hw"] + row["pad"]
        grid = resize(grid, *whole, corners)[:, : row["in_hw"][0], : row["in_hw"][1]]
    return resize(grid, height, width, corners)


def test_the_root_says_what_it_is():
    with h5py.File(LOGITS) as file:
        attrs = dict(file.attrs)
        assert [text(attrs[name]) for name in ("format", "schema", "kind")] == ["calseg-artifact", "1.0", "logits"]
        assert [int(attrs[name]) for name in ("kind_version", "complete", "items")] == [1, 1, 2]
        classes = json.loads(text(file["meta/classes"][()]))
    assert classes["names"] == ["road", "Straße", "sky"]
    assert classes["palette"][2] == [70, 130, 180]
    assert classes["ignore"] == 255
    names = json.dumps([classes["names"], 255], ensure_ascii=False)
    assert classes["hash"] == "sha256:" + sha256(names) == class_hash(classes["names"])


def test_the_logits_are_those_that_were_written():
    with h5py.File(LOGITS) as file:
        items = read_items(file)
    assert list(items) == ["plain", "Köln/padded"]
    for number, (row, facts, arrays) in enumerate(items.values()):
        size = (2, 3) if number == 0 else (4, 5)
        assert arrays["logits"].dtype == np.float16
        assert arrays["logits"].tolist() == logits_of(number, *size)
        assert text(row["image_digest"]) == facts["image_digest"] == f"sha256:{number:064x}"
        assert facts["digest"] == text(row["digest"])
        for name in ("in_hw", "out_hw", "pad", "stride", "align_corners"):
            assert facts[name] == row[name].tolist()


def test_the_geometry_is_the_one_that_was_written():
    with h5py.File(LOGITS) as file:
        rows = [row for row, _, _ in read_items(file).values()]
    names = ("in_hw", "pad", "out_hw", "stride", "align_corners")
    assert [[row[name].tolist() for name in names] for row in rows] == [
        [[8, 12], [0, 0], [16, 20], 4, 0],
        [[9, 14], [4, 3], [18, 28], 4, 1],
    ]


def test_the_formulas_lay_logits_out_as_calseg_does():
    with h5py.File(LOGITS) as file:
        items = read_items(file)
    for row, _, arrays in items.values():
        ours = upsample_logits(torch.from_numpy(arrays["logits"]), Geometry.from_attrs(row)).numpy()
        page = laid_out(arrays["logits"], row)
        assert page.shape == ours.shape == (3, *row["out_hw"])
        np.testing.assert_allclose(page, ours, rtol=0, atol=1e-5)
        other = laid_out(arrays["logits"], {**row, "align_corners": not row["align_corners"]})
        assert np.abs(other - ours).max() > 0.1


def test_labels_confidence_and_arrays_of_the_whole():
    with h5py.File(LABELS) as file:
        ((row, _, arrays),) = read_items(file).values()
        whole = {name: file["arrays"][name][()] for name in file["arrays"]}
    assert arrays["label"].tolist() == LABEL
    assert arrays["confidence"].tolist() == CONFIDENCE
    assert row["out_hw"].tolist() == [8, 12]
    np.testing.assert_array_equal(whole["thresholds"], [0.5, np.nan, 0.875])
    assert [text(value) for value in whole["remarks"]] == ["one", "zwölf"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_content_digest_is_the_recipe_of_the_page(path):
    with h5py.File(path) as file:
        assert content_digest(file) == text(file.attrs["content_digest"])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_the_seal_is_the_recipe_of_the_page(path):
    content = path.read_bytes()
    check_seal(content)
    place = content.index(b"calseg-artifact")
    with pytest.raises(AssertionError):
        check_seal(content[:place] + b"C" + content[place + 1 :])


def test_chunks_are_what_the_seal_leaves_out():
    """Every chunk lies within a stretch, and nothing else does."""
    content = LOGITS.read_bytes()
    _, length, number = struct.unpack("<8sQQ", content[-64:-40])
    left_out = {
        place
        for offset, extent in struct.iter_unpack("<QQ", content[length : length + 16 * number])
        for place in range(offset, offset + extent)
    }
    chunks = set()
    with h5py.File(LOGITS) as file:
        for group in file["items"].values():
            for dataset in group.values():
                assert dataset.fletcher32
                info = [dataset.id.get_chunk_info(number) for number in range(dataset.id.get_num_chunks())]
                chunks |= {place for one in info for place in range(one.byte_offset, one.byte_offset + one.size)}
    assert chunks == left_out


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_all_text_has_a_fixed_length(path):
    def fixed(kind):
        return kind.get_class() != h5py.h5t.STRING or not kind.is_variable_str()

    def check(_, thing):
        for name in thing.attrs:
            assert fixed(thing.attrs.get_id(name).get_type())
        if isinstance(thing, h5py.Dataset):
            assert fixed(thing.id.get_type())

    with h5py.File(path) as file:
        check("", file)
        file.visititems(check)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_calseg_reads_the_same(path):
    with h5py.File(path) as file, open_artifact(path) as artifact:
        items = read_items(file)
        assert artifact.digest == text(file.attrs["content_digest"])
        assert artifact.kind == KINDS[text(file.attrs["kind"])]
        assert artifact.ids == list(items)
        assert artifact.meta == {name: json.loads(text(file["meta"][name][()])) for name in file["meta"]}
        for name, (row, facts, arrays) in items.items():
            assert artifact.geometry(name) == Geometry.from_attrs(row)
            assert artifact.item_facts(name) == facts
            for key, array in arrays.items():
                np.testing.assert_array_equal(artifact.item(name, key), array)
        assert [wrong for _, wrong in verify(artifact) if wrong] == []


def test_this_schema_has_golden_files():
    """Whoever raises the schema writes new golden files beside the old ones: python benchmarks/make_golden.py."""
    version = ".".join(map(str, SCHEMA))
    kinds = [name for name, kind in KINDS.items() if kind.item]
    paths = [FOLDER / f"artifact-{version}{'' if name == 'logits' else f'-{name}'}.h5" for name in kinds]
    for name, path in zip(kinds, paths, strict=True):
        assert path in ALL, f"python benchmarks/make_golden.py {FOLDER} writes {path.name}"
        with h5py.File(path) as file:
            assert text(file.attrs["schema"]) == version
            assert text(file.attrs["kind"]) == name
            assert int(file.attrs["kind_version"]) == KINDS[name].version


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_golden_files_are_small(path):
    assert path.stat().st_size <= 20 * 1024


# The page itself


def test_the_reader_on_the_page_reads_the_golden_file(tmp_path, capsys, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert "calseg" not in re.sub(r'"[^"]*"', "", code)
    monkeypatch.setattr("sys.argv", ["read.py", str(LOGITS)])
    exec(compile(code, "read.py", "exec"), {"__name__": "__main__"})
    lines = capsys.readouterr().out.splitlines()
    with open_artifact(LOGITS) as artifact:
        for line, name in zip(lines, artifact.ids, strict=True):
            full = upsample_logits(torch.from_numpy(artifact.item(name, "logits")), artifact.geometry(name))
            height, width = artifact.geometry(name).out_hw
            best = np.bincount(full.argmax(dim=0).ravel().numpy(), minlength=3)
            assert line == f"{name} {height}x{width} " + " ".join(map(str, best.tolist()))


def test_the_page_names_every_attribute_dataset_and_kind():
    page = PAGE.read_text(encoding="utf-8")
    named = set(KINDS) | {key for kind in KINDS.values() for key in (*kind.item, *kind.arrays)}
    for path in ALL:
        with h5py.File(path) as file:
            named |= {*file.attrs, *file, *file["index"], "facts"}
    assert sorted(name for name in named if f"`{name}`" not in page and f"`/{name}`" not in page) == []
