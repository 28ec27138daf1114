"""Every shipped configuration loads, names what exists, and opens with the command that runs it."""

from pathlib import Path

import pytest

from calseg_cli.config import load_config
from calseg_cli.networks.build import NETWORKS
from calseg_cli.stages.domains import domain_layout

FILES = sorted((Path(__file__).parent.parent / "sample_configs").glob("*.yaml"))


def test_all_promised_pairs_are_there():
    assert {path.stem for path in FILES} >= {
        "sample",
        "camvid_day_to_dusk",
        "camvid_to_iddlite",
        "gta5_to_cityscapes",
        "synthia_to_cityscapes",
        "cityscapes_to_acdc",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_and_fits_together(path):
    resolved = load_config(path, environ={})
    config = resolved.config
    assert config.name == path.stem
    assert config.network.name in NETWORKS
    source, target = domain_layout(config, "source"), domain_layout(config, "target")
    assert source.class_names
    assert set(source.class_names) & set(target.class_names)
    assert path.read_text().startswith("# calseg ")


def test_real_scenes_are_where_the_samples_say(real_data, tmp_path):
    from calseg_cli.stages.domains import open_domain

    for name in ("camvid_day_to_dusk", "camvid_to_iddlite"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(real_data / name)
        copy = tmp_path / f"{name}.yaml"
        copy.write_text((Path(__file__).parent.parent / "sample_configs" / f"{name}.yaml").read_text())
        resolved = load_config(copy, environ={})
        assert len(open_domain(resolved, "source").dataset("train", with_labels=True)) > 300
        assert len(open_domain(resolved, "target").dataset("train", with_labels=False)) > 60
        assert len(open_domain(resolved, "target").dataset("test", with_labels=True)) > 60
