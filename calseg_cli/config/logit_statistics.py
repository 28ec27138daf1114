"""Owns the section of `calseg logit-statistics`: whose logits are counted, and by which labels."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from calseg_cli.config.section import Section, key
from calseg_cli.config.values import DomainRole, Int, Split


def _word(value: Any) -> Any:
    """YAML reads a bare `true` as a truth value; here it is a word."""
    return "true" if value is True else value


Labels = Annotated[Literal["true", "pseudo"], BeforeValidator(_word)]


class LogitStatisticsSection(Section):
    """Which images' logits are counted by label and channel."""

    domain: DomainRole = key("source", "Whose images: source or target.")
    split: Split = key("train", "Split: train, val or test.")
    labels: Labels | None = key(
        None, "A pixel's label: true, or pseudo (its largest logit); null: true of the source, pseudo of the target."
    )
    max_items: Annotated[Int, Field(ge=1)] | None = key(None, "Only the first N images; null for all.")
