"""Ollama's accounting: as many layers on the GPUs as its estimate fits, the rest in RAM; `num_gpu` forces a number.

The estimate (v0.1.3x to v0.11, `llm/memory.go` and `fs/ggml/ggml.go`) books a full layer with its share of the cache,
and the compute graph on every device. num_ctx counts per request slot: the cache holds num_ctx x OLLAMA_NUM_PARALLEL.
The graph sizes agree with five logged estimates to the last digit. From 0.30 on Ollama runs llama-server for every GGUF
(PR 16031, May 2026), so llama.cpp's own law holds, num_gpu for n_gpu_layers.
"""

from __future__ import annotations

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.sharding import LayerBytes, bytes_by_layer
from plimsoll.facts.versions import in_range
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import layers_option, other_processes, ram_ledger, value_bytes
from plimsoll.plan.memory.llamacpp import account as llamacpp
from plimsoll.plan.types import Candidate
from plimsoll.units import MIB

BATCH = 512
MINIMUM_BYTES = 457 * MIB
"""Kept free on every CUDA device by the estimate."""
CONTEXT_BYTES = 300 * MIB


def account(candidate: Candidate) -> Ledger:
    """One ledger per device and one for RAM, with the layers that the estimate, or `num_gpu`, puts on each."""
    if in_range(candidate.engine.version, ">=0.30"):
        return llamacpp(candidate)
    devices = tuple(device for device in candidate.devices if device.vendor != "cpu")
    forced = layers_option(candidate, "num_gpu", "n_gpu_layers")
    total = candidate.model.layers + 1
    counts = layers_per_device(candidate, devices) if forced is None else _forced(candidate, devices, forced)
    offloaded = sum(counts)
    graph = graph_bytes(candidate.model, context=_cells(candidate), full=offloaded >= total)
    per_layer, sizes = _cache_per_layer(candidate), bytes_by_layer(candidate.model)
    ledgers = []
    first = total - offloaded
    for device, count in zip(devices, counts, strict=True):
        last = min(first + count, candidate.model.layers)
        weights = sum(sizes.layers[first:last]) + ((sizes.output or sizes.input) if first + count > last else 0)
        layers = max(0, last - first)
        ledgers.append(_device(candidate, device, layers=layers, weights=weights, cache=per_layer, graph=graph))
        first += count
    ledgers.append(_host(candidate, sizes, offloaded=offloaded, cache=per_layer, graph=0 if offloaded else graph))
    notes = (f"{offloaded} of {total} layers on the GPUs" + ("" if forced is None else ", as num_gpu says"),)
    cells = _cells(candidate)
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=cells,
        max_concurrency=float(candidate.sequences),
        longest_context_tokens=min(candidate.context_tokens, candidate.model.max_context_tokens or cells),
        notes=notes,
    )


def layers_per_device(candidate: Candidate, devices: tuple[Device, ...]) -> tuple[int, ...]:
    """Layers that the estimate puts on each device, the output layer counted as one.

    It adds up the first layers, while the runner offloads the last ones: where dense layers lead (DeepSeek) it counts
    5 layers into 17.6 GiB, of which the runner then makes 32. `account` books what the runner loads.
    """
    model = candidate.model
    sizes = bytes_by_layer(model)
    cache = _cache_per_layer(candidate)
    cells = _cells(candidate)
    partial, full = graph_bytes(model, context=cells, full=False), graph_bytes(model, context=cells, full=True)
    used = [MINIMUM_BYTES + max(partial, full)] * len(devices)
    counts = [0] * len(devices)
    usable = list(range(len(devices)))
    placed = 0
    for size in sizes.layers:
        usable = [i for i in usable if devices[i].free_bytes > used[i] + size + cache]
        if not usable:
            break
        target = usable[placed % len(usable)]
        used[target] += size + cache
        counts[target] += 1
        placed += 1
    output = sizes.output or sizes.input
    room = [i for i in usable if devices[i].free_bytes > used[i] + output]
    if placed == model.layers and room:
        counts[room[placed % len(room)]] += 1
    return tuple(counts)


