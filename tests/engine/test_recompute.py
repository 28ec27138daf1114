"""Gradient checkpointing: the same weights, buffers and draws bit for bit, with less kept for the way back."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from calseg_cli.data.loader import Batch
from calseg_cli.engine.batch_statistics import own_statistics, predicting
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.recompute import blocks_of, recomputing
from calseg_cli.engine.train import Hooks, Plan, train
from calseg_cli.errors import ConfigError
from calseg_cli.networks.build import build_network

FAMILIES = [
    ("tiny", {}, 11),
    ("efficientnet-lite0", {}, 23),
    ("deeplabv2", {"depth": 50}, 16),
    ("segformer", {"drop_path": 0.5, "dropout": 0.5}, 8),
]


class Random(nn.Module):
    """Blocks with batch norm, instance norm that keeps statistics, dropout and stochastic depth."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(*[Block() for _ in range(3)])
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.head(self.encoder(images))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.Dropout(0.3)
        self.other = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)

    def forward(self, entering):
        changed = F.relu(self.drop(self.other(self.norm(self.conv(entering)))), inplace=True)
        return entering + changed * float(torch.rand(()) > 0.3)


class Two(Method):
    """One step's passes in every mode that self-training uses, all of them before the one way back."""

    name = "two"

    def forward(self, batch):
        images, labels = batch.source_images, batch.source_labels
        terms = {"plain": F.cross_entropy(self._logits(images), labels)}
        with own_statistics(self.network):
            terms["own"] = F.cross_entropy(self._logits(images.flip(-1)), labels)
        with predicting(self.network):
            terms["predicting"] = F.cross_entropy(self._logits(images.flip(-2)), labels)
            with torch.no_grad():
                self._logits(images)
        self.network.eval()
        terms["eval"] = F.cross_entropy(self._logits(images * 0.5), labels)
        self.network.train()
        return terms

    def _logits(self, images):
        return F.interpolate(self.network(images), size=images.shape[-2:])


class Images:
    def batches(self, start, stop):
        for step in range(start, stop):
            images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            yield Batch(step, images, images.argmax(1), None, (), ())


def after(network, steps=3, **options):
    """What a network is after some steps, by name; and the generator's state."""
    torch.manual_seed(1)
    train(
        Two(network),
        Images(),
        Plan(steps=steps, lr=0.01, head_lr=0.01, **options),
        device=torch.device("cpu"),
        hooks=Hooks(log=lambda record: None, validate=lambda step: None, save=lambda step, state: None),
        progress=Silent(),
        stop=StopRequest(),
    )
    return {**network.state_dict(), "generator": torch.get_rng_state()}


def alike(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_weights_buffers_and_draws_are_the_same_bit_for_bit(amp):
    torch.manual_seed(0)
    network = Random()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    plain, again = copy.deepcopy(network), copy.deepcopy(network)
    known = after(plain, amp=amp)
    assert alike(known, after(again, amp=amp, grad_checkpoint=True))
    moved = [name for name in start if not torch.equal(start[name], known[name])]
    assert any("running_mean" in name for name in moved)
    assert int(known["encoder.0.norm.num_batches_tracked"]) == 3


@pytest.mark.parametrize(("name", "options", "number"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_every_family_has_blocks_and_trains_the_same(name, options, number):
    network = build_network(name, 3, init="none", options=options, seed=0)
    # Older transformers hold SegFormer's four patch embeddings in a list too.
    assert len(blocks_of(network)) in ({number, number + 4} if name == "segformer" else {number})
    if name in ("tiny", "segformer"):  # the others hold nothing that these and `Random` do not have
        again = copy.deepcopy(network)
        assert alike(after(network, 1), after(again, 1, grad_checkpoint=True))


def kept_bytes(network, images, *, wanted):
    """Bytes of distinct tensors that autograd holds for the way back, parameters left out."""
    own, held = {parameter.data_ptr() for parameter in network.parameters()}, {}

    def hold(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with recomputing(network, wanted=wanted), torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        logits = network(images)
    assert logits.requires_grad
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize(("name", "options", "share"), [("tiny", {}, 0.75), ("efficientnet-lite0", {}, 0.5)])
def test_less_is_kept_for_the_way_back(name, options, share):
    network, images = build_network(name, 3, init="none", options=options, seed=0), torch.rand(2, 3, 64, 64)
    assert kept_bytes(network, images, wanted=True) < share * kept_bytes(network, images, wanted=False)


def test_a_copy_computes_its_own_blocks_and_afterwards_all_is_as_before():
    torch.manual_seed(0)
    network, images = Random(), torch.rand(1, 3, 8, 8)
    names = list(network.state_dict())
    with recomputing(network, wanted=True):
        other = copy.deepcopy(network)
        assert list(network.state_dict()) == names
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other(images).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert other.head.bias.grad is not None
    assert not any("forward" in vars(module) for module in network.modules())


def test_lent_parameters_get_their_own_gradient():
    torch.manual_seed(0)
    network, images = Random().eval(), torch.rand(1, 3, 8, 8)
    found = []
    for wanted in (False, True):
        lent = {name: (2 * value.detach()).requires_grad_() for name, value in network.named_parameters()}
        torch.manual_seed(5)
        with recomputing(network, wanted=wanted):
            loss = functional_call(network, lent, (images,)).square().sum()
        found.append(torch.autograd.grad(loss, list(lent.values())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_network_without_blocks_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="no blocks"), recomputing(nn.Conv2d(3, 3, 1), wanted=True):
        pass
    with recomputing(nn.Conv2d(3, 3, 1), wanted=False):
        pass


def test_a_block_that_changes_what_it_is_given_is_refused():
    class Greedy(Block):
        def forward(self, entering):
            return super().forward(entering.mul_(0.5))

    network = nn.Sequential(nn.Sequential(Block(), Greedy(), Block()), nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match="changed in place"), recomputing(network, wanted=True):
        network(torch.rand(1, 3, 8, 8)).sum().backward()
