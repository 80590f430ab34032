"""How long a context and how many sequences: the most of both that fits, in the order people miss them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB

SLOTS = 16
"""Where a batch still pays on a CPU: 296 tokens/s with 16 slots against 188 with 4 (SmolLM2, two cores)."""
_CONTEXTS = (8192, 4096, 2048, 1024, 512)
_USUAL = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A candidate with its context and sequences chosen, and its ledger."""

    candidate: Candidate
    ledger: Ledger

    @property
    def fits(self) -> bool:
        """Whether it fits with the reserve that `reserve_bytes` asks for."""
        return self.ledger.fits and self.ledger.margin_bytes >= reserve_bytes(self.candidate)


def reserve_bytes(candidate: Candidate) -> int:
    """What a plan leaves free: a twentieth of a host's RAM, at most 2 GiB; nothing on devices booked by share."""
    if candidate.engine.memory not in ("llamacpp", "ollama", "openvino", "transformers"):
        return 0
    return min(2 * GIB, candidate.host.ram_bytes // 20) if candidate.devices[0].vendor == "cpu" else GIB // 2


def settle(candidate: Candidate) -> Settled:
    """`candidate` with the first context and sequences that fit; where nothing fits, with the least of both.

    What the deployment states is kept as stated.
    """
    last = Settled(candidate=candidate, ledger=account(candidate))
    for context, sequences in _choices(candidate):
        chosen = replace(candidate, context_tokens=context, sequences=sequences)
        last = Settled(candidate=chosen, ledger=account(chosen))
        if last.fits:
            return last
    return last


def _choices(candidate: Candidate) -> Iterator[tuple[int, int]]:
    """(context, sequences) to try, the best first: a usual context for many, then for few, then a shorter one."""
    deployment, model = candidate.deployment, candidate.model
    longest = model.max_context_tokens or _CONTEXTS[0]
    contexts = (
        (deployment.context,)
        if deployment.context
        else tuple(dict.fromkeys(min(context, longest) for context in _CONTEXTS))
    )
    slots = (deployment.concurrency,) if deployment.concurrency else (SLOTS, 8, 4, 2, 1)
    usual = tuple(context for context in contexts if context >= min(_USUAL, longest)) or contexts
    short = tuple(context for context in contexts if context not in usual)
    for part in (usual, short):
        for sequences in slots:
            for context in part:
                yield context, sequences
