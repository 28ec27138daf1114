"""BLDA on the self-training frame: which pixels it learns from, what it does to the loss, and what it leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.data.mixing import mixed
from calseg_cli.errors import ConfigError
from calseg_cli.losses.weighted_cross_entropy import weighted_cross_entropy
from calseg_cli.methods import build_adaptation
from calseg_cli.methods.blda import BLDA, build_blda
from calseg_cli.methods.logit_alignment import alignment_table
from calseg_cli.methods.logit_mixtures import Mixtures, fit_mixtures
from calseg_cli.methods.self_training import SelfTraining
from calseg_cli.methods.self_training_frame import Frame, Masking
from calseg_cli.methods.self_training_labels import Trust
from tests.methods.self_training_examples import trained as run

ONE = Frame(trust=Trust("one"))
EAGER = {"warm_up": 0, "min_pixels": 10, "em_steps": 1, "max_samples": 64, "nodes": 64}


def blda(network, frame=ONE, **options) -> SelfTraining:
    network = copy.deepcopy(network)
    return SelfTraining(network, frame, plugins=[build_blda(network, **{**EAGER, **options})]).train()


def plain(network, frame=ONE) -> SelfTraining:
    return SelfTraining(copy.deepcopy(network), frame).train()


def weights(method):
    return [parameter.detach().clone() for parameter in method.network.parameters()]


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def scene(seed: int = 0, classes: int = 3):
    """Logits (2,C,20,20) of a network that knows a little, labels with some unknown, and a mask of the source."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (2, 20, 20), generator=drawn)
    logits = torch.randn(2, classes, 20, 20, generator=drawn) + 3 * F.one_hot(labels, classes).permute(0, 3, 1, 2)
    labels[torch.rand(labels.shape, generator=drawn) < 0.1] = 255
    return logits, labels, torch.rand(2, 1, 20, 20, generator=drawn) < 0.5


def shown(network, **options) -> BLDA:
    """A plugin that has seen one step's source images and mix."""
    plugin = build_blda(network, **{**EAGER, **options})
    logits, labels, masks = scene()
    plugin.correct(logits, labels, torch.ones_like(masks), "source")
    plugin.correct(*scene(1), "mix")
    return plugin


def changed(before, module):
    return {name for name, one in module.state_dict().items() if not torch.equal(before[name], one)}


def state(module: nn.Module):
    return {name: one.clone() for name, one in module.state_dict().items()}


def tables(plugin: BLDA):
    """Of both domains, built apart from the plugin."""
    return [
        alignment_table(cells.mixtures, plugin.anchors.mixtures, cells.seen, nodes=plugin.options.nodes)
        for cells in (plugin.source, plugin.target)
    ]


@pytest.mark.parametrize("base", ["dacs", "daformer", "mic"])
def test_with_tau_0_it_is_the_frame_bit_for_bit(network, make_batch, base):
    frame = Frame(base=base, trust=Trust("one"), masking=Masking(block=4))
    method, bare = blda(network, frame, tau=0.0), plain(network, frame)
    mine, theirs = run(method, make_batch, range(3)), run(bare, make_batch, range(3))
    assert same(mine.values(), theirs.values())
    assert same(weights(method), weights(bare))
    assert bool(method.openings[0].target.seen.any())


def test_in_the_warm_up_it_only_gathers(network, make_batch):
    method, bare = blda(network, warm_up=2, tau=1.0), plain(network)
    run(method, make_batch, range(2))
    run(bare, make_batch, range(2))
    assert same(weights(method), weights(bare))
    assert bool(method.openings[0].source.seen.any())
    run(method, make_batch, range(2, 3))
    run(bare, make_batch, range(2, 3))
    assert not same(weights(method), weights(bare))


