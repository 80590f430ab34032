"""Rerank and score in every shape that clients use, on engines that each answer in their own.

Asked: Jina and Cohere v1 and v2 (`documents`, `top_n`), TEI (`texts`), vLLM's /score (`text_1`, `text_2`). Answered by
the engine: `results` with `relevance_score` (vLLM, llama.cpp, Infinity) or a list with `score` (SGLang, TEI). Every
document's index comes back, best first, and every score lies between 0 and 1: clients compare it with thresholds.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway.table import Upstream

Shape = Literal["jina", "tei", "score"]
_RERANK_PATHS = ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranking", "/reranking")


class RerankAdapter:
    """One rerank or score request."""

    events = None

    def __init__(self, content: dict[str, Any], shape: Shape) -> None:
        if "texts" in content and "documents" not in content:
            shape = "tei"
        self._shape = shape
        self._content = content
        self._model = content.get("model")
        query, documents = _score_texts(content) if shape == "score" else _rerank_texts(content)
        self._query = query
        self._given = documents
        self._documents = [_document_text(document, content.get("rank_fields")) for document in documents]
        self._top_n = _count(content, "top_n", len(documents))
        self._raw = _flag(content, "raw_scores") or content.get("use_activation") is False
        self._scores: Literal["probability", "logit", "unknown"] = "unknown"

    def request(self, upstream: Upstream) -> tuple[bytes, bytes]:
        """Path and body for the engine: all documents are asked for, whatever `top_n` says."""
        self._scores = upstream.rerank_scores
        body: dict[str, Any] = {
            "model": upstream.model or self._model,
            "query": self._query,
            "documents": self._documents,
            "top_n": len(self._documents),
        }
        if not upstream.serves(*_RERANK_PATHS) and upstream.serves("/score", "/v1/score"):
            body = {"model": body["model"], "text_1": self._query, "text_2": self._documents}
            return upstream.path_of("/score", "/v1/score"), orjson.dumps(body)
        for option in ("truncate_prompt_tokens", "max_tokens_per_doc", "use_activation", "instruction"):
            if option in self._content:
                body[option] = self._content[option]
        return upstream.path_of(*_RERANK_PATHS), orjson.dumps(body)

    def answer(self, body: bytes) -> bytes:
        """The engine's answer in the shape that was asked for; GatewayError 502 if it does not score every document."""
        content = orjson.loads(body)
        scores = read_scores(content, len(self._documents))
        if not self._raw:
            scores = normalise(scores, self._scores)
        usage = content.get("usage") if isinstance(content, dict) else None
        if self._shape == "score":
            data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
            return orjson.dumps(_head(content, self._model, "score") | {"data": data, "usage": usage or {}})
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: self._top_n]
        if self._shape == "tei":
            with_text = _flag(self._content, "return_text")
            return orjson.dumps(
                [{"index": i, "score": scores[i], **({"text": self._documents[i]} if with_text else {})} for i in order]
            )
        with_documents = _flag(self._content, "return_documents")
        results = [
            {
                "index": i,
                "relevance_score": scores[i],
                **({"document": _as_object(self._given[i])} if with_documents else {}),
            }
            for i in order
        ]
        total = (usage or {}).get("total_tokens") or (usage or {}).get("prompt_tokens") or 0
        meta = {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": total, "output_tokens": 0},
        }
        return orjson.dumps(
            _head(content, self._model, "rerank") | {"results": results, "usage": usage or {}, "meta": meta}
        )


def adapt_rerank(body: bytes, content: dict[str, Any], upstream: Upstream) -> RerankAdapter:
    """A rerank request; GatewayError 400 if it lacks its texts."""
    del body, upstream
    return RerankAdapter(content, "jina")


def adapt_score(body: bytes, content: dict[str, Any], upstream: Upstream) -> RerankAdapter:
    """A score request; GatewayError 400 if it lacks its texts."""
    del body, upstream
    return RerankAdapter(content, "score")


