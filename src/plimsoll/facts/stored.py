"""Tensor classes from the headers of safetensors files: what each tensor is for is read off its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from plimsoll.facts.model import Sharding, TensorClass, TensorRole
from plimsoll.facts.quantization import module_name
from plimsoll.facts.safetensors import BITS, SafetensorsHeader, StoredTensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_PARTS = re.compile(
    r"\.(weight|bias|qweight|qzeros|scales|g_idx|perm|weight_scale(_inv|_2)?|weight_packed|weight_shape|weight_zero_point"
    r"|weight_global_scale|input_(global_)?scale|input_max|[kv]_scale|scale_inv|scale|weight_block_size|weight\.\w[\w.]*"
    r"|blocks|gate_up_proj_(blocks|scales|bias)|down_proj_(blocks|scales|bias)|SCB)$"
)
_ROLES: tuple[tuple[str, TensorRole, Sharding], ...] = (
    (r"^visual|vision|image_|audio_tower|whisper|speech|resampler|vpm\.", "vision", "tensor"),
    (r"\bmtp\b|nextn|eh_proj|enorm|hnorm|shared_head", "mtp", "replicated"),
    (r"embed_tokens_per_layer|position_embeddings|embed_positions|\bwpe\b|token_type", "embedding", "replicated"),
    (r"embed_tokens|\bwte\b|word_embeddings|tok_embeddings|^embeddings\b", "embedding", "vocab"),
    (r"lm_head|embed_out|output_layer|^output\b", "lm_head", "vocab"),
    (r"pooler|classifier|^score\b|^head\b", "pooler", "replicated"),
    (r"shared_experts?_gate|\bmlp\.gate\b|\brouter\b|e_score_correction", "router", "replicated"),
    (r"shared_experts|shared_mlp", "shared_experts", "tensor"),
    (r"\bexperts\b", "experts", "expert"),
    (r"(?i:norm)|\bln_|\bln\d?\b", "norm", "replicated"),
    (r"mixer\.[qkvo]_proj", "attention", "tensor"),
    (r"mixer\.(up|down|gate)_proj", "mlp", "tensor"),
    (r"linear_attn|mamba|mixer|\bconv|A_log|dt_bias|time_mix", "state", "tensor"),
    (r"kv_a_proj|q_a_proj|indexer", "attention", "replicated"),
    (r"attn|attention|sinks", "attention", "tensor"),
    (r"mlp|fc\d|dense|ffn|gate_proj|up_proj|down_proj|intermediate|output", "mlp", "tensor"),
)  # fmt: skip
_BIAS_AFTER_SUM = re.compile(r"(o_proj|out_proj|down_proj|fc2|c_proj|dense_4h_to_h)\.bias$")
_PACKED = re.compile(r"\.(qweight|weight_packed|blocks|\w+_blocks)$")
_NO_PARAMS = re.compile(r"scale|qzeros|g_idx|shape|zero_point|absmax|quant_map|quant_state|input_max|SCB|perm$")


@dataclass(slots=True)
class _Sum:
    params: int = 0
    bytes: int = 0


def classes_of(
    headers: Sequence[SafetensorsHeader], *, layers: int, kv_heads: int, bits: float = 16
) -> tuple[TensorClass, ...]:
    """All tensors of the files, those of one module and type put together; blocks past `layers` predict more tokens.

    `bits`: of the quantized weights, to count the parameters of packed ones.
    """
    sums: dict[tuple[str, str, TensorRole, Sharding], dict[int, _Sum]] = {}
    for tensor in _all(headers):
        match = _LAYER.search(tensor.name)
        layer = int(match[1]) if match else -1
        module = module_name(_PARTS.sub("", tensor.name))
        inner = _LAYER.search(f".{module}")
        pattern = re.sub(r"(layers|layer|h|blocks|block)\.\d+\.", r"\1.{}.", module, count=1) if inner else module
        role, sharding = _role(module, tensor.name)
        if layer >= layers and role != "vision":
            role, sharding = "mtp", sharding
        outside = layer < 0 or role in ("vision", "mtp")
        entry = sums.setdefault((pattern, tensor.dtype, role, sharding), {}).setdefault(
            -1 if outside else layer, _Sum()
        )
        entry.params += _params(tensor, bits)
        entry.bytes += tensor.bytes
    return tuple(part for key, by_layer in sums.items() for part in _grouped(key, by_layer, kv_heads=kv_heads))


def _all(headers: Sequence[SafetensorsHeader]) -> Iterable[StoredTensor]:
    seen: set[str] = set()
    for header in headers:
        for tensor in header.tensors:
            if tensor.name not in seen:
                seen.add(tensor.name)
                yield tensor


def _role(module: str, name: str) -> tuple[TensorRole, Sharding]:
    for pattern, role, sharding in _ROLES:
        if re.search(pattern, module):
            if sharding == "tensor" and _BIAS_AFTER_SUM.search(name):
                return role, "replicated"
            return role, sharding
    return "other", "replicated"


def _params(tensor: StoredTensor, bits: float) -> int:
    values = prod(tensor.shape)
    if _NO_PARAMS.search(tensor.name):
        return 0
    if _PACKED.search(tensor.name) or (tensor.dtype in ("U8", "I32") and bits < 8):
        return round(values * BITS[tensor.dtype] / min(bits, 8) // 1)
    return values


def _grouped(
    key: tuple[str, str, TensorRole, Sharding], by_layer: dict[int, _Sum], *, kv_heads: int
) -> Iterable[TensorClass]:
    """One class for all layers in which the module takes the same number of bytes."""
    pattern, dtype, role, sharding = key
    alike: dict[tuple[int, int], list[int]] = {}
    for layer, total in sorted(by_layer.items()):
        alike.setdefault((total.params, total.bytes), []).append(layer)
    for (params, size), at in alike.items():
        inside = at[0] >= 0
        yield TensorClass(
            role=role,
            params=params * len(at),
            bytes=size * len(at),
            dtype=_DTYPES.get(dtype, dtype.lower()),
            sharding=sharding,
            layers=len(at) if inside else 0,
            name=pattern,
            at=tuple(at) if inside else (),
            units=kv_heads if re.search(r"[kv]_proj$|\.(key|value)$", pattern) else 0,
        )


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "fp8", "F8_E5M2": "fp8",
    "I8": "int8", "U8": "uint8", "I32": "int32",
}  # fmt: skip
