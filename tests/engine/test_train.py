"""The loop: it learns, repeats, resumes bit for bit, accumulates exactly, and stops when asked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.data.loader import Batch
from calseg_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from calseg_cli.engine.interrupt import StopRequest
from calseg_cli.engine.method import Method, parameter_groups
from calseg_cli.engine.progress import Silent
from calseg_cli.engine.train import Hooks, Plan, build_optimizer, train
from calseg_cli.errors import StoppedError

FACTS = {
    "classes": {"names": ["a"], "palette": [[0, 0, 0]]},
    "network": {"name": "fit", "options": {}, "num_classes": 1},
    "config": {},
}


class Fit(Method):
    """Cross-entropy of a small network with dropout, which needs the generator's state on resume."""

    name = "fit"

    def __init__(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential()
        network.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        network.head = nn.Conv2d(6, 3, 1)
        super().__init__(network)

    def forward(self, batch):
        return {"ce": F.cross_entropy(self.network(batch.source_images), batch.source_labels)}


class Images:
    """Batches that depend on the step alone."""

    def __init__(self, size: int = 4) -> None:
        self.size = size

    def batches(self, start, stop):
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            images = torch.rand(self.size, 3, 8, 8, generator=generator)
            yield Batch(step, images, images.argmax(1), None, (), ())


def run(plan, *, method=None, state=None, stop=None, on_save=None, stream=None, records=None, on_validate=None):
    method = method or Fit()
    if state is None:
        torch.manual_seed(1)
    hooks = Hooks(
        log=(records.append if records is not None else lambda record: None),
        validate=on_validate or (lambda step: None),
        save=on_save or (lambda step, saved: None),
    )
    done = train(
        method,
        stream or Images(),
        plan,
        device=torch.device("cpu"),
        hooks=hooks,
        progress=Silent(),
        stop=StopRequest() if stop is None else stop,
        state=state,
    )
    return method, done


def same(first, second):
    return all(torch.equal(a, second.state_dict()[name]) for name, a in first.state_dict().items())


def test_loss_falls_and_the_same_seed_gives_the_same_weights():
    records: list[dict] = []
    plan = Plan(steps=60, lr=0.01, head_lr=0.05, log_every=1)
    first, done = run(plan, records=records)
    second, _ = run(plan)
    assert done == 60
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]
    assert same(first, second)


