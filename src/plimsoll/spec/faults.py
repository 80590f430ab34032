"""What is wrong with a spec, in words: every fault on a line of its own, with its place and the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from plimsoll.errors import SpecError
from plimsoll.spec.compose import Document, Key, dotted
from plimsoll.spec.deployment import Spec

MAX_FAULTS = 20


def spec_error(document: Document, name: str, details: Sequence[ErrorDetails]) -> SpecError:
    """One error for all of `details` (pydantic's), in the order of the text."""
    faults: dict[tuple[int, int, str], None] = {}
    choices: dict[Key, list[ErrorDetails]] = {}
    for detail in details:
        if detail["type"] == "too_short" and detail["input"]:
            continue  # entries are missing only because they are wrong, and that is said where they stand
        key = document.nearest(tuple(detail["loc"]))
        if len(detail["loc"]) > len(key) and detail["type"] != "missing":
            choices.setdefault(key, []).append(detail)  # one branch of `int | str`: said together below
        else:
            faults[*document.places[key], _what(detail, key)] = None
    for key, branches in choices.items():
        expected = " or ".join(_EXPECTED.get(branch["type"], branch["msg"]) for branch in branches)
        faults[*document.places[key], f"{dotted(key)}: must be {expected}, not {_shown(branches[0]['input'])}"] = None
    ordered = sorted(faults)
    line, column, _ = ordered[0]
    lines = [f"{name}:{line}:{column}: {what}" for line, column, what in ordered[:MAX_FAULTS]]
    if len(ordered) > MAX_FAULTS:
        lines.append(f"... and {len(ordered) - MAX_FAULTS} more")
    return SpecError("\n".join(lines), source=f"{name}:{line}:{column}")


def _what(detail: ErrorDetails, key: Key) -> str:
    loc, kind, context = tuple(detail["loc"]), detail["type"], detail.get("ctx", {})
    path = dotted(key)
    if kind == "extra_forbidden":
        return f"{path}: unknown key; {_suggest_key(loc)}"
    if kind == "missing":
        lacking = str(loc[-1])
        return f"{path}: {lacking!r} is missing" if path else f"{lacking!r} is missing"
    if kind == "value_error":
        problem = str(context["error"])
    elif kind == "literal_error":
        choices = re.findall(r"'([^']+)'", str(context["expected"]))
        problem = f"{detail['input']!r} is not one of {', '.join(choices)}{_did_you_mean(detail['input'], choices)}"
    elif kind == "string_pattern_mismatch":
        problem = f"{detail['input']!r} is not a name: letters, digits and . _ : / - only, a letter or digit first"
    elif kind in _EXPECTED:
        problem = f"must be {_EXPECTED[kind]}, not {_shown(detail['input'])}"
    else:
        problem = f"{detail['msg'][0].lower()}{detail['msg'][1:]}, not {_shown(detail['input'])}"
    return f"{path}: {problem}" if path else problem


_EXPECTED = {
    "int_parsing": "a whole number", "int_parsing_size": "a whole number",
    "int_type": "a whole number", "int_from_float": "a whole number",
    "float_parsing": "a number", "float_type": "a number", "finite_number": "a finite number",
    "bool_parsing": "true or false", "bool_type": "true or false",
    "string_type": "text (in quotes if it looks like something else)",
    "tuple_type": "a list", "list_type": "a list", "dict_type": "a mapping of key: value",
    "model_type": "a mapping of key: value", "model_attributes_type": "a mapping of key: value",
    "too_short": "a list with at least one entry",
}  # fmt: skip


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest_key(loc: Key) -> str:
    wrong, model = str(loc[-1]), _model_at(Spec, loc[:-1])
    valid = list(model.model_fields) if model else []
    close = get_close_matches(wrong.lower().replace("-", "_"), valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    elsewhere = [place for place, other in _parts(Spec, ()) if wrong in other.model_fields and other is not model]
    if elsewhere:
        return f"it belongs under {elsewhere[0] or 'the top level'}"
    return f"valid here: {', '.join(valid)}"


def _did_you_mean(wrong: Any, valid: list[str]) -> str:
    close = get_close_matches(str(wrong).lower(), valid, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def _model_at(model: type[BaseModel], key: Key) -> type[BaseModel] | None:
    for step in key:
        if isinstance(step, str):
            info = model.model_fields.get(step)
            inner = _model_in(info.annotation) if info else None
            if inner is None:
                return None
            model = inner
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, Union, UnionType):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None


def _parts(model: type[BaseModel], key: tuple[str, ...]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every model of the spec with its dotted place."""
    yield ".".join(key), model
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner:
            mark = "[]" if get_origin(info.annotation) is tuple else ""
            yield from _parts(inner, (*key, name + mark))
