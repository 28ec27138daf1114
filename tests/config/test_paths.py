"""Where relative paths lead, and that what is recorded does not depend on where one stands."""

from pathlib import Path

import pytest

from calseg_cli.config import explain, load_config
from calseg_cli.config.paths import portable, portable_init

TEXT = "runs: out\nsource:\n  root: data/day\n  lists: {train: lists/train.txt}\nnetwork: {init: weights/w.pth}\n"


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "proj"
    folder.mkdir()
    (folder / "calseg.yaml").write_text(TEXT)
    return folder


def test_paths_in_the_file_are_relative_to_it(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    config = load_config(Path("proj/calseg.yaml"), environ={}).config
    assert config.runs == Path("proj/out")
    assert config.source.root == Path("proj/data/day")
    assert config.source.lists == {"train": Path("proj/lists/train.txt")}
    assert Path(config.network.init) == Path("proj/weights/w.pth")


def test_other_paths_are_relative_to_the_working_directory(project, monkeypatch):
    monkeypatch.chdir(project.parent)
    resolved = load_config(
        Path("proj/calseg.yaml"),
        environ={"CALSEG_NETWORK__INIT": "here.safetensors"},
        sets=["source.root=here", "source.lists.train=t.txt"],
        flags={"runs": Path("there")},
    )
    assert resolved.config.runs == Path("there")
    assert resolved.config.source.root == Path("here")
    assert resolved.config.source.lists == {"train": Path("t.txt")}
    assert resolved.config.network.init == "here.safetensors"
    assert resolved.to_dict()["runs"] == "../there"


def test_the_default_of_runs_is_beside_the_file(project, monkeypatch):
    (project / "calseg.yaml").write_text("seed: 1")
    monkeypatch.chdir(project.parent)
    resolved = load_config(Path("proj/calseg.yaml"), environ={})
    assert resolved.config.runs == Path("proj/runs")
    assert resolved.sources["runs"] == "default"


def test_the_record_does_not_depend_on_the_working_directory(project, monkeypatch):
    records = []
    for folder, path in (
        (project, None),
        (project.parent, Path("proj/calseg.yaml")),
        (project.parent, project / "calseg.yaml"),
        (project / "sub", Path("../calseg.yaml")),
    ):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        resolved = load_config(path, environ={})
        records.append((resolved.to_dict(), resolved.digest, resolved.dump_yaml(with_sources=False)))
    assert all(record == records[0] for record in records)
    assert records[0][0]["source"]["root"] == "data/day"
    assert records[0][0]["network"]["init"] == "weights/w.pth"


@pytest.mark.parametrize("init", ["default", "none", "imagenet", "nvidia/mit-b0"])
def test_words_and_hub_names_are_no_paths(project, init):
    (project / "calseg.yaml").write_text(f"network: {{init: {init}}}")
    assert load_config(project / "calseg.yaml", environ={}).config.network.init == init


def test_a_folder_of_weights_that_exists_is_a_path(project):
    (project / "mit").mkdir()
    (project / "calseg.yaml").write_text("network: {init: mit}")
    resolved = load_config(project / "calseg.yaml", environ={})
    assert Path(resolved.config.network.init) == project / "mit"
    assert resolved.to_dict()["network"]["init"] == "mit"
    assert portable_init("none", project) == "none"


def test_home_is_put_in_full(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project / "home"))
    (project / "calseg.yaml").write_text("source: {root: ~/data}")
    assert load_config(project / "calseg.yaml", environ={}).config.source.root == project / "home" / "data"
    (project / "calseg.yaml").write_text("source: {root: ~data}")
    assert load_config(project / "calseg.yaml", environ={}).config.source.root == project / "~data"


def test_a_files_anchors_lie_beside_the_file(project):
    (project / "calseg.yaml").write_text("adapt: {blda: {anchors: s.h5}}")
    assert load_config(project / "calseg.yaml", environ={}).config.adapt.blda.anchors == project / "s.h5"
    (project / "calseg.yaml").write_text("adapt: {blda: null}")
    assert load_config(project / "calseg.yaml", environ={}).config.adapt.blda.anchors is None


def test_absolute_paths_outside_stay(tmp_path):
    assert portable(tmp_path / "x", Path("proj")) == (tmp_path / "x").as_posix()


def test_every_key_of_type_path_is_anchored(project):
    """A path key that is added to the schema and forgotten in paths.py must fail here."""
    paths = [info.name for info in explain() if Path in info.kinds]
    assert sorted(paths) == ["adapt.blda.anchors", "prototypes.prior_from", "runs", "source.root", "target.root"]
    tables = [info.name for info in explain() if info.name.endswith(".lists")]
    assert tables == ["source.lists", "target.lists"]
    values = [f"{name}=x" for name in paths] + [f"{name}.val=y" for name in tables]
    resolved = load_config(project / "calseg.yaml", sets=values, environ={})
    assert resolved.config.target.lists == {"val": Path("y")}
