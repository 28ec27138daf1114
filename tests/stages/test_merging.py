"""Merging counts: parts that were measured apart add up to the whole, exactly."""

import numpy as np
import pytest
import torch

from calseg_cli.errors import ArtifactError, DataError
from calseg_cli.metrics.tally import merge, tally_image
from calseg_cli.stages.merging import merge_artifacts
from calseg_cli.stages.tally_file import read_tally, write_tally

META = {
    "classes": {"names": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3, "ignore": 255},
    "protocol": {"grid": "logits at stride 4", "values": "logits", "domain": "target", "split": "test"},
}


def tally(name):
    random = np.random.default_rng(sum(map(ord, name)))
    logits = torch.from_numpy(random.normal(size=(3, 9, 11)).astype(np.float32))
    label = random.choice([0, 1, 2, 255], size=(9, 11)).astype(np.uint8)
    return tally_image(logits, label, image_id=name, ignore=255, edges="right")


def test_parts_add_up_to_the_whole(tmp_path):
    names = ["x", "y", "z"]
    for name in names:
        write_tally(tmp_path / f"{name}.h5", tally(name), META)
    files = [tmp_path / f"{name}.h5" for name in names]
    merge_artifacts(files, tmp_path / "all.h5", command=["calseg"], force=False, told=lambda: None)
    found, artifact = read_tally(tmp_path / "all.h5")
    expected = merge(tally(name) for name in names).to_arrays()
    for name, array in found.to_arrays().items():
        np.testing.assert_array_equal(array, expected[name])
    assert len(artifact.meta["provenance"]["parents"]) == 3
    artifact.close()


def test_the_same_image_twice_or_another_measure_is_refused(tmp_path):
    write_tally(tmp_path / "x.h5", tally("x"), META)
    write_tally(tmp_path / "again.h5", tally("x"), META)
    other = {**META, "protocol": {**META["protocol"], "values": "log-probabilities"}}
    write_tally(tmp_path / "y.h5", tally("y"), other)
    options = {"command": ["calseg"], "force": False, "told": lambda: None}
    with pytest.raises(DataError, match="measured twice"):
        merge_artifacts([tmp_path / "x.h5", tmp_path / "again.h5"], tmp_path / "m.h5", **options)
    with pytest.raises(ArtifactError, match="values was logits, is log-probabilities"):
        merge_artifacts([tmp_path / "x.h5", tmp_path / "y.h5"], tmp_path / "m.h5", **options)
    with pytest.raises(ArtifactError, match="one of the files"):
        merge_artifacts([tmp_path / "x.h5", tmp_path / "y.h5"], tmp_path / "x.h5", **options)
    assert not (tmp_path / "m.h5").exists()
