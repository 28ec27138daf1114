"""calseg logit-statistics, and what takes its file: adapt --method blda, with the source and without it."""

import shutil

import pytest

from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import failed, keep_few, killed_at, labels, log, same_weights, weights

RUN = "runs/sample"
FILE = f"{RUN}/5-statistics/pretrain-source-train.h5"
STEPS = ("--steps", "3", "--batch-size", "2", "--quality", "one", "--set", "adapt.self_training.log_every=1")
EAGER = ("--set", "adapt.blda.warm_up=1", "--set", "adapt.blda.min_pixels=20", "--checkpoint", f"{RUN}/1-pretrain")
ALONE = ("adapt", "--method", "blda", "--anchors", FILE, "--source-free", "--tau", "0.5", *STEPS, *EAGER)


@pytest.fixture(scope="module")
def counted(trained, tmp_path_factory, calseg):
    """The trained folder with eight images a split, and the statistics of the source; copy it before a change."""
    folder = tmp_path_factory.mktemp("counted") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder)
    ran = calseg("logit-statistics", cwd=folder)
    assert ran.code == 0, ran.err
    assert f"calseg adapt --method blda --anchors {FILE}" in ran.err
    assert ran.out.splitlines()[0] == "logits of source train by labels"
    return folder


@pytest.fixture
def work(counted, tmp_path):
    shutil.copytree(counted, tmp_path / "w")
    return tmp_path / "w"


def without_source(folder):
    """No folder of the source, and no word of it in the configuration."""
    shutil.rmtree(folder / "data/source")
    text = (folder / "calseg.yaml").read_text()
    head, rest = text.split("source:\n", 1)
    block, target = rest.split("target:\n", 1)
    anchors = "".join(line[2:] + "\n" for line in block.splitlines() if line.startswith("  ") and "root" not in line)
    target = target.replace("*classes", anchors.split("&classes ")[1].split("]")[0] + "]")
    target = "\n".join(line for line in target.splitlines() if "*palette" not in line)
    (folder / "calseg.yaml").write_text(f"{head}target:\n{target}\n")


def test_of_the_target_no_label_is_opened(work, opened):
    seen = opened(work, "logit-statistics", "--domain", "target", "--split", "test", "--max-items", "2", "--json")
    assert labels(seen) == []
    assert (work / f"{RUN}/5-statistics/pretrain-target-test-first2.h5").exists()