def test_source_images_teach_the_source_and_the_mix_its_target_pixels_alone(network):
    plugin = build_blda(network, **EAGER)
    logits, labels, masks = scene()
    before = state(plugin)
    plugin.correct(logits, labels, torch.ones_like(masks), "source")
    assert {name.split(".")[0] for name in changed(before, plugin)} == {"source", "anchors"}
    assert plugin.source.pixels.tolist() == [int((labels == one).sum()) for one in range(3)]
    before = state(plugin)
    logits, labels, masks = scene(1)
    plugin.correct(logits, labels, masks, "mix")
    assert {name.split(".")[0] for name in changed(before, plugin)} == {"target"}
    there = ~masks[:, 0]
    assert plugin.target.pixels.tolist() == [int((labels[there] == one).sum()) for one in range(3)]


def test_a_mix_that_shows_the_source_alone_teaches_neither(network):
    plugin, (logits, labels, masks) = shown(network), scene(2)
    plugin.after_step(0)
    plugin.correct(logits, labels, torch.ones_like(masks), "source")
    before = state(plugin)
    plugin.correct(logits, labels, torch.ones_like(masks), "mix")
    assert changed(before, plugin) == set()


def test_pasted_logits_do_not_reach_the_targets_cells(network):
    one, other = (build_blda(network, **EAGER) for _ in range(2))
    logits, labels, masks = scene(1)
    for plugin, given in ((one, logits), (other, torch.where(masks, 50.0, logits))):
        plugin.correct(*scene()[:2], torch.ones_like(masks), "source")
        plugin.correct(given, labels, masks, "mix")
    assert changed(state(one), other) == set()


def test_offsets_are_those_of_the_pixels_domain_and_label_after_the_update(network):
    plugin = build_blda(network, **EAGER, tau=0.3)
    logits, labels, masks = scene()
    first = plugin.correct(logits, labels, torch.ones_like(masks), "source")
    known = labels != 255
    rows = labels.masked_fill(~known, 0)
    expected = torch.where(known[:, None], tables(plugin)[0].offset(logits, rows), 0.0)
    torch.testing.assert_close(first, logits - 0.3 * expected)
    logits, labels, masks = scene(1)
    second = plugin.correct(logits, labels, masks, "mix")
    known = labels != 255
    rows = labels.masked_fill(~known, 0)
    source, target = (table.offset(logits, rows) for table in tables(plugin))
    assert float((source - target).abs().mean()) > 0.01
    expected = torch.where(known[:, None], torch.where(masks, source, target), 0.0)
    torch.testing.assert_close(second, logits - 0.3 * expected)


def test_masked_images_are_moved_by_the_targets_table_and_not_learned_from(network):
    plugin, (logits, labels, masks) = shown(network, tau=0.3), scene(2)
    before = state(plugin)
    found = plugin.correct(logits, labels, torch.zeros_like(masks), "masked")
    known = labels != 255
    expected = torch.where(known[:, None], tables(plugin)[1].offset(logits, labels.masked_fill(~known, 0)), 0.0)
    torch.testing.assert_close(found, logits - 0.3 * expected)
    assert changed(before, plugin) == set()
    assert not torch.equal(found, logits)


def test_with_mic_the_masked_term_is_corrected_and_teaches_the_cells_nothing(network, make_batch):
    frame = Frame(base="mic", feature_weight=0.0, trust=Trust("one"), masking=Masking(block=4))
    mic, dacs = blda(network, frame, tau=1.0), blda(network, tau=1.0)
    bare = plain(network, frame)
    mine, theirs, without = (run(method, make_batch, range(1)) for method in (mic, bare, dacs))
    assert not torch.equal(mine["masked"], theirs["masked"])
    assert torch.equal(mine["mix"], without["mix"])
    assert same(mic.openings[0].state_dict().values(), dacs.openings[0].state_dict().values())


