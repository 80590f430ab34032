"""The HTTP of Plimsoll's own server processes: HTTP/1.1 on asyncio and httptools, strict, no framework.

A connection answers its requests one after the other; when the client leaves, what it asked for is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

import httptools

MAX_BODY_BYTES = 64 << 20
QUIET = frozenset({"/health", "/metrics"})
"""Routes that leave no line in the log."""
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class ApiError(Exception):
    """A request that cannot be served, as OpenAI words it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = {404: "not_found_error", 500: "server_error", 503: "server_error"}.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Connection(asyncio.Protocol):
    """One client. A server says in `route` what is answered, and in `note` where its log goes."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.queue: deque[tuple[str, str, bytes, bool]] = deque()
        self.task: asyncio.Task[None] | None = None
        self.url = b""
        self.body = bytearray()

    async def route(self, method: str, path: str, raw: bytes) -> int:
        """Answer one request; returns the status."""
        raise NotImplementedError

    def note(self, line: str) -> None:
        """One line of the log."""
        raise NotImplementedError

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is needed")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse; what is not HTTP gets a 400 and the door."""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.send_json(400, ApiError(400, f"not HTTP: {error}").body)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the slot back."""
        self.queue.clear()
        if self.task is not None:
            self.task.cancel()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Start afresh."""
        self.url = b""
        self.body.clear()

    def on_url(self, url: bytes) -> None:
        """May come in pieces."""
        self.url += url

    def on_body(self, body: bytes) -> None:
        """May come in pieces."""
        if len(self.body) + len(body) > MAX_BODY_BYTES:
            raise httptools.HttpParserError("body too large")
        self.body += body

    def on_message_complete(self) -> None:
        """Answer it, or let it wait for the one before."""
        path = self.url.partition(b"?")[0].decode("latin-1")
        method = self.parser.get_method().decode()
        self.queue.append((method, path, bytes(self.body), self.parser.should_keep_alive()))
        if self.task is None:
            self.task = self.loop.create_task(self.work())

    # Answers.

    async def work(self) -> None:
        """Answer what is queued, in order."""
        while self.queue:
            method, path, body, keep = self.queue.popleft()
            began = self.loop.time()
            status = 499
            try:
                status = await self.route(method, path, body)
            except ApiError as refusal:
                status = refusal.status
                self.send_json(status, refusal.body)
            finally:
                if path not in QUIET:
                    self.note(f"request {method} {path} status={status} s={self.loop.time() - began:.3f}")
            if not keep:
                self.transport.close()
        self.task = None

    def event(self, value: dict[str, Any]) -> None:
        """One event as one chunk."""
        data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_json(self, status: int, value: dict[str, Any]) -> int:
        """A JSON answer."""
        return self.send(status, json.dumps(value, separators=(",", ":")).encode(), "application/json")

    def send(self, status: int, data: bytes, content_type: str) -> int:
        """A whole answer of known length."""
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {content_type}\r\ncontent-length: {len(data)}\r\n"
        self.transport.write(head.encode() + b"\r\n" + data)
        return status


def read_body(
    method: str, path: str, raw: bytes, *, routes: tuple[str, ...], models: tuple[str, ...]
) -> dict[str, Any]:
    """The JSON object of a request to one of `routes` for one of `models`; ApiError for anything else."""
    if path not in routes:
        raise ApiError(404, f"no route {method} {path}")
    if method != "POST":
        raise ApiError(405, f"{path} takes POST")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "'model' is missing", param="model")
    if model not in models:
        raise ApiError(404, f"The model `{model}` does not exist.", param="model", code="model_not_found")
    return body
