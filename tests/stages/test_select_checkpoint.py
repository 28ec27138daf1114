"""From checkpoints to a choice: float64 scores, kept counts or not, whose labels, what is refused, whole or nothing."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from calseg_cli.artifacts.provenance import file_digest
from calseg_cli.artifacts.reader import open_artifact
from calseg_cli.artifacts.tensors_file import read_facts
from calseg_cli.config import load_config
from calseg_cli.data.catalog import IGNORE, find_layout, make_layout
from calseg_cli.engine.checkpoint import read_checkpoint, write_checkpoint
from calseg_cli.engine.progress import Silent
from calseg_cli.errors import ArtifactError, CalsegError, ConfigError, DataError
from calseg_cli.methods.value_net import Tap, ValueNet
from calseg_cli.metrics.scores import read_scores
from calseg_cli.metrics.tally import merge, tally_image
from calseg_cli.networks.build import build_network
from calseg_cli.stages import select_checkpoint as stage
from calseg_cli.stages.networks import load_network, network_facts
from calseg_cli.stages.run_folder import run_folder, source_network
from calseg_cli.stages.select_checkpoint import select_checkpoint
from calseg_cli.stages.select_checkpoint_result import ORACLE, read_selected
from calseg_cli.stages.tally_file import write_tally
from calseg_cli.stages.value_nets import write_value_net

NAMES = ("road", "car", "sky")
SIZE = (32, 48)
RUN = "runs/run"


class Notes(Silent):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def picture(seed):
    generator = np.random.default_rng(seed)
    rough = generator.integers(0, 255, (4, 6, 3), np.uint8)
    return np.kron(rough, np.ones((8, 8, 1), np.uint8))


def label(seed):
    """By the brightness of the picture, a few pixels without a class."""
    found = np.minimum(picture(seed).mean(axis=2) // 86, 2).astype(np.uint8)
    found[np.random.default_rng(seed).random(SIZE) < 0.05] = IGNORE
    return found


def write_images(root, seeds):
    for seed in seeds:
        for kind, pixels in (("images", picture(seed)), ("labels", label(seed))):
            path = root / kind / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def resolve(**flags):
    return load_config(None, flags=flags, environ={})


def layout():
    return make_layout(find_layout("folders"), class_names=NAMES)


def make_checkpoint(path, step, *, seed=None, sharp=1.0, constant=None, facts=None, names=NAMES):
    """A tiny network with weights of that seed, its logits times `sharp`, or the same answer everywhere."""
    torch.manual_seed(step if seed is None else seed)
    network = build_network("tiny", len(names), init="none", options={})
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    head = [name for name in state if name.startswith("head")]
    weights, biases = ([name for name in head if name.endswith(end)][-1:] for end in ("weight", "bias"))
    for name in (*weights, *biases):
        state[name] = state[name] * sharp
        if constant is not None:
            state[name] = torch.zeros_like(state[name])
    if constant is not None:
        state[biases[0]][constant] = 9.0
    described = {
        "stage": "pretrain",
        **network_facts("tiny", {}, make_layout(find_layout("folders"), class_names=names)),
        "config": resolve().to_dict(),
        "provenance": {"config_digest": "d", "parents": {}, "files": {}},
        "kind": "network",
        "step": step,
        "scores": {},
        **(facts or {}),
    }
    write_checkpoint(path, state, described)
    return path


def keep_counts(path, step, *, right=0.8, confidence=0.9, seeds=(0, 1, 2), digest="d", **protocol):
    """Counts of a network that is right on about that share of the pixels, each as sure as the others; its scores."""
    tallies = []
    for seed in seeds:
        truth = torch.from_numpy(label(seed)).long()
        wrong = torch.from_numpy(np.random.default_rng(seed + 50).random(SIZE) > right)
        answer = torch.where(wrong, (truth + 1) % 3, truth.clamp(max=2))
        logits = torch.full((3, *SIZE), 0.0).scatter_(0, answer[None], float(np.log(2 * confidence / (1 - confidence))))
        tallies.append(tally_image(logits, label(seed), image_id=str(seed), ignore=IGNORE))
    tally = merge(tallies)
    meta = {
        "classes": {"names": list(NAMES), "palette": [list(c) for c in layout().palette], "ignore": IGNORE},
        "protocol": {"domain": "source", "split": "val", "step": step, "edges": "right", **protocol},
        "provenance": {"config_digest": digest},
    }
    write_tally(path.with_suffix(".h5"), tally, meta, force=True)
    return read_scores(tally, class_names=NAMES)


def checkpoint_with_counts(folder, step, **counts):
    path = folder / "checkpoints" / f"step-{step:06d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = keep_counts(path, step, **counts)
    make_checkpoint(path, step, facts={"scores": {"miou": scores.miou, "nll": scores.nll}})
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a labelled source and target; runs/run is empty."""
    write_images(tmp_path / "source/val", range(3))
    write_images(tmp_path / "target/train", range(10, 14))
    write_images(tmp_path / "target/test", range(20, 23))
    (tmp_path / "calseg.yaml").write_text(
        f"source: {{root: source, classes: [{', '.join(NAMES)}]}}\ntarget: {{root: target}}\ndevice: cpu\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kept(folder):
    """Three checkpoints of a pretraining with kept counts: the middle one is calibrated best, the first is poor."""
    pretrain = folder / RUN / "1-pretrain"
    for step, right in ((100, 0.5), (200, 0.88), (300, 0.89)):
        checkpoint_with_counts(pretrain, step, right=right, confidence={100: 0.5, 200: 0.875, 300: 0.97}[step])
    shutil.copy(pretrain / "checkpoints/step-000300.safetensors", pretrain / "network.safetensors")
    return folder


def run(*, progress=None, checkpoints=None, start=None, measure=False, out=None, resume=False, force=False, **options):
    resolved = resolve(**{"select.intervals": 100, **{f"select.{key}": value for key, value in options.items()}})
    return select_checkpoint(
        resolved,
        checkpoints=checkpoints,
        start=start,
        measure=measure,
        out=out,
        resume=resume,
        force=force,
        progress=progress or Silent(),
    )


def row(done, name):
    return next(one for one in done.rows if one.name == name)


# With labels


def test_the_lowest_error_above_the_floor_is_chosen_from_kept_counts_alone(kept):
    shutil.rmtree(kept / "source")
    done = run()
    assert [one.name for one in done.rows] == [
        "step-000100",
        "step-000200",
        "step-000300",  # the last stands there once
    ]
    assert done.winner.name == "step-000200"
    assert "mIoU" in row(done, "step-000100").refused
    assert row(done, "step-000100").score("ece")[0] < row(done, "step-000300").score("ece")[0]
    assert {one.counts for one in done.rows} == {"kept"}
    assert run(by="miou", force=True).winner.name == "step-000300"


def test_what_is_written_says_all(kept):
    done = run()
    original = kept / RUN / "1-pretrain/checkpoints/step-000200.safetensors"
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "checkpoints.png",
        "network.safetensors",
        "selection.h5",
    ]
    chosen, before = read_checkpoint(done.network), read_checkpoint(original)
    assert all(torch.equal(chosen.network[name], tensor) for name, tensor in before.network.items())
    assert chosen.facts["selected"]["from"] == "step-000200"
    assert (chosen.facts["selected"]["by"], chosen.facts["selected"]["step"], chosen.facts["step"]) == ("ece", 200, 200)
    assert chosen.facts["provenance"]["parents"] == {"checkpoint": file_digest(original)}
    with open_artifact(done.folder / "selection.h5", "selection") as artifact:
        assert artifact.meta["protocol"]["labels_used_for"] == "source val"
        assert artifact.meta["protocol"]["refused"].keys() == {"step-000100"}
        np.testing.assert_array_equal(artifact.array("scores"), [one.score("ece")[0] for one in done.rows])
        assert tuple(artifact.class_names) == NAMES
    assert source_network(run_folder(resolve())).resolve() == done.network.resolve()
    again = read_selected(done.folder)
    assert (again.rows, again.chosen, again.digest) == (done.rows, 1, done.digest)
    json.dumps(done.document(), default=str)


