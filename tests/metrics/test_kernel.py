"""The compiled road against plain torch: the same bits; and both against float64."""

import multiprocessing
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calseg_cli.errors import DataError
from calseg_cli.metrics import counting
from calseg_cli.metrics.calibration import ece
from calseg_cli.metrics.extra_counts import Extra
from calseg_cli.metrics.fine_histogram import FINE_BINS
from calseg_cli.metrics.grid import bilinear_grid
from calseg_cli.metrics.pixels import measure_grid
from calseg_cli.metrics.regions import Regions
from calseg_cli.metrics.tally import tally_image

numba = pytest.importorskip("numba", reason="numba is not installed")
from calseg_cli.metrics import kernel  # noqa: E402


def scene(seed, classes, cells, pixels, *, spread=4.0, ignore=255, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.standard_normal((classes, *cells)) * spread).astype(np.float32))
    labels = rng.integers(0, classes, pixels).astype(dtype)
    labels[rng.random(pixels) < 0.1] = ignore
    return logits, labels


def both(logits, labels, grid, monkeypatch, **options):
    """(compiled, plain)"""
    options = {"image_id": "a", "ignore": 255, **options}
    compiled = tally_image(logits, labels, grid=grid, **options)
    with monkeypatch.context() as patch:
        patch.setattr(counting, "compiled_road", lambda: None)
        return compiled, tally_image(logits, labels, grid=grid, **options)


def test_the_compiled_road_is_taken(monkeypatch):
    """Without this, the tests below could compare plain torch with itself."""
    taken = []
    monkeypatch.setattr(kernel, "count", lambda *a, **k: taken.append(1) or (_ for _ in ()).throw(KeyError))
    logits, labels = scene(0, 3, (4, 4), (8, 8))
    with pytest.raises(KeyError):
        tally_image(logits, labels, image_id="a", ignore=255, grid=bilinear_grid((4, 4), (8, 8)))
    assert taken


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    classes=st.sampled_from([1, 2, 3, 11, 16, 17, 19, 40]),
    cells=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    pixels=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    spread=st.sampled_from([0.0, 0.3, 4.0, 40.0, 1e4]),
    edges=st.sampled_from(["right", "left"]),
    corners=st.booleans(),
    threads=st.integers(1, 3),
)
def test_both_roads_give_the_same_bits(seed, classes, cells, pixels, spread, edges, corners, threads):
    logits, labels = scene(seed, classes, cells, pixels, spread=spread)
    grid = bilinear_grid(cells, pixels, align_corners=corners)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        try:
            torch.set_num_threads(threads)
            compiled, plain = both(logits, labels, grid, patch, edges=edges)
        finally:
            torch.set_num_threads(before)
    assert compiled == plain


def test_against_float64(reference, monkeypatch):
    """Enlarged, softmaxed and summed in float64 by torch and numpy."""
    logits, labels = scene(1, 19, (30, 40), (121, 159))
    grid = bilinear_grid((30, 40), (121, 159))
    tally, _ = both(logits, labels, grid, monkeypatch)
    full = F.interpolate(logits[None].double(), size=labels.shape, mode="bilinear")[0].flatten(1).numpy()
    kept = labels.ravel() != 255
    probs, truth = reference.softmax(full[:, kept]), labels.ravel()[kept].astype(int)
    q, guess = probs.max(axis=0), probs.argmax(axis=0)
    row = tally.images
    assert ece(tally.by_predicted) == pytest.approx(reference.ece(q, guess == truth, 15), abs=1e-6)
    assert row.nll[0] == pytest.approx(-np.log(probs[truth, np.arange(len(truth))]).sum(), rel=1e-6)
    one_hot = np.eye(19)[:, truth]
    assert row.brier[0] == pytest.approx(((probs - one_hot) ** 2).sum(), rel=1e-6)
    assert row.brier_top[0] == pytest.approx(((q - (guess == truth)) ** 2).sum(), rel=1e-6)
    confusion = np.zeros((19, 19), np.int64)
    np.add.at(confusion, (truth, guess), 1)
    assert np.abs(tally.confusion - confusion).sum() <= 4  # a tie within rounding may fall either way
    assert tally.num_ignored == (~kept).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_logits(dtype, monkeypatch):
    logits, labels = scene(2, 5, (8, 9), (30, 33))
    grid = bilinear_grid((8, 9), (30, 33))
    compiled, plain = both(logits.to(dtype), labels, grid, monkeypatch)
    assert compiled == plain == both(logits.to(dtype).float(), labels, grid, monkeypatch)[0]


