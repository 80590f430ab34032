"""The decoder that most language models are: attention with grouped heads, a feed-forward layer or experts, norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import AttentionGroup, AttentionKind, Moe, merge_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a family differs from Llama in what it stores; None leaves it to config.json."""

    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    gated: bool = True
    qk_norm: Literal["", "head", "heads", "all", "values"] = ""
    """head: one scale for all heads; heads: one for each head; all: over q and k whole; values: on v too."""
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    final_norm: bool = True
    tied: bool = False
    """Whether the output shares the input embedding when config.json does not say."""
    head_bias: bool = False
    positions: int | None = None
    """Rows of learned positions beyond the context length (2 for OPT); None: no such table."""
    embedding_norm: bool = False
    router_bias: bool = False
    sliding_every: int = 0
    """One layer in so many sees the whole context, the others the window; 0: see `window_of`."""


def decoder(keys: Keys, style: Style = Style()) -> Shapes:
    """Weights and caches of a whole decoder of one kind of layer, with experts where config.json has them."""
    shapes = Shapes()
    ends(shapes, keys, style)
    layers = every(keys.layers)
    attention(shapes, keys, style, layers)
    norms(shapes, keys, style, layers)
    experts_at = moe_layers(keys)
    dense = tuple(layer for layer in layers if layer not in set(experts_at))
    mlp(shapes, keys, style, dense, keys.size("dense_intermediate_size", "intermediate_size_mlp", default=keys.inner))
    if experts_at:
        experts(shapes, keys, experts_at, router_bias=style.router_bias)
    return shapes


def ends(shapes: Shapes, keys: Keys, style: Style = Style()) -> None:
    """Embedding, learned positions, final norm and output layer."""
    width = keys.size("embedding_size", "word_embed_proj_dim", default=keys.hidden)
    shapes.table("embed_tokens", keys.vocab, width, sharding="vocab")
    if style.positions is not None:
        shapes.table("embed_positions", keys.context + style.positions, keys.hidden, sharding="replicated")
    if style.embedding_norm:
        shapes.vector("embed_norm", keys.hidden, bias=style.norm_bias)
    if width != keys.hidden:
        shapes.linear("project_in", "embedding", keys.hidden, width, sharding="replicated")
        shapes.linear("project_out", "embedding", width, keys.hidden, sharding="replicated")
    if style.final_norm:
        shapes.vector("norm", keys.hidden, bias=style.norm_bias)
    if not keys.flag("tie_word_embeddings", default=style.tied):
        shapes.linear("lm_head", "lm_head", keys.vocab, width, sharding="vocab", bias=style.head_bias)
    elif style.head_bias:
        shapes.vector("lm_head.bias", keys.vocab, role="lm_head", sharding="vocab")


def attention(
    shapes: Shapes,
    keys: Keys,
    style: Style,
    at: Sequence[int],
    *,
    prefix: str = "layers.{}.self_attn",
    head_dim: int = 0,
    kv_heads: int = 0,
    gate: bool = False,
    cached: bool = True,
) -> None:
    """Query, key, value and output projections of the layers `at`, and what these layers cache.

    `gate`: the query projection also makes an output gate of its own size (Qwen3-Next).
    """
    if not at:
        return
    hidden, heads = keys.hidden, keys.heads
    dim, kv = head_dim or keys.head_dim, kv_heads or keys.kv_heads
    value_dim = keys.size("v_head_dim", default=dim)
    qkv_bias = keys.flag("attention_bias", "qkv_bias") if style.qkv_bias is None else style.qkv_bias
    out_bias = keys.flag("attention_bias") if style.out_bias is None else style.out_bias
    shapes.linear(f"{prefix}.q_proj", "attention", heads * dim * (2 if gate else 1), hidden, at=at, bias=qkv_bias)
    shapes.linear(f"{prefix}.k_proj", "attention", kv * dim, hidden, at=at, bias=qkv_bias, units=kv)
    shapes.linear(f"{prefix}.v_proj", "attention", kv * value_dim, hidden, at=at, bias=qkv_bias, units=kv)
    shapes.linear(f"{prefix}.o_proj", "attention", hidden, heads * value_dim, at=at, cut="in", bias=out_bias)
    if style.qk_norm in ("head", "values"):
        shapes.vector(f"{prefix}.q_norm", dim, at=at)
        shapes.vector(f"{prefix}.k_norm", dim, at=at)
    elif style.qk_norm in ("heads", "all"):
        shapes.vector(f"{prefix}.q_norm", heads * dim, at=at)
        shapes.vector(f"{prefix}.k_norm", kv * dim, at=at)
    if cached:
        shapes.cache(caches(keys, style, at, heads=heads, kv_heads=kv, head_dim=dim, value_dim=value_dim))


def caches(
    keys: Keys, style: Style, at: Sequence[int], *, heads: int, kv_heads: int, head_dim: int, value_dim: int
) -> tuple[AttentionGroup, ...]:
    """What the layers `at` keep of each token: everything, or a window of it."""
    groups = []
    for layer in at:
        kind, window = window_of(keys, layer, every_full=style.sliding_every)
        groups.append(
            AttentionGroup(
                kind=kind, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim, v_head_dim=value_dim,
                window_tokens=window,
            )
        )  # fmt: skip
    return merge_groups(groups)


