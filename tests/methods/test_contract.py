"""What every method owes the loop, whichever paper it is from."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from calseg_cli.engine.distributed import ALONE
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.method import Method
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.shared_batch_norm import share_batch_norm
from calseg_cli.engine.train import Hooks, Plan, train
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.source import Source
from tests.methods.conftest import batch_of, small
from tests.methods.every_method import KINDS, MADE, needs, only_required
from tests.ranks import together

STEPS = 3
EVERY = {"source": Source, **MADE}


class Maker:
    """Builds one method anew around a copy of a network, always the same one unless another is given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.needs, self.sweeps = needs(name, self()), self().sweeps

    def __call__(self, base: nn.Module | None = None) -> Method:
        return EVERY[self.name](small() if base is None else copy.deepcopy(base))


SWEEPS = [name for name in EVERY if Maker(name).sweeps]
trained = pytest.mark.parametrize("make", [name for name in EVERY if name not in SWEEPS], indirect=True)
"""Those that take steps; the others look at every image once, and begin anew where they were cut."""


@pytest.fixture(params=sorted(EVERY))
def make(request):
    return Maker(request.param)


def run(method, required, make_batch, steps):
    """A few steps of plain gradient descent, as the loop would."""
    groups = [p for group in method.parameter_groups() for p in group.parameters]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    losses = []
    for step in steps:
        method.train()
        batch = only_required(make_batch(step), required)
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


def test_all_are_here():
    assert {name.split(",")[0] for name in EVERY} >= KINDS.keys()


def test_it_has_a_name_and_says_what_it_needs(make):
    method = make()
    assert method.name
    assert method.requires <= {"source", "target", "labels", "pseudo_labels"}
    assert not (method.sweeps and "labels" in method.requires)


def test_terms_are_finite_scalars(make, make_batch):
    terms = make()(only_required(make_batch(), make.needs))
    assert bool(terms) != make.sweeps
    assert all(term.ndim == 0 and torch.isfinite(term) for term in terms.values())


def test_it_repeats(make, make_batch):
    first, second = make(), make()
    for method in (first, second):
        torch.manual_seed(0)
        run(method, make.needs, make_batch, range(4))
    assert same(first.deployed().state_dict(), second.deployed().state_dict())


def test_its_state_dict_is_all_its_memory(make, make_batch):
    """Stopped after two steps and continued in a new object, it ends where the unbroken one does."""
    whole, half = make(), make()
    run(whole, make.needs, make_batch, range(4))
    run(half, make.needs, make_batch, range(2))
    rest = make()
    rest.load_state_dict(half.state_dict())
    run(rest, make.needs, make_batch, range(2, 4))
    assert same(whole.deployed().state_dict(), rest.deployed().state_dict())


class Stream:
    """Batches that follow from the step."""

    def __init__(self, make_batch, required):
        self.make_batch, self.required = make_batch, required

    def batches(self, start, stop):
        for step in range(start, stop):
            yield only_required(self.make_batch(step), self.required)


def looped(make, make_batch, network, state=None):
    """Four steps of the loop with Adam, warm-up and dropout: what was saved after two, and all tensors in the end."""
    torch.manual_seed(5 if state is None else 6)  # a resumed process has drawn something else
    method, saved, logged = make(network), [], []
    hooks = Hooks(
        log=lambda record: logged.append({name: value for name, value in record.items() if name != "seconds"}),
        validate=lambda step: None,
        save=lambda step, found: saved.append(copy.deepcopy(found)),
    )
    plan = Plan(steps=4, warmup_steps=2, log_every=1, checkpoint_every=2, lr=1e-2, head_lr=1e-2)
    train(method, Stream(make_batch, make.needs), plan, device=torch.device("cpu"), hooks=hooks, progress=Silent(),
          stop=StopRequest(), state=state)  # fmt: skip
    return saved[0], saved[-1], logged


