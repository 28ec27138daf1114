"""Merging counts: parts that were measured apart add up to the whole, exactly."""

import os
import signal

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, DataError, StoppedError
from calseg_cli.metrics.tally import merge, tally_image
from calseg_cli.stages.merging import convert_artifact, merge_artifacts
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


class Breaker(Silent):
    """Sends a signal after two images of one part of the work."""

    def __init__(self, part, signum):
        self.part, self.signum, self.left = part, signum, None

    def start(self, title, total, *, done=0):
        self.left = 2 if title == self.part else None

    def advance(self, units=1, **facts):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_conversion_says_how_to_go_on_and_does(tmp_path, folder, signum):
    source = folder / "runs/run/5-predict/x-target-train.h5"
    options = {"compression": "none", "dtype": None, "force": False}
    with pytest.raises(StoppedError, match="nothing is written yet"):
        convert_artifact(source, tmp_path / "c.h5", resume=False, progress=Breaker("proving", signum), **options)
    with pytest.raises(StoppedError, match=r"are kept in .*c\.h5\.partial") as caught:
        convert_artifact(source, tmp_path / "c.h5", resume=False, progress=Breaker("converting", signum), **options)
    assert caught.value.exit_code == 128 + signum
    assert "--resume" in caught.value.hint
    assert not (tmp_path / "c.h5").exists()
    digest = convert_artifact(source, tmp_path / "c.h5", resume=True, progress=Silent(), **options)
    with open_artifact(source) as before:
        assert digest == before.digest
