"""vLLM's accounting: KV cache = share x total - weights - non-torch - activation peak (- CUDA graphs since 0.21).

39 logged runs of 0.5 to 0.11 close within 2 % of the device. The share is of the device's total, not of what is
free, and the fewest blocks of any rank count for all. What lies outside the share: CUDA graphs before 0.21, the CUDA
context and other processes where the version counts only its own growth (0.6.5 to 0.7, 0.9 and later).
"""

from __future__ import annotations

import math
from dataclasses import replace

from plimsoll.facts.rotary import rotary_cache_bytes
from plimsoll.facts.sharding import weights_per_rank
from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import (
    ceil_to,
    flag_option,
    float_option,
    int_option,
    loaded_dtype,
    option,
    value_bytes,
)
from plimsoll.plan.memory.vllm_cache import Pages, Paging, pages
from plimsoll.plan.memory.vllm_profile import (
    accounting_version,
    activation_peak,
    context_bytes,
    counts_whole_device,
    default_batched_tokens,
    default_share,
    encoder_peak,
    graphs,
    is_v1,
    non_torch,
)
from plimsoll.plan.types import Candidate
from plimsoll.units import GIB

_FLOAT8 = ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla")


def account(candidate: Candidate) -> Ledger:
    """One ledger per rank; the cache takes what the share leaves, or what one request needs where that is more."""
    version = accounting_version(candidate)
    if version != candidate.engine.version:
        candidate = replace(candidate, engine=replace(candidate.engine, version=version))
    paging = _paging(candidate)
    pool = pages(candidate.model, paging)
    weights = _weights(candidate)
    ranks = [_before_cache(candidate, rank, weights[rank], paging) for rank in range(len(candidate.devices))]
    rooms = [limit - sum(entry.bytes for entry in entries if entry.inside) for limit, entries in ranks]
    stated = _stated_cache_bytes(candidate)
    room = min(rooms) if stated is None else stated
    blocks = pool.blocks(room) if pool else 0
    if (override := int_option(candidate, "num_gpu_blocks_override", default=0)) and pool:
        blocks = override
    needed = _needed_bytes(candidate, pool)
    ledgers = []
    for device, (limit, entries), own in zip(candidate.devices, ranks, rooms, strict=True):
        cache = () if pool is None else (_cache(pool, room=own if stated is None else stated, needed=needed),)
        ledgers.append(
            DeviceLedger(
                device=f"{device.name} #{device.index}", total_bytes=device.memory_bytes, limit_bytes=limit,
                entries=(*entries, *cache),
            )
        )  # fmt: skip
    # Each data-parallel rank has a cache of its own.
    copies = candidate.parallel.data
    concurrency = pool.concurrency(blocks) * copies if pool else float(candidate.sequences)
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=pool.tokens(blocks) * copies if pool else 0,
        kv_blocks=blocks if pool else None,
        max_concurrency=concurrency,
        longest_context_tokens=_longest(candidate, paging, pool, blocks),
        notes=_notes(candidate, rooms, needed),
        spare_bytes=max(0, room - needed) if pool else max(0, min(rooms)),
    )


# --- settings ----------------------------------------------------------------------------------------------------


def _share(candidate: Candidate) -> float:
    return candidate.memory_share if candidate.memory_share is not None else default_share(candidate.engine.version)


def _batched_tokens(candidate: Candidate) -> int:
    chunked = option(candidate, "enable_chunked_prefill")
    return candidate.batched_tokens or default_batched_tokens(
        candidate.engine.version, candidate.devices[0], model=candidate.model, context=candidate.context_tokens,
        sequences=candidate.sequences,
        chunked=None if chunked is None else flag_option(candidate, "enable_chunked_prefill", default=True),
    )  # fmt: skip


def _paging(candidate: Candidate) -> Paging:
    vendor, version = candidate.devices[0].vendor, candidate.engine.version
    usual = 128 if vendor in ("cpu", "ascend") and is_v1(version) else 16
    if any(group.kind == "mla" for group in candidate.model.attention) and in_range(version, ">=0.7.3"):
        usual = 16 if vendor == "cpu" else 64
    dtype = loaded_dtype(candidate) or candidate.model.dtype
    kv_dtype = candidate.kv_dtype.lower()
    return Paging(
        version=version,
        block_tokens=int_option(candidate, "block_size", default=usual),
        value_bytes=1.0 if kv_dtype in _FLOAT8 else value_bytes(kv_dtype, model_dtype=dtype),
        kv_dtype=kv_dtype,
        tensor=candidate.parallel.tensor,
        pipeline=candidate.parallel.pipeline,
        context=max(1, candidate.context_tokens),
        batched_tokens=_batched_tokens(candidate),
        prefix_caching=flag_option(candidate, "enable_prefix_caching", default=in_range(version, ">=0.16")),
    )


