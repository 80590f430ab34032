"""Decoder families by `model_type`: mostly a Style; a function of their own where a Style does not say it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from plimsoll.facts.architectures.decoder import (
    Style,
    attention,
    caches,
    decoder,
    ends,
    experts,
    mlp,
    moe_layers,
    norms,
    window_of,
)
from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import merge_groups

Family = Callable[[Keys], Shapes]

_TWO_SIDED = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA = Style()
_QWEN2 = Style(qkv_bias=True, out_bias=False)
_QWEN3 = Style(qk_norm="head")
_GEMMA = Style(tied=True)
_GEMMA2 = Style(tied=True, norms=_TWO_SIDED, sliding_every=2)
_GEMMA3 = Style(tied=True, norms=_TWO_SIDED, qk_norm="head", sliding_every=6)
_CLASSIC = Style(qkv_bias=True, out_bias=True, mlp_bias=True, norm_bias=True, gated=False)
"""Biases everywhere and LayerNorm: GPT-2, OPT, GPT-NeoX, StarCoder, Phi-2."""

_STYLES: dict[str, Style] = {
    "llama": _LLAMA, "mistral": _LLAMA, "ministral": _LLAMA, "ministral3": _LLAMA, "mixtral": _LLAMA, "yi": _LLAMA,
    "internlm2": _LLAMA, "baichuan": _LLAMA, "phi3": _LLAMA, "phi3_v": _LLAMA,
    "minicpmv": _QWEN2, "smollm3": replace(_LLAMA, tied=True), "mimo": _QWEN2,
    "internlm3": Style(qkv_bias=None), "aquila": _LLAMA, "orion": Style(norm_bias=True), "minicpm": _LLAMA,
    "granite": _LLAMA, "granitemoe": replace(_LLAMA, tied=True), "granitemoeshared": replace(_LLAMA, tied=True),
    "helium": _LLAMA, "nanochat": _LLAMA, "telechat": _LLAMA, "xverse": _LLAMA, "solar": _LLAMA, "exaone": _LLAMA,
    "qwen2": _QWEN2, "qwen2_moe": _QWEN2, "seed_oss": Style(qkv_bias=True, out_bias=False),
    "qwen3": _QWEN3, "qwen3_moe": _QWEN3, "qwen3_vl_text": _QWEN3, "qwen3_vl_moe_text": _QWEN3, "dots1": _QWEN3,
    "hunyuan_v1_dense": _QWEN3, "hunyuan_v1_moe": _QWEN3, "ernie4_5": _LLAMA, "ernie4_5_moe": _LLAMA,
    "qwen2_vl": _QWEN2, "qwen2_vl_text": _QWEN2, "qwen2_5_vl": _QWEN2, "qwen2_5_vl_text": _QWEN2,
    "gemma": _GEMMA, "gemma2": _GEMMA2, "gemma3": _GEMMA3, "gemma3_text": _GEMMA3,
    "glm": Style(qkv_bias=None, out_bias=False), "glm4": Style(qkv_bias=None, out_bias=False, norms=_TWO_SIDED),
    "glm4v_text": Style(qkv_bias=True, out_bias=False, norms=_TWO_SIDED),
    "minimax_m2": Style(qk_norm="all"),
    "cohere": Style(norms=("input_layernorm",), tied=True),
    "cohere2": Style(norms=("input_layernorm",), tied=True, sliding_every=4),
    "starcoder2": replace(_CLASSIC, qkv_bias=None, out_bias=None, mlp_bias=None, tied=True),
    "stablelm": Style(norm_bias=True, out_bias=False), "nemotron": Style(norm_bias=True, gated=False),
    "olmo": Style(norms=(), final_norm=False), "olmo2": Style(norms=_AFTER, qk_norm="all"),
    "olmo3": Style(norms=_AFTER, qk_norm="all", sliding_every=4), "olmoe": Style(qk_norm="all"),
    "exaone4": Style(norms=_AFTER, qk_norm="head"), "arcee": Style(gated=False),
    "apertus": Style(gated=False, qk_norm="head"),
    "phi": replace(_CLASSIC, norms=("input_layernorm",), head_bias=True),
    "phimoe": Style(norm_bias=True),
    "gpt_neox": _CLASSIC, "gpt2": replace(_CLASSIC, tied=True, positions=0),
    "gpt_bigcode": replace(_CLASSIC, tied=True, positions=0),
    "gptj": replace(_CLASSIC, qkv_bias=False, out_bias=False, norms=("ln_1",), head_bias=True),
    "opt": replace(_CLASSIC, tied=True, positions=2),
    "bloom": replace(_CLASSIC, tied=True, embedding_norm=True),
    "mpt": Style(qkv_bias=False, out_bias=False, mlp_bias=False, gated=False, tied=True),
}  # fmt: skip


def _styled(style: Style) -> Family:
    return lambda keys: decoder(keys, style)


def _with(keys: Keys, **values: object) -> Keys:
    """The same keys under other names or values."""
    return Keys({**keys.values, **values}, source=keys.source)


def _qwen1(keys: Keys) -> Shapes:
    """Qwen (the first): both halves of the gated layer share `intermediate_size`; biases on q, k, v alone."""
    half = _with(keys, intermediate_size=keys.inner // 2, tie_word_embeddings=False)
    return decoder(half, _QWEN2)


def _chatglm(keys: Keys) -> Shapes:
    """ChatGLM2 and 3, GLM-4 9B, CodeGeeX2/4: grouped heads behind a switch, and an untied output layer."""
    grouped = keys.flag("multi_query_attention")
    kv = keys.size("multi_query_group_num") if grouped else keys.heads
    plain = _with(keys, num_key_value_heads=kv, tie_word_embeddings=False)
    bias = keys.flag("add_qkv_bias", default=True)
    return decoder(plain, Style(qkv_bias=bias, out_bias=keys.flag("add_bias_linear")))


def _falcon(keys: Keys) -> Shapes:
    """Falcon: one key head, or groups in the newer decoder, which also has two norms in parallel."""
    newer = keys.flag("new_decoder_architecture")
    kv = keys.size("num_kv_heads", "n_head_kv", default=keys.heads) if newer else (
        1 if keys.flag("multi_query", default=True) else keys.heads)  # fmt: skip
    bias = keys.flag("bias")
    one_norm = keys.flag("parallel_attn", default=True) and not (
        newer and keys.size("num_ln_in_parallel_attn", default=2) == 2
    )
    return decoder(
        _with(keys, num_key_value_heads=kv),
        Style(qkv_bias=bias, out_bias=bias, mlp_bias=bias, gated=False, tied=True, norm_bias=True,
              norms=("input_layernorm",) if one_norm else ("ln_attn", "ln_mlp")),
    )  # fmt: skip


def _dbrx(keys: Keys) -> Shapes:
    """DBRX: its numbers lie in attn_config and ffn_config."""
    heads, inner = keys.part("attn_config"), keys.part("ffn_config")
    flat = _with(
        keys, num_key_value_heads=heads.size("kv_n_heads"), moe_intermediate_size=inner.size("ffn_hidden_size"),
        num_experts=inner.size("moe_num_experts"), num_experts_per_tok=inner.size("moe_top_k"),
    )  # fmt: skip
    return decoder(flat, _LLAMA)


def _gpt_oss(keys: Keys) -> Shapes:
    """gpt-oss: biases on everything, an attention sink per head, experts with biases."""
    shapes = Shapes()
    style = Style(qkv_bias=True, out_bias=True)
    ends(shapes, keys, style)
    layers = every(keys.layers)
    attention(shapes, keys, style, layers)
    shapes.vector("layers.{}.self_attn.sinks", keys.heads, role="attention", at=layers, sharding="tensor")
    norms(shapes, keys, style, layers)
    experts(shapes, keys, layers, router_bias=True, bias=True)
    return shapes


def _glm_moe(keys: Keys) -> Shapes:
    """GLM-4.5 and later with grouped heads: dense layers first, experts, one layer that predicts a further token."""
    shapes = Shapes()
    style = Style(
        qkv_bias=keys.flag("attention_bias"), out_bias=False, qk_norm="head" if keys.flag("use_qk_norm") else ""
    )
    keys = _with(keys, topk_method="noaux_tc")
    ends(shapes, keys, style)
    layers = every(keys.layers)
    attention(shapes, keys, style, layers)
    norms(shapes, keys, style, layers)
    sparse = moe_layers(keys)
    mlp(shapes, keys, style, tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    experts(shapes, keys, sparse)
    extra = tuple(range(keys.layers, keys.layers + keys.size("num_nextn_predict_layers", default=0)))
    if extra:
        shapes.role = "mtp"
        attention(shapes, keys, style, extra, cached=False)
        norms(shapes, keys, Style(norms=(*style.norms, "enorm", "hnorm", "shared_head.norm")), extra)
        experts(shapes, keys, extra)
        shapes.linear("layers.{}.eh_proj", "mtp", keys.hidden, 2 * keys.hidden, at=extra, sharding="replicated",
                      quantized=False)  # fmt: skip
        for name in ("shared_head.head", "embed_tokens"):
            shapes.linear(f"layers.{{}}.{name}", "mtp", keys.vocab, keys.hidden, at=extra, sharding="vocab",
                          quantized=False)  # fmt: skip
        shapes.role = None
    return shapes


def _llama4(keys: Keys) -> Shapes:
    """Llama 4: experts in every n-th layer beside one shared; most layers cache in chunks."""
    inner = keys.size("intermediate_size")
    step = keys.size("interleave_moe_layer_step", default=1, least=1)
    named = _with(
        keys, n_shared_experts=1, shared_expert_intermediate_size=inner,
        moe_layers=keys.get("moe_layers") or [layer for layer in range(keys.layers) if layer % step == step - 1],
        layer_types=keys.get("layer_types") or [
            "full_attention" if layer % 4 == 3 else "chunked_attention" for layer in range(keys.layers)
        ],
    )  # fmt: skip
    return decoder(named, _LLAMA)


def _gemma4(keys: Keys) -> Shapes:
    """Gemma 4: layers that see everything have wider heads, fewer of them, and may use keys as values."""
    shapes = Shapes()
    style = Style(tied=True, norms=_TWO_SIDED, qk_norm="head")
    ends(shapes, keys, style)
    layers = every(keys.layers)
    shared = keys.size("num_kv_shared_layers", default=0)
    wide = keys.size("global_head_dim", default=keys.head_dim)
    global_kv = keys.size("num_global_key_value_heads", default=keys.kv_heads)
    for kind in ("sliding", "full"):
        at = tuple(layer for layer in layers if window_of(keys, layer)[0] == kind)
        full = kind == "full"
        same = full and keys.flag("attention_k_eq_v")
        dim, kv = (wide, global_kv if same else keys.kv_heads) if full else (keys.head_dim, keys.kv_heads)
        prefix = "layers.{}.self_attn"
        shapes.linear(f"{prefix}.q_proj", "attention", keys.heads * dim, keys.hidden, at=at)
        own = tuple(layer for layer in at if layer < keys.layers - shared)
        shapes.linear(f"{prefix}.k_proj", "attention", kv * dim, keys.hidden, at=own, units=kv)
        if not same:
            shapes.linear(f"{prefix}.v_proj", "attention", kv * dim, keys.hidden, at=own, units=kv)
        shapes.linear(f"{prefix}.o_proj", "attention", keys.hidden, keys.heads * dim, at=at, cut="in")
        shapes.vector(f"{prefix}.q_norm", dim, at=at)
        shapes.vector(f"{prefix}.k_norm", dim, at=own)
        shapes.cache(caches(keys, style, own, heads=keys.heads, kv_heads=kv, head_dim=dim, value_dim=dim))
    norms(shapes, keys, style, layers)
    shapes.vector("layers.{}.layer_scalar", 1, at=layers)
    doubled = (
        tuple(layer for layer in layers if layer >= keys.layers - shared) if keys.flag("use_double_wide_mlp") else ()
    )
    mlp(shapes, keys, style, tuple(layer for layer in layers if layer not in set(doubled)), keys.inner)
    mlp(shapes, keys, style, doubled, 2 * keys.inner)
    if keys.flag("enable_moe_block"):
        experts(shapes, keys, layers, prefix="layers.{}")
        for name in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
            shapes.vector(f"layers.{{}}.{name}", keys.hidden, at=layers)
        shapes.vector("layers.{}.router.scale", keys.hidden, role="router", at=layers)
        shapes.vector("layers.{}.router.per_expert_scale", keys.size("num_experts"), role="router", at=layers)
    per_layer = keys.size("hidden_size_per_layer_input", default=0)
    if per_layer:
        rows = keys.size("vocab_size_per_layer_input", default=keys.vocab)
        shapes.table("embed_tokens_per_layer", rows, keys.layers * per_layer, sharding="replicated")
        shapes.linear("per_layer_model_projection", "embedding", keys.layers * per_layer, keys.hidden,
                      sharding="replicated", quantized=False)  # fmt: skip
        shapes.vector("per_layer_projection_norm", per_layer)
        shapes.linear("layers.{}.per_layer_input_gate", "mlp", per_layer, keys.hidden, at=layers, sharding="replicated")
        shapes.linear("layers.{}.per_layer_projection", "mlp", keys.hidden, per_layer, at=layers, sharding="replicated")
        shapes.vector("layers.{}.post_per_layer_input_norm", keys.hidden, at=layers)
    shapes.groups = list(merge_groups(shapes.groups))
    return shapes


def _mimo_v2(keys: Keys) -> Shapes:
    """MiMo-V2: sliding layers have heads of their own shape, values are narrower than keys."""
    shapes = Shapes()
    style = Style(qkv_bias=False, out_bias=False)
    keys = _with(keys, topk_method=keys.get("topk_method"), layer_types=[
        "sliding_attention" if flag else "full_attention" for flag in keys.sizes("hybrid_layer_pattern")])  # fmt: skip
    ends(shapes, keys, style)
    layers = every(keys.layers)
    for kind in ("full", "sliding"):
        at = tuple(layer for layer in layers if window_of(keys, layer)[0] == kind)
        names = ("swa_num_attention_heads", "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim")
        plain = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim")
        own = _with(keys, **{to: keys.get(name, to) for name, to in zip(names, plain, strict=True)})
        attention(shapes, own if kind == "sliding" else keys, style, at)
        if keys.flag("add_swa_attention_sink_bias" if kind == "sliding" else "add_full_attention_sink_bias"):
            shapes.vector(
                "layers.{}.self_attn.attention_sink_bias", keys.heads, role="attention", at=at, sharding="tensor"
            )
    norms(shapes, keys, style, layers)
    sparse = moe_layers(keys)
    mlp(shapes, keys, style, tuple(layer for layer in layers if layer not in set(sparse)), keys.inner)
    experts(shapes, keys, sparse)
    return shapes


def _nas(keys: Keys) -> Shapes:
    """Nemotron-NAS (DeciLM): each layer has its own heads and width, or lacks attention or the feed-forward layer."""
    shapes = Shapes()
    ends(shapes, keys)
    blocks = keys.get("block_configs")
    for layer, block in enumerate(blocks if isinstance(blocks, list) else ()):
        whole = Keys(block if isinstance(block, dict) else {}, source=keys.source)
        heads, inner = whole.part("attention"), whole.part("ffn")
        if not heads.flag("no_op") and not heads.flag("replace_with_linear"):
            attention(shapes, keys, _LLAMA, (layer,), kv_heads=keys.heads // heads.size("n_heads_in_group", least=1))
            shapes.vector("layers.{}.input_layernorm", keys.hidden, at=(layer,))
        elif heads.flag("replace_with_linear"):
            shapes.linear("layers.{}.self_attn.linear_attn", "attention", keys.hidden, keys.hidden, at=(layer,))
        if not inner.flag("no_op"):
            width = int(2 * inner.ratio("ffn_mult", default=4) * keys.hidden / 3)
            mlp(shapes, keys, _LLAMA, (layer,), -(-width // 256) * 256)
            shapes.vector("layers.{}.post_attention_layernorm", keys.hidden, at=(layer,))
    return shapes


def _shared_gate(style: Style) -> Family:
    """Qwen's shared expert has a gate of one output of its own."""

    def build(keys: Keys) -> Shapes:
        shapes = decoder(keys, style)
        at = moe_layers(keys)
        if shapes.moe and shapes.moe.shared_intermediate_size:
            shapes.linear("layers.{}.mlp.shared_expert_gate", "router", 1, keys.hidden, at=at, sharding="replicated",
                          quantized=False)  # fmt: skip
        return shapes

    return build


