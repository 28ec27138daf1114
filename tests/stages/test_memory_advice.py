"""What is said when memory runs out: settings that exist, that are not in use yet, and by how much to change them."""

import re

import pytest
import torch

from calseg_cli.config import load_config
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import DeviceError
from calseg_cli.networks.network import Network
from calseg_cli.stages.adapt import adapt
from calseg_cli.stages.evaluate import evaluate
from calseg_cli.stages.memory_advice import adapt_advice, inference_advice, training_advice
from calseg_cli.stages.predict import predict
from calseg_cli.stages.pretrain import pretrain
from calseg_cli.stages.train_valuenet import train_valuenet
from tests.stages.small_run import configured, make_folder, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("advice"), images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained(folder)
        yield folder


def followed(run, told, before):
    """The configuration with all that the advice sets on top, which must be another one, key by key."""
    found = re.findall(r"--set (\S+)=(\S+)", told)
    after = load_config(run / "calseg.yaml", sets=[*before, *(f"{key}={value}" for key, value in found)], environ={})
    old = load_config(run / "calseg.yaml", sets=before, environ={})
    for key, _ in found:
        assert value_of(old, key) != value_of(after, key), key
    return after, dict(found)


def value_of(resolved, key):
    value = resolved.config
    for name in key.split("."):
        value = getattr(value, name)
    return value


METHODS = ["adabn", "tent", "calsfda", "self-training", "dacal+blda"]


@pytest.mark.parametrize("size", [None, (80, 160)])
@pytest.mark.parametrize("where", ["pretrain", "valuenet", "predict", *METHODS])
def test_every_key_exists_and_following_it_leads_on_until_nothing_is_left(run, where, size):
    sets = [f"adapt.method={where}"] if where in METHODS else []
    for _ in range(60):
        resolved = load_config(run / "calseg.yaml", sets=sets, environ={})
        told = {
            "pretrain": lambda: training_advice(resolved, "pretrain", size),  # noqa: B023
            "valuenet": lambda: training_advice(resolved, "valuenet", size),  # noqa: B023
            "predict": lambda: inference_advice(resolved, "target", size),  # noqa: B023
        }.get(where, lambda: adapt_advice(resolved, size))()  # noqa: B023
        assert told.count("--set") <= 4
        assert told.count("; or ") <= 2
        if "--set" not in told:
            break
        _, found = followed(run, told, sets)
        sets += [f"{key}={value}" for key, value in found.items()]
        size = None if size and any(key.endswith((".size", ".crop")) for key in found) else size
    assert told == "smaller images, or a device with more memory"


def test_it_says_what_and_by_how_much(run):
    sets = ["pretrain.batch_size=8", "pretrain.accumulate=3", "source.size=[512,1024]"]
    told = training_advice(load_config(run / "calseg.yaml", sets=sets, environ={}), "pretrain")
    assert told.startswith("try --set pretrain.grad_checkpoint=true (")
    assert "--set pretrain.batch_size=4 --set pretrain.accumulate=6 (" in told
    assert "--set pretrain.amp=bf16 (" in told
    sets += ["pretrain.grad_checkpoint=true", "pretrain.amp=bf16"]
    told = training_advice(load_config(run / "calseg.yaml", sets=sets, environ={}), "pretrain")
    assert "--set pretrain.augment.crop=[384,768] (instead of [512,1024])" in told


@pytest.mark.parametrize(("batch", "world", "smaller"), [(8, 2, 4), (6, 2, 2), (4, 4, None), (9, 1, 3), (1, 1, None)])
def test_a_smaller_batch_is_shared_equally_and_makes_the_same_step(run, batch, world, smaller):
    resolved = load_config(run / "calseg.yaml", sets=[f"pretrain.batch_size={batch}"], environ={})
    told = training_advice(resolved, "pretrain", world=world)
    assert ("batch_size" in told) == (smaller is not None)
    if smaller is not None:
        after, _ = followed(run, told, [f"pretrain.batch_size={batch}"])
        assert after.config.pretrain.batch_size == smaller
        assert after.config.pretrain.batch_size * after.config.pretrain.accumulate == batch


def test_what_a_compiled_network_cannot_do_is_not_offered(run):
    assert "grad_checkpoint" not in training_advice(configured(run, compile=True), "pretrain")


def test_self_training_is_not_offered_what_it_does_not_have(run):
    told = adapt_advice(configured(run, adapt__method="dacal"))
    assert "accumulate" not in told
    assert "adapt.self_training.grad_checkpoint" in told


def test_two_images_to_mix_with_each_other_are_not_taken_apart(run):
    mixed = {"adapt__method": "blda", "adapt__self_training__source_free": True}
    assert "batch_size" not in adapt_advice(configured(run, **mixed, adapt__self_training__batch_size=2))
    assert "batch_size=2 " in adapt_advice(configured(run, **mixed, adapt__self_training__batch_size=4))


def test_the_images_that_are_adapted_to_are_the_ones_to_be_made_smaller(run):
    told = {"adapt__method": "adabn", "adapt__adabn__batch_size": 1}
    assert "--set target.size" in adapt_advice(configured(run, **told), (64, 64))
    assert "--set source.size" in adapt_advice(configured(run, **told, adapt__domain="source"), (64, 64))


OPTIONS = {"resume": False, "force": False, "progress": Silent()}
STAGES = {
    "pretrain": (lambda it: pretrain(it, **OPTIONS), {"name": "new"}, "pretrain.batch_size"),
    "adapt": (lambda it: adapt(it, checkpoint=None, **OPTIONS), {}, "adapt.tent.batch_size=1"),
    "valuenet": (lambda it: train_valuenet(it, checkpoint=None, **OPTIONS), {}, "valuenet.batch_size=2"),
    "predict": (
        lambda it: predict(it, checkpoint=None, images=None, out=None, force=False, progress=Silent()),
        {},
        "predict.window=[32,32]",
    ),
    "evaluate": (
        lambda it: evaluate(it, checkpoint=None, logits=None, out=None, progress=Silent()),
        {},
        "predict.window",
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_memory_ends_with_6_and_advice_of_its_own(run, monkeypatch, stage):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Network, "classify", full)
    work, flags, advised = STAGES[stage]
    with pytest.raises(DeviceError) as caught:
        work(configured(run, **flags))
    assert caught.value.exit_code == 6
    assert advised in caught.value.hint
    followed(run, caught.value.hint, [])


def test_validation_without_memory_is_advised_to_look_by_windows(run, monkeypatch):
    real = Network.classify

    def full(network, features):
        if not torch.is_grad_enabled():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(network, features)

    monkeypatch.setattr(Network, "classify", full)
    with pytest.raises(DeviceError) as caught:
        trained(run, name="validates")
    assert "--set predict.window=[32,32]" in caught.value.hint
