"""pretrain as a user types it: the calibration term, a start from a trained network, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import killed_at

QUICK = ("pretrain", "--set", "pretrain.log_every=1", "--set", "pretrain.validate_every=0", "--batch-size", "2")
QUICK = (*QUICK, "--set", "source.size=[60, 80]")


def steps(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def same(first, second):
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_the_term_is_in_the_log_from_its_step_on(trained, calseg):
    ran = calseg(*QUICK, "--steps", "4", "--name", "term", "--ece-weight", "0.5", "--ece-start-step", "2", cwd=trained)
    assert ran.code == 0, ran.err
    logged = steps(trained / "runs/term/1-pretrain")
    assert [set(line["terms"]) for line in logged] == [{"ce"}, {"ce"}, {"ce", "ece"}, {"ce", "ece"}]
    assert all(0 < line["terms"]["ece"] < 0.5 for line in logged[2:])
    assert all(line["loss"] == pytest.approx(sum(line["terms"].values())) for line in logged)


def test_it_starts_from_a_run_with_all_its_weights(trained, calseg):
    start = trained / "runs/sample/1-pretrain/network.safetensors"
    for asked in ("sample/pretrain", str(start)):
        words = (*QUICK, "--steps", "1", "--name", "warm", "--from", asked, "--lr", "1e-30", "--head-lr", "1e-30")
        ran = calseg(*words, "--ece-weight", "1", "--force", cwd=trained)
        assert ran.code == 0, ran.err
        made = trained / "runs/warm/1-pretrain/network.safetensors"
        before, after = load_file(start), load_file(made)
        learned = [key for key in before if before[key].dtype == np.float32 and "running" not in key]
        assert all(np.allclose(before[key], after[key], atol=1e-6) for key in learned)
        origin = read_facts(made)["provenance"]
        assert origin["parents"] == {"start": file_digest(start)}
        assert origin["files"] == {"start": "../../sample/1-pretrain/network.safetensors"}


def test_with_term_and_start_it_resumes_bit_for_bit(trained, calseg):
    words = (*QUICK, "--steps", "30", "--from", "sample", "--ece-weight", "1", "--ece-start-step", "10")
    words = (*words, "--set", "pretrain.checkpoint_every=3")
    assert calseg(*words, "--name", "whole", cwd=trained).code == 0
    folder = trained / "runs/cut/1-pretrain"
    killed_at(calseg, trained, folder / "resume.safetensors", *words, "--name", "cut")
    assert not (folder / "network.safetensors").exists()
    ran = calseg(*words, "--name", "cut", "--resume", cwd=trained)
    assert ran.code == 0, ran.err
    assert same(trained / "runs/whole/1-pretrain/network.safetensors", folder / "network.safetensors")


REFUSED = [
    (("--from", "nowhere"), 3, "there is no checkpoint nowhere"),
    (("--from", "sample/adapt-adabn"), 3, "there is no checkpoint adapt-adabn"),
    (("--from", "calseg.yaml"), 3, "calseg.yaml"),
    (("--from", "sample", "--network", "segformer"), 3, "network.name: 'tiny' there"),
    (("--from", "sample", "--set", "network.options={width: 8}"), 3, "network.options: {} there"),
    (("--from", "sample", "--set", "network.name=tiny", "--name", "sample"), 3, "would replace"),
    (("--ece-weight", "-1"), 2, "pretrain.ece.weight"),
    (("--ece-weight", "nan"), 2, "pretrain.ece.weight"),
    (("--set", "pretrain.ece.over=clas"), 2, "did you mean class?"),
    (("--set", "pretrain.ece.bins=0"), 2, "pretrain.ece.bins"),
    (("--set", "pretrain.ece.temperature=0"), 2, "pretrain.ece.temperature"),
]


@pytest.mark.parametrize(("words", "code", "told"), REFUSED)
def test_mistakes_are_one_line(trained, calseg, words, code, told):
    ran = calseg(*QUICK, "--steps", "1", *(words if "--name" in words else (*words, "--name", "refused")), cwd=trained)
    assert ran.code == code, ran.err
    assert told in ran.err
    assert ran.err.count("error:") == 1
    assert "Traceback" not in ran.err
    assert not (trained / "runs/refused/1-pretrain/network.safetensors").exists()


def test_another_class_list_is_refused(workspace, calseg):
    text = (workspace / "calseg.yaml").read_text()
    ran = calseg("inspect", "runs/sample/1-pretrain/network.safetensors", "--json", cwd=workspace)
    first = ran.json["classes"]["names"][0] if "classes" in ran.json else "road"
    assert first in text
    (workspace / "calseg.yaml").write_text(text.replace(first, f"{first}x"))
    ran = calseg(*QUICK, "--steps", "1", "--name", "other", "--from", "sample", cwd=workspace)
    assert ran.code == 3
    assert "trained for another class list" in ran.err


def test_a_start_that_became_another_network_is_noticed(workspace, calseg):
    copied = workspace / "start.safetensors"
    shutil.copy(workspace / "runs/sample/1-pretrain/network.safetensors", copied)
    words = (*QUICK, "--steps", "2", "--name", "moved", "--from", "start.safetensors")
    assert calseg(*words, cwd=workspace).code == 0
    shutil.copy(workspace / "runs/moved/1-pretrain/network.safetensors", copied)
    ran = calseg(*words, "--resume", cwd=workspace)
    assert ran.code == 3
    assert "made from another start" in ran.err
