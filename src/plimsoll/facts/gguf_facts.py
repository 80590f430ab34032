"""ModelFacts of GGUF headers: what llama.cpp would make of the file, tensor by tensor.

Which layers keep a KV cache and which a recurrent state is read off the tensors themselves; only the pattern of
sliding windows has to be known per architecture where the file does not carry it (llama.cpp, `llama-model.cpp`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from plimsoll.errors import FactError
from plimsoll.facts.ggml_types import FILE_TYPES
from plimsoll.facts.gguf import GgufHeader, GgufTensor, Scalar
from plimsoll.facts.model import (
    AttentionGroup,
    AttentionKind,
    ModelFacts,
    Moe,
    Quantization,
    Sharding,
    Task,
    TensorClass,
    TensorRole,
    merge_groups,
)

MAX_LAYERS = 4096

_BLOCK = re.compile(r"^(blk|v\.blk|a\.blk)\.(\d+)\.")

# Every n-th layer sees the whole context, the others the window (`set_swa_pattern`); newer files carry the pattern.
_SLIDING_PATTERN = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma-embedding": 6, "gemma4": 6, "cohere2": 4, "gpt-oss": 2, "llama4": 4,
    "olmo2": 4, "exaone4": 4, "exaone-moe": 4, "smallthinker": 4, "modern-bert": 3, "plamo3": 8, "afmoe": 4,
}  # fmt: skip
_ENCODERS = frozenset({
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert", "eurobert",
    "t5encoder", "gemma-embedding",
})  # fmt: skip

_ROLES: tuple[tuple[str, TensorRole, Sharding], ...] = (
    (r"^token_embd", "embedding", "vocab"),
    (r"^(output|cls\.output|dec\.output)\.(weight|bias)$", "lm_head", "vocab"),
    (r"^(v|a|mm|s)\.|^resampler", "vision", "tensor"),
    (r"\.nextn\.", "mtp", "replicated"),
    (r"^(position_embd|token_types|per_layer_token_embd|rope_freqs|rope_factors)", "embedding", "replicated"),
    (r"ffn_\w+_exps\.", "experts", "expert"),
    (r"ffn_\w+_shexp\.", "shared_experts", "tensor"),
    (r"(ffn_gate_inp|exp_probs_b)", "router", "replicated"),
    (r"norm", "norm", "replicated"),
    (r"(ssm_|time_mix|channel_mix|shortconv)", "state", "tensor"),
    (r"attn_(kv_a_mqa|q_a)\.", "attention", "replicated"),
    (r"attn_", "attention", "tensor"),
    (r"ffn_", "mlp", "tensor"),
    (r"^cls\b", "pooler", "replicated"),
)  # fmt: skip


def model_facts(headers: Sequence[GgufHeader], *, id: str, source: str, split_files: bool = True) -> ModelFacts:
    """Facts of one model from the headers of all its files, in order; FactError where parts or keys are missing.

    `split_files`: check that all parts of a split model are there.
    """
    first = headers[0]
    if split_files:
        _check_split(headers)
    meta = _Metadata(first)
    tensors = [tensor for header in headers for tensor in header.tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    layers = meta.integer("block_count") - meta.integer("nextn_predict_layers", 0)
    if not 0 <= layers <= MAX_LAYERS:
        raise FactError(f"{first.name} claims {layers} layers", hint="The file is broken.", source=first.name)
    hidden = meta.integer("embedding_length")
    heads_of = meta.per_layer("attention.head_count", layers, 0)
    kv_of = meta.per_layer("attention.head_count_kv", layers, max(heads_of, default=0))
    heads, kv_heads = max(heads_of, default=0), max(kv_of, default=0)
    head_dim = meta.integer("attention.key_length", hidden // heads if heads else 0)
    embedding = by_name.get("token_embd.weight")
    vocab = embedding.shape[1] if embedding and len(embedding.shape) == 2 else meta.tokens
    return ModelFacts(
        id=id,
        architecture=meta.architecture,
        task=meta.task,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=max(meta.per_layer("feed_forward_length", layers, 0), default=0),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_context_tokens=meta.integer("context_length", 0),
        tied_embeddings="output.weight" not in by_name and not meta.encoder,
        dtype="float16",
        format="gguf",
        attention=_attention(meta, by_name, layers, heads_of, kv_of),
        tensors=_classes(tensors, layers=layers, kv_heads=kv_heads),
        source=source,
        moe=_moe(meta, by_name, layers),
        quantization=_quantization(meta, tensors),
        files=tuple((header.name, header.size) for header in headers),
        chat_template="tokenizer.chat_template" in first.metadata,
        multimodal=any(name.startswith(("v.", "a.")) for name in by_name),
        config={key: value for key, value in first.metadata.items() if key != "tokenizer.chat_template"},
    )


def _check_split(headers: Sequence[GgufHeader]) -> None:
    parts = headers[0].metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1 and len(headers) != parts:
        raise FactError(
            f"{headers[0].name} is part of a model in {parts} files; {len(headers)} of them are here",
            hint="Name the first file, and keep all parts in one directory under the names they came with.",
            source=headers[0].name,
        )


class _Metadata:
    """Metadata keys of the file's architecture, with their types checked."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        name = header.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise FactError(
                f"{header.name} does not name its architecture (general.architecture)",
                hint="For a split model name its first file, -00001-of-....gguf; a bare adapter is not a model.",
                source=header.name,
            )
        self.architecture = name

    def get(self, key: str) -> Scalar | tuple[Scalar, ...] | None:
        return self._header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if isinstance(value, tuple) and value:
            value = max((part for part in value if isinstance(part, int)), default=-1)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise FactError(
                f"{self._header.name}: the key {self.architecture}.{key} is {value!r}, not a whole number",
                hint="The file is not a language model, or was converted by a broken tool.",
                source=self._header.name,
            )
        return value

    def per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        value = self.get(key)
        if isinstance(value, tuple):
            numbers = tuple(max(0, part) for part in value if isinstance(part, int))
            return (numbers + (default,) * layers)[:layers]
        return (self.integer(key, default),) * layers

    @property
    def tokens(self) -> int:
        return self._header.array_lengths.get("tokenizer.ggml.tokens", self.integer("vocab_size", 0))

    @property
    def encoder(self) -> bool:
        return self.architecture in _ENCODERS or self.get("attention.causal") is False

    @property
    def task(self) -> Task:
        pooling = self.get("pooling_type")
        if pooling == 4:  # LLAMA_POOLING_TYPE_RANK
            return "rerank"
        if self.encoder or pooling in (1, 2, 3):
            return "embed"
        return "chat" if "tokenizer.chat_template" in self._header.metadata else "completion"

    @property
    def label(self) -> str:
        number = self._header.metadata.get("general.file_type")
        return FILE_TYPES.get(number, "") if isinstance(number, int) else ""


