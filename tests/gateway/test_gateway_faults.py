"""Engines and clients that misbehave: the right status, nothing smuggled, nothing left behind."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable

import pytest
from stand_in import (
    DONE,
    EVENT_STREAM,
    Answer,
    Got,
    ask,
    chat,
    chunk,
    delta,
    gateway,
    post,
    read_answer,
    run,
    sized,
    standing,
    upstream,
)  # fmt: skip

from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Settings

OK = b'{"ok":1}'
UNTIL_CLOSE = EVENT_STREAM.replace(b"transfer-encoding: chunked\r\n", b"")
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


def says(data: bytes, then: str = "stay") -> Callable:
    async def script(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then == "reset":
            writer.transport.abort()
        elif then == "close":
            writer.close()
        elif then == "half-close":
            writer.write_eof()
        elif then == "stall":
            await asyncio.sleep(20)

    return script


async def at_rest(front: Gateway) -> None:
    """Every slot is free, nobody waits, and only this task, the sweeper and the stand-in's are left."""
    for _ in range(100):
        models = front.health()[1]["models"]
        if not any(model["running"] or model["waiting"] for model in models.values()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(models)


ENGINES = {
    "reset": (says(b"", "reset"), 503),
    "closed": (says(b"", "close"), 503),
    "not http": (says(b"SSH-2.0-OpenSSH\r\n\r\n"), 502),
    "cut short": (says(sized(OK)[:-3], "close"), 503),
    "too long": (says(sized(OK) + b"x" * 9), 200),
    "two answers": (says(sized(OK) + sized(b'{"evil":1}')), 200),
    "two lengths": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\ncontent-length: 9\r\n\r\n" + OK), 502),
    "length and chunks": (says(CHUNKED[:-2] + b"content-length: 8\r\n\r\n" + chunk(OK) + b"0\r\n\r\n"), 502),
    "bad chunk size": (says(CHUNKED + b"zz\r\n" + OK), 502),
    "head without end": (says(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60000, "stall"), 502),
    "early hints": (says(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + sized(OK)), 200),
    "switching protocols": (
        says(b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        502,
    ),
    "trailers": (says(CHUNKED + chunk(OK) + b"0\r\nx-trailer: evil\r\n\r\n"), 200),
    "until close": (says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + OK, "close"), 200),
    "until close, cut": (says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + OK[:4], "close"), 503),
    "http/1.0": (says(b"HTTP/1.0 200 OK\r\ncontent-length: 8\r\n\r\n" + OK, "close"), 200),
    "half-closed": (says(sized(OK), "half-close"), 200),
    "header from hell": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx\x00y: z\r\n\r\n" + OK), 502),
    "silent": (says(b"", "stall"), 504),
    "stalls": (says(sized(OK)[:-3], "stall"), 504),
    "error as a page": (says(sized(b"<html>boom</html>", "500 Oops", "text/html")), 500),
}


@pytest.mark.parametrize("fault", list(ENGINES))
def test_whatever_an_engine_does_the_client_gets_an_answer(fault: str) -> None:
    script, status = ENGINES[fault]

    async def test() -> None:
        settings = Settings(first_byte_wait_s=0.2, between_bytes_wait_s=0.2)
        async with standing(script) as engine, gateway(upstream(engine.port), settings=settings) as (front, records):
            got = await ask(front.address, chat())
            assert (got.status, records[-1].status) == (status, status)
            assert "x-trailer" not in got.headers
            assert got.body == OK if status == 200 else got.error["message"]
            await at_rest(front)

    run(test())


