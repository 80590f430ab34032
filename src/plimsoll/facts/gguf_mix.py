"""A model's shapes as the tensors of a GGUF file of a given type, by the rules of llama.cpp's quantiser.

Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `src/llama-quant.cpp`, 2026. The `IQ`
types are taken to be made with an importance matrix (most need one), the others without. Files that others made by
recipes of their own (`UD-`, `_XL`, ik_llama.cpp) differ by a few per cent, or more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from plimsoll.errors import FactError
from plimsoll.facts.ggml_types import BY_NAME
from plimsoll.facts.model import ModelFacts, Quantization, TensorClass

FILE_MIXES: dict[str, str] = {
    "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M", "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL",
    "Q2_K_S": "Q2_K", "Q2_K_M": "Q2_K", "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "Q4_0": "Q4_0",
    "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0", "F16": "F16", "BF16": "BF16", "F32": "F32",
    "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0", "MXFP4_MOE": "MXFP4", "MXFP4": "MXFP4", "NVFP4": "NVFP4",
}  # fmt: skip
"""File types and the type that most of their tensors have; Q2_K_M is what some call Q2_K."""

_FUSED = frozenset(
    {"phi3", "qwen", "chatglm", "falcon", "bloom", "mpt", "gpt2", "gpt_neox", "gpt_bigcode", "phi", "dbrx"}
)
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_TINY = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What the rules look at."""

    mix: str
    base: str
    layers: int
    groups: int
    """Query heads per key-value head."""
    experts: int
    tied: bool
    fused: bool
    """Whether the file has query, key and value in one tensor, which is treated as a value is."""
    large: bool
    """`_L` after a type: embedding and output in Q8_0, as some publishers do."""
    seventy: bool
    """Llama 70B and its like: 80 layers, eight query heads to a key-value head."""


def quantized_to_gguf(model: ModelFacts, mix: str) -> ModelFacts:
    """The model as a GGUF file of type `mix` (`Q4_K_M`); FactError for a type that is not known."""
    label = mix.upper()
    large = label not in FILE_MIXES and label.endswith("_L")
    mix = label.removesuffix("_L") if large else label
    if mix not in FILE_MIXES:
        raise FactError(f"the GGUF type {mix} is not known", hint=f"Known are {', '.join(FILE_MIXES)}.")
    case = _Case(
        mix="Q2_K" if mix == "Q2_K_M" else mix,
        base=FILE_MIXES[mix],
        layers=model.layers,
        groups=model.heads // max(1, model.kv_heads),
        experts=model.moe.experts if model.moe else 1,
        tied=model.tied_embeddings,
        fused=str(model.config.get("model_type")) in _FUSED,
        large=large,
        seventy=model.layers == 80 and model.heads == 8 * model.kv_heads and model.hidden_size == 8192,
    )
    parts = tuple(part for tensor in model.tensors if _written(tensor) for part in _converted(tensor, model, case))
    bits = 8 * sum(part.bytes for part in parts) / max(1, sum(part.params for part in parts))
    groups = tuple(replace(group, state_bytes=4 * group.state_values) for group in model.attention)
    return replace(
        model, attention=groups, format="gguf", tensors=parts, files=(), multimodal=False, dtype="float16",
        quantization=Quantization(method="gguf", bits=round(bits, 3), name=label),
    )  # fmt: skip


def _written(part: TensorClass) -> bool:
    """The converter leaves vision to a file of its own, and out what predicts further tokens for most models."""
    return part.role not in ("vision", "mtp")


def _converted(part: TensorClass, model: ModelFacts, case: _Case) -> list[TensorClass]:
    if not _is_matrix(part, model):
        return [replace(part, bytes=part.params * 4, dtype="F32")]
    kinds: dict[str, list[int]] = {}
    for layer in part.at or (-1,):
        kinds.setdefault(_type_of(part, layer, case), []).append(layer)
    share = part.params // max(1, len(part.at))
    out = []
    for kind, layers in kinds.items():
        fitting = _fitting(kind, _row(part, model))
        params = share * len(layers)
        size = params * BY_NAME[fitting].bytes // BY_NAME[fitting].values
        at = tuple(layers) if part.at else ()
        out.append(replace(part, params=params, bytes=size, dtype=fitting, at=at, layers=len(at)))
    return out


_KEPT = ("norm", "bias", "conv", "A_log", ".D", "sinks", "embed_positions", "position_embeddings", "token_type",
         "mlp.gate", "scale", "hc_head", "_hc", "gates", "e_score")  # fmt: skip


def _is_matrix(part: TensorClass, model: ModelFacts) -> bool:
    """Whether the quantiser touches it: not vectors, routers, convolutions, learned positions."""
    if part.role in ("norm", "router"):
        return False
    name = part.name
    if name.endswith(("gate_proj", "up_proj", "down_proj")):
        return True
    return not any(mark in name for mark in _KEPT)


