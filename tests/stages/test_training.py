"""What a stage's folder accepts when it goes on: only what it was begun with."""

import pytest

from calseg_cli.config import load_config
from calseg_cli.errors import ArtifactError
from calseg_cli.stages.training import StageFolder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "calseg.yaml").write_text("name: one\n")

    def made(**flags):
        given = {key.replace("__", "."): value for key, value in flags.items()}
        return StageFolder(tmp_path, {}, load_config(tmp_path / "calseg.yaml", flags=given))

    return made


def before(folder, *, without=()):
    """The configuration that a stage was begun with, from a time when some options did not exist."""
    config = folder().resolved.to_dict()
    for key in without:
        table = config
        *above, last = key.split(".")
        for name in above:
            table = table[name]
        del table[last]
    return config


def test_the_same_configuration_goes_on(folder, tmp_path):
    folder()._refuse_changes(before(folder), tmp_path)


def test_an_option_that_did_not_exist_then_and_is_left_as_it_comes_is_no_change(folder, tmp_path):
    old = before(folder, without=("pretrain.label_smoothing", "adapt.dacal"))
    folder()._refuse_changes(old, tmp_path)


def test_one_that_did_not_exist_then_and_is_set_now_is_a_change(folder, tmp_path):
    old = before(folder, without=("pretrain.label_smoothing",))
    with pytest.raises(ArtifactError, match=r"label_smoothing: was None, is 0\.1"):
        folder(pretrain__label_smoothing=0.1)._refuse_changes(old, tmp_path)


def test_another_value_and_an_option_that_is_gone_are_changes(folder, tmp_path):
    with pytest.raises(ArtifactError, match=r"pretrain\.lr"):
        folder(pretrain__lr=0.5)._refuse_changes(before(folder), tmp_path)
    old = before(folder)
    old["pretrain"]["forgotten"] = 1
    with pytest.raises(ArtifactError, match="forgotten: was 1, is None"):
        folder()._refuse_changes(old, tmp_path)