def _attention(
    meta: _Metadata, by_name: dict[str, GgufTensor], layers: int, heads_of: tuple[int, ...], kv_of: tuple[int, ...]
) -> tuple[AttentionGroup, ...]:
    sliding = _sliding_layers(meta, layers)
    shared = meta.integer("attention.shared_kv_layers", 0)
    parts_of: list[set[str]] = [set() for _ in range(layers)]
    for name in by_name:
        match = _BLOCK.match(name)
        if match and match[1] == "blk" and int(match[2]) < layers:
            parts_of[int(match[2])].add(name[match.end() :].split(".")[0])
    groups: list[AttentionGroup] = []
    for layer, parts in enumerate(parts_of):
        recurrent = any(part.startswith(("ssm_", "time_mix", "shortconv")) for part in parts)
        if recurrent:
            groups.append(_state(meta, parts))
        cached = "attn_kv_a_mqa" in parts or "attn_k" in parts or ("attn_qkv" in parts and not recurrent)
        if cached and kv_of[layer] and layer < layers - shared:
            groups.append(_cache(meta, parts, heads_of[layer], kv_of[layer], window=sliding[layer]))
    return merge_groups(groups)


def _sliding_layers(meta: _Metadata, layers: int) -> tuple[int | None, ...]:
    """Window of each layer in tokens, None where it sees everything."""
    window = meta.integer("attention.sliding_window", 0) or meta.integer("attention.chunk_size", 0)
    if meta.architecture == "llama4" and not window:
        window = 8192  # llama-model.cpp: n_attn_chunk of Llama 4
    if not window:
        return (None,) * layers
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return tuple(window if flag else None for flag in (*pattern, *(False,) * layers))[:layers]
    every = pattern if isinstance(pattern, int) else _SLIDING_PATTERN.get(meta.architecture)
    if not every:
        return (None,) * layers
    if meta.architecture == "modern-bert":  # the first of each three sees everything
        return tuple(None if layer % every == 0 else window for layer in range(layers))
    return tuple(None if layer % every == every - 1 else window for layer in range(layers))


def _cache(meta: _Metadata, parts: set[str], heads: int, kv_heads: int, *, window: int | None) -> AttentionGroup:
    width = meta.integer("embedding_length") // max(1, heads)
    key = meta.integer("attention.key_length", width)
    value = meta.integer("attention.value_length", width)
    kind: AttentionKind = "encoder" if meta.encoder else "full"
    if window is not None and kind != "encoder":
        kind = "chunked" if meta.architecture == "llama4" else "sliding"
        key = meta.integer("attention.key_length_swa", key)
        value = meta.integer("attention.value_length_swa", value)
    rank = meta.integer("attention.kv_lora_rank", 0)
    if rank and "attn_k_b" in parts:  # files without attn_k_b are run by llama.cpp as plain multi-head attention
        kind, kv_heads = "mla", 1
        key, value = rank + meta.integer("rope.dimension_count", 64), 0
    return AttentionGroup(
        kind=kind, layers=1, heads=heads, kv_heads=kv_heads, head_dim=key, v_head_dim=value, window_tokens=window
    )


