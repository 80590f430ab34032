"""The real clients from PyPI against the gateway; those that are not installed are skipped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from stand_in import DONE, EVENT_STREAM, Got, chunk, gateway, run, sized, standing, upstream

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea"}'}}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}


def completion(message: dict[str, Any], finish: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}


def pieces(got: dict[str, Any]) -> list[bytes]:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    calls = bool(got.get("tools"))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}]
    deltas += [{"content": "Hel"}, {"content": "lo"}]
    if calls:
        half = {"index": 0, **CALL, "function": {"name": "look", "arguments": '{"at":'}}
        deltas += [{"tool_calls": [half]}, {"tool_calls": [{"index": 0, "function": {"arguments": '"sea"}'}}]}]
    rows: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    rows.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]})
    if got.get("stream_options", {}).get("include_usage"):
        rows.append({"choices": [], "usage": USAGE})
    return [b"data: " + json.dumps({**base, **row}).encode() + b"\n\n" for row in rows] + [DONE]


async def engine(got: Got, writer: asyncio.StreamWriter) -> None:
    """Chat completions and embeddings, as an engine answers them."""
    asked = got.json
    if b"/embeddings" in got.head:
        rows = [{"object": "embedding", "index": i, "embedding": [0.5, 0.25]} for i, _ in enumerate(asked["input"])]
        body = {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        writer.write(sized(json.dumps(body).encode()))
    elif b"/rerank" in got.head:
        results = [{"index": i, "relevance_score": float(i)} for i, _ in enumerate(asked["documents"])]
        writer.write(sized(json.dumps({"results": results, "usage": {"total_tokens": 4}}).encode()))
    elif asked.get("stream"):
        writer.write(EVENT_STREAM + b"".join(map(chunk, pieces(asked))) + b"0\r\n\r\n")
    elif asked.get("tools"):
        writer.write(sized(json.dumps(completion({"content": None, "tool_calls": [CALL]}, "tool_calls")).encode()))
    else:
        writer.write(sized(json.dumps(completion({"content": "Hello"}, "stop")).encode()))


def everything(port: int):
    return upstream(port, tasks=("chat", "completion", "embed", "rerank"))


def test_openai() -> None:
    async def test() -> None:
        async with standing(engine) as said, gateway(everything(said.port)) as (front, _):
            url = "http://{}:{}/v1".format(*front.address)
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                hello = [{"role": "user", "content": "hi"}]
                whole = await client.chat.completions.create(model="m", messages=hello)
                assert whole.choices[0].message.content == "Hello"
                stream = await client.chat.completions.create(model="m", messages=hello, stream=True)
                text = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
                assert "".join(text) == "Hello"
                vectors = await client.embeddings.create(model="m", input=["a", "b"])  # it asks for base64
                assert vectors.data[1].embedding == [0.5, 0.25]
                assert [model.id async for model in client.models.list()] == ["m"]
                with pytest.raises(openai.NotFoundError, match="Served here: m"):
                    await client.chat.completions.create(model="gpt-5", messages=hello)

    run(test())


def test_openai_responses() -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    said_before = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "t1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "t1", "output": "waves"},
    ]

    async def test() -> None:
        async with standing(engine) as said, gateway(everything(said.port)) as (front, records):
            url = "http://{}:{}/v1".format(*front.address)
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                whole = await client.responses.create(model="m", input=said_before, instructions="be brief")
                assert (whole.output_text, whole.status, whole.usage.output_tokens) == ("Hello", "completed", 3)
                sent = said.got[0].json["messages"]
                assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
                async with client.responses.stream(model="m", input="hi", tools=[tool]) as stream:
                    kinds = [event.type async for event in stream]
                    last = await stream.get_final_response()
                assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
                assert [item.type for item in last.output] == ["reasoning", "message", "function_call"]
                assert (last.output_text, last.output[2].arguments) == ("Hello", '{"at":"sea"}')
                assert last.usage.total_tokens == 8
                with pytest.raises(openai.BadRequestError, match="nothing is kept here"):
                    await client.responses.create(model="m", input="hi", previous_response_id="resp_1")
            assert [record.output_tokens for record in records[:2]] == [3, 3]

    run(test())


def test_anthropic() -> None:
    anthropic = pytest.importorskip("anthropic")
    tool = {"name": "look", "description": "looks", "input_schema": {"type": "object", "properties": {}}}
    said_before = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "waves"}]},
    ]

    async def test() -> None:
        async with standing(engine) as said, gateway(everything(said.port)) as (front, records):
            url = "http://{}:{}".format(*front.address)
            async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
                asked = {"model": "m", "max_tokens": 9, "system": "be brief", "messages": said_before}
                whole = await client.messages.create(**asked)
                assert (whole.content[0].text, whole.stop_reason) == ("Hello", "end_turn")
                assert (whole.usage.input_tokens, whole.usage.output_tokens) == (3, 3)
                async with client.messages.stream(**asked, tools=[tool]) as stream:
                    last = await stream.get_final_message()
                assert [block.type for block in last.content] == ["thinking", "text", "tool_use"]
                assert (last.content[1].text, last.content[2].input) == ("Hello", {"at": "sea"})
                assert (last.stop_reason, last.usage.output_tokens) == ("tool_use", 3)
                with pytest.raises(anthropic.NotFoundError):
                    await client.messages.create(**{**asked, "model": "claude"})
            assert records[0].output_tokens == 3

    run(test())


def test_cohere_v1_and_v2() -> None:
    cohere = pytest.importorskip("cohere")

    async def test() -> None:
        async with standing(engine) as said, gateway(everything(said.port)) as (front, _):
            url = "http://{}:{}".format(*front.address)
            for kind in (cohere.AsyncClient, cohere.AsyncClientV2):
                async with kind(api_key="none", base_url=url) as client:
                    got = await client.rerank(model="m", query="q", documents=["a", "b", "c"], top_n=2)
                    assert [row.index for row in got.results] == [2, 1]
                    assert 0.5 < got.results[0].relevance_score < 1

    run(test())


def test_langchain() -> None:
    langchain = pytest.importorskip("langchain_openai")

    async def test() -> None:
        async with (
            standing(engine) as said, gateway(everything(said.port)) as (front, _), httpx.AsyncClient() as http,
        ):  # fmt: skip
            common = {"model": "m", "base_url": "http://{}:{}/v1".format(*front.address), "api_key": "none"}
            chat = langchain.ChatOpenAI(**common, http_async_client=http)
            assert (await chat.ainvoke("hi")).content == "Hello"
            assert "".join([piece.text async for piece in chat.astream("hi")]) == "Hello"
            vectors = langchain.OpenAIEmbeddings(**common, http_async_client=http, check_embedding_ctx_length=False)
            assert await vectors.aembed_documents(["a"]) == [[0.5, 0.25]]

    run(test())
