"""Settings of memory and speed, from the configuration down to the loop."""

import numpy as np
import pytest
import torch

from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.engine.checkpoint import read_checkpoint
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError
from calseg_cli.networks.build import build_network
from calseg_cli.stages.adapt import adapt
from calseg_cli.stages.networks import load_network
from calseg_cli.stages.predict import predict
from calseg_cli.stages.pretrain import pretrain
from tests.stages.small_run import configured, make_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("memory"), images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def weights(path):
    return read_checkpoint(path).network


def trained(run, **flags):
    return pretrain(configured(run, **flags), resume=False, force=False, progress=Silent()).network


def adapted(run, **flags):
    options = {"checkpoint": None, "value_net": None, "resume": False, "force": True, "progress": Silent()}
    return adapt(configured(run, **flags), **options).network


def alike(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_gradient_checkpointing_is_asked_for_and_changes_nothing(run, monkeypatch):
    section = "self_training"
    asked = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("calseg_cli.engine.recompute.checkpoint", lambda *a, **k: asked.append(1) or real(*a, **k))
    plain, again = {"name": f"plain-{section}"}, {"name": f"again-{section}"}
    assert alike(trained(run, **plain), trained(run, pretrain__grad_checkpoint=True, **again))
    assert len(asked) == 3 * 11
    asked.clear()
    steps = {"adapt__method": section.replace("_", "-"), f"adapt__{section}__steps": 2}
    assert alike(
        adapted(run, **plain, **steps), adapted(run, **again, **steps, **{f"adapt__{section}__grad_checkpoint": True})
    )
    assert asked


def test_networks_of_stages_are_compiled_where_asked(run, monkeypatch):
    asked = []
    for place in ("pretrain", "networks"):
        monkeypatch.setattr(
            f"calseg_cli.stages.{place}.compile_network", lambda network, wanted: asked.append((network.name, wanted))
        )
    trained(run, name="compiled", compile=True, pretrain__steps=1)
    for compiled in (True, False):
        path = run / "runs/compiled/1-pretrain/network.safetensors"
        load_network(path, torch.device("cpu"), configured(run, compile=compiled))
    assert asked == [("tiny", True), ("tiny", True), ("tiny", False)]


SGD = {"pretrain__optimizer": "sgd", "pretrain__lr": 0.01, "pretrain__head_lr": 0.01, "pretrain__weight_decay": 0}


@pytest.fixture(scope="module")
def exact(run):
    return trained(run, name="exact", **SGD)


@pytest.mark.parametrize(("amp", "near"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_trains_on_a_cpu_and_stays_near(run, exact, amp, near):
    """By SGD, whose steps are as long as their gradients: Adam's may turn around where one is nearly 0."""
    names = [name for name, _ in build_network("tiny", 3, init="none", seed=0).named_parameters()]
    begun = trained(run, name=f"begun-{amp}", **{**SGD, "pretrain__lr": 1e-12, "pretrain__head_lr": 1e-12})
    rough = weights(trained(run, name=amp, pretrain__amp=amp, **SGD))
    start, known = weights(begun), weights(exact)
    assert all(rough[name].dtype == torch.float32 for name in names)
    apart = sum(float((rough[name] - known[name]).square().sum()) for name in names)
    moved = sum(float((known[name] - start[name]).square().sum()) for name in names)
    assert 0 < apart < near**2 * moved


@pytest.mark.parametrize(("amp", "near"), [("bf16", 0.1), ("fp16", 0.02)])
def test_predictions_in_half_precision_are_others_and_say_so(run, exact, amp, near):
    def predicted(out, *, resume=False, **flags):
        options = {"checkpoint": str(exact), "images": None, "out": run / out, "force": False, "progress": Silent()}
        return predict(configured(run, **flags), resume=resume, **options).artifact

    rough = predicted(f"{amp}.h5", predict__amp=amp)
    plain = run / "off.h5" if (run / "off.h5").exists() else predicted("off.h5")
    with open_artifact(plain, "logits") as one, open_artifact(rough, "logits") as other:
        assert [artifact.meta["protocol"]["amp"] for artifact in (one, other)] == ["off", amp]
        name = one.ids[0]
        apart = np.abs(one.item(name, "logits").astype(np.float32) - other.item(name, "logits")).max()
    assert 0 < apart < near
    with pytest.raises(ArtifactError, match="amp"):
        predicted(f"{amp}.h5", resume=True)
