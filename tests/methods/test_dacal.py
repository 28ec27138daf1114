"""DA-Cal on the self-training frame: what it teaches, what it leaves alone, and when it steps back."""

import copy
import math

import pytest
import torch
from torch import nn

from calseg_cli.errors import ConfigError
from calseg_cli.methods.dacal import DACal, DACalOptions, build_dacal
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.temperature_learning import Learning, Mixed, TemperatureLearner
from tests.methods.self_training_examples import trained

ONE = Frame(trust=Trust("one"))
SOFT = Frame(labels="soft", trust=Trust("one"))


def dacal(network, frame=ONE, **options):
    network = copy.deepcopy(network)
    plugin = build_dacal(network, **{"warm_up": 0, "alarms": False, **options})
    return SelfTraining(network, frame, plugins=[plugin]).train()


def learner(method):
    return method.openings[0].learner


def run(method, make_batch, steps):
    def dark(step):
        batch = make_batch(step)
        batch.target_images = batch.target_images - 0.9  # within [0,1] for the most part
        return batch

    return trained(method, dark, steps)


def everything(module: nn.Module):
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return state, grads, [m.training for m in module.modules()]


@pytest.mark.parametrize("route", ["solved", "last-layer", "network"])
@pytest.mark.parametrize("outer", ["held-out", "source+hard"])
def test_a_step_of_the_temperatures_leaves_the_student_as_it_was(network, make_batch, route, outer):
    method = dacal(network, route=route, outer=outer, strong=True)
    run(method, make_batch, range(2))
    plugin = method.openings[0]
    view, believed, _ = method._see(make_batch(2))
    for parameter in method.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, state = everything(method.network), torch.get_rng_state()
    temperatures = copy.deepcopy(plugin.learner.network.state_dict())
    plugin.learner.step(view.student, believed, plugin._inner(view), plugin._outer(view))
    after = everything(method.network)
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert before[2] == after[2]
    assert torch.equal(state, torch.get_rng_state())
    assert any(not torch.equal(temperatures[n], t) for n, t in plugin.learner.network.named_parameters())


def test_without_a_step_of_the_temperatures_it_is_the_soft_baseline_bit_for_bit(network, make_batch):
    method, soft = dacal(network, interval=10**9, warm_up=1), SelfTraining(copy.deepcopy(network), SOFT).train()
    soft.frame = Frame(labels="soft", trust=Trust("one"), hard_steps=1)
    mine, theirs = run(method, make_batch, range(3)), run(soft, make_batch, range(3))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all(torch.equal(a, b) for a, b in zip(method.network.parameters(), soft.network.parameters(), strict=True))


def test_all_hard_is_the_hard_baseline(network, make_batch):
    method, hard = dacal(network, hard_share=1.0), SelfTraining(copy.deepcopy(network), ONE).train()
    mine, theirs = run(method, make_batch, range(3)), run(hard, make_batch, range(3))
    assert float(mine["mix"]) == pytest.approx(float(theirs["mix"]), rel=1e-5)


def test_it_teaches_the_teachers_classes_softened(network, make_batch):
    method = dacal(network)
    run(method, make_batch, range(3))
    view, believed, _ = method._see(make_batch(3))
    soft = method.openings[0].targets(view, believed)
    assert soft.shape == (4, 3, *view.source_labels.shape[-2:])
    assert torch.allclose(soft.sum(dim=1), torch.ones(()), atol=1e-6)
    assert not soft.requires_grad
    plain = view.dense(believed).softmax(dim=1)
    decided = (plain.topk(2, dim=1).values.diff(dim=1).abs() > 1e-4)[:, 0]
    assert torch.equal(soft.argmax(dim=1)[decided], plain.argmax(dim=1)[decided])
    assert not torch.equal(soft, plain)