def fitting_layers(candidate: Candidate, devices: tuple[Device, ...]) -> int:
    """The largest `num_gpu` that fits in truth: as many of the largest layers on every device as it holds."""
    sizes = bytes_by_layer(candidate.model)
    graph = graph_bytes(candidate.model, context=_cells(candidate), full=False)
    each = max(sizes.layers, default=0) + _cache_per_layer(candidate)
    rooms = [device.free_bytes - CONTEXT_BYTES - MINIMUM_BYTES - graph for device in devices]
    least = min((max(0, room) // each for room in rooms), default=0) if each else 0
    return min(candidate.model.layers + 1, least * len(devices))


def graph_bytes(model: ModelFacts, *, context: int, full: bool) -> int:
    """Ollama's estimate of the compute graph at its batch of 512, fully or partly offloaded."""
    hidden, heads, kv_heads, vocab = model.hidden_size, model.heads, model.kv_heads, model.vocab_size
    head_dim = model.head_dim or hidden // max(1, heads)
    name = model.architecture.lower()
    batch = BATCH
    logits = 4 * batch * (hidden + vocab)
    mixed = logits + hidden * vocab * 105 // 128
    if "deepseek" in name and any(group.kind == "mla" for group in model.attention):
        # The key of a head as the file states it: 128 + 64.
        wide = 2 * _mla_head(model) * heads
        logits3 = 4 * batch * (3 * hidden + vocab)
        if full:
            return max(logits3, 4 * batch * (3 * hidden + 2 + context * (1 + heads) + wide))
        scores = 4 * batch * (2 * hidden + 1 + wide + context + context * heads)
        scores += 4 * (wide // 2) * context + hidden * (wide // 2) * 9 // 16
        return max(logits3 + hidden * vocab * 105 // 128, scores)
    if "gemma" in name:
        if full:
            return max(logits, 4 * batch * (2 + context + context * heads + 2 * hidden + 2 * head_dim * heads))
        inner = 4 * head_dim * context * 8 + hidden * head_dim * heads * 9 // 16
        scores = 4 * batch * (2 * hidden + 1 + 2 * head_dim * heads + context + context * heads) + inner
        return max(4 * hidden * batch + mixed, scores)
    if "llama" in name or "mistral" in name:
        if full:
            return max(4 * batch * (1 + 4 * hidden + context * (1 + heads)), logits)
        inner = 4 * context * (batch * heads + head_dim * kv_heads) + hidden * hidden * 9 // 16
        return 4 * batch * hidden + max(4 * batch * (1 + hidden + max(context, hidden)) + inner, mixed)
    if full:
        return max(logits, 4 * batch * (1 + 2 * hidden + context + context * heads))
    return max(mixed, 4 * (batch * (1 + 2 * hidden + context * (1 + heads)) + hidden * (1 + context)))


def _mla_head(model: ModelFacts) -> int:
    return int(model.config.get("qk_nope_head_dim", 128)) + int(model.config.get("qk_rope_head_dim", 64))


def _cells(candidate: Candidate) -> int:
    return candidate.context_tokens * candidate.sequences


def _cache_per_layer(candidate: Candidate) -> int:
    """KV bytes of one layer over all slots; latent attention is cached as full heads, as Ollama's runner did."""
    model = candidate.model
    value = value_bytes("f16" if candidate.kv_dtype == "auto" else candidate.kv_dtype)
    total = 0.0
    for group in model.attention:
        if group.kind == "mla":
            total += group.layers * group.heads * (_mla_head(model) + 128) * value * _cells(candidate)
        elif group.kind not in ("linear", "encoder"):
            window = group.window_tokens
            cells = min(_cells(candidate), window * candidate.sequences + BATCH) if window else _cells(candidate)
            total += group.layers * group.kv_heads * (group.head_dim + group.v_head_dim) * value * cells
    return round(total / model.layers)


def _forced(candidate: Candidate, devices: tuple[Device, ...], wanted: int) -> tuple[int, ...]:
    """`wanted` layers dealt out evenly, as the runner splits them where it is not told how."""
    wanted = min(wanted, candidate.model.layers + 1)
    if not devices:
        return ()
    base, rest = divmod(wanted, len(devices))
    return tuple(base + (1 if i < rest else 0) for i in range(len(devices)))


def _device(candidate: Candidate, device: Device, *, layers: int, weights: int, cache: int, graph: int) -> DeviceLedger:
    entries = [
        Entry(name="weights", bytes=weights, basis="derived", source=f"{layers} layers, the last ones first"),
        Entry(name="kv_cache", bytes=layers * cache, basis="derived", source=f"{_cells(candidate)} cells a layer"),
        Entry(name="compute", bytes=graph if layers else 0, basis="derived", source="Ollama's estimate of the graph"),
        Entry(name="overhead", bytes=CONTEXT_BYTES, basis="assumed", source="driver context of one process"),
    ]
    if (others := other_processes(device)) is not None:
        entries.append(others)
    return DeviceLedger(
        device=f"{device.name} #{device.index}", total_bytes=device.memory_bytes, limit_bytes=device.memory_bytes,
        entries=tuple(entries),
    )  # fmt: skip


def _host(candidate: Candidate, sizes: LayerBytes, *, offloaded: int, cache: int, graph: int) -> DeviceLedger:
    model, host = candidate.model, candidate.host
    left = max(0, model.layers - offloaded)
    weights = sizes.input + sum(sizes.layers[:left]) + (0 if offloaded > model.layers else sizes.output)
    entries = [
        Entry(name="weights", bytes=weights, basis="derived", source=f"{left} layers and the embedding, mapped"),
        Entry(name="kv_cache", bytes=left * cache, basis="derived", source=f"{_cells(candidate)} cells a layer"),
        Entry(name="compute", bytes=graph, basis="derived", source="Ollama's estimate of the graph"),
    ]
    return ram_ledger(host, entries)