def _weights(candidate: Candidate) -> tuple[int, ...]:
    """Bytes of weights on each device, adapters' slots and CPU offload counted in."""
    parallel, model = candidate.parallel, candidate.model
    one = weights_per_rank(
        model,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        expert=parallel.expert,
        dtype=loaded_dtype(candidate),
        mtp=str(option(candidate, "speculative_method", "spec_method") or "").endswith("mtp"),
    )
    offloaded = float_option(candidate, "cpu_offload_gb", default=0.0) * GIB
    adapters = 0
    if flag_option(candidate, "enable_lora", default=False):
        rank = int_option(candidate, "max_lora_rank", default=16)
        slots = int_option(candidate, "max_loras", default=1)
        # Seven projections a layer, each with an A and a B of the rank, in two bytes.
        width = 6 * model.hidden_size + 3 * model.intermediate_size + 2 * model.kv_heads * model.head_dim
        adapters = 2 * rank * slots * model.layers * width // parallel.tensor
    draft = int_option(candidate, "draft_weights_bytes", default=0)
    extra = adapters + draft + rotary_cache_bytes(model) + _padding(candidate)
    # Only layers are offloaded: embedding and head stay (0.80 GiB logged for DeepSeek-V2-Lite with 30 GB offloaded).
    ends = sum(part.bytes for part in model.tensors if not part.at) // parallel.tensor if offloaded else 0
    kept = [max(min(size, ends), round(size - offloaded)) + extra for size in one]
    copies = len(candidate.devices) // len(kept)
    return tuple(kept * max(1, copies))[: len(candidate.devices)]


def _padding(candidate: Candidate) -> int:
    """MXFP4 experts are padded for their kernels: hidden to 256, intermediate of a rank to 64.

    gpt-oss-120b on one card of 79.2 GiB: -2.28 GiB left at 1,024 sequences, so 66.0 of weights; 65.9 by this.
    """
    model, parallel = candidate.model, candidate.parallel
    if model.quantization is None or model.quantization.method != "mxfp4" or model.moe is None:
        return 0
    stored = sum(part.bytes for part in model.tensors if part.role == "experts" and part.dtype == "mxfp4")
    narrow = model.moe.intermediate_size / (1 if parallel.expert > 1 else parallel.tensor)
    wide = ceil_to(model.hidden_size, 256) / model.hidden_size * ceil_to(narrow, 64) / narrow
    return round(stored / (parallel.tensor * parallel.pipeline) * (wide - 1))


def _stated_cache_bytes(candidate: Candidate) -> int | None:
    """Cache bytes where they are given outright rather than left over."""
    if option(candidate, "kv_cache_memory_bytes") is not None:
        return int_option(candidate, "kv_cache_memory_bytes", default=0)
    if candidate.devices[0].vendor == "cpu":
        space = candidate.deployment.env.get("VLLM_CPU_KVCACHE_SPACE") or option(candidate, "cpu_kvcache_space")
        if space is not None:
            return round(float(str(space)) * GIB)
        if in_range(candidate.engine.version, "<0.14"):
            return 4 * GIB
    return None


# --- accounts ----------------------------------------------------------------------------------------------------


