"""The rules: every known reason for a launch to fail, each with its engine's version range, cause, fix and source.

One module per theme; pairs, ranges and removed flags that are pure data are in `facts/data/incompatible.toml`.
`check` runs all that concern a candidate and returns everything they find, errors first; `check_all` looks at
replicas that run together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from plimsoll.facts.versions import in_range, is_known
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.rules import (
    attention,
    blocks,
    context,
    driver,
    dtype,
    experts,
    fastchat,
    features,
    gguf,
    kv_cache,
    mindie,
    multinode,
    ollama,
    parallelism,
    pooling,
    quantization,
    security,
    speculation,
    vllm_ascend,
)
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.coresidency import GROUP_RULES
from plimsoll.plan.rules.mend import mend_spec
from plimsoll.plan.rules.options import options_from_args
from plimsoll.plan.rules.registry import Rule, declared
from plimsoll.plan.rules.tables import table_rules
from plimsoll.plan.types import Candidate, Finding

__all__ = ["Rule", "check", "check_all", "errors_first", "mend_spec", "options_from_args", "rules"]

THEMES = (
    parallelism, experts, blocks, quantization, dtype, attention, kv_cache, context, features, speculation, pooling,
    gguf, multinode, driver, mindie, vllm_ascend, ollama, fastchat, security,
)  # fmt: skip
"""The modules that declare rules, in the order in which they are shown."""

_ORDER = {"error": 0, "warning": 1, "info": 2}
_INHERITS = {"vllm_ascend": "vllm"}
"""A plugin takes its host's flags, and so its rules."""


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """All rules about one candidate: the written ones by theme, then the rows of the table."""
    return (*declared(), *table_rules())


@lru_cache(maxsize=256)
def _concerning(engine: str, version: str) -> tuple[Rule, ...]:
    names = {"any", engine, _INHERITS.get(engine, engine)}
    return tuple(rule for rule in rules() if rule.engine in names and in_range(version, rule.versions))


def check(candidate: Candidate, *, ledger: Ledger | None = None) -> tuple[Finding, ...]:
    """Everything the rules find in one candidate, errors first, then warnings, then notes.

    Where the engine's version is not known, an error that holds for some versions only is a warning.
    """
    case = Case(candidate=candidate, ledger=ledger)
    known = is_known(candidate.engine.version)
    found = []
    for rule in _concerning(case.engine, candidate.engine.version):
        fault = rule.check(case)
        if fault is None:
            continue
        severity = fault.severity or rule.severity
        if severity == "error" and rule.versions and not known:
            severity = "warning"
        found.append(
            Finding(
                rule=rule.id,
                severity=severity,
                what=fault.what,
                cause=fault.cause or rule.cause,
                fix=fault.fix,
                source=rule.source,
                mend=fault.mend,
                deployment=candidate.deployment.name,
            )
        )
    return errors_first(found)


def check_all(candidates: Sequence[Candidate]) -> tuple[Finding, ...]:
    """What the rules find in replicas that run together; each alone is for `check`."""
    cases = [Case(candidate=candidate) for candidate in candidates]
    found = [
        Finding(
            rule=rule.id,
            severity=rule.severity,
            what=fault.what,
            cause=rule.cause,
            fix=fault.fix,
            source=rule.source,
            mend=fault.mend,
            deployment=deployment,
        )
        for rule in GROUP_RULES
        for deployment, fault in rule.check(cases)
    ]
    return errors_first(found)


def errors_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors, then warnings, then notes; each in the order given."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))
