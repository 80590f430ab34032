"""MindIE's accounting: `npuMemSize` GiB of KV cache a card, or what a fraction of the card leaves after the weights.

`npuMemSize = -1` takes total x NPU_MEMORY_FRACTION (0.8) - weights (service_parameter_configuration.md). Blocks hold
`cacheBlockSize` tokens of all layers. What remains is for activations and the runtime: 27,474 MiB of a 910B4 were
taken by Qwen1.5-7B at world size 8 with 8 GiB of cache and 8,192 prefill tokens.
"""

from __future__ import annotations

from plimsoll.facts.sharding import weights_per_rank
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import float_option, int_option, other_processes, value_bytes
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB

FRACTION = 0.8
RUNTIME_BYTES = 3 * GIB
"""CANN runtime, HCCL buffers and graph workspaces of one card."""


def account(candidate: Candidate) -> Ledger:
    """One ledger per card."""
    model, parallel = candidate.model, candidate.parallel
    weights = weights_per_rank(
        model, tensor=parallel.tensor, pipeline=parallel.pipeline, expert=parallel.expert,
        dtype=None if candidate.dtype == "auto" else candidate.dtype,
    )  # fmt: skip
    weights = tuple(weights * max(1, len(candidate.devices) // len(weights)))[: len(candidate.devices)]
    value = value_bytes(candidate.kv_dtype, model_dtype=model.dtype)
    token = model.kv_bytes_per_token(value_bytes=value, tensor_parallel=parallel.tensor) / parallel.pipeline
    block_tokens = int_option(candidate, "block_size", "cacheBlockSize", default=128)
    prefill = candidate.batched_tokens or 8192
    stated = float_option(candidate, "npuMemSize", "npu_mem_size", default=-1.0)
    share = candidate.memory_share if candidate.memory_share is not None else FRACTION
    needed = round(candidate.context_tokens * token)
    ledgers, caches = [], []
    for device, size in zip(candidate.devices, weights, strict=True):
        room = round(stated * GIB) if stated > 0 else round(device.memory_bytes * share) - size
        caches.append(room)
        work = prefill * 2 * (3 * model.intermediate_size // parallel.tensor + 3 * model.hidden_size)
        entries = [
            Entry(name="weights", bytes=size, basis="derived", source=f"tensor by tensor, TP {parallel.tensor}"),
            Entry(
                name="kv_cache", bytes=max(room, needed), basis="derived",
                source="npuMemSize" if stated > 0 else f"{share:.2f} x total - weights",
            ),
            Entry(
                name="activations", bytes=work, basis="derived",
                source=f"widest layer: {prefill} prefill tokens x (6 I/tp + 6 H)",
            ),
            Entry(name="overhead", bytes=RUNTIME_BYTES, basis="assumed", source="CANN runtime, HCCL, workspaces"),
        ]  # fmt: skip
        if (others := other_processes(device)) is not None:
            entries.append(others)
        ledgers.append(
            DeviceLedger(
                device=f"{device.name} #{device.index}", total_bytes=device.memory_bytes,
                limit_bytes=device.memory_bytes, entries=tuple(entries),
            )
        )  # fmt: skip
    blocks = int(max(0, min(caches)) // (token * block_tokens)) if token else 0
    tokens = blocks * block_tokens
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=tokens,
        kv_blocks=blocks,
        max_concurrency=tokens / candidate.context_tokens,
        longest_context_tokens=min(tokens, model.max_context_tokens or tokens),
        notes=() if min(caches) >= needed else ("the cache holds less than one request of the full context",),
        spare_bytes=max(0, min(caches) - needed),
    )
