"""Checkpoints: what goes in comes out, damaged ones are refused by name, nothing is unpickled."""

import pytest
import torch
from torch import nn

from calseg_cli.artifacts.describe import describe
from calseg_cli.engine.checkpoint import random_state, read_checkpoint, restore_random_state, write_checkpoint
from calseg_cli.errors import ArtifactError

FACTS = {
    "classes": {"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]},
    "network": {"name": "tiny", "options": {}, "num_classes": 2},
    "config": {},
    "step": 3,
}


def optimiser_state():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, amsgrad=True)
    layer(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return layer, optimizer.state_dict()


def test_round_trip_of_weights_and_nested_state(tmp_path):
    layer, optimizer = optimiser_state()
    state = {"step": 3, "optimizer": optimizer, "none": None, "list": [1, 2.5, "x", True], "random": random_state()}
    write_checkpoint(tmp_path / "c.safetensors", layer.state_dict(), FACTS, state)
    checkpoint = read_checkpoint(tmp_path / "c.safetensors")
    assert checkpoint.class_names == ["a", "b"]
    assert all(torch.equal(value, checkpoint.network[name]) for name, value in layer.state_dict().items())
    assert checkpoint.state is not None
    assert checkpoint.state["list"] == [1, 2.5, "x", True]
    other = torch.optim.AdamW(layer.parameters(), lr=0.5, amsgrad=True)
    other.load_state_dict(checkpoint.state["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    for key, value in optimizer["state"][0].items():
        assert torch.equal(other.state_dict()["state"][0][key], value)


def test_generators_continue(tmp_path):
    write_checkpoint(tmp_path / "c.safetensors", {}, FACTS, {"random": random_state()})
    expected = torch.rand(3)
    restore_random_state(read_checkpoint(tmp_path / "c.safetensors").state["random"])
    assert torch.equal(torch.rand(3), expected)


def test_same_content_same_bytes(tmp_path):
    layer, _ = optimiser_state()
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, layer.state_dict(), FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shared_and_strided_tensors_are_stored(tmp_path):
    shared = torch.rand(4, 4)
    write_checkpoint(tmp_path / "c", {"a": shared, "b": shared.t(), "c": shared[1]}, FACTS)
    stored = read_checkpoint(tmp_path / "c").network
    assert torch.equal(stored["b"], shared.t())
    assert torch.equal(stored["c"], shared[1])


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_cut_files_are_refused(tmp_path, keep):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"a": torch.rand(50)}, FACTS)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_checkpoint, describe):
        with pytest.raises(ArtifactError, match=r"c\.safetensors"):
            read(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "c.pth"
    torch.save({"a": torch.rand(2)}, path)
    with pytest.raises(ArtifactError, match="no safetensors"):
        read_checkpoint(path)
    with pytest.raises(ArtifactError, match="no file"):
        read_checkpoint(tmp_path / "missing")


def test_what_cannot_be_stored_is_a_bug_with_a_name(tmp_path):
    with pytest.raises(TypeError, match=r"state\.x"):
        write_checkpoint(tmp_path / "c", {}, FACTS, {"x": object()})


def test_describe_needs_no_torch(tmp_path):
    write_checkpoint(tmp_path / "c", {"a": torch.rand(5, 2)}, FACTS)
    facts = describe(tmp_path / "c")
    assert facts["values"] == 10
    assert facts["classes"]["names"] == ["a", "b"]


@pytest.mark.parametrize("place", [0.5, 0.9, 1.0])
def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path, place):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"a": torch.rand(500), "b": torch.rand(3).bfloat16()}, FACTS)
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[min(len(content) - 1, start + int(place * (len(content) - start)))] ^= 4
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not those that were written"):
        read_checkpoint(path)


def test_any_damage_of_the_header_is_an_error_of_ours(tmp_path):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"a": torch.rand(5)}, FACTS, {"step": 1})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for position in range(8, 8 + length, 3):
        for bit in (1, 16):
            content = bytearray(whole)
            content[position] ^= bit
            path.write_bytes(content)
            for read in (read_checkpoint, describe):
                try:
                    read(path)
                except ArtifactError:
                    continue


@pytest.mark.parametrize(
    "facts",
    [
        {**FACTS, "classes": {"names": ["a"], "palette": [[0, 0, 0]]}},
        {**FACTS, "network": {"name": "tiny", "options": 3, "num_classes": 2}},
        {key: value for key, value in FACTS.items() if key != "network"},
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, facts):
    write_checkpoint(tmp_path / "c", {"weight": torch.zeros(1)}, facts)
    with pytest.raises(ArtifactError, match="which network and classes"):
        read_checkpoint(tmp_path / "c")
