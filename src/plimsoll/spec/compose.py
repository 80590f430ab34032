"""YAML text as plain values, with the place of every key; anything clever in it is refused.

Scalars follow YAML 1.2 (`no` is a word, `22:30` is not a number). Anchors, aliases, tags and duplicate keys are
refused: a spec is a few kilobytes that another person must be able to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from plimsoll.errors import SpecError

MAX_BYTES = 256 << 10
MAX_DEPTH = 16
_SCHEMA_HINT = "`plimsoll schema` prints what it may hold"

Key = tuple[str | int, ...]
Place = tuple[int, int]
"""Line and column, from 1."""


class _Mark(Protocol):
    """PyYAML's two kinds of marks (pure and C) have these in common, from 0."""

    line: int
    column: int


class CoreLoader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2's core schema."""


class CoreDumper(yaml.SafeDumper):
    """Writes plain only what `CoreLoader` reads back as the same value, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is shared."""
        return True


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", tuple("-+.0123456789")),
)
for _class in (CoreLoader, CoreDumper):
    _class.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _SCALARS:
    for _class in (CoreLoader, CoreDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass(slots=True)
class Document:
    """The values of a YAML text, where each stands, and the plain scalars as they were written."""

    value: Any = None
    places: dict[Key, Place] = field(default_factory=dict)
    written: dict[Key, str] = field(default_factory=dict)

    def quote(self, key: Key) -> bool:
        """Replace the scalar at `key` by its text; False if it is no plain scalar."""
        if key not in self.written:
            return False
        parent = self.value
        for step in key[:-1]:
            parent = parent[step]
        parent[key[-1]] = self.written[key]
        return True

    def nearest(self, key: Key) -> Key:
        """The longest beginning of `key` that stands in the text."""
        while key not in self.places:
            key = key[:-1]
        return key


def compose(text: str, name: str) -> Document:
    """The mapping that `text` holds; SpecError, with its place, at the first thing that is not plain YAML."""
    if len(text) > MAX_BYTES:
        raise SpecError(f"{name} is larger than {MAX_BYTES >> 10} KiB: not a spec", hint="a spec is a few kilobytes")
    try:
        _refuse_tricks(text, name)
        node = yaml.compose(text, CoreLoader)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            f"{name}:{line}: a control character (code {error.character:#x}) is not allowed here",
            hint="a spec is YAML text",
            source=f"{name}:{line}",
        ) from None
    if node is None or node.tag == "tag:yaml.org,2002:null":
        raise SpecError(f"{name} is empty", hint="a spec starts with `models:`")
    if not isinstance(node, yaml.MappingNode):
        raise _at(node.start_mark, name, "a spec is a mapping that starts with `models:`", hint=_SCHEMA_HINT)
    document = Document()
    document.value = _read_node(node, (), document, name)
    return document


def _refuse_tricks(text: str, name: str) -> None:
    """Anchors, aliases, tags, a second document and deep nesting: refused on the flat event stream, before any tree."""
    depth = documents = 0
    for event in yaml.parse(text, CoreLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _at(event.start_mark, name, "anchors (&) and aliases (*) are not part of a spec", hint="write it out")
        if tag := getattr(event, "tag", None):
            raise _at(event.start_mark, name, f"tags ({tag}) are not part of a spec", hint="leave it out")
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise _at(event.start_mark, name, "a second document (---) in one file", hint="one spec per file")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _at(event.start_mark, name, f"nested more than {MAX_DEPTH} deep", hint=_SCHEMA_HINT)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _read_node(node: yaml.Node, key: Key, document: Document, name: str) -> Any:
    document.places.setdefault(key, _place(node.start_mark))
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _at(key_node.start_mark, name, "a key must be one word", hint="write `key: value`")
            inner = key_node.value
            if inner in values:
                line = document.places[(*key, inner)][0]
                path = dotted((*key, inner))
                raise _at(key_node.start_mark, name, f"{path}: written twice, first in line {line}", hint="keep one")
            document.places[(*key, inner)] = _place(key_node.start_mark)
            values[inner] = _read_node(value_node, (*key, inner), document, name)
        return values
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(item, (*key, index), document, name) for index, item in enumerate(node.value)]
    return _read_scalar(node, key, document)


def _read_scalar(node: yaml.Node, key: Key, document: Document) -> Any:
    text: str = node.value
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "str":
        return text
    document.written[key] = text
    if kind == "bool":
        return text.lower() == "true"
    if kind == "float":
        return float(text)
    if len(text) > 20:  # no number in a spec is this long, and int() of a huge one is slow
        return text
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _syntax_error(error: yaml.MarkedYAMLError, text: str, name: str) -> SpecError:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or "not YAML"
    if mark is None:
        return SpecError(f"{name}: {problem}")
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    hint = "check the indentation and the colons of this line and the one above"
    if "\\t" in problem or line[: mark.column + 1].endswith("\t"):
        problem, hint = "a tab where spaces are needed", "indent with spaces"
    return _at(mark, name, problem, hint=hint)


def _at(mark: _Mark | None, name: str, what: str, *, hint: str) -> SpecError:
    line, column = _place(mark)
    return SpecError(f"{name}:{line}:{column}: {what}", hint=hint, source=f"{name}:{line}:{column}")


def _place(mark: _Mark | None) -> Place:
    if mark is None:  # only PyYAML's own synthetic nodes have none
        return 1, 1
    return mark.line + 1, mark.column + 1


def dotted(key: Key) -> str:
    """`("models", 0, "name")` as `models[0].name`."""
    text = ""
    for step in key:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