def test_intervals_hold_the_value_and_the_chosen_one_is_not_apart_from_itself(kept):
    done = run()
    for one in done.rows:
        value, low, high = one.score("miou")
        assert low <= value <= high
        assert one.apart[0] == pytest.approx(one.score("ece")[0] - done.winner.score("ece")[0])
    assert done.winner.apart == (0.0, 0.0, 0.0)
    bare = run(intervals=0, force=True)
    assert bare.winner.name == done.winner.name
    assert np.isnan(bare.winner.score("ece")[1:]).all()


def softmax_and_labels(path, seeds=range(3)):
    """Probabilities (N,C) and labels (N,) of all labelled pixels in float64, by torch's own enlargement."""
    checkpoint = read_checkpoint(path)
    network = build_network("tiny", 3, init="none", options={})
    network.load_state_dict(checkpoint.network)
    pairs = []
    for seed in seeds:
        image = torch.from_numpy(picture(seed)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits = network.eval()(image).half().double()
        full = torch.nn.functional.interpolate(logits, size=SIZE, mode="bilinear", align_corners=network.align_corners)
        y = label(seed).ravel()
        pairs.append((full[0].flatten(1).T.softmax(dim=1).numpy()[y != IGNORE], y[y != IGNORE]))
    return np.concatenate([p for p, _ in pairs]), np.concatenate([y for _, y in pairs]), pairs


def plain_ece(p, y):
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.ceil(confidence * 15).astype(int)
    return sum(abs((confidence - right)[bins == b].sum()) for b in range(1, 16)) / len(y)


def test_measured_anew_the_scores_are_those_of_all_labelled_pixels(folder):
    path = make_checkpoint(folder / "own/a.safetensors", 5, sharp=20.0)
    done = run(checkpoints="own", measure=True)
    p, y, pairs = softmax_and_labels(path)
    scores = {name: ends[0] for name, ends in done.winner.scores.items()}
    assert scores["ece"] == pytest.approx(plain_ece(p, y), abs=2e-4)
    assert scores["nll"] == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-4)
    each = [plain_ece(*pair) for pair in pairs]
    assert scores["ece_image"] == pytest.approx(np.mean(each), abs=5e-4)
    # T10: the pooled error is at most the mean of the images' own, by their pixels.
    assert scores["ece"] <= np.average(each, weights=[len(one) for _, one in pairs]) + 1e-3
    assert done.folder == folder / "own/select" or str(done.folder) == "own/select"


