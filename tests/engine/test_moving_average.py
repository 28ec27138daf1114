"""The moving average of a network against float64, and what it must leave alone."""

import copy

import pytest
import torch
from torch import nn

from calseg_cli.engine.moving_average import decay_at, move_average


def network(seed):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    layers[1].register_buffer("scratch", torch.randn(3), persistent=False)
    layers[1].running_mean.normal_()
    layers[1].running_var.uniform_(0.5, 2)
    layers[1].num_batches_tracked.fill_(seed)
    return layers


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999, 1.0])
def test_formula(decay):
    teacher, student = network(3), network(8)
    expected = {
        name: decay * value.detach().double() + (1 - decay) * tensors(student)[name].detach().double()
        for name, value in tensors(teacher).items()
        if value.is_floating_point()
    }
    before = copy.deepcopy(student.state_dict())
    move_average(teacher, student, decay)
    assert {"1.running_mean", "1.running_var", "1.scratch", "0.weight", "2.bias"} <= set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(tensors(teacher)[name].double(), value, rtol=1e-6, atol=1e-7)
    assert int(teacher[1].num_batches_tracked) == 8
    assert same(student.state_dict(), before)


def test_ends_are_exact():
    teacher, student = network(0), network(1)
    before = copy.deepcopy(teacher.state_dict())
    move_average(teacher, student, 1.0)
    before["1.num_batches_tracked"] = student[1].num_batches_tracked
    assert same(teacher.state_dict(), before)
    move_average(teacher, student, 0.0)
    assert same(tensors(teacher), tensors(student))
    for decay in (0.999, 0.37, 0.1):
        move_average(teacher, student, decay)
        assert same(tensors(teacher), tensors(student))


def test_no_graph_and_the_same_tensors():
    """Optimisers and hooks hold a network's tensors: they are changed in place, with or without gradients."""
    teacher, student = network(0).requires_grad_(False), network(1)
    before = tensors(teacher)
    move_average(teacher, student, 0.5)
    assert all(value is before[name] for name, value in tensors(teacher).items())
    assert not any(value.requires_grad for value in teacher.parameters())
    assert all(value.requires_grad and value.grad is None for value in student.parameters())
    move_average(student, teacher, 0.5)
    assert all(value.is_leaf and value.requires_grad for value in student.parameters())


def test_the_first_steps_are_the_plain_mean():
    """With a decay that never binds, the teacher after step n is the mean of the students 0 to n."""
    teacher, students = network(9), [network(seed) for seed in range(6)]
    for step, student in enumerate(students):
        move_average(teacher, student, decay_at(step, 0.9999))
    mean = torch.stack([student[0].weight.detach().double() for student in students]).mean(0)
    torch.testing.assert_close(teacher[0].weight.double(), mean, rtol=1e-5, atol=1e-6)


def test_decay():
    assert [decay_at(step, 0.9) for step in (0, 1, 9, 10, 10**6)] == [0.0, 0.5, 0.9, 0.9, 0.9]
    assert decay_at(5, 0.0) == 0.0


def test_other_networks_are_refused():
    teacher = network(0)
    before = copy.deepcopy(teacher.state_dict())
    for other in (teacher[:2], nn.Sequential(nn.Conv2d(3, 5, 3), *list(network(1))[1:])):
        with pytest.raises(ValueError, match="one kind"):
            move_average(teacher, other, 0.5)
    assert same(teacher.state_dict(), before)