def _cohere(style: Style) -> Family:
    return lambda keys: decoder(keys, replace(style, qk_norm="heads" if keys.flag("use_qk_norm") else ""))


def _biased(style: Style, *, qkv: str, mlp_too: bool = True) -> Family:
    """Families whose bias switch has a name of its own."""

    def build(keys: Keys) -> Shapes:
        bias = keys.flag(qkv)
        return decoder(keys, replace(style, qkv_bias=bias, out_bias=bias and style.out_bias is None,
                                     mlp_bias=bias if mlp_too else style.mlp_bias))  # fmt: skip

    return build


def _phimoe(keys: Keys) -> Shapes:
    return decoder(keys, Style(norm_bias=True, head_bias=keys.flag("lm_head_bias")))


def _stablelm(keys: Keys) -> Shapes:
    return decoder(keys, Style(norm_bias=True, qkv_bias=keys.flag("use_qkv_bias"), out_bias=False))


def _bigcode(keys: Keys) -> Shapes:
    kv = 1 if keys.flag("multi_query", default=True) else keys.heads
    return decoder(_with(keys, num_key_value_heads=kv), _STYLES["gpt_bigcode"])


def _opt(keys: Keys) -> Shapes:
    return decoder(keys, _STYLES["opt"])


def _mpt(keys: Keys) -> Shapes:
    kv = keys.part("attn_config").size("kv_n_heads", default=keys.heads)
    inner = int(keys.hidden * keys.ratio("expansion_ratio", default=4))
    return decoder(_with(keys, num_key_value_heads=kv, intermediate_size=inner), _STYLES["mpt"])


