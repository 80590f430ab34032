"""`check`: every finding on a spec, and the spec with the findings mended."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from plimsoll.app.planning import make_plan
from plimsoll.app.settings import Settings
from plimsoll.plan.rules.mend import mend_spec
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
    """Everything the rules say of the plan for `spec`, errors first."""
    order = {"error": 0, "warning": 1, "info": 2}
    return tuple(sorted(make_plan(spec, settings, on=on).findings, key=lambda finding: order[finding.severity]))


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
