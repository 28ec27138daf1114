"""Looking on: a look shows what a step would see, and training that is looked at has the bits of one that is not."""

import copy

import pytest
import torch

from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame
from calseg_cli.methods.self_training_labels import Trust
from calseg_cli.networks.build import build_network
from tests.methods.self_training_examples import CLASSES, batch_of, step_of


def batch(step):
    """With held-out images."""
    found, other = batch_of(step), batch_of(step + 100)
    found.held_out_images, found.held_out_labels = other.source_images, other.source_labels
    return found


@pytest.fixture
def method():
    network = build_network("tiny", CLASSES, init="none", seed=0)
    plugin = build_dacal(network, warm_up=0, alarms=False, strong=True, mask="own")
    return SelfTraining(network, Frame(trust=Trust("image", threshold=0.3), statistics="running"), plugins=[plugin])


@pytest.fixture(autouse=True)
def held_out(monkeypatch):
    monkeypatch.setattr("tests.methods.self_training_examples.batch_of", batch)


def whole(method):
    """All that is remembered, tensor by tensor."""
    found = {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}
    return found, [module.training for module in method.modules()], torch.get_rng_state(), method.report()


def test_a_look_leaves_no_trace(method):
    for step in range(2):
        step_of(method, step)
    before = whole(method)
    look = method.look(batch(7))
    for plugin in method.openings:
        plugin.pictures(look.view)
        plugin.temperatures(look.believed, look.view.dense)
    after = whole(method)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert before[3] == after[3]


def test_training_that_is_watched_has_the_same_bits(method):
    plain, calls = copy.deepcopy(method), []

    def watch(done):
        calls.append(done)
        look = method.look(batch(0))
        for plugin in method.openings:
            plugin.pictures(look.view)
            plugin.temperatures(look.believed, look.view.dense)

    method.watch = watch
    for step in range(3):
        mine, theirs = step_of(method, step), step_of(plain, step)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert calls == [0, 1, 2, 3]
    mine, theirs = method.state_dict(), plain.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if isinstance(mine[name], torch.Tensor))


def test_a_look_shows_what_a_step_on_the_batch_sees(method):
    look = method.look(batch(5))
    plugin = method.openings[0]
    told = plugin.temperatures(look.believed, look.view.dense)
    outer = plugin.pictures(look.view)["outer mix"]
    seen = {}

    def targets(view, logits):
        seen.update(view=view, logits=logits, outer=plugin.pictures(view)["outer mix"], soft=plugin._soft(view, logits))

    plugin.targets = targets
    step_of(method, 5)
    view = seen["view"]
    for name in ("masks", "mixed_images", "teacher_logits", "teacher_labels", "target_weights", "weights"):
        assert torch.equal(getattr(view, name), getattr(look.view, name)), name
    assert torch.equal(seen["logits"], look.believed)
    assert torch.equal(seen["outer"], outer)
    softened = (view.dense(look.believed) / told).softmax(dim=1)
    assert torch.allclose(softened, seen["soft"])
    # The student predicts there by the statistics of the mix, as it does while it learns.
    assert torch.allclose(look.view.mixed_features, view.mixed_features, atol=1e-5)


def test_believed_labels_are_the_corrected_ones(method):
    images = batch(3).target_images
    raw, geometry = method.believed(images)
    method.label_correction = lambda logits, image: logits + image.mean()
    moved, again = method.believed(images)
    assert geometry == again
    assert torch.allclose(moved - raw, images.mean(dim=(1, 2, 3))[:, None, None, None].expand_as(raw), atol=1e-5)


def test_a_plain_method_has_nothing_to_add(method):
    plain = SelfTraining(method.network)
    assert plain.watch is None
    assert plain.look(batch(0)).believed.shape[1] == CLASSES
