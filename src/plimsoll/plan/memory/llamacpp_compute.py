"""llama.cpp's compute buffer: the most that one graph's temporary tensors take at once, stage by stage.

Found with b11549 on 22 models of known shape (dense, MoE, MLA, sliding window), each loaded from a header over a
sparse file, 512 to 4096 tokens a batch: exact but for fragmentation (at most 3 %). All tensors are float32, so a
stage is counted in values per batch token. Older builds are held against logged buffers (docs/planning.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from plimsoll.facts.model import ModelFacts

FLOAT = 4
LATENT_CACHE = 5140
"""Build from which MLA models cache and attend to the latent (llama.cpp PR 12801, April 2025); full heads before."""
OUTPUTS_PER_SLOT = 9500
"""Build about which logits came to be reserved for one token a slot rather than for every token of the batch (llama.cpp
PR 23861, June 2026, after b9272); b11549 does so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one graph is reserved for."""

    tokens: int
    """n_ubatch."""
    cells: int
    """Of one stream of the cache: the width of the attention mask."""
    window_cells: int
    """Of one stream of the sliding layers' cache; 0: there are none."""
    outputs: int
    """Tokens that logits are computed for."""
    flash: bool
    build: int
    copies: int = 1
    """Of the graph's inputs; more than one where layers on several devices run as a pipeline."""
    fork: bool = False
    """ik_llama.cpp: its mask and its output stage differ."""
    unfold_bytes: int | None = None
    """ik_llama.cpp's latent attention (mla 3): the most that heads are unfolded to at once (`-amb`); 0: no limit."""


def layer_values(model: ModelFacts, *, window: bool = False) -> int:
    """Float values per batch token alive at once in the widest stage of a layer, attention scores left out.

    Feed-forward: five hidden vectors stay (residual, norm, and the holes that attention leaves), then gate, up and
    their product, which fall into the holes where they are narrow; MoE the same per expert used, and the experts'
    outputs where those are wider. Attention: query, key, value and result beside the residual.
    """
    hidden, wide = model.hidden_size, model.intermediate_size
    apart = 1 if wide <= hidden else 2 if wide <= 2 * hidden else 3
    feed = 5 * hidden + apart * wide
    if model.moe is not None:
        used, narrow = model.moe.per_token, model.moe.intermediate_size
        routed = 5 * hidden
        if used * narrow > hidden:
            routed += 3 * used * narrow
        if hidden > narrow:
            routed += used * hidden
        feed = max(routed, feed) if model.moe.layers < model.layers else routed
    attention = 0
    for group in model.attention:
        if group.kind == "mla":
            # Query per head over latent and rope, the same after projection, key and value up-projections.
            attention = max(attention, 5 * hidden + group.heads * (group.head_dim * 7 // 3))
        elif group.kind not in ("linear",):
            query, key = group.heads * group.head_dim, group.kv_heads * group.head_dim
            attention = max(attention, hidden + 2 * query + 2 * key)
    return max(feed, attention)


def compute_bytes(model: ModelFacts, batch: Batch, *, output: bool = True) -> int:
    """Bytes of the compute buffer of a device that holds layers, and the output layer if `output`."""
    return round(max(_layers(model, batch), _output(model, batch) if output else 0))


def _layers(model: ModelFacts, batch: Batch) -> float:
    """Bytes while a layer is computed. The mask is f16 today; older builds made it in f32 and cast it, both alive until
    the first layer's attention, the cast one through all layers."""
    values = layer_values(model) * FLOAT * batch.tokens
    cells = batch.cells + batch.window_cells
    inputs = (batch.copies - 1) * batch.tokens * (cells + model.hidden_size) * FLOAT
    if not batch.cells:
        return values
    if batch.flash:
        if batch.build >= OUTPUTS_PER_SLOT:
            return values + cells * batch.tokens * 2 + inputs
        if batch.unfold_bytes is not None and (unfolded := _unfolded(model, batch)):
            return unfolded
        if batch.fork:
            return values + cells * batch.tokens * FLOAT + inputs
        casting = cells * batch.tokens * 6 + 5 * model.hidden_size * FLOAT * batch.tokens
        return max(casting, values + cells * batch.tokens * 2) + inputs
    mask = cells * batch.tokens * FLOAT
    return mask + inputs + max(values, _scores(model, batch))


def _unfolded(model: ModelFacts, batch: Batch) -> float:
    """The fork's prefill of latent attention: all heads' keys and values in f16, made from the latent in f32, so many
    heads at a time as `-amb` allows. 21 logged buffers of 2,094 to 11,718 MiB: median error 1.4 %, too low by 9 to 28 %
    in seven of them, where experts in RAM are copied through."""
    heads = max((group.heads for group in model.attention if group.kind == "mla"), default=0)
    if not heads:
        return 0.0
    kept = batch.cells * heads * (192 + 128) * 2 + batch.cells * batch.tokens * 2
    whole = batch.cells * heads * (128 + 128) * FLOAT
    if not batch.unfold_bytes:
        return kept + whole
    # What the chunks' results and the layer take; smaller batches are cut in another way, and cost more each token.
    each = 140_000 if batch.tokens <= 1024 else 50_000
    return kept + min(batch.unfold_bytes, whole) + batch.tokens * each * FLOAT


def _scores(model: ModelFacts, batch: Batch) -> float:
    """Attention without flash attention: a float for each head, cell and token, and what attention works on."""
    scores, attended = 0.0, 0
    for group in model.attention:
        if group.kind in ("linear", "encoder"):
            continue
        width = batch.window_cells if group.window_tokens and batch.window_cells else batch.cells
        scores = max(scores, float(width * group.heads * FLOAT * batch.tokens))
        query, key = group.heads * group.head_dim, group.kv_heads * group.head_dim
        if group.kind == "mla" and batch.build < LATENT_CACHE and not batch.fork:
            # Whole heads of 192 as in any other model, before the latent was attended to as it is.
            attended = max(attended, 2 * model.hidden_size + 2 * group.heads * 192)
        elif group.kind == "mla":
            attended = max(attended, layer_values(model))
        elif batch.build >= OUTPUTS_PER_SLOT:
            attended = max(attended, 3 * model.hidden_size + 3 * query + 2 * key)
        else:
            # 164 and 296 MiB logged for a 7B of 2048 and 4096 cells, 672 for a 35B with four copies of its inputs.
            attended = max(attended, 2 * model.hidden_size + 2 * query)
    return scores + attended * FLOAT * batch.tokens


def _output(model: ModelFacts, batch: Batch) -> float:
    if batch.build >= OUTPUTS_PER_SLOT and batch.outputs < batch.tokens:
        mask = (batch.cells + batch.window_cells) * batch.tokens * 2
        return batch.outputs * model.vocab_size * FLOAT + 5 * model.hidden_size * FLOAT * batch.tokens + mask
    # The masks are free again by then; the logits lie behind what the last layer left.
    left = 2 if batch.build >= OUTPUTS_PER_SLOT or (batch.fork and model.moe) else 1
    return (model.vocab_size + left * model.hidden_size) * FLOAT * float(batch.tokens)
