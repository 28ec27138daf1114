"""Processes that share a training: exact sums, one process's gradients and weights, and an end that is everyone's."""

import copy
import os
import signal
import time

import pytest
import torch
from torch import nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine import distributed, words
from calseg_cli.engine.batch_statistics import own_statistics
from calseg_cli.engine.distributed import ALONE, Ranks, process_group
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.shared_batch_norm import SharedBatchNorm, share_batch_norm
from calseg_cli.engine.train import Hooks, Plan, train
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.methods.source import CalibrationTerm, Source
from tests.ranks import together


class Small(nn.Module):
    """Encoder with batch norm and dropout, head without; stride 2."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.stride, self.divisor, self.align_corners, self.name = 3, 2, 1, False, "small"
        norm = nn.BatchNorm2d(8)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), norm, nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images):
        return self.head(self.encoder(images))


class Images:
    """Batches of four that follow from the step, or a process's share; the last images have few labels."""

    def __init__(self, slots=None) -> None:
        self.slots = slice(None) if slots is None else slice(slots.start, slots.stop)

    def batches(self, start, stop):
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            images = torch.rand(4, 3, 8, 12, generator=generator)
            labels = images.argmax(1)
            share = torch.tensor([0.0, 0.1, 0.6, 1.0])[:, None, None]
            labels[torch.rand(labels.shape, generator=generator) < share] = 255
            yield Batch(step, images[self.slots], labels[self.slots], None, (), ())


def two(work, **options):
    """What two processes give; both must end well."""
    ended = together(work, **options)
    assert [code for code, _ in ended] == [0, 0], ended
    return [result for _, result in ended]


def run(plan, ranks=ALONE, *, dropout=0.0, stop=None, state=None, saved=None, records=None, shared=True):
    """Train on the share of `ranks`; the weights."""
    network = Small(dropout)
    torch.manual_seed(50 + ranks.rank)  # what each process drew before must not matter
    if shared:
        share_batch_norm(network, ranks)
    method = Source(network, ranks=ranks)
    hooks = Hooks(
        log=lambda record: None if records is None else records.append(record),
        validate=lambda step: None,
        save=lambda step, found: None if saved is None else saved.append(copy.deepcopy(found)),
    )
    stream = Images(ranks.slots(4, "batch"))
    train(method, stream, plan, device=torch.device("cpu"), hooks=hooks, progress=Silent(),
          stop=StopRequest() if stop is None else stop, state=state, ranks=ranks, seed=3)  # fmt: skip
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What travels


