"""Owns what all sections of the configuration have in common: frozen, unknown keys refused, every key described."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


def key(default: Any, description: str, **limits: Any) -> Any:
    """A key with its default, a line that says what it does (unit, range), and its limits; `...` makes it required."""
    return Field(default, description=description, **limits)


def section(model: type[Section], description: str) -> Any:
    """A key that holds a section, all defaults where it is not given."""
    return Field(default_factory=model, description=description)