def test_a_better_calibrated_network_that_learnt_little_needs_the_floor_to_be_refused(folder):
    for step, right, confidence in ((100, 0.5, 0.5), (200, 0.9, 0.75)):
        checkpoint_with_counts(folder / RUN / "1-pretrain", step, right=right, confidence=confidence)
    assert run().winner.name == "step-000200"
    assert run(floor=1.0, force=True).winner.name == "step-000100"


def test_one_checkpoint_is_chosen_whatever_it_scores(folder):
    make_checkpoint(folder / "own/a.safetensors", 5)
    assert run(checkpoints="own").winner.name == "a"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"digest": "other"}, "another network"),
        ({"split": "train"}, "counted otherwise"),
        ({"edges": "left"}, "counted otherwise"),
        ({"right": 0.6}, "another network"),
    ],
)
def test_counts_that_do_not_fit_are_made_anew(kept, changed, told):
    keep_counts(kept / RUN / "1-pretrain/checkpoints/step-000200.safetensors", 200, **{"right": 0.88, **changed})
    notes = Notes()
    done = run(progress=notes, floor=1.0)
    assert row(done, "step-000200").counts == "measured"
    assert row(done, "step-000300").counts == "kept"
    assert any("step-000200 is measured anew" in note and told in note for note in notes.told)


