"""Owns what is advised when memory runs out: which settings of this run to change, by how much, least harm first."""

from collections.abc import Iterator
from typing import Any

from PIL import Image

from calseg_cli.config import Resolved
from calseg_cli.config.self_training import sections_of
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.errors import DataError

Size = tuple[int, int]
_STEP = 32  # a multiple of every built-in network's stride and divisor
_SHOWN = 3


def training_advice(resolved: Resolved, section: str, size: Size | None = None, *, world: int = 1) -> str:
    """Up to three settings for a stage that trains by the options of `section`, such as "adapt.tent".

    `size` is that of the images as the network gets them, where it is known; of `world` processes each has its share of
    the batch.
    """
    return _told(_for_training(resolved, section, size, world))


def adapt_advice(resolved: Resolved, size: Size | None = None, *, world: int = 1) -> str:
    """The same for `calseg adapt`, whose method says which section it is."""
    return training_advice(resolved, f"adapt.{sections_of(resolved.config.adapt.method)[-1]}", size, world=world)


def inference_advice(resolved: Resolved, domain: str | None = None, size: Size | None = None) -> str:
    """Up to three settings for what only looks at images, of the `domain` and `size` where they are known."""
    return _told(_for_inference(resolved, domain, size))


def input_size(dataset: SegmentationDataset) -> Size:
    """The images' size as the network gets it, that of the first where each keeps its own. Raises DataError."""
    path = dataset.items[0].image
    if dataset.size is not None:
        return dataset.size
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image", "copy it again or take it out") from error


def _for_training(resolved: Resolved, section: str, size: Size | None, world: int) -> Iterator[str]:
    options = _section(resolved, section)
    domain = "source" if section in ("pretrain", "valuenet") else resolved.config.adapt.domain
    if getattr(options, "grad_checkpoint", None) is False and not resolved.config.compile:
        yield f"{_set(section, grad_checkpoint='true')} (the same numbers, slower; also with --resume)"
    smaller = _smaller_batch(options.batch_size, world, 2 if getattr(options, "source_free", False) else 1)
    if smaller is not None and hasattr(options, "accumulate"):
        more = options.accumulate * (options.batch_size // smaller)
        yield f"{_set(section, batch_size=smaller, accumulate=more)} (as many images a step, {smaller} at a time)"
    if getattr(options, "amp", None) == "off":
        yield f"{_set(section, amp='bf16')} (half of what is kept, less exact)"
    if smaller is not None and not hasattr(options, "accumulate"):
        yield f"{_set(section, batch_size=smaller)} (instead of {options.batch_size})"
    seen = size or getattr(getattr(resolved.config, domain), "size", None)
    if hasattr(options, "augment"):
        yield from _cut(f"{section}.augment.crop", options.augment.crop or seen)
    elif section == "valuenet":
        yield from _cut("pretrain.augment.crop", resolved.config.pretrain.augment.crop or seen)
    else:
        yield from _cut(f"{domain}.size", seen)


def _for_inference(resolved: Resolved, domain: str | None, size: Size | None) -> Iterator[str]:
    options = resolved.config.predict
    seen = size or (getattr(getattr(resolved.config, domain), "size", None) if domain is not None else None)
    whole = options.window or seen
    window = _part(whole, 2) if whole is not None else (512, 512)
    if window is not None:
        told = "windows of it" if options.window is None else f"instead of {_list(options.window)}"
        yield f"{_set('predict', window=_list(window))} ({told}; results differ a little)"
    if options.amp == "off":
        yield f"{_set('predict', amp='bf16')} (less exact)"
    if max(options.scales) > 1 and len(options.scales) > 1:
        kept = [scale for scale in options.scales if scale < max(options.scales)]
        yield f"{_set('predict', scales=_list(kept))} (without the largest)"
    if domain is not None:
        yield from _cut(f"{domain}.size", seen)


def _cut(key: str, size: Size | None) -> Iterator[str]:
    """Three quarters of each side."""
    part = _part(size, 4 / 3) if size is not None else None
    if size is not None and part is not None:
        yield f"--set {key}={_list(part)} (instead of {_list(size)})"


def _part(size: Size, divisor: float) -> Size | None:
    height, width = (max(_STEP, int(side / divisor) // _STEP * _STEP) for side in size)
    return (height, width) if height * width < size[0] * size[1] else None


def _smaller_batch(batch: int, world: int, least: int) -> int | None:
    """The largest part of a batch that `world` processes can share, of `least` images; None where there is none."""
    return next((part for part in range(batch // 2, least - 1, -1) if batch % part == 0 and part % world == 0), None)


def _section(resolved: Resolved, section: str) -> Any:
    found: Any = resolved.config
    for name in section.split("."):
        found = getattr(found, name)
    return found


def _set(section: str, **values: Any) -> str:
    return " ".join(f"--set {section}.{name}={value}" for name, value in values.items())


def _list(values: Any) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"


def _told(ways: Iterator[str]) -> str:
    found = [way for _, way in zip(range(_SHOWN), ways, strict=False)]
    return f"try {'; or '.join(found)}" if found else "smaller images, or a device with more memory"
