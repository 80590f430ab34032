"""The rules: every known reason for a launch to fail, each with its engine's version range, cause, fix and source.

One module per theme; pairs, ranges and removed flags that are pure data are in `facts/data/incompatible.toml`.
`check` runs all that concern a candidate and returns everything they find, errors first.
"""

from __future__ import annotations

from functools import lru_cache

from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.rules import (
    parallelism,
)
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Rule, declared
from plimsoll.plan.rules.tables import table_rules
from plimsoll.plan.types import Candidate, Finding

__all__ = ["Rule", "check", "rules"]

THEMES = (parallelism,)
_ORDER = {"error": 0, "warning": 1, "info": 2}
_INHERITS = {"vllm_ascend": "vllm"}
"""A plugin takes its host's flags, and so its rules."""


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """All rules, by theme."""
    return (*declared(), *table_rules())


@lru_cache(maxsize=256)
def _concerning(engine: str, version: str) -> tuple[Rule, ...]:
    names = {"any", engine, _INHERITS.get(engine, engine)}
    return tuple(rule for rule in rules() if rule.engine in names and in_range(version, rule.versions))


def check(candidate: Candidate, *, ledger: Ledger | None = None) -> tuple[Finding, ...]:
    """Everything the rules find in one candidate, errors first, then warnings, then notes."""
    case = Case(candidate=candidate, ledger=ledger)
    found = []
    for rule in _concerning(case.engine, candidate.engine.version):
        fault = rule.check(case)
        if fault is not None:
            found.append(
                Finding(
                    rule=rule.id,
                    severity=fault.severity or rule.severity,
                    what=fault.what,
                    cause=fault.cause or rule.cause,
                    fix=fault.fix,
                    source=rule.source,
                    mend=fault.mend,
                    deployment=candidate.deployment.name,
                )
            )
    return tuple(sorted(found, key=lambda finding: _ORDER[finding.severity]))