def test_counts_of_other_images_are_all_left_aside(kept):
    write_images(kept / "source/val", [7])
    (kept / RUN / "1-pretrain/checkpoints/step-000200.h5").unlink()
    notes = Notes()
    done = run(progress=notes, floor=1.0)
    assert {one.counts for one in done.rows} == {"measured"}
    assert any("not of the same images" in note for note in notes.told)


def test_settings_that_change_counts_are_noticed(kept):
    notes = Notes()
    text = (kept / "calseg.yaml").read_text()
    (kept / "calseg.yaml").write_text(text.replace("root: source,", "root: source, size: [16, 16],"))
    assert {one.counts for one in run(progress=notes, floor=1.0).rows} == {"measured"}
    assert any("source.size" in note for note in notes.told)


def test_measure_passes_over_kept_counts(kept):
    assert {one.counts for one in run(measure=True, floor=1.0).rows} == {"measured"}
    assert {one.counts for one in run(max_items=2, floor=1.0, force=True).rows} == {"measured"}


# Without labels


@pytest.fixture
def adapted(folder):
    """A source network, and four rounds that record it: sharper, sharpest, collapsed, not finite."""
    source = make_checkpoint(folder / RUN / "1-pretrain/network.safetensors", 600, seed=1, sharp=2.0)
    origin = {"parents": {"checkpoint": file_digest(source)}, "files": {}, "config_digest": "d"}
    facts = {"stage": "adapt-x", "provenance": origin}
    for number, options in enumerate(({"sharp": 8.0}, {"sharp": 20.0}, {"constant": 1}, {"sharp": float("nan")}), 1):
        path = folder / RUN / f"4-adapt-x/round-{number}/network.safetensors"
        make_checkpoint(path, number, seed=1, facts=facts, **options)
    return folder


@pytest.mark.parametrize("by", ["entropy", "snd"])
def test_without_labels_the_collapsed_one_is_refused_though_its_score_is_best(adapted, by):
    done = run(by=by, checkpoints="adapt-x")
    assert [one.name for one in done.rows] == ["start", "round-1", "round-2", "round-3", "round-4"]
    gone = row(done, "round-3")
    assert "classes" in gone.refused
    best = max if by == "snd" else min
    scored = [one.score(done.score)[0] for one in done.rows if not np.isnan(one.score(done.score)[0])]
    assert gone.score(done.score)[0] == best(scored)
    sound = [one for one in done.rows if one.refused is None]
    assert done.winner.score(done.score)[0] == best(one.score(done.score)[0] for one in sound)
    assert "finite" in row(done, "round-4").refused
    assert done.protocol["labels_used_for"] == "none"
    assert str(done.folder) == f"{RUN}/4-adapt-x-selected"
    assert not (adapted / RUN / "2-select").exists()


