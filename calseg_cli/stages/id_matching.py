"""Owns which image of a dataset another tool's file is of: by id, else by the file's name, never by a guess."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_SEPARATOR = re.compile(r"[._ -]")


@dataclass(frozen=True)
class Matching:
    """`pairs` maps foreign ids to the images' ids; the others fit none, or several, which are named."""

    pairs: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)


def match_ids(names: Sequence[str], images: Mapping[str, Path]) -> Matching:
    """Find the image of each foreign id; `images` are the dataset's files by id.

    The same id comes first. Else the last part of the id is compared with the image's, as its id and as its file have
    it: first for being equal, then for one being the other with something behind `_`, `-`, `.` or a blank, such as
    `_leftImg8bit` or `_logits`. Of several that fit, those in the same folder win, then those in a folder of which one
    is the end of the other (`val/frankfurt` and `frankfurt`). What still fits several is ambiguous, and so are two
    foreign ids of one image.

    >>> images = {"bonn/bonn_1": Path("bonn_1_leftImg8bit.png"), "bonn/bonn_12": Path("bonn_12_leftImg8bit.png")}
    >>> match_ids(["bonn_1_logits", "bonn_12_leftImg8bit"], images).pairs
    {'bonn_1_logits': 'bonn/bonn_1', 'bonn_12_leftImg8bit': 'bonn/bonn_12'}
    """
    matching, index = Matching(), _Index(images)
    for name in names:
        found = [name] if name in images else index.find(name)
        if len(found) == 1:
            matching.pairs[name] = found[0]
        elif found:
            matching.ambiguous[name] = found
        else:
            matching.unmatched.append(name)
    _part_rivals(matching)
    return matching


class _Index:
    """The images by what a foreign name may share with theirs."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self._equal: dict[str, set[str]] = {}
        self._longer: dict[str, set[str]] = {}
        for name, path in images.items():
            for known in {PurePosixPath(name).name, path.stem}:
                self._equal.setdefault(known, set()).add(name)
                for beginning in _beginnings(known):
                    self._longer.setdefault(beginning, set()).add(name)

    def find(self, name: str) -> list[str]:
        """The ids that fit, the best kind of fit only."""
        last = PurePosixPath(name).name
        related = set(self._longer.get(last, ()))
        for beginning in _beginnings(last):
            related |= self._equal.get(beginning, set())
        for candidates in (self._equal.get(last, set()), related):
            if candidates:
                return _nearest(name, candidates)
        return []


def _beginnings(text: str) -> list[str]:
    """What is left of a name when words at its end are taken off.

    >>> _beginnings("bonn_0_gtFine_labelIds")
    ['bonn_0', 'bonn_0_gtFine']
    """
    cuts = [found.start() for found in _SEPARATOR.finditer(text)]
    words = [(text[:cut], _SEPARATOR.split(text[cut + 1 :])) for cut in cuts]
    return [begin for begin, behind in words if begin and all(part[:1].isalpha() for part in behind)]


def _nearest(name: str, candidates: Iterable[str]) -> list[str]:
    folder = PurePosixPath(name).parent.parts

    def related(other: str) -> bool:
        parts = PurePosixPath(other).parent.parts
        shorter = min(len(parts), len(folder))
        return parts[len(parts) - shorter :] == folder[len(folder) - shorter :]

    every = sorted(candidates)
    same = [other for other in every if PurePosixPath(other).parent.parts == folder]
    return same or [other for other in every if related(other)] or every


def _part_rivals(matching: Matching) -> None:
    """Two foreign ids of one image are both ambiguous."""
    owners: dict[str, list[str]] = {}
    for name, image in matching.pairs.items():
        owners.setdefault(image, []).append(name)
    for image, names in owners.items():
        if len(names) > 1:
            for name in names:
                del matching.pairs[name]
                matching.ambiguous[name] = [image]