@pytest.mark.parametrize("border", [{"ignore_top": 6}, {"ignore_bottom": 9}, {"ignore_top": 16}])
@pytest.mark.parametrize("base", ["dacs", "mic"])
def test_rows_that_teach_nothing_are_not_in_the_targets_statistics(network, make_batch, border, base):
    """Target pixels of the mix that lie in other rows, and no others, are counted."""
    frame = Frame(base=base, feature_weight=0.0, trust=Trust("one", **border), masking=Masking(block=4))
    method, batch = blda(network, frame, tau=1.0), make_batch(0)
    method.before_step(batch, 0)
    view = method.look(batch).view
    method(batch)
    inside = torch.zeros_like(view.masks)
    inside[:, :, border.get("ignore_top", 0) : 16 - border.get("ignore_bottom", 0)] = True
    there = inside & ~view.masks
    expected = torch.bincount(view.teacher_labels[there[:, 0]], minlength=3)
    assert method.openings[0].target.pixels.tolist() == expected.tolist()


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_gradient_is_that_of_cross_entropy_at_the_moved_logits(network, tau):
    plugin, (logits, labels, masks) = build_blda(network, **EAGER, tau=tau), scene()
    logits.requires_grad_(True)
    moved = plugin.correct(logits, labels, torch.ones_like(masks), "source")
    before = state(plugin)
    F.cross_entropy(moved, labels, ignore_index=255, reduction="sum").backward()
    target = F.one_hot(labels.masked_fill(labels == 255, 0), 3).permute(0, 3, 1, 2)
    expected = torch.where(labels[:, None] != 255, moved.detach().softmax(1) - target, 0.0)
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)
    assert changed(before, plugin) == set()


@pytest.mark.parametrize(("shift", "sign"), [(2.0, -1), (-2.0, 1)])
def test_a_class_above_the_anchor_is_pulled_less_and_one_below_more(network, shift, sign):
    plugin, (logits, labels, masks) = build_blda(network, **EAGER, tau=0.2), scene()
    own = labels == 1
    logits[:, 1] += shift * own  # the positive logits of class 1 alone
    moved = plugin.correct(logits, labels, torch.ones_like(masks), "source")
    plain_loss, loss = (F.cross_entropy(z.movedim(1, -1)[own], labels[own]) for z in (logits, moved))
    assert sign * float(loss - plain_loss) > 0.01


def test_labels_never_seen_and_pixels_without_one_keep_their_logits(network):
    plugin = build_blda(network, **EAGER, tau=1.0)
    logits, labels, masks = scene()
    labels[labels == 2] = 255
    plugin.correct(logits, labels, torch.ones_like(masks), "source")
    logits, labels, masks = scene(1)
    found = plugin.correct(logits, torch.where(~masks[:, 0] & (labels == 1), 255, labels), masks, "mix").movedim(1, -1)
    plain_logits = logits.movedim(1, -1)
    unmoved = (labels == 255) | (masks[:, 0] & (labels == 2)) | (~masks[:, 0] & (labels == 1))
    assert torch.equal(found[unmoved], plain_logits[unmoved])
    assert bool((found[~unmoved] != plain_logits[~unmoved]).any(-1).all())
    assert plugin.report()["source_labels"] == 2


def test_while_the_anchors_are_in_the_wrong_order_nothing_moves(network):
    plugin, (logits, labels, masks) = build_blda(network, **EAGER, tau=1.0), scene()
    assert plugin.correct(-logits, labels, torch.ones_like(masks), "source") is not None
    assert float(plugin.anchors.gap) < 0
    found = -logits
    assert plugin.correct(found, labels, masks, "mix") is found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda logits, labels: (logits, torch.full_like(labels, 255)),
        lambda logits, labels: (logits, torch.zeros_like(labels)),
        lambda logits, labels: (torch.zeros_like(logits), labels),
        lambda logits, labels: (logits[..., :1, :1], labels[..., :1, :1]),
    ],
    ids=["no label", "one label", "constant", "one pixel"],
)
def test_poor_batches_give_finite_losses(network, spoil):
    plugin = shown(network, tau=1.0)
    plugin.after_step(0)
    for domain in (True, False):
        logits, labels = spoil(*scene(3)[:2])
        domains = torch.full((len(logits), 1, *logits.shape[2:]), domain)
        assert bool(plugin.correct(logits, labels, domains, "source" if domain else "mix").isfinite().all())
    assert all(bool(one.isfinite().all()) for one in plugin.state_dict().values())


