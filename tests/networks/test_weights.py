"""Files of weights: forms they come in, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calseg_cli.errors import ArtifactError
from calseg_cli.networks.build import build_network
from calseg_cli.networks.network import Network
from calseg_cli.networks.weights import load_weights, read_weights


class _Harmful:
    """Unpickling it would call a function; reading weights must not."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.mkdir, (Path("calseg-was-here"),))  # type: ignore[return-value]


def tiny(num_classes: int = 3, seed: int = 0) -> Network:
    return build_network("tiny", num_classes, seed=seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "network.", "module.backbone.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_common_wrappings_are_seen_through(tmp_path: Path, prefix: str, wrapper: str | None, suffix: str) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in tiny(seed=1).state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    network = tiny(seed=2)
    report = load_weights(network, read_weights(path), "file")
    assert same(network, tiny(seed=1))
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())


def test_bare_encoder_names_load_the_encoder_and_leave_the_head() -> None:
    network, before = tiny(seed=2), tiny(seed=2)
    report = load_weights(network, tiny(seed=1).encoder.state_dict(), "file")
    assert report.parts == ("encoder",)
    assert same(network.encoder, tiny(seed=1).encoder)
    assert same(network.head, before.head)
    assert set(report.missing) == {name for name in network.state_dict() if name.startswith("head.")}


def test_a_classifier_of_other_classes_stays_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    network = tiny(num_classes=4, seed=2)
    with caplog.at_level(logging.INFO):
        report = load_weights(network, tiny(num_classes=3, seed=1).state_dict(), "other.pth")
    assert report.mismatched == ("head.classifier.weight", "head.classifier.bias")
    assert report.parts == ("encoder",)
    assert torch.equal(
        network.head.get_parameter("classifier.weight"), tiny(4, 2).head.get_parameter("classifier.weight")
    )
    assert len(caplog.records) == 1
    assert "other.pth" in caplog.text
    assert "of another shape and left at random: head.classifier.weight, head.classifier.bias" in caplog.text


def test_weights_of_another_architecture_are_refused() -> None:
    with pytest.raises(ArtifactError, match="none of its"):
        load_weights(tiny(), {"layer1.conv.weight": torch.zeros(3)}, "other.pth")


def test_weights_of_another_variant_are_refused_by_the_first_tensor() -> None:
    state = dict(tiny().state_dict())
    state["encoder.stem.0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(ArtifactError, match=r"encoder.stem.0.weight is \(8, 3, 3, 3\) there and \(16, 3, 3, 3\)"):
        load_weights(tiny(), state, "other.pth")


def test_a_refused_file_changes_nothing() -> None:
    network = tiny(seed=5)
    state: dict[str, Tensor] = dict(tiny(seed=1).state_dict()) | {"encoder.stem.0.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(ArtifactError):
        load_weights(network, state, "other.pth")
    assert same(network, tiny(seed=5))


def _truncated(path: Path) -> None:
    torch.save(tiny().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        (".pth", lambda path: torch.save({"model": _Harmful()}, path)),
        (".pth", lambda path: torch.save(_Harmful(), path, _use_new_zipfile_serialization=False)),
        (".pth", _truncated),
        (".safetensors", _truncated),
        (".pth", lambda path: path.write_bytes(b"")),
        (".safetensors", lambda path: path.write_bytes(b"")),
        (".pth", lambda path: path.write_bytes(b"<html>not found</html>")),
        (".pth", lambda path: torch.save({"epoch": 3}, path)),
        (".pth", lambda path: torch.save([torch.zeros(2)], path)),
        (".bin", lambda path: None),
    ],
)
def test_a_file_that_is_no_weights_gets_one_line(
    tmp_path: Path, suffix: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    make(path)
    with pytest.raises(ArtifactError) as caught:
        read_weights(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3
    assert not (tmp_path / "calseg-was-here").exists()
