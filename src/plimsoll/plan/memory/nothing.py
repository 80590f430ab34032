"""An engine that holds no model: the fake one. Its ledger is empty, so it fits anywhere."""

from __future__ import annotations

from plimsoll.plan.ledger import DeviceLedger, Ledger
from plimsoll.plan.types import Candidate


def account(candidate: Candidate) -> Ledger:
    """No entries; as many KV tokens as the candidate asks for."""
    host = candidate.host
    return Ledger(
        devices=(DeviceLedger(device="RAM", total_bytes=host.ram_bytes, limit_bytes=host.ram_free_bytes, entries=()),),
        kv_tokens=candidate.context_tokens * candidate.sequences,
        max_concurrency=float(candidate.sequences),
        longest_context_tokens=candidate.context_tokens,
    )
