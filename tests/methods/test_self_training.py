"""Self-training: which pixels count how much, the losses, the teacher, and whose batch statistics are whose."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.config.self_training import on_frame
from calseg_cli.engine.moving_average import decay_at
from calseg_cli.engine.train import Plan, build_optimizer
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.losses.weighted_cross_entropy import weighted_cross_entropy
from calseg_cli.methods import ADAPTATIONS, PLUGINS, adaptation_kind
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust, sampled, taught
from calseg_cli.networks.build import build_network
from tests.methods.self_training_examples import CLASSES, PLAIN, SIZE, Spy, batch_of, step_of


@pytest.fixture
def tiny():
    return build_network("tiny", CLASSES, init="none", seed=0)


# What pixels count


@pytest.fixture
def confidence():
    return torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.9


def test_the_quality_is_the_share_of_sure_pixels(confidence):
    batch = Trust("batch")(confidence)
    assert (batch == batch[0, 0, 0]).all()
    assert float(batch[0, 0, 0]) == pytest.approx(float((confidence >= 0.968).double().mean()))
    image = Trust("image")(confidence)
    for weights, sure in zip(image, confidence >= 0.968, strict=True):
        assert np.allclose(weights, float(sure.double().mean()))
    assert image[0, 0, 0] != image[1, 0, 0]
    assert (Trust("one")(confidence) == 1).all()


def test_pixels_below_the_threshold_can_be_left_out(confidence):
    weights = Trust("batch", threshold=0.95, threshold_labels=True)(confidence)
    assert torch.equal(weights, (confidence >= 0.95).float())


@pytest.mark.parametrize(("top", "bottom"), [(0, 0), (1, 2), (0, 5), (9, 0), (0, 9)])
def test_rows_at_the_margins_count_nothing(confidence, top, bottom):
    weights = Trust("one", ignore_top=top, ignore_bottom=bottom)(confidence)
    kept = [row for row in range(5) if row >= top and row < 5 - bottom]
    assert all((weights[:, row] == (row in kept)).all() for row in range(5))


def test_labels_are_drawn_as_the_probabilities_say():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    drawn = sampled(probabilities, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    assert shares.tolist() == pytest.approx([0.5, 0.0, 0.3, 0.2], abs=0.01)
    assert torch.equal(drawn, sampled(probabilities, torch.Generator().manual_seed(0)))
    logits = torch.tensor([50.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 30, 30)
    assert (taught(logits, "sampled", torch.Generator().manual_seed(0)).labels == 0).all()


# The loss


def test_the_soft_cross_entropy_has_the_gradient_it_should():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64).softmax(dim=1).requires_grad_()
    labels = torch.randint(0, 5, (2, 3, 4), generator=generator)
    labels[0, 0] = 255
    hard = torch.rand(2, 3, 4, generator=generator) < 0.5
    weights = torch.rand(2, 3, 4, generator=generator, dtype=torch.float64)
    weighted_cross_entropy(logits, labels, weights, soft=soft, hard=hard).backward()
    one_hot = F.one_hot(labels.clamp_max(4), 5).permute(0, 3, 1, 2).double()
    targets = torch.where(hard[:, None], one_hot, soft.detach())
    counted = (weights * ~(hard & (labels == 255)))[:, None]
    expected = counted * (logits.detach().softmax(dim=1) - targets) / 24
    assert torch.allclose(logits.grad, expected, rtol=1e-12, atol=1e-15)
    assert soft.grad is None


def test_the_mixed_loss_is_that_of_a_pixel_by_pixel_sum(tiny):
    """Source labels where pasted, the teacher's elsewhere, weighted 1 or by quality; everything in float64 here."""
    spy = Spy()
    method = SelfTraining(tiny, Frame(trust=Trust("image", threshold=0.3)), plugins=[spy])
    terms = step_of(method, 0)
    view, (logits, labels, domain) = spy.view, spy.corrected[1]
    log_probs = logits.detach().double().log_softmax(dim=1)
    dense = F.interpolate(view.teacher_logits.double(), size=SIZE, mode="bilinear", align_corners=False)
    sure, named = dense.softmax(dim=1).max(dim=1)
    total = 0.0
    for b, y, x in np.ndindex(3, *SIZE):
        pasted = bool(view.masks[b, 0, y, x])
        label = int(view.source_labels[b, y, x]) if pasted else int(named[b, y, x])
        weight = 1.0 if pasted else float((sure[b] >= 0.3).double().mean())
        assert int(labels[b, y, x]) == label
        assert float(view.weights[b, y, x]) == pytest.approx(weight)
        total -= weight * float(log_probs[b, label, y, x])
    assert float(terms["mix"]) == pytest.approx(total / (3 * SIZE[0] * SIZE[1]), rel=1e-5)
    assert torch.equal(domain, view.masks)


