"""`--dry-run` of training: it tries the real thing in memory, writes nothing, and what it says is about right."""

import math
import time

import pytest
import torch

from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, CalsegError, ConfigError, DataError, DeviceError
from calseg_cli.methods.blda import BLDA
from calseg_cli.methods.dacal import DACal
from calseg_cli.methods.source import CalibrationTerm
from calseg_cli.networks.network import Network
from calseg_cli.stages.adapt import plan_adaptation
from calseg_cli.stages.evaluate import evaluate, plan_evaluation
from calseg_cli.stages.predict import predict
from calseg_cli.stages.pretrain import plan_pretraining, pretrain
from calseg_cli.stages.probe import STEPS
from calseg_cli.stages.pseudo_label import plan_pseudo_labels
from calseg_cli.stages.run_folder import run_folder
from calseg_cli.stages.train_valuenet import plan_value_net
from tests.stages.small_run import configured, make_folder, trained, tree


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("dry"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained(folder)
        yield folder


def planned(run, *, resume=False, **flags):
    return plan_pretraining(configured(run, **flags), resume=resume, progress=Silent())


def adapting(run, *, resume=False, **flags):
    return plan_adaptation(configured(run, **flags), checkpoint=None, resume=resume, progress=Silent())


METHODS = {
    "adabn": (2, 0),
    "tent": (3, 4),
    "cbst": (240, 12),
    "self-training": (300, 8),
    "dacal": (300, 8),
    "blda": (300, 8),
}


@pytest.mark.parametrize("method", METHODS)
def test_adaptations_are_tried_and_nothing_is_written(run, method):
    section = {"adabn": "adabn", "tent": "tent", "cbst": "cbst"}.get(method, "self_training")
    before, flags = tree(run), {"adapt__method": method, f"adapt__{section}__batch_size": 2}
    if method == "cbst":
        flags["adapt__cbst__rounds"] = 2
    estimate = adapting(run, **flags)
    assert tree(run) == before
    steps, looks = METHODS[method]
    assert (estimate.work.steps, estimate.work.images) == (steps, 4)
    assert estimate.work.looks == pytest.approx(looks, abs=4)
    assert estimate.seconds > 0
    assert estimate.state == "new"
    assert estimate.work.classes == 3


def test_the_other_stages_too(run):
    """With logits there already, pseudo-labels need no network; a value net needs a trained one."""
    logits = predict(
        configured(run), checkpoint=None, images=None, out=run / "l.h5", force=True, progress=Silent()
    ).artifact
    before = tree(run)
    options = {"checkpoint": None, "progress": Silent()}
    net = plan_value_net(configured(run, valuenet__steps=30), resume=False, **options)
    assert (net.work.steps, net.work.images, net.state) == (30, 4, "new")
    assert net.target == run_folder(configured(run)).valuenet
    measured = plan_evaluation(configured(run), logits=None, out=None, **options)
    assert (measured.work.images, measured.work.steps, measured.state) == (4, 0, "new")
    assert measured.seconds == pytest.approx(4 * measured.seconds_a_look)
    again = plan_evaluation(configured(run), logits=logits, out=None, **options)
    assert again.work.images == 4
    labels = plan_pseudo_labels(configured(run), logits=logits, out=None, progress=Silent())
    assert (labels.images, labels.classes, labels.state) == (4, 3, "new")
    assert labels.raw_bytes == pytest.approx(4 * 48 * 64 * 0.1, rel=0.01)
    assert tree(run) == before
    evaluate(configured(run), logits=logits, out=run / "e", **options)
    assert plan_evaluation(configured(run), logits=logits, out=run / "e", **options).state == "exists"
    with pytest.raises(ConfigError, match="exclude"):
        plan_evaluation(configured(run), logits=logits, out=None, checkpoint="pretrain", progress=Silent())


def test_a_dry_run_leaves_what_the_folder_holds_and_says_so(run):
    before = tree(run)
    estimate = planned(run, name="small")
    assert estimate.state == "finished"
    assert tree(run) == before
    assert planned(run, name="other", tensorboard=False).state == "new"
    assert tree(run) == before


def test_the_numbers_follow_from_the_configuration(run):
    estimate = planned(run, name="n", pretrain__steps=100, pretrain__validate_every=30, pretrain__accumulate=2)
    assert (estimate.work.steps, estimate.work.batch, estimate.work.images) == (100, 4, 4)
    assert estimate.work.looks == 4 * 4  # after 30, 60, 90 and 100 steps, 4 images each
    assert (estimate.work.networks, estimate.work.counts) == (5, 4)
    expected = 100 * estimate.seconds_a_step + 16 * estimate.seconds_a_look
    assert math.isclose(estimate.seconds, expected)
    assert estimate.free_bytes > estimate.disk_bytes
    less = planned(run, name="n", pretrain__steps=100, pretrain__keep="last")
    assert (less.work.networks, less.work.counts) == (1, 0)
    assert less.disk_bytes < estimate.disk_bytes


def test_disk_is_what_the_files_take(run):
    network = run / "runs/small/1-pretrain/network.safetensors"
    estimate = planned(run, name="d", pretrain__keep="last")
    state = estimate.disk_bytes - network.stat().st_size
    assert network.stat().st_size == pytest.approx(estimate.work.networks * 537_000, rel=0.2)
    assert state == pytest.approx(6 * network.stat().st_size, rel=0.2)  # AdamW's two moments and the weights, twice


def test_time_is_what_training_takes(run):
    estimate = planned(run, name="t", pretrain__steps=40)
    since = time.perf_counter()
    trained(run, name="t", pretrain__steps=40)
    assert estimate.seconds / 4 < time.perf_counter() - since < 4 * estimate.seconds + 2


def test_steps_done_need_not_be_done_again_and_a_changed_configuration_is_refused(run):
    flags = {"name": "half", "pretrain__steps": 50, "pretrain__checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        pretrain(configured(run, **flags), resume=False, force=False, progress=Second())
    assert planned(run, **flags).state == "unfinished"
    assert planned(run, **flags).work.steps == 50
    assert planned(run, resume=True, **flags).work.steps == 49
    before = tree(run)
    with pytest.raises(ArtifactError, match=r"pretrain\.lr"):
        planned(run, resume=True, **flags, pretrain__lr=0.5)
    assert tree(run) == before


class Second(Silent):
    """Leaves in the second step, when the state of the first is written."""

    left = 2

    def advance(self, units=1, **facts):
        self.left -= units
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"source__root": "nowhere"}, DataError),
        ({"network__name": "nothing"}, ConfigError),
        ({"pretrain__from_checkpoint": "nobody"}, ArtifactError),
    ],
)
def test_what_would_fail_fails_now(run, flags, error):
    before = tree(run)
    with pytest.raises(CalsegError) as caught:
        planned(run, name="f", **flags, pretrain__steps=60)
    assert isinstance(caught.value, error)
    assert tree(run) == before


