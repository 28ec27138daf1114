"""Several processes write one artifact: whatever their number and wherever they are stopped, it is the same one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.rewrite import merge
from calseg_cli.artifacts.writer import ArtifactWriter
from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.stages.sharding import Shard, ShardedWork, find_shard

IDS = [f"image {number}" for number in range(11)]
META = {
    "classes": {"names": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "ignore": 255},
    "protocol": {"values": "logits"},
    "recipe": {"stage": "predict"},
}


class Killed(Exception):
    pass


def fill(writer, until: int | None = None) -> None:
    for number, name in enumerate(writer.todo):
        if number == until:
            raise Killed
        grid = np.random.default_rng(IDS.index(name)).normal(size=(2, 3, 4)).astype(np.float16)
        writer.add_item(name, {"logits": grid}, Geometry((12, 16), (12, 16), stride=4))


def run(target, rank: int, ranks: int, *, until=None, resume=True, force=False, meta=META):
    """One process; its artifact if it was the last, None otherwise."""
    work = ShardedWork(target, "logits", Shard(rank, ranks), meta=meta, ids=IDS)
    work.prepare(resume=resume, force=force)
    try:
        with work.writer(resume=resume, force=force) as writer:
            if writer is not None and not writer.finished:
                fill(writer, until)
    except Killed:
        return None
    return work.finish()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("whole") / "whole.h5"
    with ArtifactWriter(path, "logits", meta=META, ids=IDS) as writer:
        fill(writer)
    return writer.digest


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attempts=st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 4), min_size=4, max_size=4)), max_size=3))
def test_any_numbers_of_ranks_stopped_anywhere_end_in_the_same_artifact(tmp_path_factory, unbroken, attempts):
    folder = tmp_path_factory.mktemp("shards")
    for ranks, stops in attempts:
        for rank in range(ranks):
            run(folder / "a.h5", rank, ranks, until=stops[rank])
    results = [run(folder / "a.h5", rank, 3) for rank in range(3)]
    artifact = results[-1]
    assert artifact is not None
    assert artifact.digest == unbroken
    assert artifact.ids == IDS
    assert merge([artifact], folder / "merged.h5", force=False, told=lambda: None) == unbroken
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob("*.lock"))


def test_ranks_do_not_need_each_other(tmp_path, unbroken):
    assert run(tmp_path / "a.h5", 1, 2, resume=False) is None
    assert not (tmp_path / "a.manifest.json").exists()
    whole = run(tmp_path / "a.h5", 0, 2, resume=False)
    assert whole.digest == unbroken
    assert open_artifact(tmp_path / "a.manifest.json").digest == unbroken


def test_another_number_of_ranks_asks_first(tmp_path):
    run(tmp_path / "a.h5", 0, 2, resume=False)
    with pytest.raises(ArtifactError, match="another number of ranks"):
        run(tmp_path / "a.h5", 0, 3, resume=False)


def test_a_whole_result_is_refused_without_force_and_stays_until_the_new_one_is_whole(tmp_path, unbroken):
    for rank in range(2):
        run(tmp_path / "a.h5", rank, 2, resume=False)
    manifest = tmp_path / "a.manifest.json"
    with pytest.raises(ArtifactError, match="exists already"):
        run(tmp_path / "a.h5", 0, 2, resume=False)
    other = {**META, "protocol": {"values": "logits", "flip": True}}
    run(tmp_path / "a.h5", 0, 2, resume=False, force=True, meta=other)
    assert open_artifact(manifest).digest == unbroken
    new = run(tmp_path / "a.h5", 1, 2, resume=False, force=True, meta=other)
    assert new.digest != unbroken
    assert len(list(tmp_path.glob("*.h5"))) == 2, "the shards of the old result are gone"


@pytest.mark.parametrize("asked", ["2/2", "3", "a/b", "-1/2", "1/0", "0/", "/2"])
def test_what_is_no_shard(asked):
    with pytest.raises(ConfigError, match="RANK/RANKS"):
        find_shard(asked)


def test_torchrun_says_which_shard(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert find_shard(None) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert find_shard(None) == Shard(1, 4)
    assert find_shard("0/2") == Shard(0, 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_shard(None) is None