def test_source_pixels_without_a_label_are_neither_pasted_nor_counted(tiny):
    spy = Spy()
    method = SelfTraining(tiny, Frame(trust=Trust("one")), plugins=[spy])
    step_of(method, 0)
    unknown = spy.view.source_labels == 255
    assert bool(unknown.any())
    assert not bool((spy.view.masks[:, 0] & unknown).any())
    assert torch.equal(spy.view.weights[unknown], torch.ones(int(unknown.sum())))  # the target is shown there


def test_classes_weigh_on_source_pixels_alone(tiny):
    weights = torch.tensor([0.2, 1.0, 3.0, 0.0])
    plain, spy = Spy(), Spy()
    step_of(SelfTraining(copy.deepcopy(tiny), Frame(), plugins=[plain]), 0)
    method = SelfTraining(tiny, Frame(source_weight=0.5), plugins=[spy])
    method.class_weights = weights
    terms = step_of(method, 0)
    (logits, labels, _), (_, _, domain) = spy.corrected
    expected = F.cross_entropy(logits.detach().double(), labels, weights.double(), ignore_index=255)
    assert float(terms["source"]) == pytest.approx(0.5 * float(expected), rel=1e-5)
    known = spy.view.source_labels != 255
    each = weights[spy.view.source_labels.clamp_max(3)] * known
    torch.testing.assert_close(spy.view.source_weights, each / each[known].mean())
    pasted = domain[:, 0]
    torch.testing.assert_close(spy.view.weights[pasted], spy.view.source_weights[pasted])
    assert torch.equal(spy.view.weights[~pasted], plain.view.weights[~pasted])
    assert torch.equal(plain.view.source_weights, known.float())


def test_a_batch_whose_classes_all_weigh_nothing_has_no_source_loss(tiny):
    method = SelfTraining(tiny)
    method.class_weights = torch.zeros(CLASSES)
    terms = step_of(method, 0)
    assert float(terms["source"]) == 0
    assert bool(torch.isfinite(terms["mix"]))


def test_the_mix_shows_each_pixel_of_one_domain(tiny):
    spy = Spy()
    method = SelfTraining(tiny, Frame(strong=PLAIN), plugins=[spy])
    step_of(method, 0)
    view = spy.view
    other = torch.where(view.masks, view.target_images, view.source_images)
    assert torch.equal(view.mixed_images + other, view.source_images + view.target_images)
    assert 0.1 < float(view.masks.float().mean()) < 0.9
    strong = Spy()
    step_of(SelfTraining(copy.deepcopy(tiny), Frame(), plugins=[strong]), 0)
    assert torch.equal(strong.view.masks, view.masks)
    assert not torch.equal(strong.view.mixed_images, view.mixed_images)


def test_margins_send_no_gradient(tiny):
    """Only the row at the top may teach; all of the mix's gradient is there or on source pixels."""
    spy = Spy()
    frame = Frame(trust=Trust("one", ignore_top=2, ignore_bottom=21), source_weight=0.0)
    method = SelfTraining(tiny, frame, plugins=[spy])
    terms = method(batch_of(0))
    (gradient,) = torch.autograd.grad(terms["mix"], spy.corrected[1][0])
    moved = gradient.abs().sum(dim=1) > 0
    pasted = spy.view.masks[:, 0]
    rows = torch.arange(SIZE[0])[None, :, None].expand_as(pasted)
    assert not bool(moved[~pasted & (rows != 2)].any())
    assert bool(moved[~pasted & (rows == 2)].any())
    assert bool(moved[pasted].any())


