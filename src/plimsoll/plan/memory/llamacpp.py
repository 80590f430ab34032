"""llama.cpp's accounting: mapped weights, KV and state cells, one compute buffer a device, layers split over devices.

Everything is allocated at start and nothing grows later, except the prompt cache in RAM, which we switch off.
`Candidate.context_tokens` is per sequence; the engine is given context x sequences in all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import AttentionGroup, ModelFacts
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.memory.common import (
    ceil_to,
    flag_option,
    int_option,
    layers_option,
    option,
    other_processes,
    ram_ledger,
    value_bytes,
)
from plimsoll.plan.memory.llamacpp_compute import LATENT_CACHE, OUTPUTS_PER_SLOT, Batch, compute_bytes
from plimsoll.plan.types import Candidate
from plimsoll.units import MIB

CELL_STEP = 256
"""A stream of the cache is rounded up to this many cells (b11549: 5000 over 3 slots gives 3 x 1792)."""
PROCESS_BYTES = 56 * MIB
"""Resident memory of the server less its buffers: 28 MiB anonymous and 24 MiB of libraries (xllamacpp, SmolLM2)."""
CONTEXT_BYTES = 450 * MIB
"""What the driver takes of a GPU for the process; CUDA contexts take 300 to 600 MiB by card and driver."""
FLASH_BY_DEFAULT = 6325
"""Build from which flash attention is chosen by itself where the device has it (llama.cpp PR 15434, August 2025)."""
LATENT_ONCE = 7800
"""Build by which the latent's part that serves as V is no longer cached a second time (b11549 does not)."""
WINDOW_CACHE = 5440
"""Build from which sliding layers keep a cache of the window only (llama.cpp PR 13194, May 2025)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    build: int
    cells: int
    """Of one stream."""
    streams: int
    sequences: int
    batch_tokens: int
    flash: bool
    key_bytes: float
    value_bytes: float
    full_window: bool
    cache_on_host: bool
    no_cache: bool
    fork: bool
    """ik_llama.cpp, a fork with options of its own."""
    latent: bool
    copies: int
    unfold_bytes: int | None

    def window_cells(self, window: int) -> int:
        """Cells of one stream of sliding layers: the window (of each sequence that shares it) and one batch."""
        shared = self.sequences if self.streams == 1 else 1
        return (
            self.cells if self.full_window else min(self.cells, ceil_to(window * shared + self.batch_tokens, CELL_STEP))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What one device holds: how many of the layers, counted from `first`, and whether the output layer."""

    device: Device
    first: int
    layers: int
    output: bool


def account(candidate: Candidate) -> Ledger:
    """One ledger per device, in order, and last the host's RAM where some of the model stays there."""
    model, settings = candidate.model, _settings(candidate)
    places = _places(candidate)
    on_host = model.layers - sum(place.layers for place in places)
    ledgers = [_device(candidate, settings, place) for place in places]
    if not places or candidate.devices[0].vendor != "cpu":
        ledgers.append(_host(candidate, settings, layers=on_host, alone=not places))
    cells = settings.cells * settings.streams
    per_sequence = cells if settings.streams == 1 else settings.cells
    concurrency = cells / candidate.context_tokens if candidate.context_tokens and not settings.no_cache else 0.0
    return Ledger(
        devices=tuple(ledgers),
        kv_tokens=0 if settings.no_cache else cells,
        max_concurrency=min(concurrency, float(candidate.sequences)),
        longest_context_tokens=min(per_sequence, model.max_context_tokens or per_sequence),
    )


def build_number(version: str) -> int:
    """The build that `version` names ("b4567", "2026.10.11549", "5200 (abc)"); unknown counts as current."""
    found = re.findall(r"\d{4}\.\d+\.(\d{4,5})\b", version) or re.findall(r"(?<![0-9.])b?(\d{4,5})\b", version)
    return int(found[-1]) if found else 10**6


def _settings(candidate: Candidate) -> _Settings:
    model = candidate.model
    build = build_number(candidate.engine.version)
    fork = candidate.engine.name.startswith("ik")
    unified = flag_option(candidate, "kv_unified", default=False)
    total = candidate.context_tokens * candidate.sequences
    streams = 1 if unified else candidate.sequences
    flash_word = option(candidate, "flash_attn")
    automatic = flash_word is None or str(flash_word).lower() == "auto"
    flash = build >= FLASH_BY_DEFAULT if automatic else flag_option(candidate, "flash_attn", default=True)
    kv_dtype = "f16" if candidate.kv_dtype == "auto" else candidate.kv_dtype
    stored = value_bytes(str(option(candidate, "cache_type_v") or kv_dtype))
    flash = flash or stored not in (2.0, 4.0)  # A quantised V cache runs with flash attention only.
    cells = ceil_to(total / streams, CELL_STEP)
    ubatch = int_option(candidate, "ubatch_size", "n_ubatch", default=512)
    batch = int_option(candidate, "batch_size", "n_batch", default=max(candidate.batched_tokens or 2048, ubatch))
    return _Settings(
        build=build,
        cells=cells,
        streams=streams,
        sequences=candidate.sequences,
        batch_tokens=min(ubatch, batch, max(cells, 1)) if build < OUTPUTS_PER_SLOT else min(ubatch, batch),
        flash=flash,
        key_bytes=value_bytes(str(option(candidate, "cache_type_k") or kv_dtype)),
        value_bytes=stored,
        full_window=flag_option(candidate, "swa_full", default=False) or build < WINDOW_CACHE,
        cache_on_host=flag_option(candidate, "no_kv_offload", default=False),
        no_cache=all(group.kind == "encoder" for group in model.attention),
        fork=fork,
        copies=_input_copies(candidate),
        unfold_bytes=int_option(candidate, "amb", default=0) * MIB
        if fork and int_option(candidate, "mla", default=0) == 3
        else None,
        latent=build >= LATENT_CACHE if not fork else flash or int_option(candidate, "mla", default=0) > 0,
    )


