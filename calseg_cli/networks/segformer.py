"""Owns `segformer`: SegFormer B0 to B5 (Xie et al. 2021) through Hugging Face's transformers.

Releases of transformers name the same tensors differently. Published weights keep the first names, and a checkpoint
may outlive a release, so names are compared in the published form.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from calseg_cli.errors import ArtifactError, ConfigError, MissingExtraError
from calseg_cli.networks.network import Head, Network
from calseg_cli.networks.weights import read_weights

LICENCE = "MiT and SegFormer weights by NVIDIA are under its Source Code License: for non-commercial use only"


@dataclass(frozen=True)
class Variant:
    """Blocks and channels of the four stages, and the width of the decoder: tables 6 and 1 of the paper."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    decoder: int


_WIDE = (64, 128, 320, 512)
VARIANTS = {
    "b0": Variant((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "b1": Variant((2, 2, 2, 2), _WIDE, 256),
    "b2": Variant((3, 4, 6, 3), _WIDE, 768),
    "b3": Variant((3, 4, 18, 3), _WIDE, 768),
    "b4": Variant((3, 8, 27, 3), _WIDE, 768),
    "b5": Variant((3, 6, 40, 3), _WIDE, 768),
}

_Renaming = tuple[tuple[re.Pattern[str], str], ...]


def _renaming(*pairs: tuple[str, str]) -> _Renaming:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


# The authors' own code (mit_b0.pth and the like) -> published names; stages count from 1 there.
_ORIGINAL = _renaming(
    (r"^patch_embed(\d)\.norm\.", r"patch_embed\1.layer_norm."),
    (r"^patch_embed(\d)\.", r"patch_embeddings.<\1>."),
    (r"^block(\d)\.", r"block.<\1>."),
    (r"^norm(\d)\.", r"layer_norm.<\1>."),
    (r"\.norm([12])\.", r".layer_norm_\1."),
    (r"\.attn\.q\.", ".attention.self.query."),
    (r"\.attn\.(key|value|sr)\.", r".attention.self.\1."),
    (r"\.attn\.norm\.", ".attention.self.layer_norm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
    (r"^decode_head\.linear_c(\d)\.", r"decode_head.linear_c.<\1>."),
    (r"^decode_head\.linear_fuse\.conv\.", "decode_head.linear_fuse."),
    (r"^decode_head\.linear_fuse\.bn\.", "decode_head.batch_norm."),
    (r"^decode_head\.linear_pred\.", "decode_head.classifier."),
)
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_COUNTED_FROM_ONE = re.compile(r"<(\d)>")
# Newer releases of transformers -> published names, under this network's "encoder." and "head.".
_NEWER = _renaming(
    (r"^segformer\.", "encoder."),
    (r"^stages\.", "encoder.stages."),
    (r"^encoder\.stages\.(\d+)\.patch_embeddings\.", r"encoder.encoder.patch_embeddings.\1."),
    (r"^encoder\.stages\.(\d+)\.blocks\.", r"encoder.encoder.block.\1."),
    (r"^encoder\.stages\.(\d+)\.layer_norm\.", r"encoder.encoder.layer_norm.\1."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attention.self.sr."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attention.self.layer_norm."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
    (r"\.layernorm_before\.", ".layer_norm_1."),
    (r"\.layernorm_after\.", ".layer_norm_2."),
    (r"\.linear_projections\.", ".linear_c."),
    (r"^decode_head\.classifier\.", "head.classifier."),
    (r"^decode_head\.", "head.decoder."),
    (r"^(?:encoder\.)?(patch_embeddings|block|layer_norm)\.", r"encoder.encoder.\1."),
)


def published_name(name: str) -> str:
    """A tensor's name as published weights have it, under this network's "encoder." and "head.".

    >>> published_name("segformer.stages.0.blocks.1.mlp.fc1.bias")
    'encoder.encoder.block.0.1.mlp.dense1.bias'
    """
    if re.match(r"patch_embed\d|block\d|norm\d|decode_head\.linear_(c\d|fuse\.|pred)", name):
        for pattern, replacement in _ORIGINAL:
            name = pattern.sub(replacement, name)
        name = _COUNTED_FROM_ONE.sub(lambda stage: str(int(stage[1]) - 1), name)
    for pattern, replacement in _NEWER:
        name = pattern.sub(replacement, name)
    return name


class SegFormerHead(Head):
    """The all-MLP decoder of the paper with its batch norm, and its classifier apart."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        classifier = decoder.classifier
        assert isinstance(classifier, nn.Module)
        decoder.classifier = nn.Identity()
        self.decoder = decoder
        self.classifier = classifier

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B,D,h,w) at stride 4; drop-out is behind them already."""
        features: Tensor = self.decoder(tuple(maps))
        return features


class SegFormer(Network):
    """Logits at stride 4. Layer norms in the encoder: the decoder's one batch norm is all that AdaBN can move."""

    def __init__(self, model: nn.Module, num_classes: int, variant: str) -> None:
        encoder, decoder = model.segformer, model.decode_head
        assert isinstance(encoder, nn.Module)
        assert isinstance(decoder, nn.Module)
        super().__init__(
            name="segformer",
            num_classes=num_classes,
            feature_dim=VARIANTS[variant].decoder,
            stride=4,
            encoder=encoder,
            head=SegFormerHead(decoder),
        )
        self.variant = variant

    def features(self, images: Tensor) -> Tensor:
        """The decoder's fused map (B,D,h,w)."""
        maps = self.encoder(self.normalize(images), output_hidden_states=True, return_dict=True).hidden_states
        features: Tensor = self.head.fuse(maps)  # type: ignore[operator]
        return features

    def remarks(self, state: Mapping[str, Tensor]) -> list[str]:
        """The licence of the weights that nearly everybody starts from."""
        return [LICENCE]

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of any release of transformers, or of the authors' code, as the installed release has them."""
        own = {published_name(name): name for name in self.state_dict()}
        named = {published_name(name): tensor for name, tensor in _split_keys_and_values(state).items()}
        return {own.get(name, name): tensor for name, tensor in named.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's, from a state dict saved under any release of transformers."""
        return super().load_state_dict(self.translate(state_dict), strict, assign)


def _split_keys_and_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' code keeps keys and values in one matrix, one below the other."""
    split = {}
    for name, tensor in state.items():
        if ".attn.kv." in name:
            for part, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                split[name.replace(".attn.kv.", f".attn.{part}.")] = half
        else:
            split[name] = tensor
    return split


def build_segformer(num_classes: int, *, variant: str = "b0", drop_path: float = 0.1, dropout: float = 0.1) -> Network:
    """SegFormer of a `variant` b0 to b5, randomly initialised.

    Raises MissingExtraError without transformers, ConfigError for another variant or a rate out of range.
    """
    if variant not in tuple(VARIANTS):
        raise ConfigError(f"segformer has no variant {variant!r}", f"network.options.variant: {', '.join(VARIANTS)}")
    for option, rate in (("drop_path", drop_path), ("dropout", dropout)):
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ConfigError(f"segformer cannot use {option} {rate!r}", f"network.options.{option}: 0 to below 1")
    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hf", "the network segformer")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    shape = VARIANTS[variant]
    settings: dict[str, Any] = {
        "depths": list(shape.depths),
        "hidden_sizes": list(shape.widths),
        "decoder_hidden_size": shape.decoder,
        "num_labels": num_classes,
        "drop_path_rate": drop_path,
        "classifier_dropout_prob": dropout,
    }
    model = SegformerForSemanticSegmentation(SegformerConfig(**settings))
    return SegFormer(model, num_classes, variant)


def find_weights(network: SegFormer, init: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a folder as Hugging Face writes it, or of a model in its local cache. Nothing is downloaded.

    "imagenet" is the encoder nvidia/mit-VARIANT. Raises ArtifactError where
    there are no such weights, ConfigError for what is no such name.
    """
    folder = Path(init).expanduser()
    if folder.is_dir():
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        if not files:
            raise ArtifactError(
                f"{folder} holds no weights", "a Hugging Face folder has model.safetensors or pytorch_model.bin"
            )
        return {name: tensor for file in files for name, tensor in read_weights(file).items()}, init
    name = f"nvidia/mit-{network.variant}" if init == "imagenet" else init
    if _HUB_NAME.fullmatch(name) is None:
        raise ConfigError(
            f"network.init is {init!r}: neither default, none, imagenet, a file nor a folder",
            f"a model of Hugging Face's is named like nvidia/mit-{network.variant}",
        )
    file = _cached(name)
    if file is None:
        raise ArtifactError(
            f"network.init is {init!r}: there is no such file or folder, and {name} is not in Hugging Face's cache",
            f"calseg downloads nothing; hf download {name}",
        )
    return read_weights(file), name


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return Path(found)
    return None
