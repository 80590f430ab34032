"""What is known of a model before a byte of its weights is read: shapes, attention, experts, quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

AttentionKind = Literal["full", "sliding", "chunked", "mla", "linear", "encoder"]
"""full: KV for every token; sliding / chunked: KV for a window; mla: one latent per token (DeepSeek);
linear: a fixed state per sequence (Mamba, DeltaNet, RWKV); encoder: no KV cache at all."""

Task = Literal["chat", "completion", "embed", "rerank", "classify"]

Sharding = Literal["tensor", "vocab", "expert", "replicated"]
"""How a tensor class is cut: over tensor-parallel ranks, over ranks by padded vocabulary, over experts, not at all."""

TensorRole = Literal[
    "embedding", "lm_head", "attention", "mlp", "experts", "shared_experts", "router", "norm", "state", "vision",
    "mtp", "pooler", "other",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGroup:
    """The layers of a model that cache the same thing per token (all of them, in most models)."""

    kind: AttentionKind
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    """Of K, per head; for MLA the latent's rank plus the rope part."""
    v_head_dim: int
    """Of V, per head; 0 for MLA, whose latent serves as both."""
    window_tokens: int | None = None
    state_bytes: int = 0
    """Linear attention only: bytes of state per layer and sequence, at the dtype the engines use by default."""
    state_values: int = 0
    """The same state in values, for engines that keep it in a type of their own (llama.cpp: 4 bytes)."""
    extra_bytes: int = 0
    """Per token and layer besides K and V, on every rank and whatever the cache's dtype (DeepSeek's sparse index)."""

    def kv_bytes_per_token(self, *, value_bytes: float, tensor_parallel: int = 1) -> float:
        """Bytes one token takes in the cache of one rank, all layers of the group, inside any window.

        `value_bytes`: per cached value (2 for fp16, 1 for fp8, 34/32 for llama.cpp's q8_0).
        KV heads are replicated when there are more ranks than heads; MLA's latent is on every rank.
        """
        if self.kind in ("linear", "encoder"):
            return 0.0
        heads = 1 if self.kind == "mla" else max(1, -(-self.kv_heads // tensor_parallel))
        return self.layers * (heads * (self.head_dim + self.v_head_dim) * value_bytes + self.extra_bytes)


def merge_groups(groups: Iterable[AttentionGroup]) -> tuple[AttentionGroup, ...]:
    """Groups that differ in their number of layers only put together, in the order of first appearance."""
    counts: dict[AttentionGroup, int] = {}
    for group in groups:
        one = replace(group, layers=1)
        counts[one] = counts.get(one, 0) + group.layers
    return tuple(replace(group, layers=count) for group, count in counts.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Mixture of experts: `experts` routed ones in each of `layers` layers, `per_token` of them active."""

    experts: int
    per_token: int
    intermediate_size: int
    layers: int
    shared_experts: int = 0
    shared_intermediate_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the weights are stored; `method` is the name the engines use (awq, gptq, fp8, bitsandbytes, gguf ...)."""

    method: str
    bits: float
    group_size: int | None = None
    block: tuple[int, int] | None = None
    """FP8 block quantization: rows, columns of one scale."""
    activation: str | None = None
    skip: tuple[str, ...] = ()
    """Names (parts) of modules left at full precision."""
    name: str = ""
    """As its files are labelled: Q4_K_M, NVFP4, W8A8 ...; "" where the method says it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorClass:
    """All tensors of one role and dtype together: how many parameters, how many bytes as stored, how cut."""

    role: TensorRole
    params: int
    bytes: int
    dtype: str
    sharding: Sharding
    layers: int = 0
    """Layers it is spread over (pipeline parallelism cuts it); 0: it lies at one end of the model."""
    name: str = ""
    """As stored, with `{}` for the layer: `model.layers.{}.self_attn.q_proj`; "" where several are counted together."""
    at: tuple[int, ...] = ()
    """The layers it lies in, an equal share of the bytes in each; empty: outside the layers."""
    units: int = 0
    """Equal parts that tensor parallelism can cut it into; with more ranks parts are copied (KV heads). 0: no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """One model as its metadata describes it. Sizes in bytes, lengths in tokens; `source` says where it was read."""

    id: str
    architecture: str
    """Class in config.json (`Qwen2ForCausalLM`) or `general.architecture` of a GGUF (`qwen2`)."""
    task: Task
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context_tokens: int
    tied_embeddings: bool
    dtype: str
    """Of the unquantised weights: bfloat16, float16, float32."""
    format: Literal["safetensors", "gguf", "pytorch"]
    attention: tuple[AttentionGroup, ...]
    tensors: tuple[TensorClass, ...]
    source: str
    moe: Moe | None = None
    quantization: Quantization | None = None
    files: tuple[tuple[str, int], ...] = ()
    """(name, bytes) of the weight files, where known."""
    chat_template: bool = True
    remote_code: bool = False
    multimodal: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    """The raw config.json or GGUF metadata (scalars), for rules that need a rarely used key."""

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(tensor.params for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.bytes for tensor in self.tensors)

    def kv_bytes_per_token(self, *, value_bytes: float = 2.0, tensor_parallel: int = 1) -> float:
        """Bytes one more token takes in one rank's cache while it is inside every window."""
        return sum(
            group.kv_bytes_per_token(value_bytes=value_bytes, tensor_parallel=tensor_parallel)
            for group in self.attention
        )