def test_the_weight_is_the_raw_teachers_whatever_corrects_its_logits(tiny):
    seen = []

    def sharpened(logits, image):
        seen.append(tuple(image.shape))
        return -50 * logits

    plain, sharp = Spy(), Spy()
    frame = Frame(trust=Trust("batch", threshold=0.3))
    first = SelfTraining(copy.deepcopy(tiny), frame, plugins=[plain])
    second = SelfTraining(copy.deepcopy(tiny), frame, plugins=[sharp], label_correction=sharpened)
    step_of(first, 0)
    step_of(second, 0)
    assert torch.equal(plain.view.weights, sharp.view.weights)
    assert torch.equal(plain.view.teacher_logits, sharp.view.teacher_logits)
    assert torch.equal(sharp.logits, -50 * sharp.view.teacher_logits)
    assert not torch.equal(plain.view.teacher_labels, sharp.view.teacher_labels)
    assert seen == [(3, *SIZE)] * 3


def test_soft_and_drawn_labels_teach_the_teachers_softmax(tiny):
    """The gradient of drawn labels is that of soft ones in the mean; classes alone have another."""

    def gradient(kind, seed=0):
        spy = Spy()
        frame = Frame(labels=kind, trust=Trust("one"), strong=PLAIN)
        method = SelfTraining(copy.deepcopy(tiny), frame, seed=seed, plugins=[spy])
        batch = batch_of(0)
        batch.source_labels[:] = 255  # nothing is pasted
        terms = method(batch)
        (found,) = torch.autograd.grad(terms["mix"], spy.corrected[1][0])
        return found.double(), spy

    soft, spy = gradient("soft")
    probabilities = spy.view.dense(spy.view.teacher_logits).softmax(dim=1)
    student = spy.corrected[1][0].detach().softmax(dim=1)
    assert torch.allclose(soft, (student - probabilities).double() / (3 * 24 * 32), atol=1e-8)
    drawn = torch.stack([gradient("sampled", seed)[0] for seed in range(20)]).mean(dim=0)
    spread = (drawn - soft).norm() / (gradient("sampled")[0] - soft).norm()
    assert float(spread) == pytest.approx(20**-0.5, rel=0.25)
    assert float((gradient("hard")[0] - soft).norm()) > 10 * float((drawn - soft).mean().abs())


# The teacher


def test_the_teacher_is_the_moving_average_of_everything(tiny):
    method = SelfTraining(tiny, Frame(ema=0.6))
    expected = {name: value.clone().double() for name, value in tiny.state_dict().items()}
    for step in range(4):
        step_of(method, step)
        decay = decay_at(step, 0.6)
        for name, value in tiny.state_dict().items():
            whole = not value.is_floating_point()
            expected[name] = value.double() if whole else decay * expected[name] + (1 - decay) * value.double()
    found = method.teacher.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name].double(), value, atol=1e-6) for name, value in expected.items())
    moved = [name for name, value in tiny.state_dict().items() if not torch.equal(value, found[name])]
    assert any("running_mean" in name for name in moved)
    assert any("classifier.weight" in name for name in moved)


def test_nothing_else_moves_the_teacher(tiny):
    method = SelfTraining(tiny, Frame(base="mic"))
    before = copy.deepcopy(method.teacher.state_dict())
    method.train()
    torch.stack(list(method(batch_of(0)).values())).sum().backward()
    after = method.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    assert not method.teacher.training
    members = {id(p) for group in method.parameter_groups() for p in group.parameters}
    assert members == {id(parameter) for parameter in tiny.parameters()}


def test_it_is_the_student_that_is_kept_unless_the_teacher_is(tiny):
    assert SelfTraining(tiny).deployed() is tiny
    method = SelfTraining(tiny, Frame(keep="teacher"))
    assert method.deployed() is method.teacher
    with torch.no_grad():
        tiny.head.classifier.bias += 1
    method.restart_teacher()
    assert torch.equal(method.teacher.head.classifier.bias, tiny.head.classifier.bias)


