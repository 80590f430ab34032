"""Encoders for embedding, reranking and classification: BERT and what came of it. They cache nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plimsoll.facts.architectures.keys import Keys, every
from plimsoll.facts.architectures.shapes import Shapes
from plimsoll.facts.model import AttentionGroup

Encoder = Callable[[Keys, str], Shapes]
"""`(keys, architecture)`: the architecture's name tells whether a classifier sits on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    bias: bool = True
    norm_bias: bool = True
    gated: bool = False
    down_bias: bool | None = None
    positions: int | None = 0
    """Rows of learned positions beyond `max_position_embeddings`; None: rotary or none."""
    pooler: bool = True
    dense_head: bool = False
    """Whether the classifier has a dense layer before its output (RoBERTa)."""
    types: bool = True


def _encoder(keys: Keys, architecture: str, style: _Style) -> Shapes:
    shapes = Shapes()
    hidden, inner = keys.hidden, keys.size("intermediate_size", "hidden_dim", "n_inner", default=4 * keys.hidden)
    layers = every(keys.layers)
    shapes.table("embeddings.word_embeddings", keys.vocab, hidden, sharding="vocab")
    if style.positions is not None:
        shapes.table("embeddings.position_embeddings", keys.context + style.positions, hidden, sharding="replicated")
    if style.types:
        shapes.table("embeddings.token_type_embeddings", keys.size("type_vocab_size", default=2), hidden,
                     sharding="replicated")  # fmt: skip
    shapes.vector("embeddings.LayerNorm", hidden, bias=style.norm_bias)
    for name in ("query", "key", "value"):
        shapes.linear(f"layers.{{}}.attention.self.{name}", "attention", hidden, hidden, at=layers, bias=style.bias)
    shapes.linear("layers.{}.attention.output.dense", "attention", hidden, hidden, at=layers, cut="in", bias=style.bias)
    for name in ("gate", "up") if style.gated else ("up",):
        shapes.linear(f"layers.{{}}.{name}", "mlp", inner, hidden, at=layers, bias=style.bias and not style.gated)
    down = style.bias if style.down_bias is None else style.down_bias
    shapes.linear("layers.{}.down", "mlp", hidden, inner, at=layers, cut="in", bias=down)
    shapes.vector("layers.{}.norms", 2 * hidden, at=layers, bias=style.norm_bias)
    _head(shapes, keys, architecture, style)
    dim = hidden // max(1, keys.heads)
    shapes.cache((
        AttentionGroup(
            kind="encoder", layers=keys.layers, heads=keys.heads, kv_heads=keys.heads, head_dim=dim, v_head_dim=dim
        ),
    ))  # fmt: skip
    return shapes


def _head(shapes: Shapes, keys: Keys, architecture: str, style: _Style) -> None:
    classifies = architecture.endswith("ForSequenceClassification")
    if style.pooler and not (classifies and style.dense_head):
        shapes.linear("pooler.dense", "pooler", keys.hidden, keys.hidden, sharding="replicated", bias=True)
    if classifies:
        labels = keys.get("id2label")
        count = len(labels) if isinstance(labels, dict) else keys.size("num_labels", default=2)
        if style.dense_head:
            shapes.linear("classifier.dense", "pooler", keys.hidden, keys.hidden, sharding="replicated", bias=True)
        shapes.linear("classifier.out_proj", "pooler", count, keys.hidden, sharding="replicated", bias=True)


def modernbert(keys: Keys, architecture: str) -> Shapes:
    """ModernBERT: rotary positions, gated layers, no biases, a head of its own."""
    shapes = Shapes()
    hidden, layers = keys.hidden, every(keys.layers)
    shapes.table("embeddings.tok_embeddings", keys.vocab, hidden, sharding="vocab")
    shapes.vector("embeddings.norm", hidden)
    shapes.linear("layers.{}.attn.Wqkv", "attention", 3 * hidden, hidden, at=layers)
    shapes.linear("layers.{}.attn.Wo", "attention", hidden, hidden, at=layers, cut="in")
    shapes.linear("layers.{}.mlp.Wi", "mlp", 2 * keys.inner, hidden, at=layers)
    shapes.linear("layers.{}.mlp.Wo", "mlp", hidden, keys.inner, at=layers, cut="in")
    shapes.vector("layers.{}.mlp_norm", hidden, at=layers)
    shapes.vector("layers.{}.attn_norm", hidden, at=layers[1:])
    shapes.vector("final_norm", hidden)
    if architecture.endswith("ForSequenceClassification"):
        shapes.linear("head.dense", "pooler", hidden, hidden, sharding="replicated")
        shapes.vector("head.norm", hidden)
        labels = keys.get("id2label")
        shapes.linear("classifier", "pooler", len(labels) if isinstance(labels, dict) else 2, hidden,
                      sharding="replicated", bias=True)  # fmt: skip
    dim = hidden // max(1, keys.heads)
    for kind, count in (("full", -(-keys.layers // 3)), ("local", keys.layers - -(-keys.layers // 3))):
        window = None if kind == "full" else keys.size("local_attention", default=128)
        shapes.cache((
            AttentionGroup(
                kind="encoder", layers=count, heads=keys.heads, kv_heads=keys.heads, head_dim=dim, v_head_dim=dim,
                window_tokens=window,
            ),
        ))  # fmt: skip
    return shapes


def _styled(style: _Style) -> Encoder:
    return lambda keys, architecture: _encoder(keys, architecture, style)


_BERT = _styled(_Style())
_ROBERTA = _styled(_Style(dense_head=True))
_GTE = _styled(_Style(gated=True, positions=None, down_bias=True, pooler=False))

ENCODERS: dict[str, Encoder] = {
    "bert": _BERT, "distilbert": _styled(_Style(types=False, pooler=False)), "mpnet": _styled(_Style(types=False)),
    "electra": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA, "xlm_roberta": _ROBERTA,
    "modernbert": modernbert, "new": _GTE, "gte": _GTE, "NewModel": _GTE,
    "nomic_bert": _styled(_Style(bias=False, gated=True, positions=None, pooler=False)),
    "jina_embeddings_v3": _styled(_Style(positions=None)),
}  # fmt: skip