def test_the_students_loss_does_not_reach_the_temperatures_nor_the_teacher(network, make_batch):
    method = dacal(network)
    run(method, make_batch, range(3))
    silent = [*learner(method).parameters(), *method.teacher.parameters()]
    assert all(parameter.grad is None for parameter in silent)
    moved = {id(p) for group in method.parameter_groups() for p in group.parameters}
    assert not moved & {id(p) for p in silent}


def test_pixels_that_nobody_judges_move_nothing(network, make_batch):
    """Without a labelled cell in the outer mix there is nothing to learn, and T stays 1."""
    method = dacal(network)
    batch = make_batch(0)
    batch.held_out_labels = torch.full_like(batch.held_out_labels, 255)
    method.before_step(batch, 0)
    method(batch)
    assert torch.equal(learner(method).network(torch.randn(1, 3, 4, 4)), torch.ones(1, 1, 4, 4))


def test_only_held_out_labels_ask_for_held_out_images(network):
    for outer in ("held-out", "held-out+hard"):
        assert dacal(network, outer=outer).needs_held_out
    for outer in ("source", "source+hard"):
        assert not dacal(network, outer=outer).needs_held_out


@pytest.mark.parametrize("mask", ["complementary", "same", "own"])
def test_where_the_outer_mix_shows_labels(network, make_batch, mask):
    method = dacal(network, mask=mask)
    view, _, _ = method._see(make_batch(0, ignore=0.0))
    outer = method.openings[0]._outer(view)
    rows, columns = view.teacher_logits.shape[-2:]
    small = nn.functional.interpolate(view.masks.float(), size=(rows, columns), mode="nearest-exact")[:, 0] > 0
    shown = outer.weights > 0
    assert torch.equal(outer.labels != 255, shown)
    if mask == "complementary":
        assert torch.equal(shown, ~small)
    elif mask == "same":
        assert torch.equal(shown, small)
    else:
        assert bool(shown.any())
        assert bool((~shown).any())


def test_the_complement_may_be_trained_on_too(network, make_batch):
    assert "complement" not in run(dacal(network), make_batch, [0])
    terms = run(dacal(network, hard_weight=0.5), make_batch, [0])
    twice = run(dacal(network, hard_weight=1.0), make_batch, [0])
    assert float(twice["complement"]) == pytest.approx(2 * float(terms["complement"]), rel=1e-6)


def test_a_falling_quality_falls_back_to_hard_labels_and_a_risen_one_ends_that(network, make_batch):
    method = dacal(network, alarms=True)
    plugin = method.openings[0]
    view, believed, _ = method._see(make_batch(0))
    assert plugin.targets(view, believed) is not None
    low = copy.copy(view)
    object.__setattr__(low, "target_weights", view.target_weights * 0.1)
    given = [plugin.targets(low, believed) is None for _ in range(20)]
    assert not given[0]  # one bad batch is no alarm
    assert given[-1]
    assert plugin.report()["fallen_back"] == 1
    back = [plugin.targets(view, believed) is None for _ in range(40)]
    assert not back[-1]


def test_classes_that_take_the_place_of_others_raise_the_alarm(network, make_batch):
    method = dacal(network, alarms=True, lr=1e-12, level_lr=1e-12)
    plugin = method.openings[0]
    view, believed, _ = method._see(make_batch(0))

    def looked(classes, times):
        other = copy.copy(view)
        object.__setattr__(other, "teacher_labels", classes)
        return [plugin.targets(other, believed) is None for _ in range(times)]

    generator = torch.Generator().manual_seed(0)
    shape = view.teacher_labels.shape
    usual = [torch.randint(0, 3, shape, generator=generator) for _ in range(40)]
    assert not any(looked(classes, 1)[0] for classes in usual)  # single images differ much more than their mean
    assert plugin.report()["class_drift"] < 0.05
    drifted = usual[0].clone()
    drifted[usual[0] == 1] = 0
    given = looked(drifted, 200)
    assert not given[0]
    assert given[-1]
    assert plugin.report()["class_drift"] == pytest.approx(1 / 3, abs=0.05)
    assert not looked(usual[0], 200)[-1]


