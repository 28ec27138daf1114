"""Padding, cropping and enlarging: where a logit lies on its image."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from calseg_cli.artifacts.geometry import Geometry
from calseg_cli.engine.forward import dense_logits, native_logits, pad_to_divisor, upsample_logits


class Average:
    """A network whose logits are the average colour under each cell."""

    def __init__(self, stride: int, divisor: int, align_corners: bool = False) -> None:
        self.stride, self.divisor, self.align_corners, self.num_classes = stride, divisor, align_corners, 3

    def __call__(self, images):
        assert images.shape[-1] % self.divisor == 0
        return F.avg_pool2d(images, self.stride, ceil_mode=True, count_include_pad=False)


@pytest.mark.parametrize("size", [(32, 64), (33, 47), (31, 31)])
@pytest.mark.parametrize("divisor", [1, 4, 32])
def test_padding_continues_the_image_and_is_undone(size, divisor):
    images = torch.rand(2, 3, *size)
    padded, pad = pad_to_divisor(images, divisor)
    assert padded.shape[-2] % divisor == padded.shape[-1] % divisor == 0
    assert max(pad) < divisor
    torch.testing.assert_close(padded[..., : size[0], : size[1]], images)
    assert torch.equal(padded[..., -1, : size[1]], images[..., -1, :])
    assert dense_logits(Average(4, divisor), images).shape == (2, 3, *size)


def test_without_padding_it_is_one_bilinear_step():
    images = torch.rand(1, 3, 32, 48)
    logits, geometry = native_logits(Average(4, 1), images, (60, 90))
    expected = F.interpolate(logits, size=(60, 90), mode="bilinear", align_corners=False)
    assert torch.equal(upsample_logits(logits, geometry), expected)
    assert torch.equal(upsample_logits(logits[0], geometry), expected[0])


def test_a_ramp_stays_where_it_is_through_padding_and_resizing():
    # Bilinear interpolation reproduces a linear function away from the border, whatever the padding.
    height, width = 37, 50
    ramp = torch.arange(width, dtype=torch.float32).expand(1, 3, height, width) / width
    dense = dense_logits(Average(4, 32), ramp)
    torch.testing.assert_close(dense[..., 8:-8], ramp[..., 8:-8], atol=1e-5, rtol=0)


def test_align_corners_is_honoured():
    logits = torch.rand(1, 2, 5, 5)
    with_corners = upsample_logits(logits, Geometry((33, 33), (33, 33), stride=8, align_corners=True))
    torch.testing.assert_close(with_corners[..., ::8, ::8], logits)
    without = upsample_logits(logits, Geometry((33, 33), (33, 33), stride=8, align_corners=False))
    assert not torch.allclose(without[..., ::8, ::8], logits)


def test_half_precision_logits_are_enlarged_in_float32():
    logits = torch.rand(2, 4, 4).half()
    assert upsample_logits(logits, Geometry((16, 16), (16, 16), stride=4)).dtype == torch.float32


def test_gradients_flow():
    images = torch.rand(1, 3, 33, 33, requires_grad=True)
    dense_logits(Average(4, 32), images).sum().backward()
    assert images.grad is not None
    assert SimpleNamespace(total=float(images.grad.sum())).total == pytest.approx(33 * 33 * 3, rel=1e-4)
