"""Rerank, score and embeddings: every client's shape on every engine's shape."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from typing import Any

import pytest
from stand_in import Got, ask, gateway, post, run, sized, standing, upstream

from plimsoll.gateway.rerank import normalise

DOCUMENTS = ["far", "near", "middle"]
LOGITS = [-4.0, 3.0, 0.5]
NEAR = [1 / (1 + math.exp(-logit)) for logit in LOGITS]
ENGINES: dict[str, Any] = {
    "llama.cpp": {
        "model": "r", "object": "list", "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [{"index": i, "relevance_score": score} for i, score in enumerate(LOGITS)],
    },
    "vLLM": {
        "id": "rerank-1", "model": "r", "usage": {"total_tokens": 9},
        "results": [
            {"index": i, "document": {"text": DOCUMENTS[i]}, "relevance_score": NEAR[i]} for i in (1, 2, 0)
        ],
    },
    "SGLang": [{"score": LOGITS[i], "document": DOCUMENTS[i], "index": i, "meta_info": {}} for i in (1, 2, 0)],
    "vLLM score": {"object": "list", "data": [{"index": i, "object": "score", "score": NEAR[i]} for i in range(3)]},
}  # fmt: skip


def engine_that_says(body: Any):
    async def script(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(sized(json.dumps(body).encode()))

    return script


def ranker(port: int, **changes: Any):
    return upstream(port, tasks=("rerank",), **changes)


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(
    "path", ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/v1/rerank", "/cohere/v2/rerank", "/v1/reranking"]
)
def test_every_index_comes_back_between_0_and_1_best_first(engine: str, path: str) -> None:
    async def test() -> None:
        async with standing(engine_that_says(ENGINES[engine])) as said, gateway(ranker(said.port)) as (front, _):
            asked = {"model": "m", "query": "q", "documents": DOCUMENTS, "return_documents": "true"}
            got = (await ask(front.address, post(path, asked))).json
            assert [row["index"] for row in got["results"]] == [1, 2, 0]
            assert [row["relevance_score"] for row in got["results"]] == pytest.approx([NEAR[i] for i in (1, 2, 0)])
            assert got["results"][0]["document"] == {"text": "near"}
            assert said.got[0].json["top_n"] == 3

    run(test())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"query": "q", "documents": DOCUMENTS, "top_n": 1}, [1]),
        ({"query": "q", "documents": [{"text": d} for d in DOCUMENTS]}, [1, 2, 0]),
        ({"query": "q", "documents": [{"a": d, "b": "x"} for d in DOCUMENTS], "rank_fields": ["a"]}, [1, 2, 0]),
    ],
)
def test_cohere_and_jina_documents(asked: dict[str, Any], expected: list[int]) -> None:
    async def test() -> None:
        async with standing(engine_that_says(ENGINES["vLLM"])) as said, gateway(ranker(said.port)) as (front, _):
            got = (await ask(front.address, post("/v1/rerank", {"model": "m", **asked}))).json
            assert [row["index"] for row in got["results"]] == expected
            assert got["usage"] == {"total_tokens": 9}
            assert got["meta"]["billed_units"]
            sent = said.got[0].json["documents"]
            assert sent == (DOCUMENTS if "rank_fields" not in asked else [f"a: {d}" for d in DOCUMENTS])

    run(test())


def test_tei_asks_texts_and_gets_a_list_and_needs_no_model() -> None:
    async def test() -> None:
        async with standing(engine_that_says(ENGINES["llama.cpp"])) as said, gateway(ranker(said.port)) as (front, _):
            got = (
                await ask(front.address, post("/rerank", {"query": "q", "texts": DOCUMENTS, "return_text": True}))
            ).json
            assert got[0] == {"index": 1, "score": pytest.approx(NEAR[1]), "text": "near"}
            raw = (
                await ask(front.address, post("/rerank", {"query": "q", "texts": DOCUMENTS, "raw_scores": True}))
            ).json
            assert [row["score"] for row in raw] == [3.0, 0.5, -4.0]

    run(test())


def test_score_is_made_of_rerank_and_rerank_of_score() -> None:
    async def test() -> None:
        async with standing(engine_that_says(ENGINES["llama.cpp"])) as said, gateway(ranker(said.port)) as (front, _):
            got = (await ask(front.address, post("/score", {"model": "m", "text_1": "q", "text_2": DOCUMENTS}))).json
            assert [row["score"] for row in got["data"]] == pytest.approx(NEAR)
        only_score = {"routes": ("/score",)}
        async with (
            standing(engine_that_says(ENGINES["vLLM score"])) as said,
            gateway(ranker(said.port, **only_score)) as (front, _),
        ):
            asked = {"model": "m", "query": "q", "documents": DOCUMENTS}
            assert (await ask(front.address, post("/v1/rerank", asked))).json["results"][0]["index"] == 1
            assert said.got[0].head.startswith(b"POST /score ")

    run(test())


@pytest.mark.parametrize(
    ("asked", "says", "status"),
    [
        ({"query": "q"}, {}, 400),
        ({"query": "q", "documents": DOCUMENTS}, {"results": [{"index": 0, "relevance_score": 1}]}, 502),
        ({"query": "q", "documents": DOCUMENTS}, {"results": "?"}, 502),
    ],
)
def test_what_cannot_be_ranked_is_refused(asked: dict[str, Any], says: Any, status: int) -> None:
    async def test() -> None:
        async with standing(engine_that_says(says)) as said, gateway(ranker(said.port)) as (front, records):
            assert (await ask(front.address, post("/v1/rerank", {"model": "m", **asked}))).status == status
            assert front.health()[1]["models"]["m"]["running"] == 0
            assert records[0].status == status

    run(test())


def test_scores_of_a_known_kind() -> None:
    assert normalise([0.2, 0.9], "unknown") == [0.2, 0.9]
    assert normalise([0.2, 0.9], "logit") == pytest.approx([0.549834, 0.710950])
    assert normalise([-0.1, 1.2], "probability") == [0.0, 1.0]
    assert normalise([-1e9, 1e9], "logit") == pytest.approx([0.0, 1.0])


def test_base64_embeddings_are_packed_when_the_engine_sends_numbers() -> None:
    says = {"object": "list", "data": [{"index": 0, "embedding": [0.5, -1.25]}], "usage": {"prompt_tokens": 1}}

    async def test() -> None:
        async with standing(engine_that_says(says)) as said, gateway(upstream(said.port)) as (front, records):
            asked = {"model": "m", "input": ["a"], "encoding_format": "base64", "drop_params": True}
            got = (await ask(front.address, post("/v1/embeddings", asked))).json
            assert base64.b64decode(got["data"][0]["embedding"]) == struct.pack("<2f", 0.5, -1.25)
            assert said.got[0].json == asked
            assert records[0].prompt_tokens == 1

    run(test())


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]]])
def test_token_ids_are_refused_with_the_reason_unless_allowed(ids: list[Any]) -> None:
    async def test() -> None:
        async with standing(engine_that_says({"data": []})) as said:
            asked = post("/v1/embeddings", {"model": "m", "input": ids})
            async with gateway(upstream(said.port)) as (front, _):
                got = await ask(front.address, asked)
                assert got.status == 400
                assert "check_embedding_ctx_length=False" in got.error["message"]
            async with gateway(upstream(said.port, token_ids=True)) as (front, _):
                assert (await ask(front.address, asked)).status == 200

    run(test())
