"""What a rule is, and how one is declared: `@rule(...)` above a function, its two examples beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plimsoll.plan.rules.case import Case
from plimsoll.plan.types import Severity

Example = Mapping[str, Any]
"""Overrides for `examples.candidate`: `{"heads": 9, "tp": 2}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a rule's function returns when it fires. `cause` and `severity` left out are the rule's own."""

    what: str
    fix: str
    cause: str | None = None
    severity: Severity | None = None
    mend: tuple[tuple[str, object], ...] = ()


Check = Callable[[Case], Fault | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One known reason for a launch to fail, or to do other than what was meant."""

    id: str
    """`<engine>.<name>`; `any.<name>` for every engine."""
    title: str
    theme: str
    severity: Severity
    versions: str
    """Of the engine, as PEP 440 writes a range; "" is all of them."""
    cause: str
    source: str
    check: Check
    fires: Example
    passes: Example

    @property
    def engine(self) -> str:
        """The engine it is about, or `any`."""
        return self.id.partition(".")[0]


_declared: list[Rule] = []


def rule(
    id: str,
    *,
    cause: str,
    source: str,
    fires: Example,
    passes: Example,
    versions: str = "",
    severity: Severity = "error",
) -> Callable[[Check], Check]:
    """Declare the function below as a rule; its docstring is the title, its module the theme.

    One function may stand for the same law in several engines: one decorator for each.
    """

    def declare(function: Check) -> Check:
        title = (function.__doc__ or "").partition("\n")[0].rstrip(".")
        _declared.append(
            Rule(
                id=id,
                title=title,
                theme=function.__module__.rpartition(".")[2],
                severity=severity,
                versions=versions,
                cause=cause,
                source=source,
                check=function,
                fires=fires,
                passes=passes,
            )
        )
        return function

    return declare


def declared() -> tuple[Rule, ...]:
    """The rules of all modules imported so far."""
    return tuple(_declared)