def test_the_entropy_is_that_of_the_images_themselves(adapted):
    done = run(by="entropy", checkpoints="adapt-x")
    checkpoint = read_checkpoint(adapted / RUN / "4-adapt-x/round-1/network.safetensors")
    network = build_network("tiny", 3, init="none", options={})
    network.load_state_dict(checkpoint.network)
    entropies = []
    for seed in range(10, 14):
        image = torch.from_numpy(picture(seed)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            p = network.eval()(image).half().double().softmax(dim=1)
        entropies.append(float(-(p * p.log()).sum(dim=1).mean() / np.log(3)))
    assert row(done, "round-1").score("entropy")[0] == pytest.approx(np.mean(entropies), abs=1e-5)
    value, low, high = row(done, "round-1").score("entropy")
    assert min(entropies) - 1e-5 <= low <= value <= high <= max(entropies) + 1e-5


def test_labels_change_nothing_and_need_not_be_there(adapted):
    first = run(by="entropy", checkpoints="adapt-x")
    for split in ("train", "test"):
        for path in (adapted / f"target/{split}/labels").iterdir():
            path.write_bytes(b"no picture")
    assert run(by="entropy", checkpoints="adapt-x", force=True).rows == first.rows
    shutil.rmtree(adapted / "source")
    for split in ("train", "test"):
        shutil.rmtree(adapted / f"target/{split}/labels")
    assert run(by="entropy", checkpoints="adapt-x", force=True).rows == first.rows


def test_the_start_can_be_named_and_can_win(adapted):
    done = run(by="entropy", checkpoints="adapt-x", start="pretrain", most_moved=0.0, kept_classes=0.0)
    assert done.winner.name == "start" or row(done, "round-1").refused is None
    assert "start" in [one.name for one in done.rows]
    with pytest.raises(ArtifactError, match="no checkpoint"):
        run(by="entropy", checkpoints="adapt-x", start="nothing", force=True)


def test_of_a_pretraining_the_last_checkpoint_is_the_start(kept):
    done = run(by="entropy", kept_classes=0.0, most_moved=1.0)
    assert done.protocol["start"] == "step-000300"
    assert len(done.rows) == 3


def test_a_value_net_is_asked_for_where_it_is_missing(adapted):
    with pytest.raises(ArtifactError, match="no value net"):
        run(by="value-net", checkpoints="adapt-x")


def test_by_the_mean_of_what_a_value_net_expects(adapted):
    source = adapted / RUN / "1-pretrain/network.safetensors"
    loaded = load_network(source, torch.device("cpu"), resolve())
    with Tap(loaded.network) as tap, torch.no_grad():
        loaded.network(torch.zeros(1, 3, *SIZE))
    net = ValueNet(tap.features.shape[1], width=4, grid=2)
    facts = {**read_facts(source), "provenance": {"parents": {"checkpoint": file_digest(source)}}}
    write_value_net(adapted / RUN / "3-valuenet/valuenet.safetensors", net, facts, {"range": [0.0, 1.0]})
    done = run(by="value-net", checkpoints="adapt-x", most_moved=1.0, kept_classes=0.0)
    expected = []
    for seed in range(10, 14):
        image = torch.from_numpy(picture(seed)).permute(2, 0, 1)[None].float() / 255
        with Tap(loaded.network) as tap, torch.no_grad():
            loaded.network(image)
            expected.append(float(net.eval()(tap.features)))
    assert row(done, "start").score("value_net")[0] == pytest.approx(np.mean(expected), abs=1e-6)
    assert done.protocol["labels_used_for"] == "none"
    make_checkpoint(source, 601, seed=5)
    facts["provenance"] = {"parents": {"checkpoint": "sha256:other"}}
    write_value_net(adapted / RUN / "3-valuenet/valuenet.safetensors", net, facts, {"range": [0.0, 1.0]})
    with pytest.raises(ArtifactError, match="another network"):
        run(by="value-net", checkpoints="adapt-x", force=True)


# An oracle


def test_an_oracle_says_so_everywhere_and_stays_aside(kept):
    notes = Notes()
    done = run(oracle=True, by="miou", progress=notes)
    assert ORACLE in notes.told
    assert done.tables()[0][0].startswith("ORACLE")
    assert done.course().title.startswith("ORACLE")
    assert done.protocol["labels_used_for"] == "target test: oracle"
    assert "oracle" in read_facts(done.network)["selected"]["labels_used_for"]
    assert str(done.folder) == f"{RUN}/2-select-oracle"
    assert source_network(run_folder(resolve())).parent.name == "1-pretrain"


def test_without_oracle_no_label_of_the_target_is_needed(kept):
    shutil.rmtree(kept / "target")
    assert run(measure=True, floor=1.0).oracle is False
    with pytest.raises(CalsegError):
        run(oracle=True, force=True)


# What is refused


def test_a_broken_file_is_refused_and_the_rest_stay(kept):
    checkpoints = kept / RUN / "1-pretrain/checkpoints"
    (checkpoints / "step-000400.safetensors").write_bytes(b"nothing")
    make_checkpoint(checkpoints / "other.safetensors", 7, names=("a", "b"))
    done = run()
    assert done.winner.name == "step-000200"
    assert "no safetensors file" in row(done, "step-000400").refused
    assert "other classes" in row(done, "other").refused
    assert row(done, "step-000400").step == -1


def test_a_chosen_file_that_turns_out_damaged_gives_way(kept):
    path = kept / RUN / "1-pretrain/checkpoints/step-000200.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)
    done = run()
    assert done.winner.name == "step-000300"
    assert "damaged" in row(done, "step-000200").refused


def test_where_all_are_refused_one_line_says_why(folder):
    (folder / "own").mkdir()
    for name in ("a", "b"):
        (folder / f"own/{name}.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"none of 2 checkpoints in own can be chosen: a: .*; b: ") as raised:
        run(checkpoints="own")
    assert "\n" not in raised.value.message
    make_checkpoint(folder / "nan/a.safetensors", 1, sharp=float("nan"))
    with pytest.raises(ArtifactError, match="not finite"):
        run(checkpoints="nan")


def test_empty_and_absent_folders_and_missing_labels(folder):
    with pytest.raises(ArtifactError, match="no folder"):
        run()
    (folder / "own").mkdir()
    with pytest.raises(ArtifactError, match="holds no checkpoint"):
        run(checkpoints="own")
    make_checkpoint(folder / "own/a.safetensors", 1)
    with pytest.raises(DataError):
        run(checkpoints="own", split="train")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "entropy", "oracle": True}, "no oracle"),
        ({"start": "pretrain"}, "--start has no effect"),
        ({"by": "snd", "measure": True}, "--measure has no effect"),
        ({"by": "miou", "floor": 0.1}, "--floor has no effect"),
        ({"intervals": 7}, "resamples"),
    ],
)
def test_options_without_effect_are_misunderstandings(kept, options, told):
    with pytest.raises(ConfigError, match=told):
        run(**options)


