"""calseg adapt --method self-training: what it leaves and needs, and how it goes on after a kill."""

import shutil

import pytest

from calseg_cli.artifacts.tensors_file import read_facts
from tests.commands.outcomes import failed, keep_few, killed_at, log, same_weights, weights

RUN = "runs/sample"
STAGE = f"{RUN}/4-adapt-self-training"
FEW = ("--steps", "3", "--batch-size", "2", "--set", "adapt.self_training.log_every=1")
ADAPT = ("adapt", "--method", "self-training", *FEW)


@pytest.fixture(scope="module")
def small(trained, tmp_path_factory):
    """The trained folder with eight images a split; copy it before changing anything (`work`)."""
    folder = tmp_path_factory.mktemp("small") / "w"
    shutil.copytree(trained, folder)
    keep_few(folder)
    return folder


@pytest.fixture
def work(small, tmp_path):
    """A private copy of the small folder."""
    shutil.copytree(small, tmp_path / "w")
    return tmp_path / "w"


def test_it_opens_source_labels_and_no_target_label(work, opened):
    seen = opened(work, *ADAPT, "--base", "mic")
    files = [path for path in seen if path.endswith(".png")]
    assert [path for path in files if "source" in path and "labels" in path]
    assert [path for path in seen if "target" in path and "labels" in path] == []
    assert [path for path in files if "/val/" in path or "/test/" in path] == []
    result = work / STAGE / "network.safetensors"
    assert weights(result).keys() == weights(work / RUN / "1-pretrain/network.safetensors").keys()
    assert sorted(path.name for path in (work / STAGE).iterdir()) == [
        "config.yaml",
        "log.jsonl",
        "network.safetensors",
    ]
    records = log(work / STAGE)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert list(records[0]["terms"]) == ["source", "feature_distance", "mix", "masked"]
    assert records[0]["watch"].keys() == {"quality", "confidence", "target_share"}


def test_the_statistics_at_the_end_are_those_of_the_policy(work, calseg):
    """With "batch" they are what adabn measures of the network; "shared" leaves what training did."""
    assert calseg(*ADAPT, "--lr", "1e-12", "--head-lr", "1e-12", cwd=work).code == 0
    assert calseg("adapt", "--method", "adabn", "--batch-size", "2", "--checkpoint", "pretrain", cwd=work).code == 0
    found, measured = (
        weights(work / f"{RUN}/4-adapt-{name}/network.safetensors") for name in ("self-training", "adabn")
    )
    assert all(bool(((found[name] - measured[name]).abs() < 1e-3).all()) for name in found if "running" in name)
    more = ("--set", "adapt.self_training.statistics=shared", "--set", "adapt.self_training.warm_up=false")
    assert calseg(*ADAPT, *more, "--name", "shared", "--checkpoint", f"{RUN}/1-pretrain", cwd=work).code == 0
    shared = weights(work / "runs/shared/4-adapt-self-training/network.safetensors")
    start = weights(work / RUN / "1-pretrain/network.safetensors")
    name = next(name for name in found if "running_mean" in name)
    assert bool((shared[name] != start[name]).any())
    assert bool(((shared[name] - measured[name]).abs() > 1e-3).any())


def test_it_continues_after_a_kill_to_the_same_bits(work, calseg):
    words = (*ADAPT, "--base", "mic", "--labels", "sampled", "--keep", "teacher", "--checkpoint", f"{RUN}/1-pretrain")
    words = (*words, "--set", "adapt.self_training.checkpoint_every=1", "--prototypes", "online")
    assert calseg(*words, "--name", "whole", cwd=work).code == 0
    stage = work / "runs/broken/4-adapt-self-training"
    again = (*words, "--name", "broken")
    killed_at(calseg, work, stage / "resume.safetensors", *again)
    assert "unfinished" in failed(calseg(*again, cwd=work), 3)
    assert "adapt.self_training.labels" in failed(calseg(*again, "--labels", "hard", "--resume", cwd=work), 3)
    image = min((work / "data/source/train/images").glob("*.png"))
    image.rename(work / "away.png")
    assert "other images" in failed(calseg(*again, "--resume", cwd=work), 3)
    (work / "away.png").rename(image)
    done = calseg(*again, "--resume", cwd=work)
    assert done.code == 0, done.err
    whole = work / "runs/whole/4-adapt-self-training"
    assert same_weights(stage / "network.safetensors", whole / "network.safetensors")
    assert [record["terms"] for record in log(stage)] == [record["terms"] for record in log(whole)]
    assert not list(stage.rglob("resume.safetensors"))


