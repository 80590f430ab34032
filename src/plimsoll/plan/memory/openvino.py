"""OpenVINO GenAI's accounting: the model as it lies in RAM once compiled, and a cache of blocks booked at the start.

On a CPU the cache is u8 where nothing else is set: a value of V has its token's scale and zero point (8 bytes per
head), a channel of K those of its block of 32 tokens (8 bytes per 32). Checked against 2026.4.1: 512 blocks of
SmolLM2-135M take 224,133,120 bytes.
"""

from __future__ import annotations

from plimsoll.facts.model import AttentionGroup
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import int_option, other_processes, value_bytes
from plimsoll.plan.types import Candidate
from plimsoll.units import MIB

BLOCK_TOKENS = 32
"""Of a cache block on a CPU."""
_SCALE_BYTES = 8
"""A scale and a zero point, float32 both."""
_WEIGHT_BYTES = 2.1
"""Per parameter: what the process grows by while it loads and compiles SmolLM2-135M from its Q4_1 file."""
_LIBRARY_BYTES = 150 * MIB


def account(candidate: Candidate) -> Ledger:
    """One ledger: of the device, which on a CPU is the host's RAM."""
    model, device = candidate.model, candidate.devices[0]
    on_cpu = device.vendor == "cpu"
    needed = candidate.sequences * -(-candidate.context_tokens // BLOCK_TOKENS)
    blocks = int_option(candidate, "num_kv_blocks", default=needed)
    block_bytes = round(sum(_block_bytes(group, candidate.kv_dtype) for group in model.attention))
    weights = max(model.weight_bytes, round(model.params * _WEIGHT_BYTES))
    entries = [
        Entry(
            name="weights", bytes=weights, basis="assumed",
            source=f"{_WEIGHT_BYTES} bytes per parameter once compiled, as measured of one model",
        ),
        Entry(
            name="kv_cache", bytes=blocks * block_bytes, basis="derived",
            source=f"{blocks} blocks of {BLOCK_TOKENS} tokens = {block_bytes} B",
        ),
        Entry(name="overhead", bytes=_LIBRARY_BYTES, basis="assumed", source="the library and Python"),
    ]  # fmt: skip
    if (others := other_processes(device)) is not None:
        entries.append(others)
    total = candidate.host.ram_bytes if on_cpu else device.memory_bytes
    ledger = DeviceLedger(
        device="RAM" if on_cpu else f"{device.name} #{device.index}",
        total_bytes=total, limit_bytes=total, entries=tuple(entries),
    )  # fmt: skip
    tokens = blocks * BLOCK_TOKENS
    return Ledger(
        devices=(ledger,),
        kv_tokens=tokens,
        kv_blocks=blocks,
        max_concurrency=min(float(candidate.sequences), tokens / candidate.context_tokens),
        longest_context_tokens=min(tokens, model.max_context_tokens or tokens),
    )


def _block_bytes(group: AttentionGroup, dtype: str) -> float:
    """One block of all layers of the group."""
    if dtype not in ("auto", "u8"):
        return BLOCK_TOKENS * group.kv_bytes_per_token(value_bytes=value_bytes(dtype))
    keys = group.head_dim * (BLOCK_TOKENS + _SCALE_BYTES)
    values = BLOCK_TOKENS * (group.v_head_dim + _SCALE_BYTES)
    return float(group.layers * group.kv_heads * (keys + values))
