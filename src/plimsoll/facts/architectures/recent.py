"""Families of 2026 whose layers are like no other's: DeepSeek V4, MiniMax-M3, Step 3.7."""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.facts.architectures.decoder import Style, attention, ends, experts, mlp, moe_layers, norms
from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.latent import INDEX_SCALE_BYTES
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import AttentionGroup


def deepseek_v4(keys: Keys) -> Shapes:
    """DeepSeek V4: one shared key-value head in a short window, and summaries of every 4 or 128 tokens beyond it."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    ratios = keys.sizes("compress_ratios") or (0,) * keys.layers
    _v4_attention(shapes, keys, layers, ratios)
    _hyper_connections(shapes, keys, layers)
    norms(shapes, keys, Style(), layers)
    experts(shapes, keys, layers)
    extra = tuple(range(keys.layers, keys.layers + keys.size("num_nextn_predict_layers", default=0)))
    if extra:
        shapes.role = "mtp"
        _v4_attention(shapes, keys, extra, ratios)
        _hyper_connections(shapes, keys, extra)
        norms(
            shapes, keys, Style(norms=("input_layernorm", "post_attention_layernorm", "enorm", "hnorm", "norm")), extra
        )
        experts(shapes, keys, extra)
        for name in ("e_proj", "h_proj"):
            shapes.linear(f"layers.{{}}.{name}", "mtp", keys.hidden, keys.hidden, at=extra, sharding="replicated")
        shapes.role = None
    return shapes


def _v4_attention(shapes: Shapes, keys: Keys, at: Sequence[int], ratios: Sequence[int]) -> None:
    hidden, heads, dim, prefix = keys.hidden, keys.heads, keys.head_dim, "layers.{}.self_attn"
    query, out, groups = keys.size("q_lora_rank"), keys.size("o_lora_rank"), keys.size("o_groups", least=1)
    shapes.linear(f"{prefix}.q_a_proj", "attention", query, hidden, at=at, sharding="replicated")
    shapes.linear(f"{prefix}.q_b_proj", "attention", heads * dim, query, at=at)
    shapes.linear(f"{prefix}.kv_proj", "attention", dim, hidden, at=at, sharding="replicated")
    shapes.linear(f"{prefix}.o_a_proj", "attention", groups * out, heads * dim // groups, at=at)
    shapes.linear(f"{prefix}.o_b_proj", "attention", hidden, groups * out, at=at, cut="in")
    shapes.vector(f"{prefix}.norms", query + dim, at=at)
    shapes.vector(f"{prefix}.sinks", heads, role="attention", at=at, sharding="tensor", dtype="float32")
    window = keys.size("sliding_window", default=128)
    for ratio in dict.fromkeys(ratios):
        here = tuple(layer for layer in at if layer < len(ratios) and ratios[layer] == ratio)
        if not here:
            continue
        if ratio:
            _compressor(shapes, keys, here, ratio)
        if shapes.role is None:
            shapes.cache((_window(keys, len(here), window), *_summaries(keys, len(here), ratio)))


def _window(keys: Keys, layers: int, window: int) -> AttentionGroup:
    return AttentionGroup(kind="sliding", layers=layers, heads=keys.heads, kv_heads=1, head_dim=keys.head_dim,
                          v_head_dim=0, window_tokens=window)  # fmt: skip


def _summaries(keys: Keys, layers: int, ratio: int) -> tuple[AttentionGroup, ...]:
    """One entry for `ratio` tokens, counted per token; those of four also have a key in the index."""
    if not ratio:
        return ()
    index = (keys.size("index_head_dim") + INDEX_SCALE_BYTES) // ratio if ratio == min(4, ratio) else 0
    return (
        AttentionGroup(kind="mla", layers=layers, heads=keys.heads, kv_heads=1, head_dim=keys.head_dim // ratio,
                       v_head_dim=0, extra_bytes=index),
    )  # fmt: skip


def _compressor(shapes: Shapes, keys: Keys, at: Sequence[int], ratio: int) -> None:
    prefix, dim, hidden = "layers.{}.self_attn.compressor", keys.head_dim, keys.hidden
    overlapping = 2 if ratio <= 4 else 1
    for name in ("kv_proj", "gate_proj"):
        shapes.linear(f"{prefix}.{name}", "attention", overlapping * dim, hidden, at=at, sharding="replicated",
                      quantized=False)  # fmt: skip
    shapes.vector(f"{prefix}.position_bias", ratio * overlapping * dim + dim, at=at, dtype="float32")
    if ratio > 4:
        return
    index, heads = keys.size("index_head_dim"), keys.size("index_n_heads")
    for name in ("kv_proj", "gate_proj"):
        shapes.linear(f"{prefix}.indexer.{name}", "attention", 2 * index, hidden, at=at, sharding="replicated",
                      quantized=False)  # fmt: skip
    shapes.linear(f"{prefix}.indexer.q_b_proj", "attention", heads * index, keys.size("q_lora_rank"), at=at,
                  sharding="replicated")  # fmt: skip
    shapes.linear(f"{prefix}.indexer.weights_proj", "attention", heads, hidden, at=at, sharding="replicated",
                  quantized=False)  # fmt: skip
    shapes.vector(f"{prefix}.indexer.position_bias", ratio * 2 * index + index, at=at, dtype="float32")


def _hyper_connections(shapes: Shapes, keys: Keys, at: Sequence[int]) -> None:
    """The residual stream is `hc_mult` wide; small matrices mix its parts before and after each layer."""
    copies = keys.size("hc_mult", default=4)
    mixed = copies * copies + 2 * copies
    for name in ("attn_hc", "ffn_hc"):
        shapes.linear(f"layers.{{}}.{name}", "other", mixed, copies * keys.hidden, at=at, sharding="replicated",
                      quantized=False, dtype="float32")  # fmt: skip
        shapes.vector(f"layers.{{}}.{name}.scale", mixed + 3, role="other", at=at, dtype="float32")
    if shapes.role is None:
        shapes.linear("hc_head", "other", copies, copies * keys.hidden, sharding="replicated", quantized=False,
                      dtype="float32")  # fmt: skip
        shapes.vector("hc_head.scale", copies + 1, role="other", dtype="float32")


def minimax_m3(keys: Keys) -> Shapes:
    """MiniMax-M3: grouped heads whose later layers choose blocks of tokens by a small index."""
    shapes = Shapes()
    style = Style(qk_norm="head")
    ends(shapes, keys)
    layers = every(keys.layers)
    part = keys.part("sparse_attention_config")
    flags = part.sizes("sparse_attention_freq")
    indexed = tuple(layer for layer in layers if layer < len(flags) and flags[layer])
    attention(shapes, keys, style, tuple(layer for layer in layers if layer not in set(indexed)))
    attention(shapes, keys, style, indexed, cached=False)
    dim, heads = part.size("sparse_index_dim", default=128), part.size("sparse_num_index_heads", default=4)
    prefix = "layers.{}.self_attn.indexer"
    shapes.linear(f"{prefix}.q_proj", "attention", heads * dim, keys.hidden, at=indexed)
    shapes.linear(f"{prefix}.k_proj", "attention", dim, keys.hidden, at=indexed, sharding="replicated")
    shapes.vector(f"{prefix}.norms", 2 * dim, at=indexed)
    if indexed:
        shapes.cache((
            AttentionGroup(
                kind="full", layers=len(indexed), heads=keys.heads, kv_heads=keys.kv_heads, head_dim=keys.head_dim,
                v_head_dim=keys.head_dim, extra_bytes=2 * dim,
            ),
        ))  # fmt: skip
    norms(shapes, keys, style, layers)
    sparse = moe_layers(keys)
    dense = tuple(layer for layer in layers if layer not in set(sparse))
    mlp(shapes, keys, style, dense, keys.size("dense_intermediate_size", default=keys.inner))
    experts(shapes, keys, sparse)
    return shapes


def step3(keys: Keys) -> Shapes:
    """Step 3.5 and 3.7: sliding windows between full layers, a gate per head, experts after the first layers."""
    shapes = Shapes()
    style = Style(qk_norm="head")
    ends(shapes, keys)
    layers = every(keys.layers)
    attention(shapes, keys, style, layers)
    shapes.linear("layers.{}.self_attn.g_proj", "attention", keys.heads, keys.hidden, at=layers, quantized=False)
    norms(shapes, keys, style, layers)
    sparse = moe_layers(keys)
    mlp(shapes, keys, style, tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    experts(shapes, keys, sparse)
    return shapes
