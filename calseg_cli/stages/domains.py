"""Owns the way from a domain in the configuration to a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calseg_cli.config import Config, Resolved
from calseg_cli.data.catalog import (
    CITYSCAPES19,
    SYNTHIA13,
    SYNTHIA16,
    Layout,
    find_items,
    find_layout,
    make_layout,
    remap_classes,
)
from calseg_cli.data.dataset import SegmentationDataset
from calseg_cli.errors import ConfigError

_OWN_KEYS = ("images", "labels", "ids", "colors", "ignore", "encoding", "palette", "splits", "lists", "holdout")


@dataclass(frozen=True)
class DomainData:
    """A domain's layout in the class list of the work at hand, and where its files are."""

    role: str
    layout: Layout
    root: Path
    size: tuple[int, int] | None

    def dataset(self, split: str, *, with_labels: bool, max_items: int | None = None) -> SegmentationDataset:
        """The images of a split, with labels only where they are asked for; label folders are not touched else."""
        items = find_items(self.layout, self.root, split, with_labels=with_labels)
        return SegmentationDataset(items[:max_items], self.layout, size=self.size, with_labels=with_labels)


def open_domain(resolved: Resolved, role: str, class_names: Sequence[str] | None = None) -> DomainData:
    """The domain "source" or "target" as configured, its labels expressed in `class_names` where given.

    Raises ConfigError when the domain is not configured.
    """
    domain = getattr(resolved.config, role)
    if domain is None:
        raise ConfigError(f"there is no {role} in {resolved.path or 'the configuration'}", f"add a `{role}:` section")
    layout = domain_layout(resolved.config, role)
    if class_names is not None and tuple(class_names) != layout.class_names:
        layout = remap_classes(layout, tuple(class_names)) if layout.class_names else layout
    return DomainData(role, layout, domain.root, domain.size)


def domain_layout(config: Config, role: str) -> Layout:
    """The layout of a domain: a built-in one with the domain's own keys on top.

    A target that lists no classes has the source's: its labels, if any, are in the same ids.
    """
    domain = getattr(config, role)
    changes = {key: value for key in _OWN_KEYS if (value := getattr(domain, key)) is not None}
    classes = domain.classes
    base = find_layout(domain.layout)
    if classes is None and not base.class_names and role == "target" and config.source is not None:
        classes = domain_layout(config, "source").class_names
    if classes is not None:
        changes["class_names"] = tuple(classes)
    return make_layout(base, **changes) if changes else base


def source_classes(resolved: Resolved) -> Layout:
    """The source's layout; it must name its classes, because a network is built for them."""
    layout = open_domain(resolved, "source").layout
    if not layout.class_names:
        raise ConfigError("source.classes is missing: a network needs to know its classes", "list them in label order")
    return layout


_PRESETS = {13: SYNTHIA13, 16: SYNTHIA16, 19: CITYSCAPES19}


def evaluation_subset(
    class_names: Sequence[str], *, names: Sequence[str] | None, preset: int | None
) -> list[int] | None:
    """The indices of the classes that means are over: those named, or those of 13, 16 or 19; None for all.

    Raises ConfigError for a name that the network does not know.
    """
    if names is None and preset is None:
        return None
    wanted = list(names) if names is not None else list(_PRESETS[int(preset or 0)])
    if len(set(wanted)) != len(wanted):
        raise ConfigError("evaluate.classes names a class twice", "each counts once in a mean")
    missing = [name for name in wanted if name not in class_names]
    if missing:
        raise ConfigError(
            f"evaluated classes that the network does not know: {', '.join(missing)}",
            f"it knows {', '.join(class_names)}",
        )
    return [list(class_names).index(name) for name in wanted]
