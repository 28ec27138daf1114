"""Self-training with everything on each family of networks: the bases look into encoders, the plug-ins into layers."""

import copy

import pytest
import torch

from calseg_cli.data.loader import Batch
from calseg_cli.methods.blda import build_blda
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.feature_distance import FeatureDistance, encoder_seen, last_map
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.networks.build import build_network

FAMILIES = [("tiny", {}), ("efficientnet-lite0", {}), ("deeplabv2", {"depth": 50}), ("segformer", {})]
CLASSES = 3


@pytest.fixture(params=FAMILIES, ids=[name for name, _ in FAMILIES])
def network(request):
    name, options = request.param
    return build_network(name, CLASSES, init="none", options=options, seed=0)


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(0)
    source, target, held_out = (torch.rand(2, 3, 64, 64, generator=random) for _ in range(3))
    labels = torch.randint(0, CLASSES, (2, 2, 2), generator=random)
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    return Batch(0, source, labels, target, ("a", "b"), ("c", "d"), labels, held_out, labels.flip(-1))


def test_what_the_encoder_gives_last_is_seen(network, batch):
    network.eval()
    with torch.no_grad(), encoder_seen(network) as seen:
        network(batch.source_images)
    known = last_map(network.encoder(seen["entering"]))
    assert seen["features"].ndim == 4
    assert torch.equal(seen["features"], known)
    distance = FeatureDistance(copy.deepcopy(network.encoder), ratio=0.5)
    labels = batch.source_labels
    assert float(distance(seen["features"], seen["entering"], labels, CLASSES)) == 0
    assert float(distance(seen["features"] + 1, seen["entering"], labels, CLASSES)) == pytest.approx(
        0.005 * known.shape[1] ** 0.5, rel=1e-4
    )


def test_mic_with_both_plugins_takes_a_step(network, batch):
    route = "network" if network.name == "deeplabv2" else "solved"  # its last layer is no 1x1 convolution
    plugins = [build_dacal(network, warm_up=0, route=route), build_blda(network, warm_up=0, min_pixels=1)]
    method = SelfTraining(network, Frame("mic", feature_ratio=0.5), plugins=plugins).train()
    method.before_step(batch, 0)
    terms = method(batch)
    assert {"source", "feature_distance"} < terms.keys()
    total = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    method.after_step(0)
    assert all(torch.isfinite(one.grad).all() for one in network.parameters() if one.grad is not None)
    assert method.report()["fallen_back"] == 0
