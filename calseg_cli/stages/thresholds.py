"""Owns `--fail-if`: conditions on scores, so that a script can stop at a bad model."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import fields

from calseg_cli.errors import ConfigError
from calseg_cli.metrics.scores import Scores

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CONDITION = re.compile(r"\s*([a-z_0-9]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")


def check_conditions(conditions: Sequence[str]) -> None:
    """Raise ConfigError for a condition that cannot be checked, before anything is measured."""
    for condition in conditions:
        parse_condition(condition)


def check_thresholds(conditions: Sequence[str], scores: Scores) -> list[str]:
    """The conditions that hold, each with the score's value. A score that is n/a fails every condition on it."""
    failed = []
    for condition in conditions:
        name, compare, limit = parse_condition(condition)
        value = float(getattr(scores, name))
        if math.isnan(value) or _COMPARE[compare](value, limit):
            shown = "n/a" if math.isnan(value) else f"{value:.6g}"
            failed.append(f"{name} is {shown}, and {condition.strip()} was to fail")
    return failed


def parse_condition(condition: str) -> tuple[str, str, float]:
    """A condition's parts. Raises ConfigError unless it reads NAME>NUMBER with a score's name."""
    match = _CONDITION.fullmatch(condition)
    known = [field.name for field in fields(Scores) if field.type is float]
    try:
        if match is None or match[1] not in known:
            raise ValueError
        return match[1], match[2], float(match[3])
    except ValueError as error:
        raise ConfigError(
            f"--fail-if {condition!r} is no condition on a score", f"write it as 'ece>0.1'; scores: {', '.join(known)}"
        ) from error