def test_temperatures_at_their_bound_raise_the_alarm(network, make_batch):
    method = dacal(network, alarms=True, lr=1e-12, level_lr=1e-12)
    with torch.no_grad():
        learner(method).network.level.fill_(5.0)
    plugin = method.openings[0]
    view, believed, _ = method._see(make_batch(0))
    given = [plugin.targets(view, believed) is None for _ in range(10)]
    assert not given[0]
    assert given[-1]
    quiet = DACal(network, DACalOptions(alarms=False))
    quiet.learner.network.level.data.fill_(5.0)
    assert all(quiet.targets(view, believed) is not None for _ in range(10))


def test_a_network_without_a_last_layer_of_its_own(network):
    class Bare(nn.Module):
        num_classes = 3

    with pytest.raises(ConfigError, match="1x1 convolution"):
        DACal(Bare())
    DACal(Bare(), DACalOptions(learning=Learning(route="network")))


def test_an_option_that_is_none(network):
    with pytest.raises(TypeError, match="unheard"):
        build_dacal(network, unheard=1)


@pytest.mark.parametrize("route", ["solved", "network"])
def test_images_that_the_network_has_padded(network, make_batch, route):
    """16x20 images for a network that wants multiples of 7: cells beyond the image judge and teach nothing."""
    network.divisor = 7
    method = dacal(network, route=route)
    terms = run(method, make_batch, range(2))
    assert all(torch.isfinite(term) for term in terms.values())
    view, _, _ = method._see(make_batch(2))
    assert view.geometry.pad == (5, 1)
    for mix in (method.openings[0]._inner(view), method.openings[0]._outer(view)):
        assert mix.weights.shape == view.teacher_logits[:, 0].shape
        assert not mix.weights[:, -2:].any()
        assert bool((mix.labels[:, -2:] == 255).all())


class OneLayer(nn.Module):
    """Features straight to logits; only its last layer is read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(5, 3, 1)


@pytest.mark.parametrize("hard_share", [0.0, 0.4])
def test_temperatures_make_up_for_the_share_of_classes(monkeypatch, hard_share):
    """The derivative they follow is that of the outer loss after a step on the whole lesson, classes' share and all."""
    generator = torch.Generator().manual_seed(1)
    features, judged = (torch.randn(2, 5, 3, 4, generator=generator) for _ in range(2))
    logits = 3 * torch.randn(2, 3, 3, 4, generator=generator)
    none, labels = torch.full((2, 3, 4), 255), torch.randint(0, 3, (2, 3, 4), generator=generator)
    inner, outer = Mixed(features, none, torch.ones(2, 3, 4)), Mixed(judged, labels, torch.ones(2, 3, 4))
    student = OneLayer()
    learner = TemperatureLearner(3, Learning(route="last-layer", step_size=2.0, width=0), hard_share=hard_share)
    seen = []
    monkeypatch.setattr(learner.optimizer, "descend", lambda _, gradient: seen.append(gradient) or gradient.norm())
    learner.step(student, logits, inner, outer)

    def outer_loss(log_temperature):
        layer = copy.deepcopy(student).double().head
        targets = (logits.double() / math.exp(log_temperature)).softmax(dim=1)
        classes = nn.functional.one_hot(logits.argmax(dim=1), 3).permute(0, 3, 1, 2)
        targets = (1 - hard_share) * targets + hard_share * classes
        loss = nn.functional.cross_entropy(layer(features.double()), targets)
        moves = torch.autograd.grad(loss, [layer.weight, layer.bias])
        with torch.no_grad():
            for parameter, move in zip((layer.weight, layer.bias), moves, strict=True):
                parameter -= 2.0 * move
            return float(nn.functional.cross_entropy(layer(judged.double()), labels))

    expected = (outer_loss(1e-4) - outer_loss(-1e-4)) / 2e-4
    assert abs(expected) > 1e-4
    assert float(seen[0].sum()) == pytest.approx(expected, rel=1e-3)