def window_of(keys: Keys, layer: int, *, every_full: int = 0) -> tuple[AttentionKind, int | None]:
    """Whether a layer caches everything, a sliding window or chunks, and how many tokens."""
    kinds = keys.words("layer_types")
    window = keys.size("sliding_window", "sliding_window_size", default=0)
    if kinds:
        kind = kinds[layer] if layer < len(kinds) else "full_attention"
        if kind.startswith("sliding") and window:
            return "sliding", window
        if kind.startswith("chunked"):
            return "chunked", keys.size("attention_chunk_size", default=8192)
        return "full", None
    if not window or not keys.flag("use_sliding_window", default=True):
        return "full", None
    pattern = keys.size("sliding_window_pattern", "_sliding_window_pattern", default=every_full)
    if pattern:
        return ("full", None) if layer % pattern == pattern - 1 else ("sliding", window)
    if keys.has("max_window_layers") and keys.has("use_sliding_window"):
        return ("sliding", window) if layer >= keys.size("max_window_layers") else ("full", None)
    return "sliding", window


def norms(shapes: Shapes, keys: Keys, style: Style, at: Sequence[int]) -> None:
    """The norms of each layer."""
    for name in style.norms:
        shapes.vector(f"layers.{{}}.{name}", keys.hidden, at=at, bias=style.norm_bias)


def mlp(
    shapes: Shapes, keys: Keys, style: Style, at: Sequence[int], inner: int, *, prefix: str = "layers.{}.mlp"
) -> None:
    """A feed-forward layer of width `inner` in the layers `at`."""
    if not at:
        return
    bias = keys.flag("mlp_bias") if style.mlp_bias is None else style.mlp_bias
    if style.gated:
        shapes.linear(f"{prefix}.gate_proj", "mlp", inner, keys.hidden, at=at, bias=bias)
    shapes.linear(f"{prefix}.up_proj", "mlp", inner, keys.hidden, at=at, bias=bias)
    shapes.linear(f"{prefix}.down_proj", "mlp", keys.hidden, inner, at=at, cut="in", bias=bias)


_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k", "moe_k")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")


def moe_layers(keys: Keys) -> tuple[int, ...]:
    """The layers that have experts, by whichever of the ways in use config.json tells it."""
    count = keys.layers
    if not expert_count(keys):
        return ()
    kinds = keys.words("mlp_layer_types")
    if kinds:
        return tuple(layer for layer, kind in enumerate(kinds[:count]) if kind == "sparse")
    flags = keys.sizes("moe_layer_freq")
    if flags:
        return tuple(layer for layer, flag in enumerate(flags[:count]) if flag)
    listed = keys.sizes("moe_layers", "moe_layers_enum")
    if listed:
        return listed
    first = keys.size("first_k_dense_replace", "moe_layer_start_index", default=0)
    step = max(1, keys.size("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval",
                            "expert_layer_period", default=1))  # fmt: skip
    offset = keys.size("expert_layer_offset", default=step - 1 if not keys.has("moe_layer_freq") else 0)
    dense = set(keys.sizes("mlp_only_layers"))
    return tuple(layer for layer in range(first, count) if layer % step == offset and layer not in dense)


def expert_count(keys: Keys) -> int:
    """Routed experts of a layer, 0 for a dense model."""
    found = keys.sizes(*_EXPERTS)
    return max(found) if found else keys.size(*_EXPERTS, default=0)


def experts(
    shapes: Shapes,
    keys: Keys,
    at: Sequence[int],
    *,
    router_bias: bool = False,
    prefix: str = "layers.{}.mlp",
    gated: bool = True,
    bias: bool = False,
    latent: int = 0,
    score_bias: bool = False,
) -> None:
    """Routed and shared experts with their router in the layers `at`.

    `latent`: width that routed experts work in, when it is not the model's own.
    `score_bias`: the router has a bias for choosing, which config.json need not say.
    """
    count = expert_count(keys)
    inner = keys.size("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", "ffn_hidden_size")
    width = latent or keys.hidden
    shapes.linear(
        f"{prefix}.gate", "router", count, keys.hidden, at=at, sharding="replicated", bias=router_bias, quantized=False
    )
    if (
        score_bias
        or keys.get("topk_method") == "noaux_tc"
        or keys.flag("use_routing_bias", "use_moe_router_bias", "use_expert_bias")
    ):
        shapes.vector(f"{prefix}.gate.e_score_correction_bias", count, role="router", at=at, dtype="float32")
    for part in ("gate_proj", "up_proj") if gated else ("up_proj",):
        shapes.linear(
            f"{prefix}.experts.{part}", "experts", inner, width, at=at, sharding="expert", count=count, bias=bias
        )
    shapes.linear(
        f"{prefix}.experts.down_proj",
        "experts",
        width,
        inner,
        at=at,
        sharding="expert",
        cut="in",
        count=count,
        bias=bias,
    )
    shared = shared_width(keys, inner)
    if shared:
        for part in ("gate_proj", "up_proj") if gated else ("up_proj",):
            shapes.linear(f"{prefix}.shared_experts.{part}", "shared_experts", shared, keys.hidden, at=at)
        shapes.linear(f"{prefix}.shared_experts.down_proj", "shared_experts", keys.hidden, shared, at=at, cut="in")
    if shapes.role is None:
        shapes.moe = Moe(
            experts=count,
            per_token=keys.size(*_PER_TOKEN, default=1),
            intermediate_size=inner,
            layers=len(at),
            shared_experts=keys.size("n_shared_experts", "num_shared_experts", default=1 if shared else 0),
            shared_intermediate_size=shared,
        )  # fmt: skip


def shared_width(keys: Keys, inner: int) -> int:
    """Width of all shared experts of a layer together, 0 when there are none."""
    explicit = keys.size(
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim",
        "shared_intermediate_size", default=0,
    )  # fmt: skip
    if explicit:
        return explicit * max(1, keys.size("n_shared_experts", default=1))
    return inner * keys.size("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", default=0)