def test_without_the_source_it_says_who_can_do_without(work, calseg):
    shutil.rmtree(work / "data/source")
    told = calseg(*ADAPT, cwd=work)
    assert "data/source" in failed(told, 4)
    assert "adabn, tent, cbst, calsfda" in told.err
    assert not (work / STAGE).exists()


def test_corrections_act_on_the_labels_it_makes(work, calseg):
    assert calseg("predict", "--split", "train", "-o", "l.h5", cwd=work).code == 0
    assert calseg("calibrate-prototypes", "--logits", "l.h5", "-o", "p.h5", cwd=work).code == 0
    words = (*ADAPT, "--checkpoint", f"{RUN}/1-pretrain", "--quality", "one", "--labels", "soft")
    for name, more in (("plain", ()), ("moved", ("--prototypes", "p.h5"))):
        ran = calseg(*words, "--name", name, *more, cwd=work)
        assert ran.code == 0, ran.err
    plain, moved = (work / f"runs/{name}/4-adapt-self-training" for name in ("plain", "moved"))
    first, second = log(plain)[0], log(moved)[0]
    assert first["terms"]["source"] == second["terms"]["source"]
    assert first["terms"]["mix"] != second["terms"]["mix"]
    assert first["watch"] == second["watch"]
    assert "prototypes" in read_facts(moved / "network.safetensors")["provenance"]["parents"]


def test_it_says_where_nothing_of_it_was_used(work, calseg):
    """Too short for the temperatures to begin, and no pixel sure enough to teach."""
    unsure = ("--set", "adapt.self_training.threshold=1.0")
    ran = calseg("adapt", "--method", "dacal", *FEW, *unsure, "--set", "adapt.dacal.warm_up=3", cwd=work)
    assert ran.code == 0, ran.err
    assert "over before the warm-up of 3" in ran.err
    assert "next to no weight" in ran.err
    quiet = calseg("adapt", *ADAPT[1:], "--quality", "one", cwd=work)
    assert quiet.code == 0, quiet.err
    assert "weight" not in quiet.err
    assert "warm-up of" not in quiet.err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--method", "self-training", "--rounds", "2"), 2, "--rounds has no effect"),
        (("--method", "self-training", "--guidance", "none"), 2, "--guidance has no effect"),
        (("--method", "tent", "--base", "mic"), 2, "--base has no effect"),
        (("--method", "cbst", "--prototypes", "online"), 2, "--prototypes has no effect"),
        (("--method", "self-training", "--prototypes", "offline"), 3, "offline"),
        (
            ("--method", "self-training", "--prototypes", "online", "--set", "prototypes.iterations=2"),
            2,
            "online prototypes see each image once",
        ),
        (("--method", "cbst", "--keep", "teacher"), 2, "--keep has no effect"),
        (("--method", "self-training", "--base", "dcas"), 2, "dacs, daformer, mic"),
        (("--method", "self-training", "--ema", "1"), 2, "adapt.self_training.ema"),
        (("--method", "self-training", "--labels", "firm"), 2, "hard, soft, sampled"),
        (("--method", "self_training", "--base", "mic"), 2, "unknown method 'self_training'"),
        (("--method", "self-training", "--valuenet", "x"), 2, "--valuenet x"),
        (("--method", "self-training", "--set", "target.size=[48,80]"), 4, "96x160 and 48x80"),
        (
            ("--method", "self-training", "--base", "mic", "--set", "adapt.self_training.feature_classes=[roda]"),
            2,
            "'roda'",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_one_line(small, calseg, words, code, told):
    assert told in failed(calseg("adapt", *words, cwd=small), code)
    assert not list((small / RUN).glob("4-adapt-*"))
