"""What an engine reported of itself, laid beside what was planned."""

from __future__ import annotations

from plimsoll.engines.protocol import Observed, Quantity
from plimsoll.launch.state import Observation
from plimsoll.plan.types import Replica

_ENTRIES: dict[Quantity, str] = {
    "weights_bytes": "weights",
    "kv_cache_bytes": "kv_cache",
    "compute_bytes": "compute",
    "output_bytes": "output",
    "graphs_bytes": "graphs",
    "activations_bytes": "activations",
    "non_torch_bytes": "overhead",
}
"""Quantity to the ledger's entries of that name."""


def planned(replica: Replica, quantity: Quantity) -> float | None:
    """What the plan said of a quantity, on the fullest device; None where it said nothing. Bytes, tokens."""
    ledger, candidate = replica.ledger, replica.candidate
    if quantity in _ENTRIES:
        return max((device.of(_ENTRIES[quantity]) for device in ledger.devices), default=0) or None
    match quantity:
        case "kv_tokens":
            return ledger.kv_tokens or None
        case "kv_blocks":
            return ledger.kv_blocks
        case "max_concurrency":
            return ledger.max_concurrency or None
        case "context_tokens":
            return candidate.context_tokens
        case "sequences":
            return candidate.sequences
        case "total_bytes":
            return max((device.used_bytes for device in ledger.devices), default=0) or None
    return None


def observations(replica: Replica, observed: Observed, *, run: str, at: float) -> tuple[Observation, ...]:
    """One row per quantity that the engine reported; `at` in seconds since the epoch."""
    candidate = replica.candidate
    devices = sorted({device.name for device in candidate.devices})
    return tuple(
        Observation(
            run=run,
            engine=candidate.engine.name,
            engine_version=observed.version or candidate.engine.version,
            device=", ".join(devices),
            model=candidate.model.id,
            quantity=quantity,
            planned=planned(replica, quantity),
            actual=actual,
            created=at,
        )
        for quantity, actual in observed.quantities.items()
    )