def test_sums_are_exact_and_everybody_holds_the_same(monkeypatch):
    monkeypatch.setattr(distributed, "_BUCKET", 4)

    def work(ranks):
        big = torch.tensor([2**53 + ranks.rank, -5])
        odd = torch.tensor([0.1, 0.2]).t() * (ranks.rank + 1)
        weights = [nn.Parameter(torch.zeros(2, 3).t()), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
        weights += [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(1))]
        weights[4].requires_grad_(False)
        for number, weight in enumerate(weights[:2]):
            weight.grad = torch.arange(weight.numel(), dtype=weight.dtype).view(weight.shape) * (
                number + 1 + ranks.rank
            )
        if ranks.rank:
            weights[2].grad = torch.tensor([1.0, 2.0])
        ranks.reduce_gradients(weights)
        summed = [None if weight.grad is None else weight.grad.clone() for weight in weights]
        ranks.reduce_gradients(weights[:1], mean=True)
        moved = torch.full((2, 2, 3, 3), float(ranks.rank)).to(memory_format=torch.channels_last)
        flag = torch.tensor([ranks.is_main])
        ranks.equalise([moved, flag])
        ranks.barrier()
        truth = torch.tensor([[ranks.is_main]])
        both = ranks.whole(torch.tensor([[1.0, 2.0]]).t()[:, 0] + 10 * ranks.rank)
        worked = ranks.main_does(lambda: time.sleep(0.2) or ranks.rank)
        asked = []
        answer = ranks.main_answers(lambda: asked.append(ranks.rank) or f"by {ranks.rank}")
        return {
            "both": both, "part": ranks.own(both), "truth": ranks.whole(truth), "first": ranks.first(3),
            "worked": worked, "asked": asked, "answer": answer,
            "big": ranks.total(big), "odd": ranks.total(odd), "own": big, "largest": ranks.largest([ranks.rank, 5]),
            "share": ranks.share(f"of {ranks.rank}"), "gather": ranks.gather(ranks.rank), "summed": summed,
            "mean": weights[0].grad, "moved": (float(moved.sum()), bool(flag)), "places": list(ranks.places(5)),
        }  # fmt: skip

    first, second = two(work)
    assert first["big"].tolist() == second["big"].tolist() == [2**54 + 1, -10]
    assert (first["own"][0], second["own"][0]) == (2**53, 2**53 + 1), "what goes in stays as it is"
    assert torch.equal(first["odd"], second["odd"])
    torch.testing.assert_close(first["odd"], torch.tensor([0.3, 0.6]))
    for found in (first, second):
        assert found["largest"] == [1, 5]
        assert found["share"] == "of 0"
        assert found["gather"] == [0, 1]
        assert torch.equal(found["summed"][0], torch.arange(6.0).view(3, 2) * 3)
        assert torch.equal(found["summed"][1], torch.arange(3.0, dtype=torch.float64) * 5)
        assert found["summed"][2].tolist() == [1, 2], "a gradient that one process lacks is 0 there"
        assert found["summed"][3] is None, "one that all lack stays so, or weight decay would move it"
        assert found["summed"][4] is None
        assert torch.equal(found["mean"], torch.arange(6.0).view(3, 2) * 3)
        assert found["moved"] == (0.0, True)
    assert (first["places"], second["places"]) == ([0, 2, 4], [1, 3])
    assert (first["asked"], second["asked"]) == ([0], []), "only the main process looks"
    for found in (first, second):
        assert found["answer"] == "by 0"
        assert found["both"].tolist() == [1, 2, 11, 12]
        assert found["truth"].tolist() == [[True], [False]]
    assert (first["part"].tolist(), second["part"].tolist()) == ([1, 2], [11, 12])
    assert (first["first"], second["first"]) == (0, 3)
    assert (first["worked"], second["worked"]) == (0, None), "the main process works, the others wait for it"


def test_who_waits_for_the_main_processs_work_ends_with_it():
    def broken():
        raise DataError("no such image")

    ended = together(lambda ranks: ranks.main_does(broken), seconds=60)
    assert ended == [(4, "no such image"), (4, None)]