def test_a_pixel_that_is_no_number_does_not_reach_the_statistics(network):
    plugin, (logits, labels, masks) = build_blda(network, **EAGER), scene()
    logits[0, 1, 3, 4] = float("nan")
    found = plugin.correct(logits, labels, torch.ones_like(masks), "source")
    assert all(bool(one.isfinite().all()) for one in plugin.state_dict().values())
    assert int(found.isnan().sum()) == 1


def test_it_continues_to_the_same_bits(network, make_batch):
    frame, options = Frame(base="mic", trust=Trust("one"), masking=Masking(block=4)), {"density_weight": 0.3}
    whole, half, rest = (blda(network, frame, tau=0.5, **options) for _ in range(3))
    run(whole, make_batch, range(5))
    run(half, make_batch, range(3))
    rest.load_state_dict(half.state_dict())
    run(rest, make_batch, range(3, 5))
    mine, theirs = whole.state_dict(), rest.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert bool(whole.openings[0].target.rows.updates.max() > 2)


@pytest.mark.parametrize("name", ["dacal+blda", "blda+dacal"])
def test_it_goes_with_dacal_and_with_soft_labels(network, make_batch, name):
    method = build_adaptation(name, copy.deepcopy(network), frame=Frame(labels="soft", trust=Trust("one"))).train()
    kinds = [type(plugin).__name__ for plugin in method.openings]
    assert kinds == ["DACal" if part == "dacal" else "BLDA" for part in name.split("+")]
    plugin = next(one for one in method.openings if isinstance(one, BLDA))
    plugin.options = build_blda(network, **EAGER, tau=1.0).options
    assert all(bool(term.isfinite()) for term in run(method, make_batch, range(3)).values())
    assert method.report()["offset"] > 0


def test_labels_and_the_deployed_network_know_nothing_of_it(network, make_batch):
    method, bare = blda(network, tau=1.0), plain(network)
    run(method, make_batch, range(2))
    bare.load_state_dict({n: one for n, one in method.state_dict().items() if not n.startswith("plugins.")})
    batch = make_batch(2)
    mine, theirs = method.look(batch), bare.look(batch)
    assert torch.equal(mine.view.teacher_logits, theirs.view.teacher_logits)
    assert torch.equal(mine.view.teacher_labels, theirs.view.teacher_labels)
    assert torch.equal(method.deployed().eval()(batch.target_images), bare.deployed().eval()(batch.target_images))


def test_frozen_anchors_stay_while_cells_learn(network, make_batch):
    given = fit_mixtures(torch.tensor([[4.0, 5, 6], [-5.0, -4, -2]]), 5, 2)
    method = blda(network, anchors=given)
    run(method, make_batch, range(2))
    plugin = method.openings[0]
    assert all(torch.equal(*pair) for pair in zip(plugin.anchors.mixtures.parts(), given.parts(), strict=True))
    assert bool(plugin.source.seen.any())


