"""Owns the golden files of tests/artifacts/golden: one artifact of each kind with items, as this schema writes it.

    python benchmarks/make_golden.py tests/artifacts/golden

A new version of the schema gets new files beside the old ones, which stay and must stay readable. The values follow
rules that tests/artifacts/test_golden.py states on its own, so that a wrong file and a wrong test cannot agree.
"""

import argparse
from pathlib import Path

import numpy as np

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.kinds import SCHEMA, class_hash
from calseg_cli.artifacts.writer import ArtifactWriter

NAMES = ["road", "Straße", "sky"]
CLASSES = {
    "names": NAMES,
    "palette": [[128, 64, 128], [244, 35, 232], [70, 130, 180]],
    "ignore": 255,
    "hash": class_hash(NAMES),
}
GRIDS = {
    "plain": Geometry(in_hw=(8, 12), out_hw=(16, 20), stride=4),
    "Köln/padded": Geometry(in_hw=(9, 14), out_hw=(18, 28), pad=(4, 3), stride=4, align_corners=True),
}


def grid(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the network's answer: one more than the strides that fit where corners are aligned."""
    height, width = geometry.padded_hw
    more = int(geometry.align_corners)
    return (height - more) // geometry.stride + more, (width - more) // geometry.stride + more


def write_logits(path: Path) -> None:
    """logits[c, y, x] of item n is n + c (8x - 13)/32 - y + x x/8, exact in float16."""
    meta = {
        "classes": CLASSES,
        "protocol": {"values": "logits", "note": 'a "quote", a \\ and a\ttab'},
    }
    with ArtifactWriter(path, "logits", meta=meta, ids=list(GRIDS), force=True) as writer:
        for number, (name, geometry) in enumerate(GRIDS.items()):
            c, y, x = np.indices((len(NAMES), *grid(geometry)))
            logits = (number + c * (8 * x - 13) / 32 - y + x * x / 8).astype(np.float16)
            writer.add_item(name, {"logits": logits}, geometry, image_digest=f"sha256:{number:064x}")


def write_labels(path: Path) -> None:
    """label[y, x] is (y + x) modulo 4, where 3 becomes 255; confidence[y, x] is 7*y + x."""
    meta = {"classes": CLASSES, "protocol": {"values": "logits"}}
    with ArtifactWriter(path, "pseudo_labels", meta=meta, ids=["plain"], force=True) as writer:
        y, x = np.indices((8, 12))
        label = np.where((y + x) % 4 == 3, 255, (y + x) % 4).astype(np.uint8)
        geometry = Geometry(in_hw=(8, 12), out_hw=(8, 12))
        writer.add_item("plain", {"label": label, "confidence": (7 * y + x).astype(np.uint8)}, geometry)
        writer.add_array("thresholds", np.array([0.5, np.nan, 0.875]))
        writer.add_array("remarks", np.array(["one", "zwölf"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the golden files of this schema.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    version = f"{SCHEMA[0]}.{SCHEMA[1]}"
    write_logits(folder / f"artifact-{version}.h5")
    write_labels(folder / f"artifact-{version}-pseudo_labels.h5")


if __name__ == "__main__":
    main()
