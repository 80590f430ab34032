"""How weights are dealt out over ranks: tensor, pipeline and expert parallelism, and llama.cpp's split by layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from plimsoll.facts.model import ModelFacts, TensorClass

VOCABULARY_PADDING = 64  # vLLM and SGLang: DEFAULT_VOCAB_PADDING_SIZE
FLOATS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def weights_per_rank(
    model: ModelFacts,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    expert: int = 1,
    attention_tensor: int | None = None,
    layers_per_stage: Sequence[int] | None = None,
    dtype: str | None = None,
    mtp: bool = False,
) -> tuple[int, ...]:
    """Bytes of weights on each rank, `tensor * pipeline` of them, all ranks of the first stage first.

    `expert`: ranks that whole experts are dealt out to; 1 cuts each expert over the `tensor` ranks instead.
    `attention_tensor`: ranks that cut attention, where data-parallel attention makes them fewer than `tensor`.
    `layers_per_stage`: layers of each pipeline stage; vLLM's own split when not given.
    `dtype`: what unquantized floating-point weights are cast to when loaded (`--dtype half`).
    `mtp`: count the layers that predict further tokens, which engines load for speculation only.
    """
    stages = tuple(layers_per_stage) if layers_per_stage else pipeline_layers(model.layers, pipeline)
    stage_of = [stage for stage, count in enumerate(stages) for _ in range(count)]
    totals = [0] * pipeline
    for part in model.tensors:
        if part.role == "mtp" and not mtp:
            continue
        size = _on_one_rank(part, model, tensor, expert, attention_tensor or tensor)
        size *= _cast(part.dtype, dtype)
        if part.at:
            for layer in part.at:
                totals[stage_of[min(layer, len(stage_of) - 1)]] += round(size / len(part.at))
            continue
        for stage in _stages_of(part, model, pipeline):
            totals[stage] += round(size)
    return tuple(total for total in totals for _ in range(tensor))


def pipeline_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage as vLLM deals them: what is left over goes to the stages before the last."""
    counts = [layers // stages] * stages
    for extra in range(layers % stages):
        counts[-2 - extra if stages > 1 else -1] += 1
    return tuple(counts)


def _on_one_rank(part: TensorClass, model: ModelFacts, tensor: int, expert: int, attention: int) -> float:
    match part.sharding:
        case "replicated":
            return part.bytes
        case "vocab":
            step = lcm(VOCABULARY_PADDING, tensor)
            padded = -(-model.vocab_size // step) * step
            return part.bytes * padded / max(1, model.vocab_size) / tensor
        case "expert" if expert > 1 and model.moe:
            return part.bytes * -(-model.moe.experts // expert) / model.moe.experts
        case _:
            ranks = attention if part.role in ("attention", "state") else tensor
            return part.bytes / (min(ranks, part.units) if part.units else ranks)


def _cast(stored: str, wanted: str | None) -> float:
    return FLOATS[wanted] / FLOATS[stored] if wanted in FLOATS and stored in FLOATS else 1.0


def _stages_of(part: TensorClass, model: ModelFacts, pipeline: int) -> Sequence[int]:
    """Stages that hold a tensor outside the layers: both ends hold a shared embedding, all hold a vision tower."""
    match part.role:
        case "embedding":
            both = model.tied_embeddings and part.sharding == "vocab" and pipeline > 1
            return (0, pipeline - 1) if both else (0,)
        case "vision":
            return range(pipeline)
        case _:
            return (pipeline - 1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBytes:
    """Weights as llama.cpp deals them out: what comes before the layers, each layer, what comes after them."""

    input: int
    layers: tuple[int, ...]
    output: int
    other: int = 0
    """Vision, multi-token prediction: not part of the text model's buffers."""


def bytes_by_layer(model: ModelFacts) -> LayerBytes:
    """Bytes of every layer; a shared embedding is counted once, under `input`."""
    layers = [0] * model.layers
    ends = {"input": 0, "output": 0, "other": 0}
    for part in model.tensors:
        if part.at and part.role != "mtp":
            for layer in part.at:
                layers[layer] += part.bytes // len(part.at)
        elif part.role in ("mtp", "vision"):
            ends["other"] += part.bytes
        else:
            ends["input" if part.role == "embedding" else "output"] += part.bytes
    return LayerBytes(layers=tuple(layers), **ends)
