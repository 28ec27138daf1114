"""Self-training without source images: what is mixed, what is taught and by which weight, and what cannot be had."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from calseg_cli.data.mixing import class_mix_masks, mixed
from calseg_cli.engine.draws import draw_generator
from calseg_cli.errors import ConfigError
from calseg_cli.methods import build_adaptation, self_training
from calseg_cli.methods.blda import build_blda
from calseg_cli.methods.dacal import build_dacal
from calseg_cli.methods.logit_mixtures import fit_mixtures
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust, sampled
from tests.methods.self_training_examples import PLAIN, Spy
from tests.methods.self_training_examples import trained as run

FREE = Frame(source_free=True, strong=PLAIN, trust=Trust("image", 0.35))
ANCHORS = fit_mixtures(torch.tensor([[1.0, 2, 4], [-2.0, -1, 0]]), 5, 2)
EAGER = {"warm_up": 0, "min_pixels": 10, "em_steps": 1, "max_samples": 64, "nodes": 64}


def bare(batch):
    """Nothing but the target's images."""
    return replace(batch, source_images=None, source_labels=None, held_out_images=None, held_out_labels=None)


def looked(network, batch, frame=FREE, **options):
    """A method, its terms on a batch, and the spy that saw the step."""
    spy = Spy()
    method = SelfTraining(copy.deepcopy(network), frame, plugins=[spy], **options).train()
    method.before_step(batch, 0)
    return method, method(batch), spy


def test_the_source_is_not_looked_at(network, make_batch):
    batch = make_batch(0)
    spoilt = replace(batch, source_images=batch.source_images * torch.nan, source_labels=batch.source_labels * 0)
    terms = [looked(network, one)[1] for one in (batch, spoilt, bare(batch))]
    assert [list(one) for one in terms] == [["mix", "spy"]] * 3
    assert len({float(one["mix"].detach()) for one in terms}) == 1


def test_each_image_is_mixed_with_the_next_by_the_teachers_classes(network, make_batch):
    batch = bare(make_batch(0))
    method, terms, spy = looked(network, batch)
    view, images = spy.view, batch.target_images
    others, said = images.roll(1, 0), view.teacher_labels.roll(1, 0)
    assert torch.equal(view.source_images, others)
    assert torch.equal(view.masks, class_mix_masks(said, draw_generator(0, 0, 0)))
    assert torch.equal(view.mixed_images, torch.where(view.masks, others, images))
    assert len(set(view.target_weights[:, 0, 0].tolist())) > 1
    assert torch.equal(view.weights, mixed(view.target_weights.roll(1, 0), view.target_weights, view.masks))
    logits, labels, domain = spy.corrected[0]
    assert spy.calls == ["targets", "correct mix", "terms"]
    assert not bool(domain.any())
    assert torch.equal(labels, mixed(said, view.teacher_labels, view.masks))
    loss = (view.weights * F.cross_entropy(logits, labels, reduction="none")).mean()
    assert float(terms["mix"].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert method.report()["target_share"] == 1


@pytest.mark.parametrize("base", ["dacs", "mic"])
@pytest.mark.parametrize("labels", ["hard", "soft", "sampled"])
def test_with_an_empty_mask_nothing_of_the_other_image_is_seen(network, make_batch, monkeypatch, labels, base):
    frame = replace(FREE, labels=labels, base=base, masking=Masking(block=4))
    monkeypatch.setattr(self_training, "class_mix_masks", lambda given, *_: torch.zeros_like(given[:, None]).bool())
    batch = bare(make_batch(0))
    first = looked(network, batch, frame)[1]
    garbage = {torch.float32: float("nan"), torch.int64: 77}
    monkeypatch.setattr(
        self_training, "of_the_neighbour", lambda values, *_: torch.full_like(values, garbage[values.dtype])
    )
    second = looked(network, batch, frame)[1]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("labels", ["soft", "sampled"])
def test_what_is_pasted_is_taught_as_the_frame_teaches_the_image_it_is_from(network, make_batch, labels):
    frame = replace(FREE, labels=labels, trust=Trust("one"))
    batch = bare(make_batch(0))
    _, terms, spy = looked(network, batch, frame)
    view, (logits, taught, _) = spy.view, spy.corrected[0]
    soft = view.dense(view.teacher_logits).softmax(dim=1)
    if labels == "sampled":
        drawn = sampled(soft, draw_generator(0, 0, 2))
        assert not torch.equal(drawn, view.teacher_labels)
        assert torch.equal(taught, mixed(drawn.roll(1, 0), drawn, view.masks))
        return
    soft = torch.where(view.masks, soft.roll(1, 0), soft)
    loss = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert float(terms["mix"].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_one_image_is_mixed_with_itself(network, make_batch):
    batch = bare(make_batch(0, size=1))
    _, terms, spy = looked(network, batch)
    assert torch.equal(spy.view.mixed_images, batch.target_images)
    assert bool(terms["mix"].isfinite())


def test_blda_learns_the_targets_cells_alone(network, make_batch):
    plugin = build_blda(network, anchors=ANCHORS, tau=1.0, **EAGER)
    frame = replace(FREE, trust=Trust("one"))
    method = SelfTraining(copy.deepcopy(network), frame, plugins=[plugin]).train()
    plain = SelfTraining(copy.deepcopy(network), frame).train()
    before = {name: one.clone() for name, one in plugin.state_dict().items()}
    mine, theirs = (run(one, lambda step: bare(make_batch(step)), range(1)) for one in (method, plain))
    changed = {name.split(".")[0] for name, one in plugin.state_dict().items() if not torch.equal(before[name], one)}
    assert changed == {"target", "steps"}
    assert int(plugin.target.pixels.sum()) == 4 * 16 * 20
    assert not torch.equal(mine["mix"], theirs["mix"])
    assert plugin.report()["source_labels"] == 0


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda network: {"frame": replace(FREE, base="daformer")}, "rare-class sampling"),
        (lambda network: {"frame": FREE, "plugins": [build_dacal(network)]}, "dacal"),
        (lambda network: {"frame": FREE, "plugins": [build_blda(network)]}, "blda learns its anchors"),
    ],
)
def test_what_cannot_be_had_without_the_source(network, build, told):
    with pytest.raises(ConfigError, match=told):
        build_adaptation("self-training", network, **build(network))


def test_mic_without_the_source_has_masked_images_and_no_feature_distance(network, make_batch):
    frame = replace(FREE, base="mic", masking=Masking(block=4))
    method, terms, _ = looked(network, bare(make_batch(0)), frame)
    assert method.distance is None
    assert list(terms) == ["mix", "masked", "spy"]