def _state(meta: _Metadata, parts: set[str]) -> AttentionGroup:
    """Recurrent state of one layer as llama.cpp keeps it: 4-byte floats (`hparams.n_embd_r` and `n_embd_s`)."""
    hidden = meta.integer("embedding_length")
    heads = dim = 1
    if "shortconv" in parts:
        values = hidden * max(0, meta.integer("shortconv.l_cache", 3) - 1)
    elif any(part.startswith("time_mix") for part in parts):
        dim = max(1, meta.integer("wkv.head_size", 64))
        heads = hidden // dim
        values = hidden * (meta.integer("token_shift_count", 2) + dim)
    elif meta.get("kda.head_dim") is not None:
        dim = meta.integer("kda.head_dim")
        heads = meta.integer("attention.head_count")
        values = heads * dim * (dim + 3 * max(0, meta.integer("ssm.conv_kernel", 4) - 1))
    else:
        inner, size = meta.integer("ssm.inner_size"), meta.integer("ssm.state_size")
        groups = meta.integer("ssm.group_count", 0)
        heads = meta.integer("ssm.time_step_rank", 1)
        dim = inner // heads if heads else inner
        values = max(0, meta.integer("ssm.conv_kernel") - 1) * (inner + 2 * groups * size) + size * inner
    return AttentionGroup(
        kind="linear",
        layers=1,
        heads=heads,
        kv_heads=0,
        head_dim=dim,
        v_head_dim=0,
        state_bytes=4 * values,
        state_values=values,
    )


def _moe(meta: _Metadata, by_name: dict[str, GgufTensor], layers: int) -> Moe | None:
    experts = meta.integer("expert_count", 0)
    if not experts:
        return None
    down = [name for name in by_name if re.fullmatch(r"blk\.\d+\.ffn_down_exps\.weight", name)]
    size = by_name[down[0]].shape[0] if down else meta.integer("expert_feed_forward_length", 0)
    shared = next((tensor for name, tensor in by_name.items() if name.endswith("ffn_down_shexp.weight")), None)
    shared_size = shared.shape[0] if shared else 0
    return Moe(
        experts=experts,
        per_token=meta.integer("expert_used_count", 1),
        intermediate_size=size,
        layers=sum(int(name.split(".")[1]) < layers for name in down),
        shared_experts=meta.integer("expert_shared_count", 1 if shared else 0),
        shared_intermediate_size=shared_size,
    )


def _quantization(meta: _Metadata, tensors: Sequence[GgufTensor]) -> Quantization:
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1] or list(tensors)
    bits = 8 * sum(tensor.bytes for tensor in matrices) / max(1, sum(tensor.params for tensor in matrices))
    return Quantization(method="gguf", bits=round(bits, 3), name=meta.label)


def _classes(tensors: Sequence[GgufTensor], *, layers: int, kv_heads: int) -> tuple[TensorClass, ...]:
    """Tensors of one name (but for the layer), type and shape as one class each."""
    grouped: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        name = f"{match[1]}.{{}}.{tensor.name[match.end() :]}" if match else tensor.name
        at = grouped.setdefault((name, tensor.type.name, tensor.shape), [])
        at.append(int(match[2]) if match else -1)
    sizes = {(tensor.type.name, tensor.shape): tensor.bytes for tensor in tensors}
    classes: list[TensorClass] = []
    for (name, kind, shape), at in grouped.items():
        for inside in (True, False):  # blocks past the last layer hold what predicts further tokens
            here = tuple(sorted(layer for layer in at if (layer < layers or name[:3] != "blk") == inside))
            if here:
                classes.append(_class(name, kind, shape, here, size=sizes[kind, shape], mtp=not inside, kv=kv_heads))
    return tuple(classes)


def _class(
    name: str, kind: str, shape: tuple[int, ...], at: tuple[int, ...], *, size: int, mtp: bool, kv: int
) -> TensorClass:
    role, sharding = next(
        ((role, sharding) for pattern, role, sharding in _ROLES if re.search(pattern, name)), ("other", "replicated")
    )
    in_layers = name.startswith("blk.") and not mtp
    return TensorClass(
        role="mtp" if mtp else role,
        params=prod(shape) * len(at),
        bytes=size * len(at),
        dtype=kind,
        sharding=sharding,
        layers=len(at) if in_layers else 0,
        name=name,
        at=at if in_layers else (),
        units=kv if re.search(r"attn_[kv]\.", name) else 0,
    )
