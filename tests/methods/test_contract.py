"""What every method owes the loop, whichever paper it is from."""

import copy
from types import SimpleNamespace

import pytest
import torch

from calseg_cli.engine.method import Method
from calseg_cli.methods import ADAPTATIONS, PLUGINS, adaptation_kind, build_adaptation
from calseg_cli.methods.blda import build_blda
from calseg_cli.methods.logit_mixtures import fit_mixtures
from calseg_cli.methods.self_training import Frame
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.source import Source

METHODS = {"source": Source, **ADAPTATIONS, **{name: adaptation_kind(name) for name in PLUGINS}}
ALONE = SimpleNamespace(name="self-training", requires=frozenset({"target"}), sweeps=False)  # without source images
SOURCE_FREE = {"self-training, source-free": ALONE, "blda, source-free": ALONE}


def source_free(name, network):
    frame, plugins = Frame(source_free=True, trust=Trust("one")), []
    if name == "blda":
        start = fit_mixtures(torch.tensor([[1.0, 2, 4], [-2.0, -1, 0]]), 5, 2)
        plugins = [build_blda(network, anchors=start, warm_up=1, min_pixels=10)]
    return build_adaptation("self-training", network, frame=frame, plugins=plugins)


@pytest.fixture(params=sorted([*METHODS, *SOURCE_FREE]))
def make(request, network):
    """A function that builds the same method anew around a copy of the same network."""

    def build() -> Method:
        copied = copy.deepcopy(network)
        if request.param in SOURCE_FREE:
            return source_free(request.param.split(",")[0], copied)
        return Source(copied) if request.param == "source" else build_adaptation(request.param, copied)

    build.kind = {**METHODS, **SOURCE_FREE}[request.param]
    return build


def only_required(batch, kind):
    """The batch without anything that the method does not say it needs."""
    if "source" not in kind.requires:
        batch.source_images = batch.source_labels = None
    if "labels" not in kind.requires:
        batch.source_labels = None
    if "target" not in kind.requires:
        batch.target_images = None
    if "pseudo_labels" not in kind.requires:
        batch.target_labels = None
    return batch


def run(method, kind, make_batch, steps):
    """A few steps of plain gradient descent, as the loop would."""
    groups = [p for group in method.parameter_groups() for p in group.parameters]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    losses = []
    for step in steps:
        method.train()
        batch = only_required(make_batch(step), kind)
        method.before_step(batch, step)
        terms = method(batch)
        if terms:
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        method.after_step(step)
    return losses


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_has_a_name_and_says_what_it_needs(make):
    assert make.kind.name
    assert make.kind.requires <= {"source", "target", "labels", "pseudo_labels"}
    assert not (make.kind.sweeps and "labels" in make.kind.requires)


def test_terms_are_finite_scalars(make, make_batch):
    terms = make()(only_required(make_batch(), make.kind))
    assert bool(terms) != make.kind.sweeps
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())


def test_it_repeats(make, make_batch):
    first, second = make(), make()
    for method in (first, second):
        torch.manual_seed(0)
        run(method, make.kind, make_batch, range(4))
    assert same(first.deployed().state_dict(), second.deployed().state_dict())


def test_its_state_dict_is_all_its_memory(make, make_batch):
    """Stopped after two steps and continued in a new object, it ends where the unbroken one does."""
    whole, half = make(), make()
    run(whole, make.kind, make_batch, range(4))
    run(half, make.kind, make_batch, range(2))
    rest = make()
    rest.load_state_dict(half.state_dict())
    run(rest, make.kind, make_batch, range(2, 4))
    assert same(whole.deployed().state_dict(), rest.deployed().state_dict())


def test_loss_falls(make, make_batch):
    losses = run(make(), make.kind, make_batch, [0] * 30)
    if not make.kind.sweeps:
        # TENT moves nothing but scales and shifts, which is little in this network.
        assert losses[-1] < (0.997 if make.kind.name == "tent" else 0.8) * losses[0]


def test_nothing_but_the_network_is_deployed(make, make_batch, network):
    method = make()
    run(method, make.kind, make_batch, range(2))
    assert method.deployed().state_dict().keys() == network.state_dict().keys()
    assert not method.deployed()._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in method.deployed().modules())
