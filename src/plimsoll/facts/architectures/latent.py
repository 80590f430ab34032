"""Multi-head latent attention (DeepSeek V2 onwards, Kimi, GLM-5, MiniCPM3) and the sparse index of V3.2."""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.facts.architectures.decoder import Style, ends, experts, mlp, moe_layers, norms
from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import AttentionGroup

INDEX_SCALE_BYTES = 4  # vLLM and SGLang keep the index keys as 8-bit floats with one float32 scale per token


def deepseek(keys: Keys) -> Shapes:
    """DeepSeek V2, V3, R1, V3.2, Kimi K2, GLM-5: latent attention, dense layers first, then experts."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    latent_attention(shapes, keys, layers)
    norms(shapes, keys, Style(), layers)
    sparse = moe_layers(keys)
    mlp(shapes, keys, Style(), tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    if sparse:
        experts(shapes, keys, sparse)
    predicted = keys.size("num_nextn_predict_layers", default=0)
    if predicted and sparse:
        shapes.role = "mtp"
        extra = tuple(range(keys.layers, keys.layers + predicted))
        latent_attention(shapes, keys, extra, cached=False)
        experts(shapes, keys, extra)
        norms(shapes, keys, Style(norms=("input_layernorm", "post_attention_layernorm", "enorm", "hnorm")), extra)
        shapes.linear("layers.{}.eh_proj", "mtp", keys.hidden, 2 * keys.hidden, at=extra, sharding="replicated",
                      quantized=False)  # fmt: skip
        shapes.vector("layers.{}.shared_head.norm", keys.hidden, at=extra)
        shapes.linear(
            "layers.{}.shared_head.head", "mtp", keys.vocab, keys.hidden, at=extra, sharding="vocab", quantized=False
        )
        shapes.linear(
            "layers.{}.embed_tokens", "mtp", keys.vocab, keys.hidden, at=extra, sharding="vocab", quantized=False
        )
        shapes.role = None
    return shapes


def minicpm3(keys: Keys) -> Shapes:
    """MiniCPM3: latent attention in a dense model."""
    shapes = Shapes()
    ends(shapes, keys, Style(tied=True))
    layers = every(keys.layers)
    latent_attention(shapes, keys, layers)
    norms(shapes, keys, Style(), layers)
    mlp(shapes, keys, Style(), layers, keys.inner)
    return shapes


def latent_attention(
    shapes: Shapes, keys: Keys, at: Sequence[int], *, prefix: str = "layers.{}.self_attn", cached: bool = True
) -> None:
    """The projections into and out of the latent; those into it are copied to every tensor-parallel rank."""
    hidden, heads = keys.hidden, keys.heads
    rank, query_rank = keys.size("kv_lora_rank"), keys.size("q_lora_rank", default=0)
    rope, nope = keys.size("qk_rope_head_dim"), keys.size("qk_nope_head_dim")
    value = keys.size("v_head_dim", default=keys.head_dim)
    bias = keys.flag("attention_bias")
    if query_rank:
        shapes.linear(f"{prefix}.q_a_proj", "attention", query_rank, hidden, at=at, sharding="replicated", bias=bias)
        shapes.vector(f"{prefix}.q_a_layernorm", query_rank, at=at)
        shapes.linear(f"{prefix}.q_b_proj", "attention", heads * (nope + rope), query_rank, at=at)
    else:
        shapes.linear(f"{prefix}.q_proj", "attention", heads * (nope + rope), hidden, at=at)
    shapes.linear(
        f"{prefix}.kv_a_proj_with_mqa", "attention", rank + rope, hidden, at=at, sharding="replicated", bias=bias
    )
    shapes.vector(f"{prefix}.kv_a_layernorm", rank, at=at)
    shapes.linear(f"{prefix}.kv_b_proj", "attention", heads * (nope + value), rank, at=at)
    shapes.linear(f"{prefix}.o_proj", "attention", hidden, heads * value, at=at, cut="in", bias=bias)
    indexed = _index(shapes, keys, at, prefix=f"{prefix}.indexer", query_width=query_rank or hidden)
    if cached:
        plain = len(at) - len(indexed)
        for layers, extra in ((plain, 0), (len(indexed), keys.size("index_head_dim", default=0) + INDEX_SCALE_BYTES)):
            if layers:
                shapes.cache((
                    AttentionGroup(
                        kind="mla", layers=layers, heads=heads, kv_heads=1, head_dim=rank + rope, v_head_dim=0,
                        extra_bytes=extra,
                    ),
                ))  # fmt: skip


def _index(shapes: Shapes, keys: Keys, at: Sequence[int], *, prefix: str, query_width: int) -> tuple[int, ...]:
    """DeepSeek's sparse attention: a small scorer picks the tokens. Returns the layers with one of their own."""
    dim, heads = keys.size("index_head_dim", default=0), keys.size("index_n_heads", default=0)
    if not dim or not heads:
        return ()
    kinds = keys.words("indexer_types")
    own = tuple(layer for layer in at if not kinds or layer >= len(kinds) or kinds[layer] == "full")
    shapes.linear(f"{prefix}.wq_b", "attention", heads * dim, query_width, at=own, sharding="replicated")
    shapes.linear(f"{prefix}.wk", "attention", dim, keys.hidden, at=own, sharding="replicated")
    shapes.vector(f"{prefix}.k_norm", dim, at=own, bias=True)
    shapes.linear(
        f"{prefix}.weights_proj", "attention", heads, keys.hidden, at=own, sharding="replicated", quantized=False
    )
    return own
