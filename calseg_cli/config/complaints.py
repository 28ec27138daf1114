"""Owns the words for what pydantic finds wrong, and the one error that holds all complaints."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from calseg_cli.config.draft import Complaint, Draft
from calseg_cli.config.keys import unknown_key
from calseg_cli.config.yaml_text import Key, flow_yaml
from calseg_cli.errors import ConfigError

_MUST_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}


def raise_all(complaints: Iterable[Complaint]) -> None:
    """Raise one ConfigError with a line for each complaint, in the order of the places; nothing where there is none."""
    ordered = sorted(complaints, key=lambda complaint: (complaint.place.rank, complaint.place.line or 0))
    lines = list(dict.fromkeys(str(complaint) for complaint in ordered))
    if len(lines) > 1:
        lines.insert(0, f"{len(lines)} mistakes in the configuration")
    if lines:
        raise ConfigError("\n".join(lines), "`calseg init` writes a file that explains every key")


def complaints_of(error: ValidationError, draft: Draft) -> Iterator[Complaint]:
    """Everything that pydantic found, in our words and with the places of the draft."""
    for found in error.errors(include_url=False):
        key = tuple(str(part) for part in found["loc"] if part != "[key]")
        context = found.get("ctx", {})
        for below, text in context.get("problems", [("", None)]):
            inner = (*key, *below.split(".")) if below else key
            yield _complaint(draft, inner, text or _words(found, context, key), found["type"])


def _complaint(draft: Draft, key: Key, words: str, kind: str) -> Complaint:
    place = draft.place_of(key)
    if kind in ("extra_forbidden", "invalid_key"):
        words = unknown_key(key)
        above = ".".join((*key[: place.dropped], ""))
        return Complaint(place, words.replace(above, "") if above else words)
    return Complaint(place, f"{'.'.join(key[place.dropped :])} {words}")


def _words(found: Mapping[str, Any], context: Mapping[str, Any], key: Key) -> str:
    kind, value = found["type"], found["input"]
    if kind == "wrong":
        return str(context["text"])
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return _choice(str(context["expected"]), value)
    if kind == "string_type":
        quoted = "; put it in quotes" if isinstance(value, int | float) else ""
        return f"must be text, not {shown(value)}{quoted}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind in _MUST_BE:
        limits = {name: int(limit) if limit == int(limit) else limit for name, limit in _limits(context)}
        return f"must be {_MUST_BE[kind].format_map(limits)}, not {shown(value)}"
    return f"cannot be {shown(value)}: {found['msg']}"


def _limits(context: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in context.items() if name in ("gt", "ge", "lt", "le"))


def _choice(expected: str, value: Any) -> str:
    choices = [choice.strip().strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    near = get_close_matches(str(value).lower(), choices, n=1, cutoff=0.6)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"must be one of {', '.join(choices)}, not {shown(value)}{meant}"


def shown(value: Any) -> str:
    """A value as a user wrote it, cut short."""
    text = repr(value) if isinstance(value, str) else flow_yaml(_writable(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _writable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_writable(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
