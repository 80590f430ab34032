"""The client against a scripted server over real sockets."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
from scripted import DONE, STREAM_HEAD, answer, event, framed, paced, serving, stream

from plimsoll.bench.client import Client, Request, clock
from plimsoll.bench.row import Row
from plimsoll.bench.target import Target, resolve
from plimsoll.errors import BenchError

CHAT = Request(path="/v1/chat/completions", body=b'{"model":"m"}')
WHOLE = Request(path="/v1/embeddings", body=b"{}", stream=False)


def once(respond, request: Request = CHAT, *, times: int = 1, timeout_s: float = 5.0) -> tuple[list[Row], Client]:
    async def main() -> tuple[list[Row], Client]:
        async with serving(respond) as (url, _):
            client = Client(Target(url=url, timeout_s=timeout_s))
            rows = [await client.send(request, clock()) for _ in range(times)]
            await client.close()
            return rows, client

    return asyncio.run(main())


def test_pacing_is_seen_as_it_is() -> None:
    [row], _ = once(lambda *_: paced(11, ttft_s=0.1, itl_s=0.02))
    assert row.ok
    assert row.ttft_s == pytest.approx(0.1, abs=0.02)
    assert row.tpot_s == pytest.approx(0.02, rel=0.1)
    assert row.output_tokens == 11
    assert 0 <= row.lag_s < 0.05


def test_a_connection_is_kept_and_used_again() -> None:
    rows, client = once(lambda *_: paced(2), times=5)
    assert all(row.ok for row in rows)
    assert client.opened == 1


def test_a_server_that_closes_after_each_answer_gets_a_new_connection_each_time() -> None:
    rows, client = once(lambda *_: answer(200, {"data": [1]}, close=True), WHOLE, times=3)
    assert all(row.ok for row in rows)
    assert client.opened == 3


def test_a_body_without_length_ends_with_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    [row], _ = once(lambda *_: [(0.0, head + event("a")), (0.01, event(finish="stop") + DONE), (0.02, None)])
    assert row.ok
    assert len(row.arrivals_s) == 1


def test_a_stream_under_another_content_type_is_a_stream() -> None:
    [row], _ = once(lambda *_: [(at, piece.replace(b"text/event-stream", b"text/plain")) for at, piece in paced(3)])
    assert row.ok
    assert row.output_tokens == 3


def test_a_server_that_cannot_stream_answers_whole() -> None:
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    [row], _ = once(lambda *_: answer(200, body))
    assert (row.ok, row.ttft_s, row.output_tokens) == (True, None, 2)


def test_a_kept_connection_that_died_unseen_is_replaced_and_the_request_sent_again() -> None:
    calls = iter([[*paced(1)], [(0.0, None)], [*paced(1)]])
    rows, client = once(lambda *_: next(calls), times=2)
    assert [row.ok for row in rows] == [True, True]
    assert rows[1].resent
    assert client.opened == 2


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ([(0.0, None)], "disconnected", "closed"),
        ([(0.0, STREAM_HEAD + framed(event("a"))), (0.01, None)], "truncated", "closed"),
        ([(0.0, b"garbage\r\n\r\n")], "malformed", "not HTTP"),
        (answer(503, {"error": {"message": "busy"}}), "http_503", "busy"),
        (answer(429, {"message": "slow down"}), "http_429", "slow down"),
        (answer(200, {"error": "no"}), "stream_error", "no"),
        ([(0.0, STREAM_HEAD)], "timeout", "no end after"),
    ],
)
def test_failures_are_rows_with_their_kind_and_words(script, error: str, words: str) -> None:
    [row], _ = once(lambda *_: script, timeout_s=0.3)
    assert row.error == error
    assert words in row.detail
    assert row.end_s >= row.sent_s > 0


def test_tokens_of_a_stream_that_breaks_are_kept() -> None:
    [row], _ = once(lambda *_: [(0.0, STREAM_HEAD + framed(event("a"))), (0.01, None)])
    assert len(row.arrivals_s) == 1


def test_pieces_cut_anywhere_read_the_same() -> None:
    whole = b"".join(
        piece for _, piece in stream((0.0, event(role=True) + event("a") + event("b", finish="stop") + DONE))
    )
    cuts = [(i * 0.001, whole[i : i + 50]) for i in range(0, len(whole), 50)]
    [row], _ = once(lambda *_: cuts)
    assert row.ok
    assert sum(row.arrival_tokens) == 2


def test_tls_is_checked_unless_told_otherwise() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent / "files" / "localhost.pem")  # made for this test, for nothing else

    async def main(*, verify: bool) -> Row:
        async with serving(lambda *_: paced(3, ttft_s=0.05), tls=context) as (url, _):
            client = Client(Target(url=url, verify_tls=verify))
            row = await client.send(CHAT, clock())
            await client.close()
            return row

    row = asyncio.run(main(verify=False))
    assert row.ok
    assert row.ttft_s == pytest.approx(0.05, abs=0.03)
    row = asyncio.run(main(verify=True))
    assert row.error == "connect"
    assert "CERTIFICATE_VERIFY_FAILED" in row.detail


def test_nobody_listens() -> None:
    async def main() -> Row:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            client = Client(Target(url=f"http://127.0.0.1:{taken.getsockname()[1]}"))
            row = await client.send(CHAT, clock())
            await client.close()
            return row

    row = asyncio.run(main())
    assert row.error == "connect"


@pytest.mark.parametrize(
    ("url", "host", "port", "root", "tls"),
    [
        ("http://h:8000/v1", "h", 8000, "", False),
        ("h:8000", "h", 8000, "", False),
        ("https://api.example.com/openai/v1/", "api.example.com", 443, "/openai", True),
        ("http://[::1]:80", "::1", 80, "", False),
    ],
)
def test_addresses(url: str, host: str, port: int, root: str, *, tls: bool) -> None:
    address = resolve(Target(url=url))
    assert (address.host, address.port, address.root, address.tls is not None) == (host, port, root, tls)


@pytest.mark.parametrize(
    "target", [Target(url="ftp://h"), Target(url="http://h:port"), Target(url="h", api_key="a\r\nb")]
)
def test_what_is_no_address(target: Target) -> None:
    with pytest.raises(BenchError):
        resolve(target)
