"""vLLM's paged cache: layers in groups of one page size, blocks shared by the groups, what a request needs of them.

Read from `kv_cache_utils.py` and `kv_cache_interface.py` of 0.8.5 to 0.33.0 and `cache_engine.py` before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plimsoll.facts.model import AttentionGroup, ModelFacts
from plimsoll.facts.versions import in_range

_DS_MLA_BYTES = 656
"""One token and layer of DeepSeek V3.2's fp8 latent: 512 fp8 values, 4 scales, 64 bf16 rope values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paging:
    """Settings that decide a block."""

    version: str
    block_tokens: int
    value_bytes: float
    kv_dtype: str
    tensor: int
    pipeline: int
    context: int
    batched_tokens: int
    prefix_caching: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spec:
    """Layers alike in what they cache, on one rank."""

    layers: int
    token_bytes: float
    """Per token and layer; for a state, bytes per sequence and layer."""
    window: int | None = None
    state: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The pool of one rank: what a block costs and how many of them a request holds."""

    block_bytes: float
    """All layers that share the pool."""
    groups: int
    block_tokens: int
    request_blocks: int
    """For one request of the full context."""
    by_concurrency: bool
    """Whether the engine reports tokens as concurrency x context (0.21 and later)."""
    v0: bool
    context: int

    @property
    def request_bytes(self) -> int:
        """What one request of the full context needs."""
        return math.ceil(self.request_blocks * self.block_bytes)

    def blocks(self, available: float) -> int:
        """Blocks that `available` bytes hold."""
        return max(0, int(available // self.block_bytes)) if self.block_bytes else 0

    def concurrency(self, blocks: int) -> float:
        """Requests of full context at once, as the engine prints it."""
        if self.v0:
            return blocks * self.block_tokens / self.context
        return blocks / self.request_blocks if self.request_blocks else 0.0

    def tokens(self, blocks: int) -> int:
        """Tokens of cache, as the engine prints them."""
        if self.by_concurrency:
            return int(self.concurrency(blocks) * self.context)
        return blocks // self.groups * self.block_tokens


def pages(model: ModelFacts, paging: Paging) -> Pages | None:
    """The pool for `model`; None for a model that caches nothing."""
    v0 = in_range(paging.version, "<0.8")
    specs = [spec for group in model.attention if (spec := _spec(group, model, paging)) is not None]
    if not specs:
        return None
    hybrid = in_range(paging.version, ">=0.9.2")
    windowed = any(spec.window for spec in specs)
    if not hybrid or len(specs) == 1 or not (windowed or any(spec.state for spec in specs)):
        block_bytes = sum(spec.layers * spec.token_bytes * paging.block_tokens for spec in specs if not spec.state)
        needed = math.ceil(paging.context / paging.block_tokens)
        if len(specs) == 1 and specs[0].window and not v0:
            needed = _window_blocks(specs[0].window, paging, paging.block_tokens)
        return Pages(
            block_bytes=block_bytes, groups=1, block_tokens=paging.block_tokens, request_blocks=needed,
            by_concurrency=in_range(paging.version, ">=0.21"), v0=v0, context=paging.context,
        )  # fmt: skip
    return _grouped(specs, paging)


def _grouped(specs: list[_Spec], paging: Paging) -> Pages:
    """Groups of equally many layers; each takes blocks of its own out of one pool of pages of one size."""
    block_tokens = paging.block_tokens
    attention = [spec for spec in specs if not spec.state]
    state_bytes = max((spec.token_bytes for spec in specs if spec.state), default=0.0)
    widest = max(spec.token_bytes for spec in attention)
    # A state is one page, so attention pages are stretched until one holds it.
    block_tokens = max(block_tokens, 16 * math.ceil(state_bytes / (16 * widest)))
    page = widest * block_tokens
    fewest, most = min(spec.layers for spec in specs), max(spec.layers for spec in specs)
    padded = 1.5 if in_range(paging.version, ">=0.21") else 1.25 if in_range(paging.version, ">=0.12") else 1.0
    size = most if most < fewest * padded else fewest
    needed = groups = 0
    for spec in specs:
        count = math.ceil(spec.layers / size)
        # Narrower layers fill the page with more tokens (`unify_kv_cache_spec_page_size`).
        tokens = block_tokens if spec.state else int(page // spec.token_bytes)
        groups += count
        if spec.state:
            needed += count * (2 if paging.prefix_caching else 1)
        elif spec.window:
            needed += count * _window_blocks(spec.window, paging, tokens)
        else:
            needed += count * math.ceil(paging.context / tokens)
    return Pages(
        block_bytes=page * size, groups=groups, block_tokens=block_tokens, request_blocks=needed,
        by_concurrency=in_range(paging.version, ">=0.21"), v0=False, context=paging.context,
    )  # fmt: skip


def _window_blocks(window: int, paging: Paging, block_tokens: int) -> int:
    """Blocks of one sliding layer: the window, one step's tokens, and one more as it starts inside a block."""
    return math.ceil(min(window - 1 + paging.batched_tokens, paging.context) / block_tokens) + 1


def _spec(group: AttentionGroup, model: ModelFacts, paging: Paging) -> _Spec | None:
    if group.kind == "encoder":
        return None
    layers = math.ceil(group.layers / paging.pipeline)
    if group.kind == "linear":
        return _Spec(layers=layers, token_bytes=group.state_bytes / paging.tensor, state=True)
    if group.kind == "mla":
        return _Spec(layers=layers, token_bytes=_latent_bytes(group, paging))
    heads = max(1, math.ceil(group.kv_heads / paging.tensor))
    token_bytes = heads * (group.head_dim + group.v_head_dim) * paging.value_bytes + group.extra_bytes
    window = group.window_tokens if group.kind in ("sliding", "chunked") else None
    return _Spec(layers=layers, token_bytes=token_bytes, window=window)


def _latent_bytes(group: AttentionGroup, paging: Paging) -> float:
    if in_range(paging.version, "<0.7.1"):
        # Before MLA was served as such: full heads, K and V padded to 256.
        return math.ceil(group.heads / paging.tensor) * 2 * 256 * paging.value_bytes
    if group.extra_bytes and paging.value_bytes <= 1:
        return _DS_MLA_BYTES + group.extra_bytes
    width = group.head_dim if in_range(paging.version, ">=0.7.3") else 64 * math.ceil(group.head_dim / 128) * 2
    return width * paging.value_bytes + group.extra_bytes