def _input_copies(candidate: Candidate) -> int:
    """Four copies of the graph's inputs where all layers lie on several devices and run as a pipeline."""
    devices = [device for device in candidate.devices if device.vendor != "cpu"]
    wanted = layers_option(candidate, "n_gpu_layers", "gpu_layers")
    whole = wanted is None or wanted > candidate.model.layers
    moved = flag_option(candidate, "cpu_moe", default=False) or option(candidate, "override_tensor") is not None
    on_host = flag_option(candidate, "no_kv_offload", default=False)
    fork = candidate.engine.name.startswith("ik")
    return 4 if len(devices) > 1 and whole and not (moved or on_host or fork) else 1


# --- where the layers go -----------------------------------------------------------------------------------------


def _places(candidate: Candidate) -> tuple[_Place, ...]:
    """Layers over devices as `--split-mode layer` cuts them: by `tensor_split`, else by free memory; the last
    `n_gpu_layers` are offloaded, the output layer counting as one of them."""
    devices = tuple(device for device in candidate.devices if device.vendor != "cpu")
    layers = candidate.model.layers
    wanted = layers_option(candidate, "n_gpu_layers", "gpu_layers", "num_gpu")
    offloaded = layers + 1 if wanted is None else min(wanted, layers + 1)
    if not devices or offloaded <= 0:
        return ()
    shares = _shares(candidate, devices)
    first = layers + 1 - offloaded if offloaded > layers or _output_counts(candidate) else layers - offloaded
    held = [0] * len(devices)
    starts: list[int | None] = [None] * len(devices)
    output_on = -1
    for layer in range(first, layers + 1):
        position = (layer - first) / offloaded
        index = next((i for i, share in enumerate(shares) if position < share), len(devices) - 1)
        if layer < layers:
            held[index] += 1
            starts[index] = layer if starts[index] is None else starts[index]
        elif offloaded > layers or _output_counts(candidate):
            output_on = index
    return tuple(
        _Place(device=device, first=starts[i] or 0, layers=held[i], output=i == output_on)
        for i, device in enumerate(devices)
    )


def _output_counts(candidate: Candidate) -> bool:
    """Since build 7000 the output layer is the first of the offloaded ones, before it was the last to go."""
    return build_number(candidate.engine.version) >= 7000


def _shares(candidate: Candidate, devices: tuple[Device, ...]) -> tuple[float, ...]:
    """Cumulated parts of the layers, one per device."""
    word = option(candidate, "tensor_split")
    parts = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", str(word))] if word is not None else []
    parts = (
        (parts + [0.0] * len(devices))[: len(devices)] if parts else [float(device.free_bytes) for device in devices]
    )
    whole = sum(parts) or 1.0
    return tuple(sum(parts[: i + 1]) / whole for i in range(len(parts)))


def _weights(model: ModelFacts, *, first: int, layers: int, output: bool, ends: bool, experts: bool = True) -> int:
    """Bytes of `layers` layers from `first` on; `output`: the output layer too; `ends`: the input embedding too."""
    total = 0.0
    for tensor in model.tensors:
        if tensor.role in ("vision", "mtp"):
            continue
        if tensor.at:
            held = sum(1 for layer in tensor.at if first <= layer < first + layers)
            if experts or tensor.role != "experts":
                total += tensor.bytes * held / len(tensor.at)
        elif tensor.role == "embedding":
            total += tensor.bytes * (int(ends) + int(output and model.tied_embeddings))
        elif output:
            total += tensor.bytes
    return round(total)


# --- accounts ----------------------------------------------------------------------------------------------------


def _cache(candidate: Candidate, settings: _Settings, layers: int) -> tuple[Entry, ...]:
    """KV and state entries of so many of the model's layers."""
    model = candidate.model
    if settings.no_cache or not layers:
        return ()
    part = layers / model.layers
    kv = state = 0.0
    for group in model.attention:
        kv += settings.streams * _group_cells(settings, group) * _cell_bytes(settings, group)
        state += group.layers * group.state_bytes * candidate.sequences
    entries = [
        Entry(
            name="kv_cache", bytes=round(kv * part), basis="derived",
            source=f"{settings.streams} x {settings.cells} cells x layers x kv heads x (K + V) x bytes per value",
        )
    ]  # fmt: skip
    if state:
        entries.append(
            Entry(
                name="state", bytes=round(state * part), basis="derived",
                source=f"{candidate.sequences} sequences x recurrent layers x state in f32",
            )
        )  # fmt: skip
    return tuple(entries)


