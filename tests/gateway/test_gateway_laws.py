"""Laws of the parts that read what strangers send: nothing is lost, nothing but the promised error escapes."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in import DONE, USAGE, delta, run

from plimsoll.errors import GatewayError
from plimsoll.gateway import messages, responses
from plimsoll.gateway.adapters import MALFORMED
from plimsoll.gateway.bodies import ask_usage, set_model
from plimsoll.gateway.client import Client
from plimsoll.gateway.rerank import RerankAdapter, normalise
from plimsoll.gateway.server import Gateway
from plimsoll.gateway.sse import EventTap

quick = settings(deadline=None, max_examples=40)
events = st.lists(
    st.sampled_from(
        [delta("a"), delta(None, "assistant"), USAGE, DONE, b": ping\n\n", b"data: \xff\n\n", b"\n", b"data:"]
    )
    | st.binary(max_size=12),
    max_size=12,
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@quick
@given(events, st.lists(st.integers(0, 10**4), max_size=20), st.sampled_from([b"\n", b"\r\n"]))
def test_no_byte_of_a_stream_is_lost_however_it_is_cut(parts: list[bytes], cuts: list[int], ending: bytes) -> None:
    data = b"".join(parts).replace(b"\n", ending)
    tap = EventTap(strip_usage=False)
    assert b"".join(tap.feed(piece) for piece in cut(data, cuts)) + tap.rest() == data


@quick
@given(st.lists(st.sampled_from([delta("a"), b": ping\n\n"]), max_size=8), st.lists(st.integers(0, 10**4), max_size=20))
def test_only_the_usage_event_that_the_gateway_asked_for_vanishes(parts: list[bytes], cuts: list[int]) -> None:
    tap = EventTap(strip_usage=True)
    data = b"".join((*parts, USAGE, DONE))
    assert b"".join(tap.feed(piece) for piece in cut(data, cuts)) + tap.rest() == b"".join((*parts, DONE))
    assert tap.usage == (5, 3)
    assert tap.done


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(["model", "stream", "messages", "stream_options", "x", 'a"b'])
bodies = st.dictionaries(names, json_values, max_size=5)


@quick
@given(bodies, st.text(max_size=8), st.text(max_size=8), st.booleans())
def test_a_changed_body_differs_only_where_it_was_meant_to(
    content: dict[str, Any], old: str, new: str, pretty: bool
) -> None:
    content = {**content, "model": old}
    body = orjson.dumps(content, option=orjson.OPT_INDENT_2 if pretty else None)
    assert orjson.loads(set_model(body, content, new)) == {**content, "model": new}
    content.pop("stream_options", None)
    asked = ask_usage(orjson.dumps(content), content)
    assert orjson.loads(asked) == {"stream_options": {"include_usage": True}, **content}


KEYS = """model messages role content type text tools tool_choice input choices delta message tool_calls function name
arguments id index finish_reason usage system source query documents results relevance_score score"""
keys = st.sampled_from(KEYS.split())
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["user", "text", "m", "tool_use", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
odd_bodies = st.dictionaries(keys, odd_json, max_size=7)


@quick
@given(odd_bodies, st.lists(odd_bodies, max_size=3))
def test_translators_raise_nothing_but_what_is_handled(asked: dict[str, Any], said: list[dict[str, Any]]) -> None:
    for make in (
        lambda: messages.MessagesAdapter({**asked, "stream": True}),
        lambda: responses.ResponsesAdapter({**asked, "stream": True}),
        lambda: RerankAdapter(asked, "jina"),
        lambda: RerankAdapter(asked, "score"),
    ):
        try:
            adapter = make()
        except (GatewayError, *MALFORMED):
            continue
        for body in said:
            try:
                adapter.answer(orjson.dumps(body))
                if adapter.events is not None:
                    adapter.events.event(body)
            except (GatewayError, *MALFORMED):
                continue
        if adapter.events is not None:
            adapter.events.end()


@quick
@given(st.lists(st.floats(allow_nan=False), min_size=1), st.sampled_from(["probability", "logit", "unknown"]))
def test_scores_are_between_0_and_1_and_keep_their_order(scores: list[float], kind: Any) -> None:
    found = normalise(scores, kind)
    assert all(0 <= score <= 1 for score in found)
    assert [found[i] for i in sorted(range(len(scores)), key=scores.__getitem__)] == sorted(found)


class DeafTransport(asyncio.Transport):
    """Takes what is written and sends it nowhere."""

    closed = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


LINES = [
    b"GET /health HTTP/1.1\r\n", b"POST /v1/rerank HTTP/1.1\r\n", b"host: x\r\n", b"content-length: 2\r\n", b"\r\n",
    b"transfer-encoding: chunked\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n", b"expect: 100-continue\r\n", b"{}",
    b"2\r\n{}\r\n", b"0\r\n\r\n", b"content-length: 99\r\n", b" ", b"\x00",
]  # fmt: skip


@quick
@given(st.lists(st.lists(st.sampled_from(LINES) | st.binary(max_size=6), max_size=12), max_size=20))
def test_no_bytes_of_a_client_raise(connections: list[list[bytes]]) -> None:
    async def test() -> None:
        front = Gateway()
        await front.start("127.0.0.1", 0)
        for pieces in connections:
            client, transport = Client(front), DeafTransport()
            client.connection_made(transport)
            for piece in pieces:
                if not transport.closed:
                    client.data_received(piece)
            client.sweep(1e12)
            client.connection_lost(None)
        await front.stop(0)

    run(test())
