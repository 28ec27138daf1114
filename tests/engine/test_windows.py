"""Windows: the plain mean of their logits on the whole image's grid, and nothing changed where one window is enough."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calseg_cli.engine.forward import native_logits
from calseg_cli.engine.infer import Views, predict
from calseg_cli.engine.windows import Windows, window_grid, window_logits
from calseg_cli.errors import ConfigError
from calseg_cli.networks.build import build_network
from calseg_cli.networks.deeplab import DeepLabV2

CPU = torch.device("cpu")


class Seeing(nn.Module):
    """A network whose answer depends on its surroundings, and that remembers the sizes it was shown."""

    def __init__(self, stride=4, divisor=1, align_corners=False):
        super().__init__()
        self.stride, self.divisor, self.align_corners, self.num_classes = stride, divisor, align_corners, 5
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride, 2), nn.Tanh(), nn.Conv2d(8, 5, 3, 1, 1)).eval()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return self.body(images)


class Cells(nn.Module):
    """Logits that are the mean colour of a cell: no window can see more or less of it than the whole image does."""

    num_classes, align_corners = 3, False

    def __init__(self, stride, divisor):
        super().__init__()
        self.stride, self.divisor = stride, divisor

    def forward(self, images):
        return F.avg_pool2d(images, self.stride, ceil_mode=True, count_include_pad=False)


def starts_of(whole, side, overlap, unit):
    """Every multiple of the step until the image is covered; the last one as far back as the unit allows."""
    step = max(unit, int(side * (1 - overlap)) // unit * unit)
    last = next(start for start in range(0, whole, unit) if start + side >= whole)
    return sorted({*(start for start in range(0, whole, step) if start < last), last})


def brute_force(network, image, windows):
    """The mean at each grid point over all windows that hold it, point by point in float64."""
    unit = int(np.lcm(network.stride, network.divisor))
    bottom, right = (-size % network.divisor for size in image.shape[-2:])
    image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    height, width = image.shape[-2:]
    grid = native_logits(network, image)[0].shape
    total, count = np.zeros(grid), np.zeros(grid[-2:])
    for top in starts_of(height, windows.size[0], windows.overlap, unit):
        for left in starts_of(width, windows.size[1], windows.overlap, unit):
            seen = image[..., top : top + windows.size[0], left : left + windows.size[1]]
            answer = network(seen).double().numpy()
            for row in range(answer.shape[-2]):
                for column in range(answer.shape[-1]):
                    here = (top // network.stride + row, left // network.stride + column)
                    ends = (top + seen.shape[-2], left + seen.shape[-1])
                    beyond = [
                        at * network.stride >= end and end < whole
                        for at, end, whole in zip(here, ends, (height, width), strict=True)
                    ]
                    if not any(beyond):
                        total[..., here[0], here[1]] += answer[..., row, column]
                        count[here] += 1
    assert count.min() > 0
    return total / count


@pytest.mark.parametrize(
    ("network", "size", "windows"),
    [
        (Seeing(), (45, 70), Windows((16, 24), 0.333)),
        (Seeing(), (45, 20), Windows((16, 24), 0.333)),
        (Seeing(), (41, 64), Windows((16, 32), 0.0)),
        (Seeing(stride=4, divisor=8), (45, 70), Windows((24, 24), 0.6)),
        (Seeing(stride=8, align_corners=True), (65, 90), Windows((33, 41), 0.333)),
        (Seeing(stride=8, align_corners=True), (64, 90), Windows((32, 40), 0.9)),
    ],
)
@torch.no_grad()
def test_it_is_the_mean_of_the_windows_that_hold_a_point(network, size, windows):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = brute_force(network, image, windows)
    found = window_logits(network, image, windows, CPU)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert window_grid(network, image, windows, CPU) == expected.shape[-2:]


@pytest.mark.parametrize(("stride", "divisor"), [(1, 1), (4, 1), (4, 8), (8, 4), (3, 2)])
def test_a_network_without_surroundings_answers_as_to_the_whole_image(stride, divisor):
    network, image = Cells(stride, divisor), torch.rand(1, 3, 53, 43)
    for overlap in (0.0, 0.333, 0.75):
        found = window_logits(network, image, Windows((24, 24), overlap), CPU)
        torch.testing.assert_close(found, native_logits(network, image)[0])


@torch.no_grad()
def test_a_real_network_keeps_its_grid():
    network = build_network("tiny", 3, init="none", seed=0).eval()
    image, windows = torch.rand(1, 3, 90, 71), Windows((32, 48))
    found = window_logits(network, image, windows, CPU)
    assert found.shape == native_logits(network, image)[0].shape
    np.testing.assert_allclose(found.numpy(), brute_force(network, image, windows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [8, 64])
def test_the_ceiling_of_deeplab_moves_with_a_window(start):
    """What laying windows together rests on: a window's last row is the image's last row, whatever its size."""
    for height in range(start + 1, start + 60):
        whole, part = (DeepLabV2.grid(None, size, size)[0] for size in (height, height - start))
        assert whole == start // 8 + part


def only(network, image, views, **options):
    samples = [("a", image, None, (int(image.shape[-2]), int(image.shape[-1])))]
    return next(iter(predict(network, samples, device=CPU, views=views, dtype="float32", **options)))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_an_image_not_larger_than_a_window_is_answered_as_without(scales):
    network, image = Seeing(divisor=8), torch.rand(1, 3, 45, 70)
    plain = only(network, image, Views(scales, True))
    assert torch.equal(only(network, image, Views(scales, True, Windows((48, 72)))).logits, plain.logits)
    windowed = only(network, image, Views(scales, True, Windows((48, 64))))
    assert not torch.equal(windowed.logits, plain.logits)
    assert windowed.geometry == plain.geometry


def test_no_view_is_seen_in_more_than_a_window():
    network, image = Seeing(), torch.rand(1, 3, 45, 70)
    only(network, image, Views((1.0, 1.5), True, Windows((32, 40))))
    assert max(height for height, _ in network.sizes) == 32
    assert max(width for _, width in network.sizes) == 40


def test_views_average_probabilities_of_averaged_logits():
    network, image, windows = Seeing(), torch.rand(1, 3, 45, 70), Windows((32, 40))
    with torch.no_grad():
        looks = [window_logits(network, image, windows, CPU), window_logits(network, image.flip(-1), windows, CPU)]
    expected = (looks[0].softmax(1) + looks[1].flip(-1).softmax(1)) / 2
    found = only(network, image, Views((1.0,), True, windows)).logits
    torch.testing.assert_close(found.exp(), expected[0])


def test_bfloat16_logits_are_added_in_float32():
    network, image, windows = Seeing(), torch.rand(1, 3, 45, 70), Windows((32, 40))
    exact = only(network, image, Views(windows=windows)).logits
    rough = only(network, image, Views(windows=windows), amp="bf16").logits
    assert 0 < float((exact - rough).abs().max()) < 0.05


def test_what_a_value_is_tells_the_windows_apart():
    kinds = [
        Views(),
        Views(flip=True),
        Views(windows=Windows((32, 40))),
        Views(windows=Windows((40, 32))),
        Views(windows=Windows((32, 40), 0.5)),
        Views(flip=True, windows=Windows((32, 40))),
    ]
    told = [views.describe() for views in kinds]
    assert len(set(told)) == len(told)
    assert told[:2] == ["logits", "log-probabilities (mean of the views' probabilities)"]  # as files of old say
    assert "mean over windows of 32x40" in told[2]


@pytest.mark.parametrize(
    ("network", "size"),
    [(Seeing(), (30, 32)), (Seeing(divisor=8), (36, 32)), (Seeing(8, 1, True), (36, 33)), (Seeing(), (33, 33))],
)
def test_a_size_off_the_grid_is_refused_with_one_that_fits(network, size):
    with pytest.raises(ConfigError) as caught:
        window_logits(network, torch.rand(1, 3, 90, 90), Windows(size), CPU)
    near = tuple(int(side) for side in caught.value.hint.split("[")[1].rstrip("]").split(","))
    assert max(abs(a - b) for a, b in zip(near, size, strict=True)) <= network.stride * network.divisor
    Windows(near).check(network)


def test_windows_that_do_not_lie_on_one_grid_are_refused():
    network = Seeing()
    network.stride = 8  # it answers every 4 pixels
    with pytest.raises(ConfigError, match="laid together"):
        window_logits(network, torch.rand(1, 3, 90, 90), Windows((32, 32)), CPU)

    class Shrinking(nn.Module):
        stride, divisor, align_corners, num_classes = 4, 1, False, 5

        def forward(self, images):
            return F.avg_pool2d(images, 4)[..., 1:-1, 1:-1]

    with pytest.raises(ConfigError, match="laid together"):
        window_logits(Shrinking(), torch.rand(1, 3, 90, 90), Windows((32, 32), 0.0), CPU)
