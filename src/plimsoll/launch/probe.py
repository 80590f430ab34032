"""Asking an engine whether it is up: its health route, and a request that makes a real token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import httptools

Outcome = Literal["answered", "refused", "failing", "silent", "closed"]
"""answered: 200; refused: 4xx, or 503 of a full queue: it lives; failing: another 5xx; silent: nothing in time;
closed: nobody listens or the connection broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; `status` is 0 when nothing did."""

    outcome: Outcome
    status: int = 0
    body: bytes = b""


class _Reader:
    """Collects one response for httptools."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


async def ask(
    host: str, port: int, path: str, *, body: Mapping[str, object] | None = None, timeout_s: float | None
) -> Answer:
    """GET `path`, or POST `body` to it as JSON; never raises for what an engine does. `timeout_s` is for all of it."""
    data = b"" if body is None else json.dumps(body).encode()
    kind = b"" if body is None else b"content-type: application/json\r\ncontent-length: %d\r\n" % len(data)
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\naccept: */*\r\n".encode()
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(host, port, head + kind + b"\r\n" + data)
    except TimeoutError:
        return Answer(outcome="silent")
    except (OSError, httptools.HttpParserError):
        return Answer(outcome="closed")


async def _exchange(host: str, port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        collected = _Reader()
        parser = httptools.HttpResponseParser(collected)
        while not collected.complete:
            data = await reader.read(1 << 16)
            if not data:
                break
            parser.feed_data(data)
    finally:
        writer.close()
    status = parser.get_status_code()
    if not status:
        return Answer(outcome="closed")
    return Answer(outcome=_outcome(status), status=status, body=bytes(collected.body))


def _outcome(status: int) -> Outcome:
    if status == 200:
        return "answered"
    return "refused" if status < 500 or status == 503 else "failing"