def test_one_process_is_as_if_there_were_no_such_thing(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    tensor, network = torch.rand(3), Small()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with process_group("no device is looked at") as ranks:
        assert ranks is ALONE
        assert ranks.total(tensor) is tensor
        assert ranks.slots(5, "") is None
        ranks.equalise(network.parameters())
        ranks.seed_step(0, 0)
        share_batch_norm(network, ranks)
        ranks.reduce_gradients(network.parameters())
        ranks.barrier()
    assert not any(isinstance(layer, SharedBatchNorm) for layer in network.modules())
    assert same(before, network.state_dict())
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_shared_equally_or_not_at_all():
    assert [list(Ranks(rank, 3).slots(6, "k")) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    for size in (1, 5):
        with pytest.raises(ConfigError, match=f"k: {size} images cannot be shared equally by 2"):
            Ranks(0, 2).slots(size, "k")


@pytest.mark.parametrize("name", ["mps", "cuda:1"])
def test_a_device_that_cannot_be_shared_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        Ranks(0, 2).device(torch.device(name))
    assert Ranks(0, 1).device(torch.device(name)) == torch.device(name)


# One process's training


CASES = [
    {},
    {"class_weights": torch.tensor([0.5, 1.0, 4.0])},
    {"label_smoothing": 0.1},
    {"ece": CalibrationTerm(0.7)},
    {"ece": CalibrationTerm(0.7, over="image", binning="soft"), "class_weights": torch.tensor([3.0, 1.0, 0.5])},
]


def gradients(ranks, case, *, training):
    """Terms and gradients of one batch, before the sum over the processes and after."""
    method = Source(Small(), **case, ranks=ranks).train(training)
    share_batch_norm(method, ranks)
    (batch,) = Images(ranks.slots(4, "batch")).batches(0, 1)
    terms = method(batch)
    sum(terms.values()).backward()
    alone = {name: parameter.grad.clone() for name, parameter in method.named_parameters()}
    ranks.reduce_gradients(method.parameters())
    terms = {name: ranks.total(term.detach()) for name, term in terms.items()}
    return terms, {name: parameter.grad for name, parameter in method.named_parameters()}, alone


def test_gradients_are_those_of_one_process():
    """Of each loss, with frozen statistics and with those of the whole batch; labels lie on one share of it mostly."""

    def work(ranks):
        return [gradients(ranks, case, training=training) for case in CASES for training in (False, True)]

    first, second = two(work)
    for one, other, (terms, expected, _) in zip(first, second, work(ALONE), strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(one[1][name], gradient, atol=1e-6, rtol=1e-5)
            assert torch.equal(one[1][name], other[1][name])
            assert not torch.allclose(one[2][name], gradient, atol=1e-6), "a share alone must not have sufficed"
        for name, term in terms.items():
            torch.testing.assert_close(one[0][name], term, atol=1e-6, rtol=1e-5)


# SGD: AdamW divides the gradient of a bias in front of batch norm, which is rounding alone, by its own size.
PLAN = Plan(
    steps=4, optimizer="sgd", lr=0.01, head_lr=0.02, clip_norm=0.5, accumulate=2, checkpoint_every=2, log_every=1
)


def test_training_is_that_of_one_process_and_goes_on_in_another_number():
    def work(ranks):
        saved, records = [], []
        return run(PLAN, ranks, saved=saved, records=records), saved[0], records

    expected, _, records = work(ALONE)  # first: what torch loads when it first optimises is then loaded for all
    (first, state, told), (second, _, _) = two(work)
    assert same(first, second)
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, atol=1e-5, rtol=1e-4)
    for one, other in zip(records, told, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    resumed = run(PLAN, state=state)
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-5, rtol=1e-4)


def test_dropout_differs_between_shares_and_steps_and_resumes_bit_for_bit():
    def work(ranks):
        saved = []
        whole = run(PLAN, ranks, dropout=0.5, saved=saved)
        resumed = run(PLAN, ranks, dropout=0.5, state=ranks.share(saved[0]))
        draws = []
        for step in (0, 1):
            ranks.seed_step(5, step)
            draws.append(torch.rand(4))
        return whole, resumed, draws

    (whole, resumed, draws), (other, _, others) = two(work)
    assert same(whole, resumed)
    assert same(whole, other)
    seen = [tuple(draw.tolist()) for draw in (*draws, *others)]
    assert len(set(seen)) == 4


def test_batch_norm_that_is_not_shared_keeps_the_main_processs_statistics():
    def work(ranks):
        return run(PLAN, ranks, shared=False)

    first, second = two(work)
    assert same(first, second)


def test_one_that_is_asked_to_stop_stops_all_at_the_same_step():
    def work(ranks):
        stop, saved = StopRequest(), []

        class Records(list):
            def append(self, record):
                if ranks.rank and record["step"] == 2:  # which only one process hears
                    stop.signum = int(signal.SIGTERM)

        run(PLAN, ranks, stop=stop, saved=saved, records=Records())
        return stop.signum, saved[-1]["step"]

    assert two(work) == [(int(signal.SIGTERM), 3)] * 2


# Batch norm


def statistics(norm, images, *, ranks=ALONE, mode="train"):
    """What a layer gives, its gradients and buffers, on a process's images."""
    layer = nn.Sequential(copy.deepcopy(norm)).double().train(mode != "eval")
    share_batch_norm(layer, ranks)
    images = images.clone().requires_grad_(True)
    if mode == "own":
        layer.eval()
        with own_statistics(layer):
            out = layer(images)
    else:
        out = layer(layer(images))
    out.pow(3).sin().sum().backward()
    ranks.reduce_gradients(layer.parameters())
    return out.detach(), images.grad, {name: p.grad for name, p in layer.named_parameters()}, layer.state_dict()


NORMS = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False)]


