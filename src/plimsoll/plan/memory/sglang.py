"""SGLang's accounting: pool = free after loading - free before loading x (1 - mem_fraction_static).

What comes later has to live in that reserve: CUDA graphs, activations, and the table of requests to tokens. States of
linear attention and draft weights come off the pool first. Read from `model_runner.py`, `server_args.py` (0.3.6 to
0.5.9) and `kv_cache_configurator.py` (0.5.23); ten logged pools from 1.2 to 160 GiB agree within 0.2 %.
"""

from __future__ import annotations

import math

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.sharding import weights_per_rank
from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import flag_option, int_option, loaded_dtype, option, value_bytes
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB, MIB

STATE_RATIO = 0.9
"""`mamba_full_memory_ratio`: states get 0.9 parts for each part of KV cache (7.42 : 8.30 GB logged)."""
WINDOW_RATIO = 0.8
"""`swa_full_tokens_ratio`: tokens of sliding layers for each token of full ones."""
LOADING_BYTES = 100 * MIB
"""What loading takes of free memory besides the tensors (allocator, rotary table): 0.06 to 0.15 GiB in six logs."""
_TIERS = ((20, 2048, 8, 8), (35, 2048, 24, 80), (60, 4096, 32, 160), (90, 8192, 256, 512), (160, 8192, 256, 512))
"""Up to GiB of memory: chunked prefill, largest graph batch below TP 4 and from TP 4 on (0.5.x)."""