def test_the_density_head_learns_each_pixels_place_in_its_class(network, make_batch):
    method = blda(network, density_weight=0.5, tau=0.0)
    plugin, bare = method.openings[0], plain(network)
    assert [group.name for group in method.parameter_groups()][-1] == "density head"
    batch = make_batch(0)
    method.before_step(batch, 0)
    bare.before_step(batch, 0)
    kept = {}
    original = plugin.terms
    plugin.terms = lambda view: kept.update(view=view, densities=plugin._densities) or original(view)
    terms, theirs = method(batch), bare(batch)
    assert torch.equal(terms["source"], theirs["source"])
    view, densities = kept["view"], kept["densities"]
    labels = mixed(view.source_labels[:, None], view.teacher_labels[:, None], view.masks)[:, 0]
    guess = view.dense(plugin.density(view.student_features))
    assert guess.shape == (*labels[:, None].shape,)
    total = count = 0.0
    logits = view.dense(network.classify(view.student_features))
    for image, row, column in [(0, 1, 2), (1, 5, 7), (2, 15, 19), (3, 8, 11)]:
        label = int(labels[image, row, column])
        cells = plugin.source if view.masks[image, 0, row, column] else plugin.target
        known = label != 255 and bool(cells.seen[label])
        assert bool(densities.known[image, row, column]) == known
        if known:
            own = logits[image, label, row, column].detach()
            expected = cells.mixtures[label, label].cdf(own[None])[0]
            torch.testing.assert_close(densities.values[image, row, column], expected, atol=1e-5, rtol=0)
    for image in range(4):  # image by image: weights of one must not touch another
        known = densities.known[image]
        error = (guess[image, 0].detach() - densities.values[image]) ** 2 * view.weights[image]
        total, count = total + float(error[known].sum()), count + int(known.sum())
    assert float(terms["density"].detach()) == pytest.approx(0.5 * total / count, rel=1e-5)
    terms["density"].backward()
    assert plugin.density.weight.grad is not None
    assert method.network.encoder[0].weight.grad.abs().sum() > 0
    assert method.network.head.weight.grad is None
    assert method.teacher.head.weight.grad is None


def test_a_network_without_features_has_no_density_head():
    class Whole(nn.Module):
        num_classes, name = 3, "whole"

    with pytest.raises(ConfigError, match="whole"):
        build_blda(Whole(), density_weight=0.1)
    build_blda(Whole())


def toy(tau: float, steps: int = 60) -> tuple[float, float]:
    """Mean and spread of class accuracies, by the raw logits, of a small network on five classes of very unlike size.

    Only source images are taught, by the corrected loss.
    """
    drawn = torch.Generator().manual_seed(0)
    centres = 1.3 * torch.randn(5, 2, generator=drawn)
    shares = torch.tensor([0.6, 0.22, 0.1, 0.05, 0.03])

    def points(each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(5).repeat_interleave(each)
        return centres[labels] + 0.8 * torch.randn(len(labels), 2, generator=drawn), labels

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 5))
    network.num_classes = 5
    plugin = build_blda(network, tau=tau, warm_up=0, min_pixels=20, max_samples=64, anchor_samples=512, nodes=64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(steps):
        values, labels = points((1000 * shares).long())
        logits = network(values).t()[None, :, None]
        domain = torch.ones(1, 1, 1, len(labels), dtype=torch.bool)
        moved = plugin.correct(logits, labels[None, None], domain, "source")
        loss = weighted_cross_entropy(moved, labels[None, None], torch.ones(1, 1, len(labels)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plugin.after_step(step)
    with torch.no_grad():
        values, labels = points(torch.full((5,), 4000))
        hits = (network(values).argmax(1) == labels).reshape(5, -1).float().mean(1)
    return float(hits.mean()), float(hits.std(correction=0))


def test_training_with_it_evens_the_classes_out():
    bare, moved = toy(0.0), toy(0.2)
    assert moved[0] > bare[0] + 0.01
    assert moved[1] < bare[1] - 0.01


def test_all_of_it_is_in_the_state_dict(network):
    plugin, other = shown(network), build_blda(network, **EAGER)
    plugin.after_step(0)
    other.load_state_dict(plugin.state_dict())
    logits, labels, masks = scene(4)
    assert torch.equal(
        plugin.correct(logits, labels, torch.ones_like(masks), "source"),
        other.correct(logits, labels, torch.ones_like(masks), "source"),
    )
    assert changed(state(plugin), other) == set()
    assert isinstance(plugin.anchors.mixtures, Mixtures)