STREAMS = {
    "reset": (says(EVENT_STREAM + chunk(delta("a")), "reset"), True),
    "closed": (says(EVENT_STREAM + chunk(delta("a")), "close"), True),
    "bad chunk": (says(EVENT_STREAM + chunk(delta("a")) + b"zz\r\n"), True),
    "stalls": (says(EVENT_STREAM + chunk(delta("a")), "stall"), True),
    "until close, not done": (says(UNTIL_CLOSE + delta("a"), "close"), True),
    "until close, done": (
        says(UNTIL_CLOSE + delta("a") + DONE, "close"), False,
    ),
    "no [DONE]": (says(EVENT_STREAM + chunk(delta("a")) + b"0\r\n\r\n"), False),
    "invalid utf-8": (says(EVENT_STREAM + chunk(b"data: \xff\xfe\n\n" + delta("a")) + b"0\r\n\r\n"), False),
    "not events at all": (says(EVENT_STREAM + chunk(b"hello" + delta("a")) + b"0\r\n\r\n"), False),
    "usage in text": (says(EVENT_STREAM + chunk(delta('"usage": {"x": 1}')) + chunk(delta("a")) + b"0\r\n\r\n"), False),
}  # fmt: skip


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("fault", list(STREAMS))
def test_a_stream_never_ends_silently(fault: str, version: str) -> None:
    script, broken = STREAMS[fault]

    async def test() -> None:
        settings = Settings(between_bytes_wait_s=0.2)
        async with standing(script) as engine, gateway(upstream(engine.port), settings=settings) as (front, _):
            got = await ask(front.address, chat(stream=True).replace(b"HTTP/1.1", version.encode()))
            assert delta("a") in got.body
            last = got.body.rstrip().rsplit(b"\n\n", 1)[-1]
            assert (b'"error"' in last) == broken
            if broken:
                assert json.loads(last.removeprefix(b"data: "))["error"]["message"]
            await at_rest(front)

    run(test())


def test_a_compressed_stream_passes_untouched() -> None:
    packed = gzip.compress(delta("a") + DONE)
    head = EVENT_STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")

    async def test() -> None:
        async with (
            standing(says(head + chunk(packed) + b"0\r\n\r\n")) as engine,
            gateway(upstream(engine.port)) as (front, _),
        ):
            got = await ask(front.address, chat(stream=True))
            assert (got.body, got.headers["content-encoding"]) == (packed, "gzip")

    run(test())


