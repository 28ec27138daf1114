"""Owns YAML as calseg reads and writes it: values with their lines, no surprising types, mistakes in one line."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_VALUES = 100_000
DEEPEST = 40
_TAG = "tag:yaml.org,2002:"
_QUOTING = "text that begins with one of { [ # & * ! % @ ` needs quotes"
Key = tuple[str, ...]


class YamlMistake(Exception):
    """A text is no YAML that can be read: the line (from 1), the column where known, what is wrong, what to do."""

    def __init__(self, line: int, column: int | None, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.line, self.column, self.message, self.hint = line, column, message, hint


@dataclass
class Parsed:
    """A text's plain value, the line of every key in it (from 1), and complaints that stop nothing: (line, text)."""

    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    complaints: list[tuple[int, str]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Composes nodes; knows only null, true and false, numbers and text, so `off`, `no` and dates stay text."""


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value again in place of an alias to it."""
        return True


_DIGITS = r"(?:0|[1-9][0-9_]*)"
_INT = re.compile(rf"[-+]?{_DIGITS}$|0x[0-9a-fA-F]+$|0o[0-7]+$")
_FLOAT = re.compile(rf"[-+]?(?:{_DIGITS}(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")
_WHOLE = re.compile(r"[-+]?[0-9]+[eE]\+?(?:[0-9]|1[0-2])")  # 4e4 is a whole number: steps may be written so
for _handler in (_Loader, _Dumper):
    _handler.yaml_implicit_resolvers = {}
    for _name, _pattern, _first in (
        ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
        ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
        ("int", _INT, list("-+0123456789")),
        ("float", _FLOAT, list("-+.0123456789")),
        ("merge", re.compile(r"<<$"), ["<"]),
    ):
        _handler.add_implicit_resolver(_TAG + _name, _pattern, _first)


def _text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    one_line = text.splitlines() in ([text], [])  # other breaks than \n count too; only quotes keep them
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if one_line else '"')


_Dumper.add_representer(str, _text)


def parse_yaml(text: str) -> Parsed:
    r"""The value of a YAML text with the line of each key; None for an empty text. Raises YamlMistake.

    >>> parse_yaml("lr: 1e-3\namp: off\nsteps: 1_000").value
    {'lr': 0.001, 'amp': 'off', 'steps': 1000}
    """
    parsed = Parsed()
    node = _compose(text)
    if node is not None:
        parsed.value = _Builder(parsed).value(node, (), 0)
    return parsed


def flow_yaml(value: Any) -> str:
    """A plain value as YAML on one line, which `parse_yaml` reads back as it was.

    >>> flow_yaml({"size": [240, 320], "amp": "off", "name": "1e-3"})
    "{size: [240, 320], amp: off, name: '1e-3'}"
    """
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return str(text).strip()[1:-1]


def _compose(text: str) -> Node | None:
    try:
        node: Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise _mistake(error, text) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise YamlMistake(line, None, f"the character {error.character:#x} cannot stand in YAML") from None
    except RecursionError:
        raise YamlMistake(1, None, "brackets are nested too deeply") from None
    return node


def _mistake(error: yaml.MarkedYAMLError, text: str) -> YamlMistake:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if "'\\t'" in (error.problem or ""):
        return YamlMistake(line, column, "a tab cannot indent or begin a value", "indent with spaces")
    told = " ".join(part for part in (error.context, error.problem) if part)
    return YamlMistake(line, column, f"broken YAML: {told}", f"look at this line and the one before; {_QUOTING}")


class _Builder:
    """Turns composed nodes into plain values. Aliases are unfolded, up to a limit that no honest file reaches."""

    def __init__(self, parsed: Parsed) -> None:
        self._parsed, self._count = parsed, 0

    def value(self, node: Node, key: Key, depth: int) -> Any:
        """The plain value of a node that stands at `key`."""
        self._tally(node, 1, depth)
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key, depth)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            for number, item in enumerate(node.value):
                self._parsed.lines[(*key, str(number))] = _line(item)
            return [self.value(item, (*key, str(number)), depth + 1) for number, item in enumerate(node.value)]
        return self._scalar(node)

    def _tally(self, node: Node, more: int, depth: int = 0) -> None:
        self._count += more
        if self._count > MOST_VALUES:
            raise YamlMistake(_line(node), None, f"more than {MOST_VALUES} values; do aliases repeat each other?")
        if depth > DEEPEST:
            raise YamlMistake(_line(node), None, "values are nested too deeply; does an alias hold itself?")

    def _mapping(self, node: MappingNode, key: Key, depth: int) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        seen: dict[str, int] = {}
        for name_node, value_node in self._pairs(node, key, depth, seen):
            name = self._name(name_node)
            inner = (*key, str(name))
            self._forget(inner)
            self._parsed.lines[inner] = _line(name_node)
            table[name] = self.value(value_node, inner, depth + 1)
        return table

    def _forget(self, key: Key) -> None:
        """Drop the lines of a value that is replaced: a merged one, or the first of a duplicate."""
        if key in self._parsed.lines:
            for other in [other for other in self._parsed.lines if other[: len(key)] == key]:
                del self._parsed.lines[other]

    def _pairs(self, node: MappingNode, key: Key, depth: int, seen: dict[str, int]) -> list[tuple[Node, Node]]:
        """The key and value nodes, those merged with `<<` first so that the mapping's own come after and win."""
        merged: list[tuple[Node, Node]] = []
        own: list[tuple[Node, Node]] = []
        for name, value in node.value:
            if name.tag == f"{_TAG}merge":
                merged += self._merged(value, key, depth + 1)
                continue
            text = str(self._name(name))
            if text in seen:
                told = f"{'.'.join((*key, text))} is given twice; the first is in line {seen[text]}"
                self._parsed.complaints.append((_line(name), told))
            seen.setdefault(text, _line(name))
            own.append((name, value))
        self._tally(node, len(merged) + len(own))
        return merged + own

    def _merged(self, node: Node, key: Key, depth: int) -> list[tuple[Node, Node]]:
        self._tally(node, 1, depth)
        if isinstance(node, SequenceNode):
            return [pair for item in reversed(node.value) for pair in self._merged(item, key, depth + 1)]
        if not isinstance(node, MappingNode):
            raise YamlMistake(_line(node), None, "<< needs an alias of a mapping", "write <<: *name, and name it &name")
        return self._pairs(node, key, depth, {})

    def _name(self, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            raise YamlMistake(_line(node), None, "a key must be a plain word or number, not a list or a mapping")
        value = self._scalar(node)
        return value if isinstance(value, int) and not isinstance(value, bool) else node.value

    def _scalar(self, node: Node) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, ScalarNode) or kind not in ("null", "bool", "int", "float", "str", "merge"):
            raise YamlMistake(_line(node), None, f"the tag {node.tag!r} is not supported", "leave the tag out")
        return _plain(kind, str(node.value))


def _plain(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text, 0)
        if kind == "float" and abs(float(text)) != float("inf"):
            return int(float(text)) if _WHOLE.fullmatch(text) else float(text)
    except ValueError:
        pass  # such as 1__0: text after all
    return text


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