# Batch statistics


def running(network):
    return {name: value.clone() for name, value in network.state_dict().items() if "running" in name}


@pytest.mark.parametrize("statistics", ["batch", "running", "shared"])
def test_whose_images_the_students_statistics_follow(tiny, statistics):
    spy = Spy()
    method = SelfTraining(tiny, Frame(statistics=statistics), plugins=[spy])
    start = copy.deepcopy(tiny)
    batch = batch_of(0)
    method.train()
    method(batch)
    mixed_alone = copy.deepcopy(start).train()
    if statistics != "running":
        mixed_alone(batch.source_images)
    mixed_alone(spy.view.mixed_images)
    expected = running(mixed_alone)
    assert all(torch.equal(value, expected[name]) for name, value in running(tiny).items())
    assert method.measures_again == (statistics == "batch")


@pytest.mark.parametrize("statistics", ["batch", "running", "shared"])
def test_how_the_teacher_normalises(tiny, statistics):
    with torch.no_grad():
        for name, value in tiny.named_buffers():
            if "running_mean" in name:
                value += 0.3
    spy = Spy()
    method = SelfTraining(tiny, Frame(statistics=statistics), plugins=[spy])
    reference = copy.deepcopy(tiny).train(statistics == "batch")
    method.train()
    batch = batch_of(0)
    method(batch)
    with torch.no_grad():
        assert torch.allclose(spy.view.teacher_logits, reference(batch.target_images), atol=1e-6)


# What every run is

FULL = Frame(base="mic", labels="sampled", statistics="running", ema=0.5, masking=Masking(labels="same"))


def test_the_state_dict_is_all_its_memory_with_every_part_on(tiny):
    def fresh():
        return SelfTraining(copy.deepcopy(tiny), FULL, seed=7)

    whole, half, rest = fresh(), fresh(), fresh()
    for step in range(4):
        step_of(whole, step)
    for step in range(2):
        step_of(half, step)
    with torch.no_grad():
        rest.network.head.classifier.bias += 1  # whatever it was before, it is not any more
        rest.distance.encoder.stem[0].weight += 1
    rest.load_state_dict(half.state_dict())
    for step in range(2, 4):
        torch.manual_seed(step)
        step_of(rest, step)
    expected = whole.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in rest.state_dict().items())


def test_another_seed_is_another_run(tiny):
    first, second = (SelfTraining(copy.deepcopy(tiny), FULL, seed=seed) for seed in (0, 1))
    assert not torch.equal(step_of(first, 0)["mix"], step_of(second, 0)["mix"])


def test_what_the_configuration_calls_a_method_on_the_frame_is_one():
    known = [*ADAPTATIONS, *PLUGINS]
    assert "self-training" in known
    for name in known:
        kind = adaptation_kind(name)
        assert issubclass(kind, SelfTraining) == on_frame(name)
    assert adaptation_kind("self-training+tent") is None


# What cannot be


def test_images_of_two_sizes_cannot_be_mixed(tiny):
    batch = batch_of(0)
    batch.target_images = batch.target_images[..., :28]
    with pytest.raises(DataError, match="24x32 and 24x28"):
        SelfTraining(tiny)(batch)


def test_a_network_without_an_encoder_has_no_features_to_compare():
    bare = nn.Conv2d(3, CLASSES, 1)
    with pytest.raises(ConfigError, match="encoder"):
        SelfTraining(bare, Frame(base="daformer"))
    SelfTraining(bare, Frame(base="mic", feature_weight=0.0))


def test_a_network_that_cannot_be_parted_has_no_features_to_show():
    bare = nn.Sequential(nn.Conv2d(3, CLASSES, 1))
    bare.stride, bare.divisor, bare.align_corners = 1, 1, False
    spy = Spy()
    terms = SelfTraining(bare, plugins=[spy])(batch_of(0))
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert spy.view.mixed_features is None


def test_the_optimiser_gets_the_student_alone(tiny):
    optimizer = build_optimizer(SelfTraining(tiny, Frame(base="mic"), plugins=[Spy()]), Plan(1))
    found = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {id(parameter) for parameter in tiny.parameters()}
