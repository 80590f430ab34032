"""`check`: every finding on a spec, and the spec with the findings mended."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from plimsoll.app.planning import gather_facts
from plimsoll.app.settings import Settings
from plimsoll.errors import PlanError
from plimsoll.plan.rules import check, errors_first
from plimsoll.plan.rules.mend import mend_spec
from plimsoll.plan.rules.stated import check_spec
from plimsoll.plan.solve import solve
from plimsoll.plan.types import Finding
from plimsoll.spec.deployment import Spec
from plimsoll.spec.dump import dump_spec

_ROUNDS = 5
"""A mend may bring up what it hid: look again, but not for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """A spec after its findings were mended, and what is left to find."""

    spec: Spec
    text: str
    diff: str
    """Unified, "" when nothing was changed."""
    left: tuple[Finding, ...]


def find_faults(spec: Spec, settings: Settings, *, on: str | None) -> tuple[Finding, ...]:
    """Everything the rules say of `spec`, errors first: of what it states, word for word, and of the plan for it.

    A plan leaves out what cannot run and so has nothing to say of it; what the spec leaves open only a plan can tell.
    """
    facts = gather_facts(spec, settings, on=on)
    by_name = {engine.name: engine for engine in facts.engines}
    stated = check_spec(spec, models=facts.models, hosts=facts.hosts, engines=by_name)
    try:
        planned = solve(spec, facts.models, facts.hosts, facts.engines, rules=check).findings
    except PlanError:
        if not stated:
            raise
        planned = ()
    found = {(finding.rule, finding.deployment): finding for finding in (*planned, *stated)}
    return errors_first(found.values())


def mend(spec: Spec, settings: Settings, *, on: str | None, name: str) -> Mended:
    """`spec` with the smallest changes that the findings name; what no change mends is left in `left`."""
    mended, left = spec, find_faults(spec, settings, on=on)
    for _ in range(_ROUNDS):
        following = mend_spec(mended, left)
        if following == mended:
            break
        mended, left = following, find_faults(following, settings, on=on)
    before, after = dump_spec(spec), dump_spec(mended)
    diff = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), fromfile=name, tofile=f"{name} (mended)"
    )
    return Mended(spec=mended, text=after, diff="".join(diff), left=left)
