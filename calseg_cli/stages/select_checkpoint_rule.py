"""Owns the rule by which one checkpoint of several is chosen: who is refused, who is best, and who wins a tie."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["lower", "higher"]

DECIMALS = 4
"""Scores that print alike are equal: what is behind the fourth decimal is no reason to prefer a checkpoint."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Record:
    """A checkpoint as far as the rule looks at it; NaN where a score is not known, `refused` says why it cannot win."""

    name: str
    step: int
    score: float
    miou: float = math.nan
    refused: str | None = None


def refuse(records: Sequence[Record], *, floor: float | None = None) -> list[Record]:
    """The same records in their order, those that must not win with the reason.

    Refused are a score that is not finite and, with a `floor` in [0,1], an mIoU more than that below the best of all
    that are not refused already, or one that is not known: a network that learnt nothing can have a tiny ECE.
    """
    finite = [_refused(one, "its score is not a number") if not math.isfinite(one.score) else one for one in records]
    if floor is None:
        return finite
    known = [one.miou for one in finite if one.refused is None and not math.isnan(one.miou)]
    least = max(known, default=math.nan) - floor
    return [_refused(one, _below(one, least, floor)) for one in finite]


def choose(records: Sequence[Record], *, better: Better = "lower") -> int | None:
    """The place of the best record that is not refused; None where all are.

    Of scores that are equal when printed (4 decimals) the higher mIoU wins where it is known, then the later step,
    then the name that sorts last: the order of the records plays no part.
    """
    sign = 1.0 if better == "higher" else -1.0

    def rank(place: int) -> tuple[float, float, int, str]:
        one = records[place]
        miou = -math.inf if math.isnan(one.miou) else one.miou
        return sign * round(one.score, DECIMALS), miou, one.step, one.name

    return max((place for place, one in enumerate(records) if one.refused is None), key=rank, default=None)


def _refused(record: Record, reason: str | None) -> Record:
    return record if record.refused is not None or reason is None else replace(record, refused=reason)


def _below(record: Record, least: float, floor: float) -> str | None:
    if math.isnan(record.miou):
        return "its mIoU is not known"
    if record.miou < least - _ROUNDING:
        return f"its mIoU {record.miou:.4f} is more than {floor:g} below the best, {least + floor:.4f}"
    return None