def read_scores(content: Any, count: int) -> list[float]:
    """The score of each document by its index; GatewayError 502 if any is missing or is not a number."""
    rows = content
    if isinstance(content, dict):
        rows = content.get("results", content.get("data"))
    scores: dict[int, float] = {}
    for position, row in enumerate(rows if isinstance(rows, list) else []):
        if isinstance(row, dict):
            score = row.get("relevance_score", row.get("score"))
            index = row.get("index", position)
            if isinstance(score, int | float) and isinstance(index, int):
                scores[index] = float(score)
    if sorted(scores) != list(range(count)) or not all(map(math.isfinite, scores.values())):
        raise GatewayError(
            f"The engine scored {len(scores)} of {count} documents.", status=502,
            hint="It may have dropped documents that are too long; send shorter ones.",
        )  # fmt: skip
    return [scores[index] for index in range(count)]


def normalise(scores: list[float], kind: Literal["probability", "logit", "unknown"]) -> list[float]:
    """Scores between 0 and 1: logits through a sigmoid; of an unknown kind, logits if any lies outside."""
    if kind == "logit" or (kind == "unknown" and any(not 0 <= score <= 1 for score in scores)):
        return [_sigmoid(score) for score in scores]
    return [min(1.0, max(0.0, score)) for score in scores]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-min(logit, 700)))
    grown = math.exp(max(logit, -700))
    return grown / (1 + grown)


def _rerank_texts(content: dict[str, Any]) -> tuple[Any, list[Any]]:
    query = content.get("query")
    documents = content.get("documents", content.get("texts"))
    if not query or not isinstance(documents, list) or not documents:
        raise GatewayError(
            "A rerank request needs a 'query' and a list of 'documents' (or 'texts').",
            status=400,
            kind="invalid_request_error",
        )
    return query, documents


def _score_texts(content: dict[str, Any]) -> tuple[Any, list[Any]]:
    first = content.get("text_1", content.get("queries", content.get("query")))
    second = content.get("text_2", content.get("documents", content.get("items")))
    if isinstance(first, list) and len(first) == 1:
        first = first[0]
    if isinstance(second, str | dict):
        second = [second]
    if isinstance(first, list):
        raise GatewayError(
            "Several texts in 'text_1' are not served here.", status=400, kind="invalid_request_error",
            hint="Send one request for each text in 'text_1'.",
        )  # fmt: skip
    if not first or not second:
        raise GatewayError("A score request needs 'text_1' and 'text_2'.", status=400, kind="invalid_request_error")
    return first, second


def _document_text(document: Any, rank_fields: Any) -> Any:
    """A document as engines take it: text; an object of fields becomes lines, multimodal content stays as it is."""
    if not isinstance(document, dict) or "content" in document:
        return document
    if isinstance(rank_fields, list) and rank_fields:
        document = {name: document.get(name, "") for name in rank_fields}
    elif isinstance(document.get("text"), str):
        return document["text"]
    return "\n".join(f"{name}: {value}" for name, value in document.items())


def _as_object(document: Any) -> Any:
    return {"text": document} if isinstance(document, str) else document


def _flag(content: dict[str, Any], name: str) -> bool:
    """A flag; Xinference's clients send the strings "true" and "false"."""
    value = content.get(name)
    return value.lower() == "true" if isinstance(value, str) else bool(value)


def _count(content: dict[str, Any], name: str, most: int) -> int:
    value = content.get(name)
    if value is None:
        return most
    if not isinstance(value, int) or value < 0:
        raise GatewayError(f"'{name}' is not a count.", status=400, kind="invalid_request_error")
    return min(value, most) or most


def _head(content: Any, model: Any, kind: str) -> dict[str, Any]:
    given = content if isinstance(content, dict) else {}
    head = {"id": given.get("id") or kind, "object": "list", "model": given.get("model") or model}
    return head | ({"created": given.get("created", 0)} if kind == "score" else {})
