"""torch.compile under the network's own names; the backend here runs the traced code as it is."""

import copy

import pytest
import torch

from calseg_cli.engine import compiling
from calseg_cli.engine.batch_statistics import PooledStatistics, own_statistics
from calseg_cli.engine.compiling import compile_network, is_compiled
from calseg_cli.engine.device import memory_errors
from calseg_cli.engine.recompute import recomputing
from calseg_cli.errors import ConfigError, DeviceError
from calseg_cli.methods.parted_network import Parted
from calseg_cli.networks.build import build_network


@pytest.fixture
def ran(monkeypatch):
    """How often traced code ran."""
    calls = []

    def backend(graph, inputs):
        return lambda *given: calls.append(1) or graph(*given)

    monkeypatch.setattr(compiling, "BACKEND", backend)
    torch._dynamo.reset()
    return calls


def networks():
    network = build_network("tiny", 3, init="none", seed=0)
    other = copy.deepcopy(network)
    compile_network(other, wanted=True)
    return network, other


def test_a_compiled_network_keeps_names_answers_and_statistics(ran):
    plain, compiled = networks()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain(images), compiled(images))
    assert ran
    for network in (plain, compiled):
        with own_statistics(network):
            network(images)
    assert alike_states(plain, compiled)
    assert not is_compiled(copy.deepcopy(compiled))


def test_what_looks_into_a_network_sees_it_after_compiled_calls_too(ran):
    """AdaBN's sums stand on hooks that come and go."""
    found = []
    for network in networks():
        network(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        with PooledStatistics(network) as pooled:
            network(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        pooled.write()
        found.append(network)
    assert ran
    assert int(pooled.get_buffer("count_0")) == 2 * 16 * 16
    assert alike_states(*found)


def test_a_pass_that_notes_features_runs_compiled_too(ran):
    """Self-training's student goes through its two halves, not through the whole."""
    seen, images = [], torch.rand(2, 3, 32, 32)
    for network in networks():
        parted = Parted(network)
        before = len(ran)
        logits = parted(images)
        logits.square().mean().backward()
        assert (len(ran) > before) == is_compiled(network)
        seen.append([logits, parted.features, *(one.grad for one in network.parameters())])
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)
    hook = network.encoder.register_forward_hook(lambda *_: noted.append(1))
    noted = []
    parted(images)
    assert noted == [1]
    hook.remove()


def alike_states(one, other):
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_it_is_off_unless_asked_for():
    network = build_network("tiny", 3, init="none", seed=0)
    compile_network(network, wanted=False)
    assert not is_compiled(network)


def test_gradient_checkpointing_is_refused_in_one_line(ran):
    _, compiled = networks()
    refused = pytest.raises(ConfigError, match="grad_checkpoint does not work with compile")
    with refused, recomputing(compiled, wanted=True):
        pass


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    torch._dynamo.reset()
    _, compiled = networks()
    with pytest.raises(DeviceError) as caught, memory_errors("not this"):
        compiled(torch.rand(1, 3, 32, 32))
    assert "no C++ compiler found" in caught.value.message
    assert "\n" not in caught.value.message
    assert "compile: false" in caught.value.hint
