"""Owns the kinds of artifact: what each holds for an image and for the whole, and in which version."""

from dataclasses import dataclass, field

from calseg_cli.errors import ArtifactError

FORMAT = "calseg-artifact"
SCHEMA = (1, 0)  # readers take the same major number and ignore what a newer minor number added


@dataclass(frozen=True)
class Kind:
    """One kind of artifact. `item` maps dataset names to (dtype letters of numpy, number of dimensions)."""

    name: str
    version: int
    holds: str
    item: dict[str, tuple[str, int]] = field(default_factory=dict)
    has_geometry: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "logits",
            1,
            "the network's answers (C,h,w) at its own stride, one dataset an image",
            item={"logits": ("f", 3)},
            has_geometry=True,
        ),
        Kind("metrics", 1, "counts and exact sums that scores are read off"),
    )
}


def find_kind(name: str) -> Kind:
    """The kind of that name. Raises ArtifactError for one this version does not know."""
    if name not in KINDS:
        raise ArtifactError(
            f"unknown kind of artifact {name!r}; this version knows {', '.join(KINDS)}", "upgrade calseg"
        )
    return KINDS[name]