def test_a_lack_of_memory_shows_in_the_probe(run, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Network, "classify", full)
    for plan in (planned, adapting):
        with pytest.raises(DeviceError) as caught:
            plan(run, name="small")
        assert "--set" in caught.value.hint


def test_it_is_short(run, monkeypatch):
    seen = []
    real = Network.forward
    monkeypatch.setattr(Network, "forward", lambda self, images: seen.append(1) or real(self, images))
    planned(run, name="s", pretrain__steps=1000)
    assert STEPS <= len(seen) <= STEPS + 1 + 3


def test_an_estimate_is_told_as_one(run):
    estimate = planned(run, name="e")
    rows, document = dict(estimate.rows()), estimate.document()
    assert all(f"{name}, estimated" in rows for name in ("time", "memory", "disk"))
    assert document["dry_run"] is True
    assert document["estimated_peak_bytes"] > 50e6


# What begins later is tried at once


def test_what_most_steps_do_is_what_is_tried(run, monkeypatch):
    """DA-Cal's and BLDA's own work is met by the first steps, whatever comes before it in a whole run."""
    seen = {}
    targets, correct = DACal.targets, BLDA.correct
    monkeypatch.setattr(DACal, "targets", lambda self, *words: seen.setdefault("dacal", 1) and targets(self, *words))
    monkeypatch.setattr(
        BLDA, "correct", lambda self, *words: seen.setdefault("blda", self.options.warm_up) or correct(self, *words)
    )
    later = dict.fromkeys(("adapt__self_training__hard_steps", "adapt__dacal__warm_up", "adapt__blda__warm_up"), 1000)
    adapting(run, adapt__method="dacal+blda", adapt__self_training__steps=10, **later)
    assert seen == {"dacal": 1, "blda": 0}


def test_the_calibration_term_is_tried_whenever_it_is_to_begin(run, monkeypatch):
    seen, term = [], CalibrationTerm.__call__
    monkeypatch.setattr(CalibrationTerm, "__call__", lambda *words: seen.append(1) or term(*words))
    planned(run, name="ece", pretrain__ece__weight=1.0, pretrain__ece__start_step=1000)
    assert seen
