"""Anthropic's messages made of chat completions, and the routes that are passed on untouched."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from stand_in import EVENT_STREAM, Got, ask, chunk, delta, gateway, post, run, sized, standing, upstream

from plimsoll.errors import GatewayError
from plimsoll.gateway.messages import to_chat

HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (
            {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "system", "content": "a\nb"},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            {"role": "user", "content": "x"},
        ),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}]}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "r"}]}]},
            {"role": "tool", "tool_call_id": "t", "content": "r"},
        ),
        (
            {"messages": [{"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]},
        ),
    ],
)  # fmt: skip
def test_messages_in_the_form_of_chat(asked: dict[str, Any], sent: dict[str, Any]) -> None:
    assert to_chat({"model": "m", "messages": HELLO, **asked})["messages"][0] == sent


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    ],
)
def test_what_chat_cannot_say_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(GatewayError) as caught:
        to_chat({"model": "m", "messages": HELLO, **asked})
    assert caught.value.status == 400


def test_a_cut_stream_ends_with_anthropics_error_event() -> None:
    async def cut(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM + chunk(delta("a")))
        await writer.drain()
        writer.transport.abort()

    async def test() -> None:
        async with standing(cut) as engine:
            for routes in ((), ("/v1/messages",)):
                async with gateway(upstream(engine.port, routes=routes)) as (front, _):
                    asked = {"model": "m", "max_tokens": 5, "messages": HELLO, "stream": True}
                    got = await ask(front.address, post("/v1/messages", asked))
                    name, data = got.body.rstrip().rsplit(b"\n\n", 1)[-1].split(b"\n")
                    assert name == b"event: error"
                    assert json.loads(data[6:])["type"] == "error"

    run(test())


def test_errors_are_in_anthropics_form() -> None:
    async def test() -> None:
        async with gateway(upstream(1, healthy=False, reason="gone")) as (front, _):
            got = await ask(front.address, post("/v1/messages", {"model": "m", "messages": HELLO}))
            assert (got.status, got.json["type"], got.error["type"]) == (503, "error", "overloaded_error")

    run(test())


def form(**fields: str) -> tuple[bytes, str]:
    parts = "".join(f'--B\r\ncontent-disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items())
    return f"{parts}--B--\r\n".encode(), "content-type: multipart/form-data; boundary=B"


async def echo(got: Got, writer: asyncio.StreamWriter) -> None:
    writer.write(sized(got.body, content_type="text/plain"))


def test_a_form_passes_with_the_engines_model_name() -> None:
    async def test() -> None:
        async with standing(echo) as engine:
            audio = upstream(engine.port, routes=("/v1/audio/transcriptions",), model="whisper")
            async with gateway(audio) as (front, _):
                body, content_type = form(file="\x01\x02", model="m", language="en")
                got = await ask(front.address, post("/v1/audio/transcriptions", body, content_type))
                assert got.body == form(file="\x01\x02", model="whisper", language="en")[0]
                assert content_type.encode() in engine.got[0].head

    run(test())


@pytest.mark.parametrize(("routes", "status"), [(("/tokenize",), 200), ((), 501)])
def test_a_route_of_the_engines_own_is_passed_on_where_it_has_it(routes: tuple[str, ...], status: int) -> None:
    async def test() -> None:
        async with standing(echo) as engine, gateway(upstream(engine.port, routes=routes)) as (front, _):
            assert (await ask(front.address, post("/tokenize", {"content": "a"}))).status == status

    run(test())
