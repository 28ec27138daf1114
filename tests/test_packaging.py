"""The wheel: complete, installable elsewhere, and free of a top-level `commands`."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest


def test_listed_packages_are_the_tree(repository):
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (repository / "calseg_cli").rglob("__init__.py")}
    found = {".".join(folder.relative_to(repository).parts) for folder in folders}
    assert set(listed) == found | {"calseg_cli.commands", "calseg_cli.sample_configs"}


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", repository, source], check=False)
    # What is not committed yet counts as well: the wheel of this tree is what is tested.
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("calseg-*.whl"))


@pytest.mark.slow
def test_wheel_holds_everything_and_no_top_level_commands(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"calseg_cli"}
    for name in ("calseg_cli/commands/pretrain.py", "calseg_cli/sample_configs/sample.yaml", "calseg_cli/py.typed"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_installed_wheel_runs_elsewhere(wheel, tmp_path):
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import calseg_cli; print(calseg_cli.__file__); from calseg_cli.app import main; main()",
         "--help"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    assert "pretrain" in done.stdout