def test_what_a_method_reports_is_asked_for_and_written_where_a_step_is_logged():
    class Telling(Fit):
        asked = 0

        def report(self):
            self.asked += 1
            return {"asked": float(self.asked)}

    records: list[dict] = []
    run(Plan(steps=6, log_every=3), method=Telling(), records=records)
    assert [record["watch"] for record in records] == [{"asked": 1.0}, {"asked": 2.0}]
    silent: list[dict] = []
    run(Plan(steps=3, log_every=3), records=silent)
    assert "watch" not in silent[0]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_resume_is_bit_for_bit(tmp_path, optimizer, cut):
    plan = Plan(steps=10, optimizer=optimizer, lr=0.01, head_lr=0.02, warmup_steps=3, clip_norm=0.5, accumulate=2,
                checkpoint_every=cut)  # fmt: skip
    saved = {}

    def save(step, state):
        write_checkpoint(tmp_path / f"{step}", {}, FACTS, copy.deepcopy(state))
        saved[step] = tmp_path / f"{step}"

    whole, _ = run(plan, on_save=save)
    state = read_checkpoint(saved[cut]).state
    torch.manual_seed(99)  # whatever happened in between must not matter
    resumed, done = run(plan, state=state)
    assert done == 10
    assert same(whole, resumed)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    """Two micro-batches of two against one batch of four, in a network without batch norm."""

    class Linear(Method):
        name = "linear"

        def __init__(self):
            torch.manual_seed(0)
            super().__init__(nn.Conv2d(3, 3, 1))

        def forward(self, batch):
            return {"ce": F.cross_entropy(self.network(batch.source_images), batch.source_labels)}

    class Halves(Images):
        def batches(self, start, stop):
            for step in range(start, stop):
                (whole,) = Images(4).batches(step // 2, step // 2 + 1)
                part = slice(0, 2) if step % 2 == 0 else slice(2, 4)
                yield Batch(step, whole.source_images[part], whole.source_labels[part], None, (), ())

    plan = Plan(steps=5, optimizer="sgd", lr=0.1, head_lr=0.1)
    at_once, _ = run(plan, method=Linear())
    in_halves, _ = run(Plan(**{**plan.__dict__, "accumulate": 2}), method=Linear(), stream=Halves())
    for a, b in zip(at_once.parameters(), in_halves.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("asked", [3, 4])
def test_stop_saves_the_step_it_ended_on(asked):
    stop, saved = StopRequest(), []

    class Asks(Fit):
        def after_step(self, step):
            if step + 1 == asked:
                stop.signum = 15

    _, done = run(
        Plan(steps=10, checkpoint_every=2), method=Asks(), stop=stop, on_save=lambda step, state: saved.append(step)
    )
    assert done == asked
    assert saved == [2, asked]
    assert stop.error("x", "y").exit_code == 143


def test_a_loss_that_is_not_finite_stops_before_saving():
    class Broken(Fit):
        def forward(self, batch):
            return {"ce": super().forward(batch)["ce"] * float("nan")}

    saved: list[int] = []
    with pytest.raises(StoppedError, match=r"no longer finite at step 1 \(term ce\)"):
        run(Plan(steps=3, log_every=1), method=Broken(), on_save=lambda step, state: saved.append(step))
    assert saved == []


@pytest.mark.parametrize("log_every", [0, 2])
def test_a_broken_state_is_not_saved_when_the_stop_comes_during_validation(log_every):
    class Breaks(Fit):
        def forward(self, batch):
            return {"ce": super().forward(batch)["ce"] * (float("nan") if batch.step == 2 else 1.0)}

    stop, saved = StopRequest(), []

    def asks(step):
        if step == 3:
            stop.signum = 15

    with pytest.raises(StoppedError, match=r"no longer finite at step 3 \(term ce\)"):
        run(
            Plan(steps=6, validate_every=1, checkpoint_every=2, log_every=log_every),
            method=Breaks(),
            stop=stop,
            on_validate=asks,
            on_save=lambda step, state: saved.append(step),
        )
    assert saved == [2]


def test_a_stop_during_validation_saves_the_step():
    stop, saved = StopRequest(), []
    plan = Plan(steps=6, validate_every=2, log_every=0)
    _, done = run(
        plan,
        stop=stop,
        on_validate=lambda step: setattr(stop, "signum", 15),
        on_save=lambda step, state: saved.append(step),
    )
    assert done == 2
    assert saved == [2]


def test_the_reader_ends_with_the_training_however_that_ends():
    class Watched(Images):
        ended = False

        def batches(self, start, stop):
            try:
                yield from super().batches(start, stop)
            finally:
                self.ended = True

    class Broken(Fit):
        def forward(self, batch):
            raise ZeroDivisionError

    stream = Watched()
    with pytest.raises(ZeroDivisionError) as held:
        run(Plan(steps=3), method=Broken(), stream=stream)
    assert held.traceback  # and with it the loop's own names
    assert stream.ended


def test_groups_cover_every_parameter_once_and_spare_norms_and_biases():
    method = Fit()
    groups = parameter_groups(method.network)
    members = [p for group in groups for p in group.parameters]
    assert len(members) == len({id(p) for p in members}) == len(list(method.parameters()))
    assert {group.name for group in groups} == {"encoder", "encoder (no decay)", "head", "head (no decay)"}
    decayed = [p for group in groups if group.decay for p in group.parameters]
    assert all(p.ndim > 1 for p in decayed)
    optimizer = build_optimizer(method, Plan(steps=1, lr=1.0, head_lr=2.0, weight_decay=0.5))
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {
        (1.0, 0.5),
        (1.0, 0),
        (2.0, 0.5),
        (2.0, 0),
    }


def test_bf16_trains():
    records: list[dict] = []
    run(Plan(steps=30, lr=0.01, head_lr=0.05, amp="bf16", log_every=1), records=records)
    assert records[-1]["loss"] < records[0]["loss"]


def test_the_scale_of_fp16_is_resumed(tmp_path):
    """A gradient that overflows halves the scale and takes no step; a run that goes on must know."""

    class Loud(Fit):
        def forward(self, batch):
            return {"ce": super().forward(batch)["ce"] * (1e6 if batch.step == 2 else 1.0)}

    plan = Plan(steps=6, lr=0.01, head_lr=0.02, amp="fp16", checkpoint_every=4)
    saved = {}

    def save(step, state):
        write_checkpoint(tmp_path / f"{step}", {}, FACTS, copy.deepcopy(state))
        saved[step] = read_checkpoint(tmp_path / f"{step}").state

    whole, _ = run(plan, method=Loud(), on_save=save)
    assert saved[4]["scaler"]["scale"] == 2.0**15  # one half of where it begins
    resumed, _ = run(plan, method=Loud(), state=saved[4], on_save=save)
    assert same(whole, resumed)
    assert saved[6]["scaler"]["scale"] == 2.0**15
