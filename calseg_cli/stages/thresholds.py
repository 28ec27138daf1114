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
_ON_REQUEST = {"cece": "--classwise", "cece_present": "--classwise", "preset_ece": "--preset"}
_CONDITION = re.compile(r"\s*([a-z_0-9]+)\s*(>=|<=|>|<)\s*([-+0-9.eE]+)\s*")


def check_conditions(conditions: Sequence[str], *, classwise: bool = True, preset: bool = True) -> None:
    """Raise ConfigError for a condition that cannot be checked, before anything is measured.

    `classwise` and `preset` say whether the scores on request will be there.
    """
    for condition in conditions:
        flag = _ON_REQUEST.get(parse_condition(condition)[0])
        if flag is not None and not {"--classwise": classwise, "--preset": preset}[flag]:
            raise ConfigError(f"--fail-if {condition!r} is about a score that is not counted", f"add {flag}")


def check_thresholds(conditions: Sequence[str], scores: Scores) -> list[str]:
    """The conditions that hold, each with the score's value. A score that is n/a fails every condition on it."""
    failed = []
    for condition in conditions:
        name, compare, limit = parse_condition(condition)
        known = getattr(scores, name)
        value = math.nan if known is None else float(known)
        if math.isnan(value) or _COMPARE[compare](value, limit):
            shown = "n/a" if math.isnan(value) else f"{value:.6g}"
            failed.append(f"{name} is {shown}, and {condition.strip()} was to fail")
    return failed


def parse_condition(condition: str) -> tuple[str, str, float]:
    """A condition's parts. Raises ConfigError unless it reads NAME>NUMBER with a score's name."""
    match = _CONDITION.fullmatch(condition)
    known = [field.name for field in fields(Scores) if field.type in (float, float | None)]
    try:
        if match is None or match[1] not in known:
            raise ValueError
        return match[1], match[2], float(match[3])
    except ValueError as error:
        raise ConfigError(
            f"--fail-if {condition!r} is no condition on a score", f"write it as 'ece>0.1'; scores: {', '.join(known)}"
        ) from error
