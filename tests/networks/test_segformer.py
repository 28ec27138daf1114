"""SegFormer: names of every origin, and the same answer as the model it wraps."""

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calseg_cli.errors import ArtifactError, ConfigError
from calseg_cli.networks.build import build_network
from calseg_cli.networks.segformer import published_name
from calseg_cli.networks.weights import load_weights

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(5)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=4)).eval()
    model.decode_head.batch_norm.running_mean.normal_()
    for parameter in model.parameters():  # biases and norms that do something
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    assert isinstance(model, nn.Module)
    return model


def published(model: nn.Module) -> dict[str, Tensor]:
    """Its weights as Hugging Face's hub has them."""
    names = {name: published_name(name) for name in model.state_dict()}
    names = {
        name: re.sub(r"^encoder\.", "segformer.", re.sub(r"^head\.(decoder\.)?", "decode_head.", renamed))
        for name, renamed in names.items()
    }
    return {names[name]: tensor.clone() for name, tensor in model.state_dict().items()}


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the hub as the authors' own code names them."""
    renamed = {}
    for name, tensor in state.items():
        new = name.replace("segformer.encoder.", "backbone.")
        new = re.sub(r"patch_embeddings\.(\d)\.", lambda m: f"patch_embed{int(m[1]) + 1}.", new)
        new = re.sub(r"(patch_embed\d)\.layer_norm\.", r"\1.norm.", new)
        new = re.sub(r"backbone\.layer_norm\.(\d)\.", lambda m: f"backbone.norm{int(m[1]) + 1}.", new)
        new = re.sub(r"backbone\.block\.(\d)\.", lambda m: f"backbone.block{int(m[1]) + 1}.", new)
        new = re.sub(r"\.layer_norm_([12])\.", r".norm\1.", new)
        new = new.replace(".attention.output.dense.", ".attn.proj.").replace(
            ".attention.self.layer_norm.", ".attn.norm."
        )
        new = new.replace(".attention.self.query.", ".attn.q.").replace(".attention.self.sr.", ".attn.sr.")
        new = re.sub(r"\.mlp\.dense([12])\.", r".mlp.fc\1.", new)
        new = re.sub(r"linear_c\.(\d)\.", lambda m: f"linear_c{int(m[1]) + 1}.", new)
        new = new.replace("decode_head.linear_fuse.", "decode_head.linear_fuse.conv.")
        new = new.replace("decode_head.batch_norm.", "decode_head.linear_fuse.bn.")
        renamed[new.replace("decode_head.classifier.", "decode_head.linear_pred.")] = tensor
    for name in [name for name in renamed if ".attention.self.key." in name]:
        key, value = renamed.pop(name), renamed.pop(name.replace(".key.", ".value."))
        renamed[name.replace(".attention.self.key.", ".attn.kv.")] = torch.cat([key, value])
    return renamed


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patch_embed1.proj.weight", "encoder.encoder.patch_embeddings.0.proj.weight"),
        ("patch_embed4.norm.bias", "encoder.encoder.patch_embeddings.3.layer_norm.bias"),
        ("block2.1.norm1.weight", "encoder.encoder.block.1.1.layer_norm_1.weight"),
        ("block1.0.attn.norm.bias", "encoder.encoder.block.0.0.attention.self.layer_norm.bias"),
        ("block3.4.mlp.dwconv.dwconv.weight", "encoder.encoder.block.2.4.mlp.dwconv.dwconv.weight"),
        ("norm4.weight", "encoder.encoder.layer_norm.3.weight"),
        (
            "segformer.encoder.block.0.1.attention.self.query.bias",
            "encoder.encoder.block.0.1.attention.self.query.bias",
        ),
        ("segformer.stages.0.blocks.1.attention.q_proj.bias", "encoder.encoder.block.0.1.attention.self.query.bias"),
        ("decode_head.linear_c.0.proj.weight", "head.decoder.linear_c.0.proj.weight"),
        ("decode_head.linear_c4.proj.weight", "head.decoder.linear_c.3.proj.weight"),
        ("decode_head.linear_fuse.weight", "head.decoder.linear_fuse.weight"),
        ("decode_head.linear_fuse.conv.weight", "head.decoder.linear_fuse.weight"),
        ("decode_head.linear_pred.bias", "head.classifier.bias"),
        ("decode_head.classifier.bias", "head.classifier.bias"),
    ],
)
def test_published_names(name: str, expected: str) -> None:
    assert published_name(name) == expected
    assert published_name(expected) == expected


@pytest.mark.parametrize("origin", ["installed", "hub", "authors", "calseg"])
def test_weights_of_every_origin_give_the_same_answer(origin: str, theirs: nn.Module) -> None:
    network = build_network("segformer", 4).eval()
    if origin == "calseg":
        load_weights(build := build_network("segformer", 4), theirs.state_dict(), "file")
        network.load_state_dict(build.state_dict())
    else:
        state = dict(theirs.state_dict()) if origin == "installed" else published(theirs)
        state = original(state) if origin == "authors" else state
        assert load_weights(network, state, "file").parts == ("encoder", "head")
    images = torch.rand(2, 3, 45, 67)
    with torch.no_grad():
        torch.testing.assert_close(network(images), theirs(network.normalize(images)).logits)


def test_a_state_dict_of_another_release_loads_strictly(theirs: nn.Module) -> None:
    network = build_network("segformer", 4)
    network.load_state_dict({published_name(name): tensor for name, tensor in theirs.state_dict().items()})
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict({"head.classifier.bias": torch.zeros(4)})


def test_a_folder_of_hugging_face_s_loads_and_the_licence_is_said(
    theirs: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(published(theirs), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with caplog.at_level(logging.INFO):
        network = build_network("segformer", 4, init=str(tmp_path))
    assert network.load_report is not None
    assert network.load_report.parts == ("encoder", "head")
    assert "non-commercial" in caplog.text


def test_a_classifier_of_imagenet_loads_the_encoder(tmp_path: Path) -> None:
    state = {name: t for name, t in published(build_network("segformer", 4)).items() if name.startswith("segformer.")}
    save_file(state | {"classifier.weight": torch.zeros(1000, 256)}, tmp_path / "mit.safetensors")
    report = build_network("segformer", 4, init=str(tmp_path / "mit.safetensors")).load_report
    assert report is not None
    assert report.parts == ("encoder",)


def test_another_variant_s_weights_are_refused(theirs: nn.Module) -> None:
    with pytest.raises(ArtifactError, match="there and"):
        load_weights(build_network("segformer", 4, options={"variant": "b1"}), theirs.state_dict(), "file")


@pytest.mark.parametrize("init", ["imagenet", "nvidia/mit-b0"])
def test_nothing_is_downloaded(init: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    import huggingface_hub.constants

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ArtifactError) as caught:
        build_network("segformer", 4, init=init)
    assert "calseg downloads nothing" in str(caught.value.hint)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no weights"):
        build_network("segformer", 4, init=str(tmp_path))


@pytest.mark.parametrize("init", ["no-such-thing", "a/b/c", "../x"])
def test_what_is_neither_a_place_nor_a_name_of_the_hub(init: str) -> None:
    with pytest.raises(ConfigError, match="neither default, none, imagenet, a file nor a folder"):
        build_network("segformer", 4, init=init)