@pytest.mark.parametrize(("ignore", "dtype"), [(255, np.uint8), (-1, np.int64), (-100, np.int32), (70_000, np.int64)])
def test_ignored_values_and_types_of_labels(ignore, dtype, monkeypatch):
    logits, labels = scene(3, 4, (5, 6), (21, 20), ignore=ignore, dtype=dtype)
    grid = bilinear_grid((5, 6), (21, 20))
    compiled, plain = both(logits, labels, grid, monkeypatch, ignore=ignore)
    assert compiled == plain
    assert compiled.num_ignored == (labels == ignore).sum() > 0


def test_an_ignored_value_outside_bytes_never_hides_a_strange_label():
    labels = np.full((4, 4), 255, np.uint8)
    with pytest.raises(DataError, match="255"):
        tally_image(torch.zeros(3, 4, 4), labels, image_id="a", ignore=-1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_the_compiled_road_does_not_take_goes_the_plain_one(value, monkeypatch):
    logits, labels = scene(4, 3, (6, 6), (24, 24))
    logits[1, 2, 3] = value
    grid = bilinear_grid((6, 6), (24, 24))
    assert not kernel.suits(logits.numpy(), grid)
    compiled, plain = both(logits, labels, grid, monkeypatch)
    assert compiled == plain
    assert (compiled.num_invalid > 0) == (value != 3e38)


def test_the_largest_float16_logits(monkeypatch):
    logits, labels = scene(5, 3, (6, 6), (24, 24))
    logits[0], logits[1:] = 65504, -65504
    compiled, plain = both(logits, labels, bilinear_grid((6, 6), (24, 24)), monkeypatch)
    assert kernel.suits(logits.numpy(), bilinear_grid((6, 6), (24, 24)))
    assert compiled == plain
    assert compiled.images.nll[0] == pytest.approx(131008.0 * (labels[labels != 255] != 0).sum(), rel=1e-12)


def test_many_columns_are_cut_into_tiles(monkeypatch):
    logits, labels = scene(6, 40, (3, 300), (6, 2400))
    grid = bilinear_grid((3, 300), (6, 2400))
    whole, plain = both(logits, labels, grid, monkeypatch)
    monkeypatch.setattr(kernel, "_TILE_VALUES", 40 * 100)
    tiled, _ = both(logits, labels, grid, monkeypatch)
    assert whole == tiled == plain


def test_regions_see_the_same_pixels(monkeypatch):
    logits, labels = scene(7, 5, (9, 9), (40, 40))
    rule = Regions(("boundary", "fg-true", "fg-pred"), 0)
    grid = bilinear_grid((9, 9), (40, 40))
    compiled, plain = both(logits, labels, grid, monkeypatch, extra=Extra(classwise=True, regions=rule, preset="lts"))
    assert compiled == plain
    assert compiled.extra.regions.counts.num_pixels > 0


def test_every_pixel_is_in_its_bin():
    """Constant logits of known confidence, at and beside the edges of bins."""
    for share in (0.5, 0.25 + 2**-20, 1 - 2**-12):
        other = np.float32(np.log((1 - share) / share))
        logits = torch.stack([torch.zeros(3, 3), torch.full((3, 3), float(other))])
        tally = tally_image(
            logits, np.zeros((12, 12), np.uint8), image_id="a", ignore=255, grid=bilinear_grid((3, 3), (12, 12))
        )
        place = int(tally.by_predicted.count.sum(axis=0).argmax())
        assert tally.by_predicted.count.max() == 144
        assert abs((place + 0.5) / FINE_BINS - max(share, 1 - share)) <= 1 / FINE_BINS


def test_nothing_of_full_size_with_a_class_axis_is_in_memory():
    classes, cells, pixels = 19, (64, 128), (512, 1024)
    logits, labels = scene(8, classes, cells, pixels)
    grid = bilinear_grid(cells, pixels)
    tally_image(logits, labels, image_id="warm", ignore=255, grid=grid)
    tracemalloc.start()
    try:
        tally_image(logits, labels, image_id="a", ignore=255, grid=grid)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20 < classes * pixels[0] * pixels[1] * 4


def _in_a_fork(queue, logits, labels):
    grid = bilinear_grid((4, 4), (16, 16))
    queue.put(tally_image(logits, labels, image_id="a", ignore=255, grid=grid).num_valid)


def test_a_fork_counts_too():
    logits, labels = scene(9, 3, (4, 4), (16, 16))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tally_image(logits, labels, image_id="a", ignore=255, grid=bilinear_grid((4, 4), (16, 16)))
    finally:
        torch.set_num_threads(before)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_in_a_fork, args=(queue, logits, labels))
    process.start()
    assert queue.get(timeout=60) == (labels != 255).sum()
    process.join(timeout=60)
    assert process.exitcode == 0


