"""Processes that share a value net's training: one process's gradient, statistics and memory, whatever their shares."""

import pickle

import pytest
import torch
from torch import nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.distributed import ALONE
from calseg_cli.engine.shared_batch_norm import share_batch_norm
from calseg_cli.methods.value_net import ValueNet
from calseg_cli.methods.value_net_training import ExpectedError, Recipe
from tests.ranks import together

RECIPES = [Recipe(loss=loss, statistics=kind) for loss in ("squared", "logit") for kind in ("pooled", "batch")]


class Segmenter(nn.Module):
    """A frozen network; its batch norm would differ among shares if it were ever in training mode."""

    def __init__(self):
        super().__init__()
        self.num_classes, self.stride, self.divisor, self.align_corners, self.name = 3, 1, 1, False, "small"
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        return self.head(self.encoder(images))


def batch_of(step, ranks):
    """Four images or a process's share of them; how many of a share have labels differs."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(4, 3, 12, 16, generator=generator)
    labels = (images.argmax(1) + torch.randint(0, 2, (4, 12, 16), generator=generator)) % 3
    labels[2 if step % 2 else 0] = 255
    labels[3] = 255
    slots = ranks.slots(4, "batch") or range(4)
    own = slice(slots.start, slots.stop)
    return Batch(step, images[own], labels[own], None, (), ())


def learnt(ranks, recipe):
    """The gradient of a batch, and all that is remembered, after a start on some batches and two steps."""
    torch.manual_seed(0)
    frozen, net = Segmenter(), ValueNet(8, width=16)
    share_batch_norm(net, ranks)
    method = ExpectedError(frozen, net, recipe, ranks)
    method.prepare(batch_of(step, ranks) for step in range(3))
    method.train()
    terms = []
    for step in range(2):
        (term,) = method(batch_of(step, ranks)).values()
        term.backward()
        terms.append(float(ranks.total(term.detach())))
    ranks.reduce_gradients(net.parameters())
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return terms, gradients, {name: tensor.clone() for name, tensor in method.state_dict().items()}


@pytest.fixture(scope="module")
def shared():
    """What each of two processes has learnt by each recipe; pickled, as shared memory ends with its process."""
    ended = together(lambda ranks: pickle.dumps([learnt(ranks, recipe) for recipe in RECIPES]))
    assert [code for code, _ in ended] == [0, 0], ended
    return [pickle.loads(found) for _, found in ended]


@pytest.mark.parametrize("number", range(len(RECIPES)), ids=[f"{one.loss}-{one.statistics}" for one in RECIPES])
def test_two_processes_learn_as_one(shared, number):
    terms, gradients, memory = learnt(ALONE, RECIPES[number])
    assert all(float(gradient.abs().max()) > 1e-4 for name, gradient in gradients.items() if name != "norm.bias")
    for rank in range(2):
        own_terms, own_gradients, own_memory = shared[rank][number]
        assert own_terms == pytest.approx(terms, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own_gradients[name], gradient, rtol=0, atol=1e-6)
        assert own_memory.keys() == memory.keys()
        for name, tensor in memory.items():
            exact = name in ("low", "high", "moments") or "norm" not in name
            torch.testing.assert_close(own_memory[name], tensor, **({"rtol": 0, "atol": 0} if exact else {}))
    (_, first, one), (_, second, other) = shared[0][number], shared[1][number]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(one[name], other[name]) for name in one)