BODY = b'{"model":"m","messages":[]}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
CLIENTS = {
    "length and chunks": (HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "chunks and length": (HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "two lengths": (HEAD + b"content-length: 27\r\ncontent-length: 2\r\n\r\n" + BODY, 400),
    "length list": (HEAD + b"content-length: 27, 27\r\n\r\n" + BODY, 400),
    "signed length": (HEAD + b"content-length: +27\r\n\r\n" + BODY, 400),
    "hex length": (HEAD + b"content-length: 0x1b\r\n\r\n" + BODY, 400),
    "huge length": (HEAD + b"content-length: 99999999999999999999999\r\n\r\n", 400),
    "odd coding": (HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding after chunked": (HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "tab in coding": (HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "space before colon": (HEAD + b"content-length : 27\r\n\r\n" + BODY, 400),
    "folded header": (HEAD + b"x: a\r\n b\r\ncontent-length: 27\r\n\r\n" + BODY, 400),
    "nul in header": (HEAD + b"x: a\x00b\r\ncontent-length: 27\r\n\r\n" + BODY, 400),
    "bare cr": (HEAD + b"x: a\rcontent-length: 2\r\ncontent-length: 27\r\n\r\n" + BODY, 400),
    "bad chunk size": (HEAD + b"transfer-encoding: chunked\r\n\r\nfg\r\n", 400),
    "chunk too long": (HEAD + b"transfer-encoding: chunked\r\n\r\n1b\r\n" + BODY + b"evil\r\n0\r\n\r\n", 400),
    "no host": (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 27\r\n\r\n" + BODY, 400),
    "two hosts": (HEAD + b"host: y\r\ncontent-length: 27\r\n\r\n" + BODY, 400),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long head": (HEAD + b"x: " + b"y" * 40_000 + b"\r\n", 431),
    "many headers": (HEAD + b"".join(b"x%d: y\r\n" % i for i in range(200)) + b"\r\n", 431),
    "long target": (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "large body": (HEAD + b"content-length: 1001\r\n\r\n", 413),
    "large chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(b"x" * 1001), 413),
    "not json": (post("/v1/chat/completions", b"{"), 400),
    "not an object": (post("/v1/chat/completions", b"[]"), 400),
    "no model": (post("/v1/chat/completions", b"{}"), 400),
    "invalid utf-8": (post("/v1/chat/completions", b'{"model":"\xff"}'), 400),
    "deep json": (post("/v1/chat/completions", b"[" * 900), 400),
    "wrong method": (b"PUT /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "wrong path": (b"GET /v2/nothing HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    "connect": (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
    "slow head": (HEAD, 408),
    "slow body": (HEAD + b"content-length: 27\r\n\r\n{", 408),
}


@pytest.mark.parametrize("fault", list(CLIENTS))
def test_whatever_a_client_sends_one_answer_comes_and_nothing_reaches_the_engine(fault: str) -> None:
    sent, status = CLIENTS[fault]

    async def test() -> None:
        settings = Settings(body_bytes=1000, header_wait_s=0.1)
        async with standing(says(sized(OK))) as engine, gateway(upstream(engine.port), settings=settings) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(sent)
            got = await asyncio.wait_for(read_answer(reader), 5)
            assert got.status == status, got.body
            assert got.error["message"]
            if status in (400, 413, 431) and "connection" in got.headers:
                assert await reader.read() == b""  # nothing of a broken connection is read as a request
            assert not engine.got
            writer.close()
            assert (await ask(front.address, chat())).status == 200

    run(test())


GOOD = {
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunk(BODY[:9]) + chunk(BODY[9:]) + b"0\r\nx: y\r\n\r\n",
    "wish for http/2": HEAD + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"
    b"content-length: 27\r\n\r\n" + BODY,
    "http/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: 27\r\n\r\n" + BODY,
    "query": HEAD.replace(b"completions", b"completions?api-version=1") + b"content-length: 27\r\n\r\n" + BODY,
    "empty lines first": b"\r\n" + HEAD + b"content-length: 27\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("form", list(GOOD))
@pytest.mark.parametrize("step", [1, 1000])
def test_legal_oddities_are_served_however_they_are_cut(form: str, step: int) -> None:
    async def test() -> None:
        async with standing(says(sized(OK))) as engine, gateway(upstream(engine.port)) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address)
            for at in range(0, len(GOOD[form]), step):
                writer.write(GOOD[form][at : at + step])
                await asyncio.sleep(0)
            got = await asyncio.wait_for(read_answer(reader), 5)
            assert (got.status, got.body, engine.got[0].body) == (200, OK, BODY)
            assert b"x: y" not in engine.got[0].head
            writer.close()

    run(test())


def test_continue_is_said_before_a_large_body() -> None:
    async def test() -> None:
        async with standing(says(sized(OK))) as engine, gateway(upstream(engine.port)) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(HEAD + b"expect: 100-continue\r\ncontent-length: 27\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            assert (await read_answer(reader)).status == 200
            writer.close()

    run(test())


def test_a_refusal_is_read_by_a_client_that_is_still_sending() -> None:
    async def test() -> None:
        async with gateway(settings=Settings(body_bytes=1000, api_keys=("sk",))) as (front, _):
            for length, status in ((10_000_000, 413), (900_000, 401)):
                front.settings = Settings(body_bytes=1_000_000 if status == 401 else 1000)
                reader, writer = await asyncio.open_connection(*front.address)
                writer.write(HEAD + b"content-length: %d\r\n\r\n" % length)
                for _ in range(50):
                    writer.write(b"x" * 10_000)
                    await asyncio.sleep(0)
                assert (await asyncio.wait_for(read_answer(reader), 5)).status == status
                assert await reader.read() == b""
                writer.close()

    run(test())


def test_a_head_has_one_deadline_however_slowly_it_drips() -> None:
    async def test() -> None:
        async with gateway(settings=Settings(header_wait_s=0.3)) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address)
            for byte in HEAD:
                if writer.transport.is_closing():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)
            assert (await asyncio.wait_for(read_answer(reader), 5)).status == 408
            writer.close()

    run(test())


def test_a_slow_reader_holds_back_its_own_engine_only() -> None:
    sent = 0

    async def flood(got: Got, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        if not got.json.get("stream"):
            writer.write(sized(OK))
            return
        writer.write(EVENT_STREAM)
        for _ in range(2000):
            writer.write(chunk(delta("x" * 50_000)))
            await writer.drain()
            sent += 1
        writer.write(b"0\r\n\r\n")

    async def test() -> None:
        async with standing(flood) as engine, gateway(upstream(engine.port)) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address, limit=1 << 16)
            writer.write(chat(stream=True))
            await asyncio.sleep(0.5)
            held = sent
            await asyncio.sleep(0.3)
            assert sent == held < 1000  # of 100 MB, what the sockets and two small buffers take
            assert (await ask(front.address, chat())).status == 200
            body = 0
            while body < 2000 * 50_000:
                body += len(await reader.read(1 << 20))
            assert sent == 2000
            writer.close()

    run(test())


def test_a_reader_that_never_reads_is_dropped() -> None:
    async def flood(got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENT_STREAM)
        while True:
            writer.write(chunk(delta("x" * 50_000)))
            await writer.drain()

    async def test() -> None:
        settings = Settings(write_wait_s=0.2)
        async with standing(flood) as engine, gateway(upstream(engine.port), settings=settings) as (front, records):
            _, writer = await asyncio.open_connection(*front.address, limit=1 << 16)
            writer.write(chat(stream=True))
            while not records:
                await asyncio.sleep(0.02)
            assert records[0].status == 499
            writer.transport.abort()

    run(test())


def test_an_idle_connection_is_closed() -> None:
    async def test() -> None:
        async with gateway(settings=Settings(keep_alive_s=0.1)) as (front, _):
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await read_answer(reader)).status == 200
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()

    run(test())


def test_a_failing_replica_is_left_alone_and_probed_again() -> None:
    broken = True

    async def sometimes(got: Got, writer: asyncio.StreamWriter) -> None:
        if broken:
            writer.transport.abort()
        else:
            writer.write(sized(OK))

    async def test() -> None:
        nonlocal broken
        async with standing(sometimes) as engine, gateway(upstream(engine.port)) as (front, _):
            statuses = [(await ask(front.address, chat())).status for _ in range(4)]
            assert statuses == [503] * 4
            tried = len(engine.got)
            refused = await ask(front.address, chat())
            assert (refused.status, len(engine.got)) == (503, tried)
            assert "left alone" in refused.error["message"]
            broken = False
            await asyncio.sleep(int(refused.headers["retry-after"]) + 0.1)
            assert (await ask(front.address, chat())).status == 200

    run(test())


def test_a_crash_in_many_streams_is_one_failure_not_many() -> None:
    async def crash(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.transport.abort()

    async def test() -> None:
        async with standing(crash) as engine, gateway(upstream(engine.port)) as (front, _):
            await asyncio.gather(*(ask(front.address, chat()) for _ in range(16)))
            refused = await ask(front.address, chat())
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")

    run(test())


def test_an_engine_that_answers_500_is_alive() -> None:
    async def test() -> None:
        async with standing(says(sized(b"{}", "500 Oops"))) as engine, gateway(upstream(engine.port)) as (front, _):
            assert [(await ask(front.address, chat())).status for _ in range(9)] == [500] * 9

    run(test())


def test_stopping_lets_work_end_and_then_cuts() -> None:
    async def slow(got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2 if got.json.get("quick") else 20)
        writer.write(sized(OK))

    async def test() -> None:
        async with standing(slow) as engine, gateway(upstream(engine.port)) as (front, records):
            quick = asyncio.ensure_future(ask(front.address, chat(quick=True)))
            never = asyncio.ensure_future(ask(front.address, chat()))
            await asyncio.sleep(0.05)
            await front.stop(0.5)
            assert (await quick).headers["connection"] == "close"
            with pytest.raises(asyncio.IncompleteReadError):
                await never
            assert sorted(record.status for record in records) == [200, 499]

    run(test())


def test_browsers_are_let_in_from_the_origins_that_were_named() -> None:
    async def test() -> None:
        settings = Settings(cors_origins=("https://chat.example",))
        async with standing(says(sized(OK))) as engine, gateway(upstream(engine.port), settings=settings) as (front, _):

            async def origin(name: str) -> Answer:
                return await ask(
                    front.address, chat().replace(b"host: x\r\n", f"host: x\r\norigin: {name}\r\n".encode())
                )

            good = await origin("https://chat.example")
            assert good.headers["access-control-allow-origin"] == "https://chat.example"
            assert "access-control-allow-origin" not in (await origin("https://evil.example")).headers
            asked = b"OPTIONS /v1/models HTTP/1.1\r\nhost: x\r\norigin: https://chat.example\r\n\r\n"
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(asked)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            writer.close()

    run(test())