def test_nothing_else_is_written_over(kept):
    with pytest.raises(ArtifactError, match="holds the checkpoints"):
        run(out=kept / RUN / "1-pretrain")
    with pytest.raises(ArtifactError, match="no part of a choice"):
        run(out=kept / "source", force=True)
    (kept / "file").write_text("x")
    with pytest.raises(ArtifactError, match="is a file"):
        run(out=kept / "file", force=True)
    assert (kept / "source/val").is_dir()


# Whole or not at all


def test_a_second_time_needs_a_word(kept):
    first = run()
    with pytest.raises(ArtifactError, match="holds a finished run"):
        run()
    notes = Notes()
    again = run(resume=True, progress=notes)
    assert (again.rows, again.digest) == (first.rows, first.digest)
    assert any("nothing to do" in note for note in notes.told)
    with pytest.raises(ArtifactError, match=r"stale: options.by was ece, is nll"):
        run(resume=True, by="nll")
    before = first.network.read_bytes()
    assert run(force=True).digest == first.digest
    assert first.network.read_bytes() == before  # what was made from it is not stale


def test_a_new_checkpoint_makes_an_old_choice_stale(kept):
    run()
    checkpoint_with_counts(kept / RUN / "1-pretrain", 400, right=0.9, confidence=0.9)
    with pytest.raises(ArtifactError, match=r"stale: checkpoints.step-000400"):
        run(resume=True)


@pytest.mark.parametrize("step", ["save_png", "write_checkpoint"])
def test_cut_off_half_way_the_old_choice_stays(kept, monkeypatch, step):
    first = run()
    before = first.network.read_bytes()

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage, step, stop)
        with pytest.raises(KeyboardInterrupt):
            run(by="nll", force=True)
    assert first.network.read_bytes() == before
    assert read_selected(first.folder).protocol["by"] == "ece"
    assert run(by="nll", force=True).protocol["by"] == "nll"
    assert not list((kept / RUN).glob("*.replaced"))


def test_after_a_kill_it_can_be_done_again(kept):
    folder = kept / RUN / "2-select"
    folder.mkdir()
    (folder / "selection.h5.partial").write_bytes(b"half")
    (folder / "selection.h5").write_bytes(b"whole, but its network is not there")
    assert run().winner.name == "step-000200"