def _group_cells(settings: _Settings, group: AttentionGroup) -> int:
    return settings.window_cells(group.window_tokens) if group.window_tokens else settings.cells


def _cell_bytes(settings: _Settings, group: AttentionGroup) -> float:
    if group.kind in ("linear", "encoder"):
        return 0.0
    if group.kind == "mla":
        if not settings.latent:
            # Keys of 128 + 64 and values of 128 for every head (DeepSeek V2 and V3 alike).
            return group.layers * group.heads * (192 * settings.key_bytes + 128 * settings.value_bytes)
        twice = not settings.fork and settings.build < LATENT_ONCE
        again = (group.head_dim - 64) * settings.value_bytes if twice else 0.0
        return group.layers * (group.head_dim * settings.key_bytes + again)
    return (
        group.layers * group.kv_heads * (group.head_dim * settings.key_bytes + group.v_head_dim * settings.value_bytes)
    )


def _batch(candidate: Candidate, settings: _Settings) -> Batch:
    model = candidate.model
    window = next((group.window_tokens for group in model.attention if group.window_tokens), None)
    return Batch(
        tokens=settings.batch_tokens,
        cells=settings.batch_tokens if settings.no_cache else settings.cells,
        window_cells=settings.window_cells(window) if window and not settings.no_cache else 0,
        outputs=settings.batch_tokens if _pooled(candidate) else candidate.sequences,
        flash=settings.flash,
        build=settings.build,
        copies=settings.copies,
        fork=settings.fork,
        unfold_bytes=settings.unfold_bytes,
    )


def _pooled(candidate: Candidate) -> bool:
    wanted = flag_option(candidate, "embeddings", default=False)
    return wanted or candidate.model.task in ("embed", "rerank", "classify")


def _compute(candidate: Candidate, settings: _Settings, *, output: bool) -> Entry:
    batch = _batch(candidate, settings)
    return Entry(
        name="compute", bytes=compute_bytes(candidate.model, batch, output=output), basis="derived",
        source=f"widest stage of the graph x {batch.tokens} tokens x 4 B + mask of {batch.cells} cells",
    )  # fmt: skip


def _device(candidate: Candidate, settings: _Settings, place: _Place) -> DeviceLedger:
    model, device = candidate.model, place.device
    experts = not flag_option(candidate, "cpu_moe", default=False)
    weights = _weights(model, first=place.first, layers=place.layers, output=place.output, ends=False, experts=experts)
    entries = [
        Entry(name="weights", bytes=weights, basis="derived", source=f"{place.layers} of {model.layers} layers"),
        *(() if settings.cache_on_host else _cache(candidate, settings, place.layers)),
        _compute(candidate, settings, output=place.output),
    ]
    if device.vendor != "apple":
        entries.append(
            Entry(name="overhead", bytes=CONTEXT_BYTES, basis="assumed", source="driver context of one process")
        )
    if (others := other_processes(device)) is not None:
        entries.append(others)
    return DeviceLedger(
        device=f"{device.name} #{device.index}", total_bytes=device.memory_bytes, limit_bytes=device.memory_bytes,
        entries=tuple(entries),
    )  # fmt: skip


def _host(candidate: Candidate, settings: _Settings, *, layers: int, alone: bool) -> DeviceLedger:
    """The host's RAM: everything where there is no accelerator, else the embedding, output and layers left there."""
    model, host = candidate.model, candidate.host
    if alone:
        weights = sum(tensor.bytes for tensor in model.tensors if tensor.role != "vision")
    else:
        weights = _weights(model, first=0, layers=layers, output=False, ends=True)
        if flag_option(candidate, "cpu_moe", default=False):
            experts = sum(tensor.bytes for tensor in model.tensors if tensor.role == "experts")
            weights += round(experts * (1 - layers / model.layers))
    held = model.layers if settings.cache_on_host else layers
    entries = [
        Entry(name="weights", bytes=weights, basis="derived", source="tensors that stay in RAM, mapped from the file"),
        *_cache(candidate, settings, held),
    ]
    if alone or layers:
        entries.append(_compute(candidate, settings, output=alone))
    outputs = (
        settings.batch_tokens if _batch(candidate, settings).outputs > candidate.sequences else candidate.sequences
    )
    width = model.hidden_size if outputs > candidate.sequences else model.vocab_size
    entries += [
        Entry(
            name="output", bytes=candidate.sequences * width * 4, basis="derived",
            source="one row of logits (or one embedding) a slot in f32",
        ),
        Entry(name="overhead", bytes=PROCESS_BYTES, basis="measured", source="resident memory of xllamacpp's server"),
    ]  # fmt: skip
    if cache_ram := int_option(candidate, "cache_ram", default=0):
        entries.append(
            Entry(
                name="prompt_cache", bytes=cache_ram * MIB, basis="derived", source="cache_ram, fills as prompts come"
            )
        )
    return ram_ledger(host, entries)
