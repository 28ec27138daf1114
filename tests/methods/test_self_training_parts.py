"""The openings of self-training for other papers, and what DAFormer and MIC add to it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.errors import ConfigError
from calseg_cli.methods.feature_distance import FeatureDistance, cell_labels
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.methods.self_training_view import Plugin
from calseg_cli.networks.build import build_network
from tests.methods.self_training_examples import CLASSES, PLAIN, SIZE, Spy, step_of


@pytest.fixture
def tiny():
    return build_network("tiny", CLASSES, init="none", seed=0)


# Openings


def test_openings_are_called_in_order(tiny):
    spy = Spy()
    method = SelfTraining(tiny, plugins=[spy])
    terms = step_of(method, 0)
    assert spy.calls == ["correct source", "targets", "correct mix", "terms", "after 0"]
    assert float(terms["spy"]) == pytest.approx(0.25 * float(spy.view.weights.mean()))
    assert spy.corrected[0][2].all()
    assert torch.equal(spy.corrected[0][1], spy.view.source_labels)
    assert spy.view.mixed_features.shape == (3, 32, 6, 8)
    assert not spy.view.mixed_features.requires_grad
    with torch.no_grad():
        logits = tiny.classify(spy.view.mixed_features)
    assert logits.shape == spy.view.teacher_logits.shape
    report = method.report()
    assert report["spy said"] == 1.5
    assert report["quality"] == pytest.approx(float(spy.view.target_weights.mean()))
    assert report["target_share"] == pytest.approx(1 - float(spy.view.masks.float().mean()))
    assert 1 / CLASSES < report["confidence"] <= 1
    assert all(type(value) is float for value in report.values())


def test_targets_replace_the_teachers_labels_and_the_last_plugin_wins(tiny):
    def uniform(view, logits):
        return torch.full_like(view.dense(logits), 1 / CLASSES)

    def first_class(view, logits):
        return F.one_hot(torch.zeros_like(view.source_labels), CLASSES).permute(0, 3, 1, 2).float()

    spies = [Spy("one", soft=uniform), Spy("two", soft=first_class), Spy("three")]
    frame = Frame(trust=Trust("one"))
    terms = step_of(SelfTraining(copy.deepcopy(tiny), frame, plugins=spies), 0)
    (logits, _, _), view = spies[0].corrected[1], spies[0].view
    labels = torch.where(view.masks[:, 0], view.source_labels, torch.zeros_like(view.source_labels))
    assert float(terms["mix"]) == pytest.approx(float(F.cross_entropy(logits.detach(), labels)), rel=1e-5)
    alone = Spy("one", soft=uniform)
    softer = step_of(SelfTraining(copy.deepcopy(tiny), frame, plugins=[alone]), 0)
    assert float(softer["mix"]) != pytest.approx(float(terms["mix"]), rel=1e-3)


def test_logits_are_corrected_in_the_losses_alone(tiny):
    class Forgetting(Plugin):
        def correct(self, logits, labels, domain, term):
            return 0 * logits

    terms = step_of(SelfTraining(tiny, Frame(base="mic", trust=Trust("one")), plugins=[Forgetting()]), 0)
    assert float(terms["source"]) == pytest.approx(np.log(CLASSES), rel=1e-6)
    assert float(terms["mix"]) == pytest.approx(np.log(CLASSES), rel=1e-5)
    assert float(terms["masked"]) == pytest.approx(np.log(CLASSES), rel=1e-5)


@pytest.mark.parametrize(("hard_steps", "warm_up"), [(2, 0), (0, 2), (1, 2)])
def test_the_first_steps_teach_classes(tiny, hard_steps, warm_up):
    spy = Spy(soft=lambda view, logits: view.dense(logits).softmax(dim=1), warm_up=warm_up)
    method = SelfTraining(copy.deepcopy(tiny), Frame(hard_steps=hard_steps, trust=Trust("one")), plugins=[spy])
    plain = SelfTraining(copy.deepcopy(tiny), Frame(trust=Trust("one")))
    for step in range(2):
        assert torch.equal(step_of(method, step)["mix"], step_of(plain, step)["mix"])
    assert "targets" not in spy.calls
    assert not torch.equal(step_of(method, 2)["mix"], step_of(plain, 2)["mix"])


def test_soft_labels_wait_for_the_hard_steps(tiny):
    soft = SelfTraining(copy.deepcopy(tiny), Frame(labels="soft", hard_steps=1, trust=Trust("one")))
    hard = SelfTraining(copy.deepcopy(tiny), Frame(trust=Trust("one")))
    assert torch.equal(step_of(soft, 0)["mix"], step_of(hard, 0)["mix"])
    assert not torch.equal(step_of(soft, 1)["mix"], step_of(hard, 1)["mix"])


def test_a_plugins_memory_is_part_of_the_state(tiny):
    class Counter(Plugin):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def after_step(self, step):
            self.steps += 1

    method = SelfTraining(tiny, plugins=[Counter()])
    step_of(method, 0)
    assert float(method.state_dict()["plugins.0.steps"]) == 1


# Bases


@pytest.mark.parametrize(
    ("base", "names"),
    [
        ("dacs", ["source", "mix"]),
        ("daformer", ["source", "feature_distance", "mix"]),
        ("mic", ["source", "feature_distance", "mix", "masked"]),
    ],
)
def test_the_terms_of_a_base(tiny, base, names):
    terms = step_of(SelfTraining(tiny, Frame(base=base, feature_ratio=0.1)), 0)
    assert list(terms) == names
    assert all(bool(torch.isfinite(term)) for term in terms.values())


def test_the_feature_distance_is_a_mean_over_cells_of_one_class():
    generator = torch.Generator().manual_seed(0)
    encoder = nn.Conv2d(3, 6, 4, stride=4)
    images = torch.rand(2, 3, 16, 24, generator=generator)
    features = torch.randn(2, 6, 4, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 6), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, 0, 0] = 255  # 15 of 16 pixels are left
    labels[0, :2, 4:8] = 255  # 8 of 16
    labels[1, :8] = 255
    term = FeatureDistance(encoder, weight=0.5, classes=(0, 2))(features, images, labels, 3)
    known = encoder(images).detach()
    distances = []
    for b, y, x in np.ndindex(2, 4, 6):
        cell = labels[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten().tolist()
        if max(cell.count(0), cell.count(2)) >= 12:
            distances.append(float((features[b, :, y, x].detach() - known[b, :, y, x]).norm()))
    assert 3 < len(distances) < 40
    assert float(term.detach()) == pytest.approx(0.5 * float(np.mean(distances)), rel=1e-5)
    term.backward()
    assert features.grad is not None
    assert all(parameter.grad is None for parameter in encoder.parameters())
    empty = FeatureDistance(encoder)(features, images, torch.full_like(labels, 255), 3)
    assert float(empty.detach()) == 0


def test_a_cell_needs_its_share_of_pixels():
    labels = torch.tensor([[[0, 0, 1, 1], [0, 255, 1, 2]]])
    assert cell_labels(labels, (1, 2), 3, 0.75).tolist() == [[[0, 1]]]
    assert cell_labels(labels, (1, 2), 3, 0.8).tolist() == [[[255, 255]]]


def test_the_reference_is_frozen_and_stays(tiny):
    other = build_network("tiny", CLASSES, init="none", seed=1).encoder
    method = SelfTraining(tiny, Frame(base="daformer"), reference=other)
    step_of(method, 0, lr=1.0)
    kept = method.distance.encoder.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in other.state_dict().items())
    assert not method.distance.encoder.training
    own = SelfTraining(tiny, Frame(base="daformer", feature_ratio=0.1, feature_weight=0.5))
    assert float(step_of(own, 0)["feature_distance"]) > 0


def test_features_of_padded_images_are_compared_too():
    network = build_network("tiny", CLASSES, init="none", seed=0)
    network.divisor = 16
    terms = step_of(SelfTraining(network, Frame(base="daformer", feature_ratio=0.0)), 0)
    assert bool(torch.isfinite(terms["feature_distance"]))


def test_a_block_larger_than_the_image_hides_it_or_not(tiny):
    frame = Frame(base="mic", trust=Trust("one"), masking=Masking(block=10**9))
    assert bool(torch.isfinite(step_of(SelfTraining(tiny, frame), 0)["masked"]))


def test_a_plug_in_has_no_features_to_hold(tiny):
    tiny.head_path = "head"  # what tells a plug-in: its encoder is the whole module
    with pytest.raises(ConfigError, match="none apart from its head"):
        SelfTraining(tiny, Frame(base="daformer"))
    SelfTraining(tiny, Frame(base="daformer", feature_weight=0.0))


def test_what_masked_images_show_and_are_taught(tiny, monkeypatch):
    shown = []
    tiny.register_forward_hook(lambda module, images, logits: shown.append((images[0], logits)))
    spy = Spy()
    frame = Frame(base="mic", trust=Trust("one"), strong=PLAIN, masking=Masking(block=8, ratio=0.5, weight=2.0))
    terms = step_of(SelfTraining(tiny, frame, plugins=[spy]), 0)
    images, logits = shown[-1]
    view = spy.view
    kept = (images == view.target_images).all(dim=1)
    hidden = (images == tiny.mean).all(dim=1)
    assert torch.equal(kept, ~hidden)
    blocks = kept.unflatten(1, (3, 8)).unflatten(3, (4, 8)).float().mean(dim=(2, 4))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0}
    assert 0.2 < float(blocks.mean()) < 0.8
    dense = F.interpolate(logits.detach(), size=SIZE, mode="bilinear", align_corners=False)
    assert float(terms["masked"]) == pytest.approx(2 * float(F.cross_entropy(dense, view.teacher_labels)), rel=1e-5)


def test_masked_images_can_be_taught_what_the_mix_is(tiny):
    def masked(labels, masked_labels):
        frame = Frame(base="mic", labels=labels, trust=Trust("one"), masking=Masking(labels=masked_labels))
        return float(step_of(SelfTraining(copy.deepcopy(tiny), frame), 0)["masked"])

    assert masked("soft", "hard") == masked("hard", "hard") == masked("hard", "same")
    assert masked("soft", "same") != masked("soft", "hard")