def account(candidate: Candidate) -> Ledger:
    """One ledger per rank; the pool takes what the fraction leaves, or one request's tokens where that is more."""
    model = candidate.model
    weights = _weights(candidate)
    ranks = [_rank(candidate, device, size) for device, size in zip(candidate.devices, weights, strict=True)]
    rooms = [limit - sum(entry.bytes for entry in entries if entry.inside) for limit, entries in ranks]
    room = min(rooms)
    token, state = _token_bytes(candidate), _state_bytes(candidate)
    room_for_tokens, state_room = _split_states(candidate, room, state)
    tokens = max(0, int(room_for_tokens // token)) if token else 0
    if limit := int_option(candidate, "max_total_tokens", default=0):
        tokens = min(tokens, limit)
    needed = math.ceil(candidate.context_tokens * token) + (state if token else 0)
    ledgers = []
    for device, (limit_bytes, entries) in zip(candidate.devices, ranks, strict=True):
        pool = [
            Entry(
                name="kv_cache", bytes=max(round(tokens * token), needed if room < needed else 0), basis="derived",
                source=f"{tokens} tokens x {token:.0f} B on each rank",
            )
        ]  # fmt: skip
        if state_room:
            pool.append(Entry(name="state", bytes=state_room, basis="derived", source="recurrent states of all slots"))
        ledgers.append(
            DeviceLedger(
                device=f"{device.name} #{device.index}", total_bytes=device.memory_bytes, limit_bytes=limit_bytes,
                entries=(*entries, *(pool if token or state_room else ())),
            )
        )  # fmt: skip
    ceiling = model.max_context_tokens or candidate.context_tokens
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=tokens,
        max_concurrency=tokens / candidate.context_tokens if token else float(candidate.sequences),
        longest_context_tokens=min(tokens, max(ceiling, candidate.context_tokens)),
        notes=("no memory is left for the pool: raise mem_fraction_static or cut the model further",)
        if token and room <= 0
        else (),
        spare_bytes=max(0, room - needed),
    )


def default_fraction(version: str, device: Device, *, tensor: int, pipeline: int = 1) -> float:
    """`mem_fraction_static` when it is not given."""
    mib = device.memory_bytes / MIB
    ranks = tensor * pipeline
    if in_range(version, "<0.4.7"):
        steps = ((16, 0.79), (8, 0.81 if in_range(version, ">=0.4.4") else 0.82), (4, 0.85), (2, 0.87), (1, 0.88))
        fraction = next(value for least, value in steps if ranks >= least)
        if in_range(version, ">=0.4.4") and mib > 81920:
            fraction = 0.88
            if mib > 96 * 1024:
                fraction = min(fraction + 48 * 1024 * (1 - fraction) / mib, (mib - 18 * 1024) / mib)
        return fraction
    chunk, largest = default_prefill(version, device, tensor=tensor)
    reserved = 512 + max(chunk, 2048) * 1.5 + largest * 2 + ranks / 8 * 1024
    if mib > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    return round((mib - reserved) / mib, 3)


def default_prefill(version: str, device: Device, *, tensor: int) -> tuple[int, int]:
    """(`chunked_prefill_size`, largest batch that a CUDA graph is captured for) when they are not given."""
    if in_range(version, "<0.4.7"):
        small = device.memory_bytes < 25_000 * MIB
        return (2048, 8) if small else (8192, 160)
    for gib, chunk, few, many in _TIERS:
        if device.memory_bytes < gib * GIB:
            return chunk, few if tensor < 4 else many
    return 16384, 512


def _weights(candidate: Candidate) -> tuple[int, ...]:
    parallel = candidate.parallel
    attention = parallel.tensor
    if flag_option(candidate, "enable_dp_attention", default=False):
        attention = max(1, parallel.tensor // max(1, parallel.data))
    ranks = weights_per_rank(
        candidate.model,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        expert=parallel.expert,
        attention_tensor=attention,
        dtype=loaded_dtype(candidate),
        mtp=option(candidate, "speculative_algorithm") is not None,
    )
    copies = max(1, len(candidate.devices) // len(ranks))
    return tuple(size + LOADING_BYTES for size in ranks * copies)[: len(candidate.devices)]


def _fraction(candidate: Candidate) -> float:
    parallel = candidate.parallel
    if candidate.memory_share is not None:
        return candidate.memory_share
    version, device = candidate.engine.version, candidate.devices[0]
    return default_fraction(version, device, tensor=parallel.tensor, pipeline=parallel.pipeline)


def _overhead(candidate: Candidate) -> Entry:
    """Context and communicators, taken before the first measurement of free memory."""
    ranks = candidate.parallel.tensor
    size = 0.6 if ranks == 1 else 0.9 if ranks < 8 else 1.9
    return Entry(
        name="overhead", bytes=round(size * GIB), basis="assumed",
        source="context and NCCL before loading: 0.6 GiB (H100), 0.9 (L4, TP 4), 1.9 (H200, TP 8)",
    )  # fmt: skip


def _rank(candidate: Candidate, device: Device, weights: int) -> tuple[int, list[Entry]]:
    """The limit of the static part of one rank, and all entries but the pool."""
    parallel, version = candidate.parallel, candidate.engine.version
    overhead = _overhead(candidate)
    held = device.memory_bytes - device.free_bytes
    before = device.free_bytes - overhead.bytes
    reserve = round(before * (1 - _fraction(candidate)))
    chunk, largest = default_prefill(version, device, tensor=parallel.tensor)
    chunk = candidate.batched_tokens or chunk
    entries = [
        Entry(
            name="weights", bytes=weights, basis="derived",
            source=f"tensor by tensor, TP {parallel.tensor} x PP {parallel.pipeline}",
        ),
        overhead,
        Entry(
            name="activations", basis="derived", inside=False,
            bytes=_activations(candidate.model, parallel.tensor, chunk),
            source=f"widest layer: {chunk} tokens of one prefill chunk x (6 I/tp + 6 H)",
        ),
    ]  # fmt: skip
    requests = int_option(candidate, "max_running_requests", default=min(4096, max(2048, candidate.sequences)))
    entries.append(
        Entry(
            name="request_table", bytes=requests * candidate.context_tokens * 4, basis="derived", inside=False,
            source=f"{requests} requests x {candidate.context_tokens} tokens x 4 B",
        )
    )  # fmt: skip
    if not candidate.eager:
        captured = min(int_option(candidate, "cuda_graph_max_bs", default=largest), max(candidate.sequences, 8))
        entries.append(
            Entry(
                name="graphs", bytes=(300 + captured * (20 if candidate.model.moe else 4)) * MIB, basis="assumed",
                inside=False, source=f"batches up to {captured}: 0.11 GB logged for 8, 6.2 for 256 of a large MoE",
            )
        )  # fmt: skip
    if held > 0:
        entries.append(
            Entry(name="other_processes", bytes=held, basis="measured", source="total less free, by the driver")
        )
    return device.memory_bytes - reserve, entries


def _activations(model: ModelFacts, tensor: int, tokens: int) -> int:
    return round(tokens * 2 * (3 * model.intermediate_size / tensor + 3 * model.hidden_size))


def _token_bytes(candidate: Candidate) -> float:
    """Bytes of pool that one token takes on a rank."""
    model, parallel = candidate.model, candidate.parallel
    tensor = parallel.tensor
    if flag_option(candidate, "enable_dp_attention", default=False):
        tensor = max(1, tensor // max(1, parallel.data))
    dtype = loaded_dtype(candidate) or model.dtype
    value = value_bytes(candidate.kv_dtype, model_dtype=dtype)
    windows = in_range(candidate.engine.version, ">=0.4.7")
    total = 0.0
    for group in model.attention:
        size = group.kv_bytes_per_token(value_bytes=value, tensor_parallel=tensor) / parallel.pipeline
        total += size * (WINDOW_RATIO if windows and group.window_tokens else 1.0)
    return total


def _state_bytes(candidate: Candidate) -> int:
    """Recurrent state of one sequence on a rank."""
    groups = candidate.model.attention
    return round(sum(group.layers * group.state_bytes for group in groups) / candidate.parallel.tensor)


def _split_states(candidate: Candidate, room: int, state: int) -> tuple[float, int]:
    """(room for tokens, room for states): slots as given, else by the ratio."""
    if not state:
        return float(room), 0
    given = int_option(candidate, "max_mamba_cache_size", "max_running_requests", default=0)
    states = given * state if given else round(max(0, room) * STATE_RATIO / (1 + STATE_RATIO))
    return float(room - states), states