def flat(value, path=""):
    """Every tensor and number of a state, by its place."""
    if isinstance(value, dict):
        return {key: one for name, part in value.items() for key, one in flat(part, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return {key: one for place, part in enumerate(value) for key, one in flat(part, f"{path}/{place}").items()}
    return {path: value if isinstance(value, torch.Tensor) else repr(value)}


@trained
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(make, make_batch, network):
    """Weights, teacher, plugins' networks and statistics, moments of the optimisers, schedule and random states."""
    network.encoder.append(nn.Dropout(0.2))
    half, whole, told = looped(make, make_batch, network)
    _, again, rest = looped(make, make_batch, network, half)
    assert rest == told[2:]
    first, second = flat(whole), flat(again)
    assert first.keys() == second.keys()
    different = [
        key
        for key, value in first.items()
        if not (torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key])
    ]
    assert different == []


@trained
def test_loss_falls(make, make_batch):
    losses = run(make(), make.needs, make_batch, [0] * 20)
    # TENT moves nothing but scales and shifts, and soft labels of an untrained teacher say next to nothing.
    slow = make.name in ("tent", "self-training, source-free, soft")
    assert losses[-1] < (0.9995 if slow else 0.9) * losses[0]


def test_the_teacher_has_no_gradient(make, make_batch):
    method = make()
    if not isinstance(method, SelfTraining):
        return
    run(method, make.needs, make_batch, range(2))
    members = {id(one) for group in method.parameter_groups() for one in group.parameters}
    for one in method.teacher.parameters():
        assert not one.requires_grad
        assert one.grad is None
        assert id(one) not in members


def test_nothing_but_the_network_is_deployed(make, make_batch, network):
    method = make()
    run(method, make.needs, make_batch, range(2))
    assert method.deployed().state_dict().keys() == network.state_dict().keys()
    assert not method.deployed()._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in method.deployed().modules())


def share_of(batch, ranks):
    """A process's half of a batch."""
    if ranks.world == 1:
        return batch
    half = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    shared = {name: value for name, value in vars(batch).items() if name != "step" and value is not None}
    return replace(batch, **{name: value[half] for name, value in shared.items()})


def steps_of(make, ranks=ALONE):
    """Some steps: the gradients and terms of each, and all that the method remembers in the end."""
    torch.manual_seed(1)
    network = small()
    share_batch_norm(network, ranks)
    method = make(network)
    method.work_with(ranks)
    members = [parameter for group in method.parameter_groups() for parameter in group.parameters]
    optimizer = torch.optim.SGD(members, lr=0.1)
    gradients, terms = [], []
    for step in range(STEPS):
        method.train()
        batch = share_of(only_required(batch_of(step), make.needs), ranks)
        method.before_step(batch, step)
        found = method(batch)
        torch.stack(list(found.values())).sum().backward()
        ranks.reduce_gradients(members)
        gradients.append([None if one.grad is None else one.grad.clone() for one in members])
        terms.append({name: float(ranks.total(term.detach())) for name, term in found.items()})
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return gradients, terms, method.report(), method.state_dict()


@pytest.fixture(scope="module")
def together_made():
    """What two processes make of every method, one after another."""

    def work(ranks):
        makers = [Maker(name) for name in EVERY]
        return {make.name: steps_of(make, ranks) for make in makers if make.name not in SWEEPS}

    ended = together(work)
    assert [code for code, _ in ended] == [0, 0], ended
    return [found for _, found in ended]


@trained
def test_two_processes_take_one_processs_steps(make, together_made):
    """On the same whole batch: gradients within 1e-6, the same terms, and in the end the same memory."""
    gradients, terms, told, state = steps_of(make)
    assert any(one is not None and float(one.abs().max()) > 1e-5 for one in gradients[0])
    for made in together_made:
        own_gradients, own_terms, own_told, own_state = made[make.name]
        # Rounding grows from step to step; the second is the first in which every plugin acts.
        for step, tolerance in enumerate((1e-6, 1e-6, 1e-4)):
            for mine, theirs in zip(gradients[step], own_gradients[step], strict=True):
                assert (mine is None) == (theirs is None)
                if mine is not None:
                    torch.testing.assert_close(theirs, mine, atol=tolerance, rtol=10 * tolerance)
            assert own_terms[step] == pytest.approx(terms[step], abs=10 * tolerance)
        assert own_told == pytest.approx(told, abs=1e-3)
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(own_state[key], value, atol=1e-4, rtol=1e-3, msg=key)
