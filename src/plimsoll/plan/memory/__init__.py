"""The memory ledger: what each engine will put where, by the engine's own accounting. One file per policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from plimsoll.errors import PlanError
from plimsoll.facts.engine import MemoryPolicy
from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory.llamacpp import account as llamacpp
from plimsoll.plan.memory.mindie import account as mindie
from plimsoll.plan.memory.nothing import account as nothing
from plimsoll.plan.memory.ollama import account as ollama
from plimsoll.plan.memory.openvino import account as openvino
from plimsoll.plan.memory.sglang import account as sglang
from plimsoll.plan.memory.transformers import account as transformers
from plimsoll.plan.memory.vllm import account as vllm
from plimsoll.plan.types import Candidate

LAWS: Mapping[MemoryPolicy, Callable[[Candidate], Ledger]] = {
    "llamacpp": llamacpp,
    "mindie": mindie,
    "none": nothing,
    "ollama": ollama,
    "openvino": openvino,
    "sglang": sglang,
    "transformers": transformers,
    "vllm": vllm,
}


def account(candidate: Candidate) -> Ledger:
    """The ledger of `candidate`, by the law of its engine and version; PlanError where no law is known.

    A candidate's context and sequences are what it must serve: an engine that books all it can still has to hold one
    request of the full context.
    """
    law = LAWS.get(candidate.engine.memory)
    if law is None:
        raise PlanError(
            f"no memory law is known for {candidate.engine.name}",
            hint="Name another engine, or serve it outside of the plan.",
        )
    return law(candidate)
