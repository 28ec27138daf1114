"""Owns the way from images to logits and from logits to full size. The only place that pads, crops or up-samples."""

import torch.nn.functional as F
from torch import Tensor

from calseg_cli.artifacts.geometry import Geometry, Size
from calseg_cli.engine.network_shape import SegmentationNetwork


def pad_to_divisor(images: Tensor, divisor: int) -> tuple[Tensor, Size]:
    """Images (B,3,H,W) continued at the bottom and right by their last row and column to multiples of `divisor`."""
    height, width = images.shape[-2:]
    bottom, right = -height % divisor, -width % divisor
    if bottom or right:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    return images, (bottom, right)


def native_logits(network: SegmentationNetwork, images: Tensor, out_hw: Size | None = None) -> tuple[Tensor, Geometry]:
    """The network's logits (B,C,h,w) at its own stride, and where they lie on labels of size `out_hw`."""
    padded, _ = pad_to_divisor(images, network.divisor)
    return network(padded), geometry_of(network, images, out_hw)


def geometry_of(network: SegmentationNetwork, images: Tensor, out_hw: Size | None = None) -> Geometry:
    """Where the network's logits of images (B,3,H,W) lie on labels of size `out_hw`."""
    height, width = int(images.shape[-2]), int(images.shape[-1])
    return Geometry(
        in_hw=(height, width),
        out_hw=out_hw or (height, width),
        pad=(-height % network.divisor, -width % network.divisor),
        stride=network.stride,
        align_corners=network.align_corners,
    )


def upsample_logits(logits: Tensor, geometry: Geometry) -> Tensor:
    """Logits (B,C,h,w) or (C,h,w) bilinearly enlarged to `geometry.out_hw`, in float32.

    Without padding this is one step from the network's grid to the label's. With padding the padded border is cut off
    at the input's size first, and a second step follows only if the label has another size.
    """
    batch = (logits if logits.ndim == 4 else logits[None]).float()
    if geometry.pad == (0, 0):
        return _resize(batch, geometry.out_hw, geometry.align_corners).reshape(*logits.shape[:-2], *geometry.out_hw)
    whole = _resize(batch, geometry.padded_hw, geometry.align_corners)
    inner = whole[..., : geometry.in_hw[0], : geometry.in_hw[1]]
    return _resize(inner, geometry.out_hw, geometry.align_corners).reshape(*logits.shape[:-2], *geometry.out_hw)


def dense_logits(network: SegmentationNetwork, images: Tensor) -> Tensor:
    """The network's logits (B,C,H,W) at the images' own size, differentiable: what a training loss is taken on."""
    logits, geometry = native_logits(network, images)
    return upsample_logits(logits, geometry)


def _resize(logits: Tensor, size: Size, align_corners: bool) -> Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
