"""The run's folders: how a later stage finds an earlier one, and how a result is kept until the next is whole."""

import os

import pytest

from calseg_cli.errors import ArtifactError
from calseg_cli.stages.run_folder import (
    NETWORK,
    RESUME,
    RunFolder,
    claim,
    find_network,
    release,
    short_name,
    sole_writer,
    source_network,
)


def network(folder, age):
    folder.mkdir(parents=True)
    (folder / NETWORK).write_bytes(b"x")
    os.utime(folder / NETWORK, (1000 - age, 1000 - age))
    return folder / NETWORK


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "r")


def test_the_newest_network_is_found_and_others_by_name_or_path(run):
    first = network(run.pretrain, 10)
    assert find_network(run, None) == first
    second = network(run.adapt("adabn"), 5)
    assert find_network(run, None) == second
    assert find_network(run, "pretrain") == first
    assert find_network(run, "adapt-adabn") == second
    assert find_network(run, str(first)) == first
    assert find_network(run, str(run.pretrain)) == first
    assert [short_name(path, run) for path in (first, second)] == ["pretrain", "adapt-adabn"]
    assert short_name(run.pretrain / "checkpoints/step-000200.safetensors", run) == "pretrain-step-000200"
    assert short_name(run.adapt("cbst") / "round-1" / NETWORK, run) == "adapt-cbst-round-1"


def test_what_is_not_there_is_named_with_what_is(run):
    with pytest.raises(ArtifactError, match="no trained network"):
        find_network(run, None)
    network(run.pretrain, 1)
    with pytest.raises(ArtifactError) as error:
        find_network(run, "adapt-dacal")
    assert "pretrain" in str(error.value.hint)


def test_a_finished_stage_is_kept_until_the_new_one_is_whole(run):
    path = network(run.pretrain, 1)
    with pytest.raises(ArtifactError, match="finished run"):
        claim(run.pretrain, resume=False, force=False)
    assert claim(run.pretrain, resume=True, force=False) is True
    assert claim(run.pretrain, resume=False, force=True) is False
    kept = run.root / "1-pretrain.replaced" / NETWORK
    assert kept.exists()
    assert not path.exists()
    assert claim(run.pretrain, resume=False, force=True) is False  # the second try must not lose the kept one
    assert kept.exists()
    release(run.pretrain)
    assert not kept.exists()


def test_an_unfinished_stage_needs_a_word(run):
    run.pretrain.mkdir(parents=True)
    (run.pretrain / RESUME).write_bytes(b"x")
    with pytest.raises(ArtifactError, match="unfinished run"):
        claim(run.pretrain, resume=False, force=False)
    assert claim(run.pretrain, resume=True, force=False) is False
    assert (run.pretrain / RESUME).exists()
    assert claim(run.pretrain, resume=False, force=True) is False
    assert not (run.pretrain / RESUME).exists()


def test_one_writer_at_a_time_and_no_stale_lock(run):
    with sole_writer(run.pretrain), pytest.raises(ArtifactError, match="another calseg"), sole_writer(run.pretrain):
        pass
    with sole_writer(run.pretrain), sole_writer(run.adapt("adabn")):
        assert not run.pretrain.exists()


def test_the_source_network_is_the_chosen_checkpoint_unless_training_was_done_again(run):
    with pytest.raises(ArtifactError, match="1-pretrain"):
        source_network(run)
    trained = network(run.pretrain, 10)
    assert source_network(run) == trained
    network(run.adapt("adabn"), 1)
    assert source_network(run) == trained
    chosen = network(run.select, 5)
    assert source_network(run) == chosen
    assert find_network(run, "select") == chosen
    os.utime(trained, (2000, 2000))
    assert source_network(run) == trained
