"""The memory ledger: what each engine will put where, by the engine's own accounting. One file per policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plimsoll.errors import PlanError
from plimsoll.facts.engine import MemoryPolicy
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory.llamacpp import account as llamacpp
from plimsoll.plan.types import Candidate

LAWS: Mapping[MemoryPolicy, Callable[[Candidate], Ledger]] = {
    "llamacpp": llamacpp,
}


def account(candidate: Candidate) -> Ledger:
    """The ledger of `candidate`, by the law of its engine and version; PlanError where no law is known."""
    law = LAWS.get(candidate.engine.memory)
    if law is None:
        raise PlanError(
            f"no memory law is known for {candidate.engine.name}",
            hint="Name another engine, or serve it outside of the plan.",
        )
    return law(candidate)
