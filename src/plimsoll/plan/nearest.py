"""What would fit when a plan does not: the least change of each kind, tried and accounted, never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from plimsoll.facts.model import ModelFacts
from plimsoll.plan.memory import account
from plimsoll.plan.memory.ollama import fitting_layers
from plimsoll.plan.settle import Settled, reserve_bytes, with_room
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.units import format_bytes

_MOST_DEVICES = 512
_SMALLER_CACHE = {"vllm": "fp8", "sglang": "fp8_e4m3", "llamacpp": "q8_0", "ollama": "q8_0"}


def nearest_fits(failed: Settled, alternatives: Iterable[ModelFacts] = ()) -> tuple[str, ...]:
    """One sentence for each kind of change that makes `failed` fit: context, sequences, cache dtype, other
    quantizations (`alternatives`), more devices; the cheapest first, and "nothing" is said too."""
    candidate = failed.candidate
    found = [
        sentence
        for sentence in (
            _shorter(candidate),
            _fewer(candidate),
            _smaller_cache(candidate),
            _fewer_layers(candidate),
            *(_other_weights(candidate, other) for other in alternatives),
            _more_devices(candidate),
        )
        if sentence
    ]
    return tuple(found) or (f"{candidate.model.id} does not fit on any number of {candidate.devices[0].name}",)


def _fits(candidate: Candidate) -> bool:
    return with_room(Settled(candidate=candidate, ledger=account(candidate))).fits


def _shorter(candidate: Candidate) -> str | None:
    """The longest context that fits, in steps of 256."""
    low, high = 0, candidate.context_tokens // 256
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(replace(candidate, context_tokens=middle * 256)):
            low = middle
        else:
            high = middle - 1
    return f"a context of {low * 256} tokens would fit ({candidate.context_tokens} does not)" if low else None


def _fewer(candidate: Candidate) -> str | None:
    sequences = candidate.sequences // 2
    while sequences:
        if _fits(replace(candidate, sequences=sequences)):
            return f"{sequences} sequences at once would fit ({candidate.sequences} do not)"
        sequences //= 2
    return None


def _smaller_cache(candidate: Candidate) -> str | None:
    dtype = _SMALLER_CACHE.get(candidate.engine.memory)
    if dtype is None or candidate.kv_dtype != "auto":
        return None
    return f"a KV cache in {dtype} would fit" if _fits(replace(candidate, kv_dtype=dtype)) else None


def _fewer_layers(candidate: Candidate) -> str | None:
    """The most layers that the devices hold, the rest in RAM."""
    cards = tuple(device for device in candidate.devices if device.vendor != "cpu")
    name = {"ollama": "num_gpu", "llamacpp": "n_gpu_layers"}.get(candidate.engine.memory)
    if name is None or not cards:
        return None
    most = fitting_layers(candidate, cards) if name == "num_gpu" else candidate.model.layers
    step = len(cards) if name == "num_gpu" else 1
    for layers in range(most, 0, -step):
        if _fits(replace(candidate, options={**candidate.options, name: layers})):
            return f"{name} {layers} of {candidate.model.layers + 1} layers would fit, the rest in RAM"
    return None


def _other_weights(candidate: Candidate, other: ModelFacts) -> str | None:
    if other.weight_bytes >= candidate.model.weight_bytes or not _fits(replace(candidate, model=other)):
        return None
    label = other.quantization.method if other.quantization else other.dtype
    return f"{other.id} ({label}, {format_bytes(other.weight_bytes)} of weights) would fit"


def _more_devices(candidate: Candidate) -> str | None:
    """Twice as many devices and twice as many again, tensor ranks first where the heads allow it."""
    device = candidate.devices[0]
    if device.vendor == "cpu":
        missing = -account(candidate).margin_bytes + reserve_bytes(candidate)
        return f"{format_bytes(candidate.host.ram_bytes + missing)} of RAM would do" if missing > 0 else None
    for cut in _larger(candidate):
        count = cut.world
        devices = tuple(replace(device, index=i, free_bytes=device.memory_bytes) for i in range(count))
        nodes = max(candidate.nodes, -(-count // 8))
        parallel = Parallel() if "tensor" not in candidate.engine.parallel else cut
        if _fits(replace(candidate, devices=devices, parallel=parallel, nodes=nodes)):
            how = f", tensor {cut.tensor} x pipeline {cut.pipeline}" if "tensor" in candidate.engine.parallel else ""
            return f"{count} x {device.name} would do{how}"
    return None


def _larger(candidate: Candidate) -> Iterator[Parallel]:
    heads, layers = candidate.model.heads, candidate.model.layers
    tensor = candidate.parallel.tensor
    pipeline = max(1, len(candidate.devices) // tensor)
    while tensor * pipeline < _MOST_DEVICES:
        if tensor < 8 and heads % (tensor * 2) == 0:
            tensor *= 2
        elif pipeline * 2 <= layers:
            pipeline *= 2
        else:
            return
        yield Parallel(tensor=tensor, pipeline=pipeline)
