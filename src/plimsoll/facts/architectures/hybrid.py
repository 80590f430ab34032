"""Layers that keep a state instead of a cache (Mamba, gated delta nets, short convolutions) and models made of them."""

from __future__ import annotations

from collections.abc import Sequence

from plimsoll.facts.architectures.decoder import Style, attention, ends, experts, mlp, moe_layers, norms
from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.latent import latent_attention
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import AttentionGroup

_TWO = 2  # bytes of a value in the engines' convolution states, which are kept in the model's own type


def _state_width(keys: Keys, *names: str) -> int:
    """Bytes of a value in the recurrent state: what config.json asks for, else the model's own 2."""
    return 4 if keys.get(*names) == "float32" else _TWO


def _state(shapes: Shapes, at: Sequence[int], *, heads: int, dim: int, size: int, values: int) -> None:
    if at and shapes.role is None:
        shapes.cache((
            AttentionGroup(
                kind="linear", layers=len(at), heads=heads, kv_heads=0, head_dim=dim, v_head_dim=0, state_bytes=size,
                state_values=values,
            ),
        ))  # fmt: skip


def _split(keys: Keys, *, full_every: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Layers with a state, layers with a cache."""
    kinds = keys.words("layer_types")
    interval = keys.size("full_attention_interval", default=full_every, least=1)
    named = tuple(layer for layer, kind in enumerate(kinds[: keys.layers]) if kind.startswith(("full", "attention")))
    full = named if kinds else tuple(range(interval - 1, keys.layers, interval))
    return tuple(layer for layer in range(keys.layers) if layer not in set(full)), full


def qwen_next(keys: Keys) -> Shapes:
    """Qwen3-Next, Qwen3.5, 3.6, 3.8: three gated delta nets, then one gated full attention; dense or with experts."""
    shapes = Shapes()
    style = Style(qk_norm="head")
    ends(shapes, keys)
    linear, full = _split(keys)
    delta_net(shapes, keys, linear)
    gate = keys.flag("attn_output_gate", default=True)
    attention(shapes, keys, style, full, gate=gate)
    norms(shapes, keys, style, every(keys.layers))
    _qwen_feed_forward(shapes, keys, every(keys.layers))
    extra = tuple(range(keys.layers, keys.layers + keys.size("mtp_num_hidden_layers", default=0)))
    if extra:
        shapes.role = "mtp"
        attention(shapes, keys, style, extra, gate=gate, cached=False, prefix="mtp.layers.{}.self_attn")
        norms(shapes, keys, style, extra)
        _qwen_feed_forward(shapes, keys, extra)
        shapes.linear("mtp.fc", "mtp", keys.hidden, 2 * keys.hidden, sharding="replicated", quantized=False)
        shapes.vector("mtp.norm", 3 * keys.hidden)
        shapes.role = None
    return shapes


def _qwen_feed_forward(shapes: Shapes, keys: Keys, at: Sequence[int]) -> None:
    if not moe_layers(keys):
        mlp(shapes, keys, Style(), at, keys.inner)
        return
    experts(shapes, keys, at)
    shapes.linear(
        "layers.{}.mlp.shared_expert_gate", "router", 1, keys.hidden, at=at, sharding="replicated", quantized=False
    )


def delta_net(shapes: Shapes, keys: Keys, at: Sequence[int], *, prefix: str = "layers.{}.linear_attn") -> None:
    """Gated delta net: a state of key x value per value head, and a short convolution."""
    key_heads, value_heads = keys.size("linear_num_key_heads"), keys.size("linear_num_value_heads")
    key_dim, value_dim = keys.size("linear_key_head_dim"), keys.size("linear_value_head_dim")
    kernel, hidden = keys.size("linear_conv_kernel_dim", default=4), keys.hidden
    mixed, values = 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim
    shapes.linear(f"{prefix}.in_proj_qkv", "state", mixed, hidden, at=at)
    shapes.linear(f"{prefix}.in_proj_z", "state", values, hidden, at=at)
    shapes.linear(f"{prefix}.in_proj_b", "state", value_heads, hidden, at=at)
    shapes.linear(f"{prefix}.in_proj_a", "state", value_heads, hidden, at=at)
    shapes.linear(f"{prefix}.conv1d", "state", mixed, kernel, at=at, quantized=False)
    shapes.vector(f"{prefix}.dt_bias", value_heads, role="state", at=at, sharding="tensor")
    shapes.vector(f"{prefix}.A_log", value_heads, role="state", at=at, sharding="tensor")
    shapes.vector(f"{prefix}.norm", value_dim, at=at)
    shapes.linear(f"{prefix}.out_proj", "state", hidden, values, at=at, cut="in")
    width = _state_width(keys, "mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    state, tail = value_heads * value_dim * key_dim, mixed * (kernel - 1)
    _state(shapes, at, heads=value_heads, dim=value_dim, size=state * width + tail * _TWO, values=state + tail)


def mamba1(shapes: Shapes, keys: Keys, at: Sequence[int], *, prefix: str, normed: bool = False) -> None:
    """Mamba: `inner` channels, each with a state of `states` values."""
    hidden = keys.hidden
    inner = keys.size("expand", "mamba_expand", default=2) * hidden
    states = keys.size("state_size", "mamba_d_state", default=16)
    kernel = keys.size("conv_kernel", "mamba_d_conv", default=4)
    rank = keys.get("time_step_rank", "mamba_dt_rank")
    rank = rank if isinstance(rank, int) else -(-hidden // 16)
    shapes.linear(f"{prefix}.in_proj", "state", 2 * inner, hidden, at=at, bias=keys.flag("use_bias"))
    shapes.linear(f"{prefix}.conv1d", "state", inner, kernel, at=at, quantized=False,
                  bias=keys.flag("use_conv_bias", "mamba_conv_bias", default=True))  # fmt: skip
    shapes.linear(f"{prefix}.x_proj", "state", rank + 2 * states, inner, at=at, cut="in")
    shapes.linear(f"{prefix}.dt_proj", "state", inner, rank, at=at, bias=True)
    shapes.linear(f"{prefix}.A_log", "state", inner, states, at=at, quantized=False)
    shapes.vector(f"{prefix}.D", inner, role="state", at=at, sharding="tensor")
    shapes.linear(f"{prefix}.out_proj", "state", hidden, inner, at=at, cut="in", bias=keys.flag("use_bias"))
    if normed:
        shapes.vector(f"{prefix}.dt_layernorm", rank + 2 * states, at=at)
    values = inner * (states + kernel - 1)
    _state(shapes, at, heads=inner, dim=states, size=values * _TWO, values=values)


def mamba2(shapes: Shapes, keys: Keys, at: Sequence[int], *, prefix: str, normed: bool = True) -> None:
    """Mamba 2: `heads` heads of `dim` channels, a state of `states` values per channel, keys shared in groups."""
    hidden = keys.hidden
    heads = keys.size("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    dim = keys.size("mamba_head_dim", "mamba_d_head", "mamba_headdim", "head_dim")
    states = keys.size("ssm_state_size", "mamba_d_state", "state_size")
    groups = keys.size("n_groups", "mamba_n_groups", "mamba_ngroups", default=1)
    kernel = keys.size("conv_kernel", "mamba_d_conv", default=4)
    inner = heads * dim
    mixed = inner + 2 * groups * states
    bias = keys.flag("mamba_proj_bias", "use_bias")
    shapes.linear(f"{prefix}.in_proj", "state", inner + mixed + heads, hidden, at=at, bias=bias)
    shapes.linear(f"{prefix}.conv1d", "state", mixed, kernel, at=at, quantized=False,
                  bias=keys.flag("use_conv_bias", "mamba_conv_bias", default=True))  # fmt: skip
    for name in ("dt_bias", "A_log", "D"):
        shapes.vector(f"{prefix}.{name}", heads, role="state", at=at, sharding="tensor")
    if normed:
        shapes.vector(f"{prefix}.norm", inner, at=at, sharding="tensor")
    shapes.linear(f"{prefix}.out_proj", "state", hidden, inner, at=at, cut="in", bias=bias)
    state, tail = inner * states, mixed * (kernel - 1)
    size = state * _state_width(keys, "mamba_ssm_cache_dtype") + tail * _TWO
    _state(shapes, at, heads=heads, dim=dim, size=size, values=state + tail)


def pure_mamba(keys: Keys) -> Shapes:
    """Mamba and Falcon-Mamba: nothing but states."""
    shapes = Shapes()
    layers = every(keys.layers)
    ends(shapes, keys, Style(tied=True))
    shapes.vector("layers.{}.norm", keys.hidden, at=layers)
    mamba1(shapes, keys, layers, prefix="layers.{}.mixer")
    return shapes


def pure_mamba2(keys: Keys) -> Shapes:
    """Mamba 2 and Codestral-Mamba."""
    shapes = Shapes()
    layers = every(keys.layers)
    ends(shapes, keys)
    shapes.vector("layers.{}.norm", keys.hidden, at=layers)
    mamba2(shapes, keys, layers, prefix="layers.{}.mixer")
    return shapes


def jamba(keys: Keys) -> Shapes:
    """Jamba: one attention layer in eight, experts in every second."""
    shapes = Shapes()
    ends(shapes, keys)
    period = keys.size("attn_layer_period", default=8, least=1)
    offset = keys.size("attn_layer_offset", default=4)
    layers = every(keys.layers)
    full = tuple(layer for layer in layers if layer % period == offset)
    mamba1(
        shapes, keys, tuple(layer for layer in layers if layer not in set(full)), prefix="layers.{}.mamba", normed=True
    )
    attention(shapes, keys, Style(), full)
    norms(shapes, keys, Style(), layers)
    sparse = moe_layers(keys) if keys.size("num_experts", default=1) > 1 else ()
    mlp(shapes, keys, Style(), tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    if sparse:
        experts(shapes, keys, sparse)
    return shapes


def nemotron_h(keys: Keys) -> Shapes:
    """Nemotron-H and 3: a letter per layer, M for Mamba 2, * attention, - feed-forward, E experts."""
    shapes = Shapes()
    ends(shapes, keys)
    pattern = str(keys.get("hybrid_override_pattern") or "")
    kinds = keys.words("layers_block_type")
    letters = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*", "mlp": "-", "moe": "E"}
    pattern = "".join(letters.get(kind, "-") for kind in kinds) if kinds else pattern
    at = {letter: tuple(index for index, char in enumerate(pattern) if char == letter) for letter in "M*-E"}
    shapes.vector("layers.{}.norm", keys.hidden, at=range(len(pattern)))
    mamba2(shapes, keys, at["M"], prefix="layers.{}.mixer")
    attention(shapes, keys, Style(), at["*"], prefix="layers.{}.mixer")
    mlp(shapes, keys, Style(gated=False), at["-"], keys.inner, prefix="layers.{}.mixer")
    if at["E"]:
        _nemotron_experts(shapes, keys, at["E"])
    extra = str(keys.get("mtp_hybrid_override_pattern") or "")
    extra = extra or "".join(letters.get(kind, "-") for kind in keys.words("mtp_layers_block_type"))
    if extra and keys.size("num_nextn_predict_layers", default=0):
        shapes.role = "mtp"
        first = len(pattern)
        for index, letter in enumerate(extra, start=first):
            if letter == "*":
                attention(shapes, keys, Style(), (index,), prefix="mtp.layers.{}.mixer", cached=False)
            elif letter == "E":
                _nemotron_experts(shapes, keys, (index,))
        shapes.linear("mtp.eh_proj", "mtp", keys.hidden, 2 * keys.hidden, sharding="replicated", quantized=False)
        shapes.role = None
    return shapes


def _nemotron_experts(shapes: Shapes, keys: Keys, at: Sequence[int]) -> None:
    latent = keys.size("moe_latent_size", default=0)
    experts(shapes, keys, at, prefix="layers.{}.mixer", gated=False, latent=latent, score_bias=True)
    if latent:
        shapes.linear(
            "layers.{}.mixer.fc1_latent_proj", "shared_experts", latent, keys.hidden, at=at, sharding="replicated"
        )
        shapes.linear(
            "layers.{}.mixer.fc2_latent_proj", "shared_experts", keys.hidden, latent, at=at, sharding="replicated"
        )


def granite_hybrid(keys: Keys) -> Shapes:
    """Granite 4: Mamba 2 with a few attention layers; a shared feed-forward layer beside experts, or alone."""
    shapes = Shapes()
    ends(shapes, keys, Style(tied=True))
    layers = every(keys.layers)
    kinds = keys.words("layer_types")
    full = tuple(layer for layer in layers if kinds and kinds[layer] == "attention")
    mamba2(shapes, keys, tuple(layer for layer in layers if layer not in set(full)), prefix="layers.{}.mamba")
    attention(shapes, keys, Style(), full)
    norms(shapes, keys, Style(), layers)
    if keys.size("num_local_experts", default=0):
        experts(shapes, keys, layers)
    else:
        mlp(shapes, keys, Style(), layers, keys.size("shared_intermediate_size"))
    return shapes


def falcon_h1(keys: Keys) -> Shapes:
    """Falcon-H1: attention and Mamba 2 side by side in every layer."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    mamba2(shapes, keys, layers, prefix="layers.{}.mamba", normed=keys.flag("mamba_rms_norm"))
    attention(shapes, keys, Style(), layers)
    norms(shapes, keys, Style(), layers)
    mlp(shapes, keys, Style(), layers, keys.inner)
    return shapes


def bamba(keys: Keys) -> Shapes:
    """Bamba: Mamba 2 with attention at listed layers."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    full = keys.sizes("attn_layer_indices")
    mamba2(shapes, keys, tuple(layer for layer in layers if layer not in set(full)), prefix="layers.{}.mamba")
    attention(shapes, keys, Style(), full)
    norms(shapes, keys, Style(), layers)
    mlp(shapes, keys, Style(), layers, keys.inner)
    return shapes


def lfm2(keys: Keys) -> Shapes:
    """LFM2: short gated convolutions with a few attention layers."""
    shapes = Shapes()
    ends(shapes, keys, Style(tied=True))
    layers = every(keys.layers)
    kinds = keys.words("layer_types")
    full = keys.sizes("full_attn_idxs") or tuple(
        layer for layer in layers if not kinds or kinds[layer] == "full_attention")  # fmt: skip
    short = tuple(layer for layer in layers if layer not in set(full))
    kernel = keys.size("conv_L_cache", default=3)
    attention(shapes, keys, Style(qk_norm="head"), full)
    shapes.linear("layers.{}.conv.in_proj", "state", 3 * keys.hidden, keys.hidden, at=short)
    shapes.linear("layers.{}.conv.conv", "state", keys.hidden, kernel, at=short, quantized=False)
    shapes.linear("layers.{}.conv.out_proj", "state", keys.hidden, keys.hidden, at=short, cut="in")
    tail = keys.hidden * (kernel - 1)
    _state(shapes, short, heads=1, dim=keys.hidden, size=tail * _TWO, values=tail)
    norms(shapes, keys, Style(), layers)
    sparse = moe_layers(keys) if keys.has("num_experts") else ()
    sparse = tuple(layer for layer in sparse if layer >= keys.size("num_dense_layers", default=0))
    inner = keys.size("block_ff_dim", default=keys.inner)
    if keys.flag("block_auto_adjust_ff_dim"):
        step = keys.size("block_multiple_of", default=256)
        inner = -(-int(2 * inner / 3 * keys.ratio("block_ffn_dim_multiplier", default=1)) // step) * step
    mlp(shapes, keys, Style(), tuple(layer for layer in layers if layer not in set(sparse)), inner)
    if sparse:
        experts(shapes, keys, sparse)
    return shapes


def kimi_linear(keys: Keys) -> Shapes:
    """Kimi Linear, Kimi K3, Ling 3: Kimi delta attention with latent attention every few layers, and experts."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    part = keys.part("linear_attn_config")
    listed = part.sizes("full_attn_layers")  # counted from one
    group = keys.size("layer_group_size", default=4, least=1)
    full = tuple(layer - 1 for layer in listed) or tuple(layer for layer in layers if layer % group == group - 1)
    linear = tuple(layer for layer in layers if layer not in set(full))
    source = part if part.values else keys
    heads = source.size("linear_num_heads", "num_heads", default=keys.heads)
    dim = source.size("linear_head_dim", "head_dim", default=128)
    kernel = source.size("short_conv_kernel_size", "linear_conv_kernel_dim", default=4)
    full_gate = source.flag("use_full_rank_gate") or keys.get("model_type") == "bailing_hybrid"
    delta_attention(shapes, keys, linear, heads=heads, dim=dim, kernel=kernel, full_gate=full_gate)
    latent_attention(shapes, keys, full)
    if keys.flag("mla_use_output_gate"):
        shapes.linear(
            "layers.{}.self_attn.g_proj", "attention", keys.heads * keys.size("v_head_dim"), keys.hidden, at=full
        )
    norms(shapes, keys, Style(), layers)
    sparse = moe_layers(keys)
    mlp(shapes, keys, Style(), tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    latent = keys.size("routed_expert_hidden_size", default=0)
    experts(shapes, keys, sparse, score_bias=True, latent=latent)
    if latent:
        for name, out, inp in (("down", latent, keys.hidden), ("up", keys.hidden, latent)):
            shapes.linear(
                f"layers.{{}}.mlp.latent_{name}", "shared_experts", out, inp, at=sparse, sharding="replicated"
            )
    return shapes


def delta_attention(
    shapes: Shapes, keys: Keys, at: Sequence[int], *, heads: int, dim: int, kernel: int, full_gate: bool
) -> None:
    """Kimi delta attention: a state of `dim` x `dim` per head, gates of low or full rank."""
    hidden, wide, prefix = keys.hidden, heads * dim, "layers.{}.self_attn"
    for name in ("q_proj", "k_proj", "v_proj"):
        shapes.linear(f"{prefix}.{name}", "state", wide, hidden, at=at)
    shapes.linear(f"{prefix}.conv1d", "state", 3 * wide, kernel, at=at, quantized=False)
    for name in ("f", "g"):
        if full_gate:
            shapes.linear(f"{prefix}.{name}_proj", "state", wide, hidden, at=at)
        else:
            shapes.linear(f"{prefix}.{name}_a_proj", "state", dim, hidden, at=at, sharding="replicated")
            shapes.linear(f"{prefix}.{name}_b_proj", "state", wide, dim, at=at)
    shapes.linear(f"{prefix}.b_proj", "state", heads, hidden, at=at)
    shapes.vector(f"{prefix}.dt_bias", wide, role="state", at=at, sharding="tensor", dtype="float32")
    shapes.vector(f"{prefix}.A_log", heads, role="state", at=at, sharding="tensor", dtype="float32")
    shapes.vector(f"{prefix}.o_norm", dim, at=at)
    shapes.linear(f"{prefix}.o_proj", "state", hidden, wide, at=at, cut="in")
    state, tail = wide * dim, 3 * wide * (kernel - 1)
    _state(shapes, at, heads=heads, dim=dim, size=state * 4 + tail * _TWO, values=state + tail)


def minimax_01(keys: Keys) -> Shapes:
    """MiniMax-Text-01 and M1: lightning attention, full attention every eighth layer, experts in all."""
    shapes = Shapes()
    ends(shapes, keys)
    layers = every(keys.layers)
    flags = keys.sizes("attn_type_list")
    kinds = keys.words("layer_types")
    full = tuple(
        layer for layer in layers
        if (flags[layer] == 1 if flags else kinds[layer] == "full_attention" if kinds else layer % 8 == 7)
    )  # fmt: skip
    linear = tuple(layer for layer in layers if layer not in set(full))
    wide, prefix = keys.heads * keys.head_dim, "layers.{}.self_attn"
    attention(shapes, keys, Style(), full)
    shapes.linear(f"{prefix}.qkv_proj", "state", 3 * wide, keys.hidden, at=linear)
    shapes.linear(f"{prefix}.output_gate", "state", wide, keys.hidden, at=linear)
    shapes.linear(f"{prefix}.out_proj", "state", keys.hidden, wide, at=linear, cut="in")
    shapes.vector(f"{prefix}.norm", wide, at=linear)
    state = wide * keys.head_dim
    _state(shapes, linear, heads=keys.heads, dim=keys.head_dim, size=state * 4, values=state)
    norms(shapes, keys, Style(), layers)
    experts(shapes, keys, layers)
    return shapes
