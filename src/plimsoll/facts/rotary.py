"""The table of sines and cosines that vLLM and SGLang keep beside the weights, and report as part of them.

Evidence: vLLM prints 14.9888 GiB for Llama-3.1-8B, whose parameters take 14.9576: 131,072 positions x 128 values x 2 B
are 32 MiB. Meta-Llama-3-8B (8,192 positions): 14.9595. Tables for images and video are four times as long
(`MRotaryEmbedding`), which Qwen2.5-VL's 34.43 and 7.16 GiB bear out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plimsoll.facts.model import ModelFacts

_WITHOUT = ("gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "mamba", "mamba2", "falcon_mamba", "jamba", "nemotron_h")
_THREE_AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


def rotary_cache_bytes(model: ModelFacts, *, value_bytes: int = 2) -> int:
    """Bytes of the tables on each rank; 0 for models without rotary positions."""
    kind = str(model.config.get("model_type", ""))
    if model.heads == 0 or kind.startswith(_WITHOUT) or any(group.kind == "encoder" for group in model.attention):
        return 0
    rope = _rope(model.config)
    rows = _rows(model, rope)
    if "mrope_section" in rope or kind.startswith(_THREE_AXES):
        rows *= 4
    tables = 2 if kind.startswith("gemma3") else 1  # sliding layers turn at a frequency of their own
    return tables * rows * _width(model, rope) * value_bytes


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if isinstance(value, Mapping):
            return value
    return {}


def _rows(model: ModelFacts, rope: Mapping[str, Any]) -> int:
    kind = rope.get("rope_type") or rope.get("type")
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if kind == "yarn" and isinstance(original, int) and isinstance(factor, int | float):
        return int(original * factor)
    if kind in ("longrope", "su") and isinstance(original, int):
        return original + model.max_context_tokens
    if kind == "linear" and isinstance(factor, int | float):
        return int(model.max_context_tokens * factor)
    return model.max_context_tokens


def _width(model: ModelFacts, rope: Mapping[str, Any]) -> int:
    latent = model.config.get("qk_rope_head_dim")
    if isinstance(latent, int):
        return latent
    share = model.config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
    return int(model.head_dim * float(share)) if isinstance(share, int | float) else model.head_dim