def _before_cache(candidate: Candidate, rank: int, weights: int, paging: Paging) -> tuple[int, tuple[Entry, ...]]:
    """The limit of a rank and everything in it but the cache."""
    device, version = candidate.devices[rank], candidate.engine.version
    parallel = candidate.parallel
    limit = math.ceil(device.memory_bytes * _share(candidate))
    entries = [
        Entry(
            name="weights", bytes=weights, basis="derived",
            source=f"tensor by tensor, TP {parallel.tensor} x PP {parallel.pipeline}, rank {rank}",
        ),
        activation_peak(candidate, tokens=paging.batched_tokens),
    ]  # fmt: skip
    encoder = encoder_peak(candidate)
    if encoder is not None:
        entries.append(encoder)
    whole = counts_whole_device(version)
    entries.append(non_torch(candidate))
    graph = graphs(candidate, activations=entries[1].bytes)
    if graph is not None:
        entries.append(graph)
    if not whole and device.vendor not in ("cpu", "ascend"):
        entries.append(
            Entry(
                name="context", bytes=context_bytes(version), basis="assumed", inside=False,
                source="CUDA context and kernels: the version counts growth after it only",
            )
        )  # fmt: skip
    late = _late_bytes(candidate)
    if late:
        entries.append(
            Entry(
                name="overhead", bytes=late, basis="assumed", inside=False,
                source="communicators that open after the profile run, with graphs or the first request",
            )
        )  # fmt: skip
    held = device.memory_bytes - device.free_bytes
    if held > 0:
        entries.append(
            Entry(
                name="other_processes", bytes=held, basis="measured", source="total less free, by the driver",
                # Only what sizes a cache is held against the share: a model without one starts beside anything.
                inside=whole and _caches(candidate),
            )
        )  # fmt: skip
    return limit, tuple(entries)


def _caches(candidate: Candidate) -> bool:
    """Whether the model has a cache at all: encoders have none."""
    return any(group.kind != "encoder" for group in candidate.model.attention)


def _late_bytes(candidate: Candidate) -> int:
    """What several ranks take after the profile run, at TP 8: less than 0.5 GiB in 0.10 (4.4 GiB outside the share held
    3.45 of graphs and the context), 0.9 in 0.28 (a process ended 1.37 GiB over its share). A pipeline over four hosts
    ran at a share of 0.90 of 24 GB and not at 0.93."""
    parallel = candidate.parallel
    each = GIB * (11 if in_range(candidate.engine.version, ">=0.21") else 6) // 100
    late = min(parallel.tensor, 8) * each if parallel.tensor > 1 and in_range(candidate.engine.version, ">=0.6") else 0
    return late + (GIB * 7 // 10 if candidate.nodes > 1 and parallel.pipeline > 1 else 0)


def _needed_bytes(candidate: Candidate, pool: Pages | None) -> int:
    """Cache that start-up insists on: one request of the full context, except that a pooling model asks for none."""
    return 0 if pool is None else pool.request_bytes


def _cache(pool: Pages, *, room: int, needed: int) -> Entry:
    size = max(room, needed)
    return Entry(
        name="kv_cache", bytes=size, basis="derived",
        source=(
            f"what the share leaves, in blocks of {pool.block_tokens} tokens = {pool.block_bytes:.0f} B"
            if room >= needed
            else f"one request of the full context: {pool.request_blocks} blocks of {pool.block_bytes:.0f} B"
        ),
    )  # fmt: skip


def _longest(candidate: Candidate, paging: Paging, pool: Pages | None, blocks: int) -> int:
    """The longest single request that the blocks hold."""
    if pool is None:
        return candidate.model.max_context_tokens
    ends = (candidate.context_tokens, candidate.model.max_context_tokens)
    ceiling = max(ends) if candidate.model.max_context_tokens else candidate.context_tokens
    if pool.groups == 1:
        return min(ceiling, blocks * pool.block_tokens)
    low, high = 0, ceiling
    while low < high:
        middle = (low + high + 1) // 2
        fitting = pages(candidate.model, replace(paging, context=middle))
        if fitting and fitting.request_blocks <= blocks:
            low = middle
        else:
            high = middle - 1
    return low


def _notes(candidate: Candidate, rooms: list[int], needed: int) -> tuple[str, ...]:
    notes = []
    share, version = _share(candidate), candidate.engine.version
    if min(rooms) <= 0:
        notes.append("no memory is left for the cache: weights and activations fill the share")
    elif min(rooms) < needed:
        notes.append(f"the cache holds less than one request of {candidate.context_tokens} tokens")
    if not counts_whole_device(version):
        for device in candidate.devices:
            if device.free_bytes < device.memory_bytes * share and in_range(version, ">=0.9"):
                notes.append(
                    f"{device.name} #{device.index} has {device.free_bytes / GIB:.1f} GiB free, less than the share of "
                    f"{share:.2f}: vLLM refuses to start"
                )
    return tuple(notes)