def _row(part: TensorClass, model: ModelFacts) -> int:
    """Values in a row, as far as blocks of 256 are concerned."""
    if part.name.endswith("down_proj"):
        moe = model.moe
        if moe and part.role == "experts":
            return moe.intermediate_size
        if moe and part.role == "shared_experts":
            return moe.shared_intermediate_size
        return model.intermediate_size
    if part.name.endswith(("o_proj", "out_proj")):
        return model.heads * model.head_dim
    if part.name.endswith("kv_b_proj"):
        return int(model.config.get("kv_lora_rank", 512))
    if part.name.endswith("q_b_proj"):
        return int(model.config.get("q_lora_rank") or 256)
    return model.hidden_size


def _fitting(kind: str, row: int) -> str:
    if row % BY_NAME[kind].values == 0:
        return kind
    fallback = _FALLBACK.get(kind, "F16")
    return fallback if row % BY_NAME[fallback].values == 0 else "F16"


def _type_of(part: TensorClass, layer: int, case: _Case) -> str:
    if case.base in ("F32", "F16", "BF16"):
        return case.base
    if case.mix in ("MXFP4_MOE", "MXFP4"):
        return "MXFP4" if part.role == "experts" else "Q8_0"
    if case.large and part.role in ("lm_head", "embedding"):
        return "Q8_0"
    if part.role == "lm_head" or (part.role == "embedding" and case.tied):
        if case.mix in _TINY or case.mix == "IQ3_XXS":
            return "Q5_K"
        return case.base if case.base == "Q8_0" else "Q6_K"
    if part.role == "embedding":
        return _embedding(case)
    if case.fused and part.name.endswith(("q_proj", "k_proj", "v_proj")):
        return _value(case, layer)
    for ending, rule in _RULES:
        if part.name.endswith(ending):
            return rule(case, layer)
    return case.base


def _embedding(case: _Case) -> str:
    if case.mix in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return "Q2_K"
    if case.mix in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "IQ3_S"
    return "Q4_K" if case.mix in ("TQ1_0", "TQ2_0") else case.base


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _value(case: _Case, layer: int) -> str:
    kind = _plain_value(case, layer)
    if case.seventy and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if case.experts == 8 and case.mix not in _TINY else kind


def _plain_value(case: _Case, layer: int) -> str:
    mix, grouped = case.mix, case.groups >= 4
    if mix in _TINY:
        if grouped or case.experts >= 4:
            return "Q4_K"
        return "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"
    if mix == "Q2_K":
        return "Q4_K" if grouped else "Q3_K"
    if mix in ("Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"):
        return "Q4_K" if grouped else case.base
    if mix in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K" if grouped else case.base
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, case.layers) else case.base
    early = {"Q3_K_M": ("Q5_K", "Q4_K", 2), "Q4_K_S": ("Q5_K", "Q4_K", 4)}.get(mix)
    if early:
        return early[0] if layer < early[2] else early[1]
    return {"IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, case.base)


def _key(case: _Case, layer: int) -> str:
    if case.experts == 8:
        return "Q4_K" if case.mix in _TINY else "Q8_0"
    return _query(case, layer)


def _query(case: _Case, layer: int) -> str:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(case.mix, case.base)


def _down(case: _Case, layer: int) -> str:
    mix, first = case.mix, layer < case.layers // 8
    if mix in _TINY:
        if not first:
            return case.base
        return "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(layer, case.layers) else case.base
    if mix == "Q3_K_M":
        return "Q5_K" if layer < case.layers // 16 else "Q4_K"
    if mix == "IQ3_M":
        return "Q4_K" if first or (case.experts == 8 and _more_bits(layer, case.layers)) else case.base
    changed = {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K"}.get(mix)
    if changed:
        return changed if first else case.base
    return {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix, case.base)


def _output(case: _Case, layer: int) -> str:
    if case.experts == 8:
        raised = (
            "Q2_K",
            "IQ3_XS",
            "IQ3_XXS",
            "Q3_K_S",
            "Q3_K_M",
            "IQ4_NL",
            "Q4_K_S",
            "Q4_K_M",
            "IQ3_S",
            "IQ3_M",
            "IQ4_XS",
        )
        return "Q5_K" if case.mix in raised or case.mix in _TINY else case.base
    return {
        "Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K", "IQ1_S": "IQ2_XXS",
        "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S",
    }.get(case.mix, case.base)  # fmt: skip


def _gate(case: _Case, layer: int) -> str:
    middle = case.layers // 8 <= layer < 7 * case.layers // 8
    return "IQ3_XXS" if case.mix == "IQ3_XS" and middle else case.base


_RULES: tuple[tuple[tuple[str, ...], Callable[[_Case, int], str]], ...] = (
    (("v_proj",), _value), (("k_proj",), _key), (("q_proj",), _query), (("down_proj",), _down),
    (("o_proj",), _output), (("gate_proj", "up_proj"), _gate), (("qkv_proj", "in_proj_qkv"), _value),
)  # fmt: skip