@pytest.mark.parametrize("size", [(30, 41), (31, 40)])
def test_a_grid_of_another_size_is_refused(size):
    logits, labels = scene(0, 3, (4, 4), (30, 40))
    with pytest.raises(DataError, match="a: the label is 30x40 and the prediction"):
        tally_image(logits, labels, image_id="a", ignore=255, grid=bilinear_grid((4, 4), size))
    with pytest.raises(ValueError, match="cells"):
        tally_image(logits, labels, image_id="a", ignore=255, grid=bilinear_grid((5, 4), (30, 40)))


@pytest.fixture
def fresh_choice():
    counting.compiled_road.cache_clear()
    yield
    counting.compiled_road.cache_clear()


def test_without_numba_the_plain_road_is_taken(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert counting.compiled_road() is None


def test_numba_that_may_not_compile_is_not_used(monkeypatch, fresh_choice):
    """It would run the kernel as Python, a thousand times slower."""
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    assert counting.compiled_road() is None


def test_where_no_cache_can_be_kept_it_compiles_without(monkeypatch):
    real = kernel.njit
    asked = []

    def without_folder(**options):
        asked.append(options.get("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(kernel, "njit", without_folder)
    assert kernel._compiled(lambda value: value + 1)(1) == 2
    assert asked == [True, False]


def test_classes_and_confidence_of_an_image_are_those_that_are_counted(monkeypatch):
    logits, labels = scene(11, 7, (9, 8), (33, 40))
    grid = bilinear_grid((9, 8), (33, 40))
    classes, confidence = counting.decide_image(logits, grid)
    measured = measure_grid(logits, torch.from_numpy(labels).long(), grid, 255)
    valid = torch.from_numpy(labels != 255)
    assert torch.equal(classes[valid], measured.predictions)
    assert torch.equal(confidence[valid], measured.confidence)
    monkeypatch.setattr(counting, "compiled_road", lambda: None)
    plain = counting.decide_image(logits, grid)
    assert torch.equal(classes, plain[0])
    assert torch.equal(confidence, plain[1])


@pytest.mark.gpu
@pytest.mark.parametrize("edges", ["right", "left"])
def test_a_gpu_gives_the_same_bits(cuda, edges):
    logits, labels = scene(10, 19, (64, 128), (512, 1024))
    grid = bilinear_grid((64, 128), (512, 1024))
    here = tally_image(logits, labels, image_id="a", ignore=255, edges=edges, grid=grid)
    assert tally_image(logits.to(cuda), labels, image_id="a", ignore=255, edges=edges, grid=grid) == here