def test_the_oracle_says_so_and_the_file_is_an_artifact_like_others(work, calseg):
    words = ("logit-statistics", "--domain", "target", "--split", "test", "--max-items", "2")
    ran = calseg(*words, "--labels", "true", "--json", cwd=work)
    assert ran.json["labels_used_for"].startswith("oracle")
    assert "ORACLE" in ran.err
    assert ran.json["artifact"].endswith("-oracle.h5")
    assert calseg("artifact", "verify", FILE, cwd=work).code == 0
    assert "logit_statistics" in calseg("inspect", FILE, cwd=work).out
    assert calseg("artifact", "diff", FILE, FILE, cwd=work).code == 0
    assert calseg("artifact", "diff", FILE, ran.json["artifact"], cwd=work).code == 7
    content = bytearray((work / FILE).read_bytes())
    content[len(content) // 2] ^= 255
    (work / FILE).write_bytes(content)
    failed(calseg("artifact", "verify", FILE, cwd=work), 3)
    failed(calseg(*ALONE, cwd=work), 3)
    assert not (work / RUN / "4-adapt-blda").exists()


def test_without_the_source_it_adapts_and_continues_to_the_same_bits(work, calseg):
    without_source(work)
    words = (*ALONE, "--set", "adapt.self_training.checkpoint_every=1")
    ran = calseg(*words, "--name", "whole", cwd=work)
    assert ran.code == 0, ran.err
    stage, again = work / "runs/broken/4-adapt-blda", (*words, "--name", "broken")
    killed_at(calseg, work, stage / "resume.safetensors", *again)
    moved = work / "moved.h5"
    shutil.copy(work / FILE, moved)
    other = calseg("logit-statistics", "--domain", "target", "--split", "train", "--max-items", "2", cwd=work)
    assert other.code == 0, other.err
    changed = f"{RUN}/5-statistics/pretrain-target-train-first2.h5"
    assert "another anchors" in failed(calseg(*again, "--anchors", changed, "--resume", cwd=work), 3)
    done = calseg(*again, "--anchors", str(moved), "--resume", cwd=work)
    assert done.code == 0, done.err
    whole = work / "runs/whole/4-adapt-blda"
    assert same_weights(stage / "network.safetensors", whole / "network.safetensors")
    assert [record["terms"] for record in log(stage)] == [record["terms"] for record in log(whole)]
    assert list(log(whole)[0]["terms"]) == ["mix"]
    assert log(whole)[-1]["watch"]["offset"] > 0
    facts = read_facts(whole / "network.safetensors")
    assert facts["provenance"]["parents"].keys() == {"checkpoint", "anchors"}
    assert "labels_used_for" not in facts
    assert (
        weights(whole / "network.safetensors").keys() == weights(work / RUN / "1-pretrain/network.safetensors").keys()
    )


def test_with_the_source_it_never_opens_a_label_of_the_target(work, opened):
    seen = opened(work, "adapt", "--method", "dacal+blda", *STEPS, *EAGER)
    assert [path for path in seen if "target" in path and "labels" in path] == []
    records = log(work / RUN / "4-adapt-dacal+blda")
    assert list(records[0]["terms"]) == ["source", "mix"]
    assert records[-1]["watch"]["source_labels"] > 0


def test_anchors_stay_where_the_source_is_there_too_and_an_oracles_are_stamped(work, calseg):
    counted = ("logit-statistics", "--domain", "target", "--split", "test", "--labels", "true", "-o", "o.h5")
    assert calseg(*counted, cwd=work).code == 0
    ran = calseg("adapt", "--method", "blda", "--anchors", "o.h5", *STEPS, *EAGER, cwd=work)
    assert ran.code == 0, ran.err
    found = [record["watch"] for record in log(work / RUN / "4-adapt-blda")]
    assert len({watch["anchor_gap"] for watch in found}) == 1
    assert found[-1]["source_labels"] > 0
    assert "oracle" in read_facts(work / RUN / "4-adapt-blda/network.safetensors")["labels_used_for"]


def test_self_training_needs_no_source(work, calseg):
    without_source(work)
    ran = calseg("adapt", "--method", "self-training", "--source-free", "--base", "mic", *STEPS, cwd=work)
    assert ran.code == 0, ran.err
    assert list(log(work / RUN / "4-adapt-self-training")[0]["terms"]) == ["mix", "masked"]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "blda", "--source-free"), 2, "blda learns its anchors from source images"),
        (("--method", "dacal+blda", "--source-free", "--anchors", FILE), 2, "labelled source images"),
        (("--method", "blda", "--source-free", "--anchors", FILE, "--base", "daformer"), 2, "rare-class sampling"),
        (("--method", "self-training", "--source-free", "--batch-size", "1"), 2, "a batch has one image"),
        (
            ("--method", "self-training", "--source-free", "--set", "adapt.self_training.class_weights=inverse"),
            2,
            "weigh source pixels",
        ),
        (("--method", "self-training", "--anchors", FILE), 2, "--anchors has no effect"),
        (("--method", "dacal", "--tau", "1"), 2, "--tau has no effect"),
        (("--method", "tent", "--source-free"), 2, "--source-free has no effect"),
        (("--method", "blda", "--anchors", "nothing.h5"), 3, "nothing.h5"),
        (("--method", "blda", "--anchors", f"{RUN}/1-pretrain/network.safetensors"), 3, "no HDF5 file"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(counted, calseg, words, code, told):
    assert told in failed(calseg("adapt", *words, cwd=counted), code)
    assert not list((counted / RUN).glob("4-adapt-*"))