def test_batch_norm_sees_the_whole_batch():
    """Against torch's own layer on all images, in float64; shares of unlike size and brightness."""
    torch.manual_seed(0)
    for norm in NORMS:
        if norm.affine:
            nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    wide = torch.randn(5, 3, 4, 2, dtype=torch.float64) + torch.arange(5.0)[:, None, None, None]
    shapes = [wide if isinstance(norm, nn.BatchNorm2d) else wide[..., 0, 0] for norm in NORMS]
    cases = [
        (norm, images, mode) for norm, images in zip(NORMS, shapes, strict=True) for mode in ("train", "own", "eval")
    ]

    def work(ranks):
        share = slice(0, 2) if ranks.is_main else slice(2, 5)
        return [statistics(norm, images[share], ranks=ranks, mode=mode) for norm, images, mode in cases]

    for one, other, (norm, images, mode) in zip(*two(work), cases, strict=True):
        out, gradient, parameters, state = statistics(norm, images, mode=mode)
        torch.testing.assert_close(torch.cat([one[0], other[0]]), out)
        torch.testing.assert_close(torch.cat([one[1], other[1]]), gradient)
        for found in (one, other):
            torch.testing.assert_close(found[2], parameters)
            torch.testing.assert_close(found[3], state)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_shared_batch_norm_makes_no_device_wait(monkeypatch, momentum):
    """No number is copied to where the images are, none is read from there."""

    def waits(*args, **options):
        raise AssertionError("the device is waited for")

    layer = SharedBatchNorm(nn.BatchNorm2d(3, momentum=momentum), Ranks(0, 2))
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    monkeypatch.setattr(Ranks, "total", lambda ranks, tensor: tensor * 2)
    for name in ("new_tensor", "item", "tolist", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    layer(images).sum().backward()


# The end


def test_an_error_in_one_process_ends_all_with_its_code_and_one_line():
    """In the middle, where the others wait for its share; and before it is connected."""

    def fails(ranks):
        if ranks.rank == 1:
            raise DataError("a broken image")
        for _ in range(1000):
            ranks.total(torch.ones(3))
            time.sleep(0.01)

    begun = time.monotonic()
    assert together(fails) == [(4, None), (4, "a broken image")]

    def everywhere(ranks):
        raise ConfigError("the same in all")

    codes, told = zip(*together(everywhere, world=3), strict=True)
    assert codes == (2, 2, 2)
    assert sorted(told, key=str) == [None, None, "the same in all"]
    assert time.monotonic() - begun < 40


def test_one_that_fails_before_it_is_connected_keeps_nobody_waiting(monkeypatch):
    real = words.arrive

    def arrive(world):
        if os.environ["RANK"] == "0":
            raise DataError("nothing to begin with")
        real(world)

    monkeypatch.setattr(words, "arrive", arrive)
    assert together(lambda ranks: None) == [(4, "nothing to begin with"), (4, None)]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim):
    def work(ranks):
        for step in range(1000):
            ranks.reduce_gradients([])
            ranks.barrier()
            if ranks.rank == victim and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

    ended = together(work, seconds=40)
    assert ended[victim][0] == -signal.SIGKILL
    code, told = ended[1 - victim]
    assert code == 5
    assert "killed or does not answer" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT missing"),
    ],
)
def test_an_environment_that_torchrun_would_not_set_is_one_line(monkeypatch, values, told):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told), process_group("cpu"):
        pass
