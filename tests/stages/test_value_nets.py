"""Value nets on disk: what is written comes back, and what is broken or of another network is one line."""

import pytest
import torch

from calseg_cli.engine.checkpoint import write_checkpoint
from calseg_cli.errors import ArtifactError
from calseg_cli.methods.value_net import ValueNet
from calseg_cli.stages.value_nets import KIND, load_value_net, write_value_net

CPU = torch.device("cpu")
FACTS = {
    "classes": {"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]},
    "network": {"name": "tiny", "options": {}, "num_classes": 2},
    "config": {},
    "provenance": {"parents": {"checkpoint": "sha256:one"}},
}
TOLD = {"target": "image", "bins": 10, "range": [0.01, 0.2]}


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = ValueNet(6, width=8, pooling="bilinear")
    made.norm.running_mean.normal_()
    return made


@pytest.fixture
def file(tmp_path, net):
    path = tmp_path / "valuenet.safetensors"
    write_value_net(path, net, FACTS, TOLD)
    return path


def refused(path, digest="sha256:one"):
    with pytest.raises(ArtifactError) as caught:
        load_value_net(path, digest, CPU)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_it_comes_back(file, net):
    loaded = load_value_net(file, "sha256:one", CPU)
    assert not loaded.net.training
    assert loaded.range == (0.01, 0.2)
    assert {key: loaded.facts["value_net"][key] for key in TOLD} == TOLD
    features = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(loaded.net(features), net.eval()(features), rtol=0, atol=0)
    assert load_value_net(file, None, CPU).digest == loaded.digest


def test_another_network_is_refused(file):
    assert "made for another network: sha256:one, and this one is sha256:two" in refused(file, "sha256:two")


def test_nothing_there(tmp_path):
    assert "no value net" in refused(tmp_path / "valuenet.safetensors")


def test_cut_short_and_damaged(file):
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-5])
    assert "incomplete" in refused(file)
    content[-2] ^= 1
    file.write_bytes(content)
    assert "damaged" in refused(file)
    file.write_bytes(b"")
    assert "safetensors" in refused(file)


def test_another_kind_is_refused(tmp_path, net):
    path = tmp_path / "network.safetensors"
    write_checkpoint(path, net.state_dict(), {**FACTS, "kind": "network"})
    assert "holds a network, not a value net" in refused(path)


def test_weights_that_are_not_finite_are_refused(file, net):
    net.linear.weight.data[0, 0] = float("nan")
    write_value_net(file, net, FACTS, TOLD)
    assert "not finite" in refused(file)


@pytest.mark.parametrize("told", [{"channels": 7}, {"width": 9}, {"channels": "many"}, {"pooling": None, "grid": 3}])
def test_weights_of_another_size_are_refused(file, net, told):
    whole = {"channels": 6, "width": 8, "grid": 4, "pooling": "average", **TOLD, **told}
    write_checkpoint(file, net.state_dict(), {**FACTS, "kind": KIND, "value_net": whole})
    assert "not those of the value net" in refused(file)


def test_a_file_that_does_not_say_what_it_is(file, net):
    write_checkpoint(file, net.state_dict(), {**FACTS, "kind": KIND, "value_net": {"channels": 6}})
    assert "not those of the value net" in refused(file)