def _mllama(keys: Keys) -> Shapes:
    """Llama 3.2 Vision's text model: some layers look at the image alone, and engines book a cache for them too."""
    shapes = Shapes()
    ends(shapes, keys)
    shapes.table("embed_tokens.image", 8, keys.hidden, sharding="replicated")
    layers, crossed = every(keys.layers), keys.sizes("cross_attention_layers")
    attention(shapes, keys, _LLAMA, tuple(layer for layer in layers if layer not in set(crossed)))
    attention(shapes, keys, _QWEN3, crossed, prefix="layers.{}.cross_attn")
    shapes.vector("layers.{}.cross_attn_gates", 2, role="attention", at=crossed)
    norms(shapes, keys, _LLAMA, layers)
    mlp(shapes, keys, _LLAMA, layers, keys.inner)
    return shapes


FAMILIES: dict[str, Family] = {
    **{name: _styled(style) for name, style in _STYLES.items()},
    "qwen": _qwen1, "chatglm": _chatglm, "falcon": _falcon, "dbrx": _dbrx, "gpt_oss": _gpt_oss, "glm4_moe": _glm_moe,
    "glm4v_moe_text": _glm_moe,
    "llama4": _llama4, "llama4_text": _llama4, "gemma4": _gemma4, "gemma4_text": _gemma4, "mimo_v2_flash": _mimo_v2,
    "nemotron-nas": _nas, "qwen2_moe": _shared_gate(_QWEN2), "cohere": _cohere(_STYLES["cohere"]),
    "cohere2": _cohere(_STYLES["cohere2"]), "starcoder2": _biased(_STYLES["starcoder2"], qkv="use_bias"),
    "ernie4_5": _biased(_LLAMA, qkv="use_bias"), "internlm": _biased(_LLAMA, qkv="bias", mlp_too=False),
    "mllama": _mllama, "mllama_text_model": _mllama, "phimoe": _phimoe, "stablelm": _stablelm,
    "gpt_bigcode": _bigcode, "mpt": _mpt,
}  # fmt: skip
