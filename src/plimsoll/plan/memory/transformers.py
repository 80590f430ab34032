"""transformers' accounting (and FastChat's model_worker): nothing is booked, memory grows as it runs.

Weights in the dtype they are loaded in, the dynamic cache of all sequences at full length, the widest layer of one
prefill with its attention scores or logits, and the framework itself.
"""

from __future__ import annotations

from plimsoll.facts.sharding import weights_per_rank
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import kv_bytes, other_processes, value_bytes
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB, MIB

FRAMEWORK_BYTES = 500 * MIB
"""CUDA context with cuBLAS and cuDNN handles; on a CPU torch and its libraries take 400 to 600 MiB resident."""


def account(candidate: Candidate) -> Ledger:
    """One ledger per device; several devices share the layers (`device_map=auto`)."""
    model, count = candidate.model, len(candidate.devices)
    dtype = candidate.dtype if candidate.dtype != "auto" else model.dtype
    weights = weights_per_rank(model, pipeline=count, dtype=None if candidate.dtype == "auto" else candidate.dtype)
    value = value_bytes(candidate.kv_dtype, model_dtype=dtype)
    one = kv_bytes(model.attention, value=value, ranks=1, tokens=candidate.context_tokens)
    cache = round(one * candidate.sequences / count)
    tokens = candidate.batched_tokens or candidate.context_tokens
    width = 4 if dtype in ("float32", "float") else 2
    work = tokens * width * (3 * model.intermediate_size + 3 * model.hidden_size)
    logits = candidate.sequences * model.vocab_size * 4 * 2
    on_cpu = candidate.devices[0].vendor == "cpu"
    ledgers = []
    for device, size in zip(candidate.devices, weights, strict=True):
        entries = [
            Entry(name="weights", bytes=size, basis="derived", source=f"{dtype}, layers over {count} devices"),
            Entry(
                name="kv_cache", bytes=cache, basis="derived",
                source=f"{candidate.sequences} sequences x {candidate.context_tokens} tokens, grown as they come",
            ),
            Entry(
                name="activations", bytes=max(work, logits), basis="derived",
                source=f"one prefill of {tokens} tokens x (3 I + 3 H) x {width} B",
            ),
            Entry(name="overhead", bytes=FRAMEWORK_BYTES, basis="assumed", source="torch and its context"),
        ]  # fmt: skip
        if (others := other_processes(device)) is not None:
            entries.append(others)
        total = device.memory_bytes if not on_cpu else candidate.host.ram_bytes
        ledgers.append(
            DeviceLedger(
                device="RAM" if on_cpu else f"{device.name} #{device.index}", total_bytes=total, limit_bytes=total,
                entries=tuple(entries),
            )
        )  # fmt: skip
    left = min(ledger.free_bytes for ledger in ledgers)
    longest = candidate.context_tokens
    if one and left > 0:
        longest += int(left / (one / candidate.context_tokens / count))
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=candidate.context_tokens * candidate.sequences if one else 0,
        max_concurrency=float(candidate.sequences),
        longest_context_tokens=min(longest, model.max_context_tokens or longest),
        notes=("memory grows with the requests: nothing is booked at start",) if left < 2 * GIB else (),
    )
