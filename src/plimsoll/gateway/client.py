"""One client's connection: HTTP/1.1, kept alive, pipelined requests answered in order, one at a time."""

from __future__ import annotations

import asyncio
import collections
import re
from typing import TYPE_CHECKING

import httptools

from plimsoll.errors import GatewayError
from plimsoll.gateway import answers

if TYPE_CHECKING:
    from plimsoll.gateway.exchange import Exchange
    from plimsoll.gateway.server import Gateway

_PIPELINED = 16
"""Requests that may wait on one connection; a client that sends more is cut off after the one in work."""
_WRITE_HIGH_BYTES = 256 << 10
_LINGER_S = 2.0
_TRUSTED_BYTES = 64 << 10
"""A body longer than this is read only for those who may send it."""
_PASSED_ON = frozenset({b"accept", b"user-agent", b"traceparent", b"tracestate", b"baggage"})
_NEVER_PASSED_ON = frozenset({b"x-api-key", b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip"})


class Request:
    """One request, whole."""

    __slots__ = ("body", "cors", "headers", "keep_alive", "method", "minor_version", "target")

    def __init__(
        self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes, *, minor_version: int,
        keep_alive: bool,
    ) -> None:  # fmt: skip
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.cors = b""
        """Header lines for a browser."""
        self.minor_version = minor_version
        self.keep_alive = keep_alive

    def forwarded(self) -> bytes:
        """The header lines that engines may see: tracing and their own x- extensions, never a secret."""
        lines = b""
        for name, value in self.headers.items():
            if (name[:2] == b"x-" and name not in _NEVER_PASSED_ON) or name in _PASSED_ON:
                lines += b"%b: %b\r\n" % (name, value)
        return lines


class Client(asyncio.Protocol):
    """A connection; `exchange` is the request that is being answered by an upstream."""

    __slots__ = (
        "_body", "_body_bytes", "_closing", "_fresh_bytes", "_gateway", "_headers", "_in_head", "_parser", "_ready",
        "_refused", "_settings", "_transport", "_url", "answering", "deadline_s", "exchange", "host", "paused",
    )  # fmt: skip

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.settings
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._fresh_bytes = 0
        self._in_head = True
        self._refused: GatewayError | None = None
        self._ready: collections.deque[Request] = collections.deque()
        self._closing = False
        self.answering = False
        self.paused = False
        """Whether more than enough of its answer waits to be read."""
        self.exchange: Exchange | None = None
        self.deadline_s = 0.0
        self.host = ""

    # the transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = transport  # type: ignore[assignment]
        assert self._transport is not None  # noqa: S101
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        peer = transport.get_extra_info("peername")
        self.host = peer[0] if peer else ""
        self.deadline_s = self._gateway.now() + self._settings.header_wait_s
        self._gateway.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client hung up, or we did."""
        self._gateway.clients.discard(self)
        self._transport = None
        self._ready.clear()
        if self.exchange is not None:
            exchange, self.exchange = self.exchange, None
            exchange.client_left()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.paused = True
        self.deadline_s = self._gateway.now() + self._settings.write_wait_s
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        self.deadline_s = 0.0 if self.answering else self._gateway.now() + self._settings.keep_alive_s
        if self.exchange is not None:
            self.exchange.resume()

    def data_received(self, data: bytes) -> None:
        """Bytes of one or more requests."""
        if self._refused is not None:
            return
        self._fresh_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._refuse(400, f"The request is not valid HTTP: {error}.")
        if self._in_head and self._fresh_bytes > self._settings.header_bytes:
            self._refuse(431, f"The head of the request is longer than {self._settings.header_bytes} bytes.")
        if self._ready and not self.answering:
            self._next()
        elif self._refused is not None and not self.answering:
            self.refuse(self._refused)
        elif not self.answering and (not self._in_head or self._fresh_bytes == len(data)):
            self.deadline_s = self._gateway.now() + self._settings.header_wait_s  # a head has one, a body one a piece

    # httptools calls these

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = {}
        self._body = []
        self._body_bytes = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._url += url
        if len(self._url) > self._settings.header_bytes:
            self._refuse(414, f"The target of the request is longer than {self._settings.header_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped."""
        if self._in_head:
            name = name.lower()
            if name == b"host" and name in self._headers:
                self._refuse(400, "The request has two Host headers.")
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole: refuse what is too large before it is read."""
        self._in_head = False
        self._fresh_bytes = 0
        headers = self._headers
        settings = self._settings
        if len(headers) > settings.header_count:
            self._refuse(431, f"The request has more than {settings.header_count} headers.")
        elif b"host" not in headers and self._parser.get_http_version() != "1.0":
            self._refuse(400, "The request has no Host header.")
        length = headers.get(b"content-length")
        if length is not None and int(length) > settings.body_bytes:
            self._too_large()
        elif self._refused is None and (
            b"transfer-encoding" in headers if length is None else int(length) > _TRUSTED_BYTES
        ):
            self._refused = self._gateway.stranger(headers)
        if b"expect" in headers and self._refused is None and self._transport is not None and not self.answering:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._settings.body_bytes:
            self._too_large()
        elif self._refused is None:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_head = True
        self._fresh_bytes = 0
        parser = self._parser
        if self._refused is not None or parser.should_upgrade():
            return
        parts = self._body
        self._ready.append(
            Request(
                parser.get_method(), self._url, self._headers,
                (parts[0] if len(parts) == 1 else b"".join(parts)) if parts else b"",
                minor_version=0 if parser.get_http_version() == "1.0" else 1,
                keep_alive=parser.should_keep_alive(),
            )
        )  # fmt: skip
        if len(self._ready) > _PIPELINED:
            self._refuse(429, f"More than {_PIPELINED} requests wait on one connection.")

    # the gateway calls these

    def write(self, data: bytes) -> None:
        """Send a part of an answer."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, *, keep_alive: bool) -> None:
        """The answer is written: go on with the next request, or close."""
        self.exchange = None
        self.answering = False
        transport = self._transport
        if transport is None:
            return
        if not keep_alive:
            self.close()
        elif self._ready:
            self._gateway.loop.call_soon(self._next)
        elif self._refused is not None:
            self.refuse(self._refused)
        else:
            self.deadline_s = self._gateway.now() + self._settings.keep_alive_s

    def refuse(
        self, error: GatewayError, headers: bytes = b"", *, keep_alive: bool = False, anthropic: bool = False
    ) -> None:
        """Answer with an error; `headers` are complete lines."""
        keep_alive = keep_alive and self._refused is None
        self.write(answers.error_answer(error, headers=headers, keep_alive=keep_alive, anthropic=anthropic))
        if error is self._refused and self._transport is not None and self._transport.can_write_eof():
            self._linger(self._transport)
        else:
            self.answered(keep_alive=keep_alive)

    def abort(self) -> None:
        """Cut the connection: the answer cannot be finished."""
        if self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """Answer what is in work, and close then."""
        if self.exchange is not None:
            self.exchange.request.keep_alive = False
        elif not self.answering:
            self.close()

    def close(self) -> None:
        """Close once what was written is sent."""
        if self._transport is not None:
            self._closing = True
            self.deadline_s = self._gateway.now() + self._settings.write_wait_s
            self._transport.close()

    def sweep(self, now_s: float) -> None:
        """Drop a client that has been too slow or idle for too long; give up on a silent engine."""
        if self.exchange is not None:
            self.exchange.sweep(now_s)
        if self.deadline_s and now_s >= self.deadline_s and self._transport is not None:
            if self.answering or self._closing:
                self._transport.abort()
            elif self._fresh_bytes or not self._in_head:
                self.refuse(self._refuse(408, "The request did not arrive in time."))
            else:
                self.close()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Close, but go on reading for a moment: a socket closed on unread bytes would take the answer back."""
        transport.write_eof()
        self._closing = True
        self.deadline_s = self._gateway.now() + _LINGER_S

    def _next(self) -> None:
        if self._ready and not self.answering and self._transport is not None:
            self.answering = True
            self.deadline_s = 0.0
            self._gateway.handle(self, self._ready.popleft())

    def _refuse(self, status: int, message: str) -> GatewayError:
        if self._refused is None:
            self._refused = GatewayError(message, status=status, kind="invalid_request_error")
        return self._refused

    def _too_large(self) -> None:
        self._refuse(413, f"The body is larger than {self._settings.body_bytes} bytes.")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1: a client may ask for HTTP/2 (Java's does with every first request) or a web socket.

        The parser stops at such a head, so the head is written anew without the wish and parsed again with the rest.
        """
        if self._parser.get_method() == b"CONNECT":
            self.refuse(self._refuse(405, "This is no proxy."))
            return
        drop = (b"connection", b"upgrade", b"http2-settings")
        lines = [b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._url)]
        lines += [b"%b: %b\r\n" % item for item in self._headers.items() if item[0] not in drop]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join(lines) + b"\r\n" + rest)


_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def is_request_id(value: bytes) -> bool:
    """Whether a client's X-Request-Id may be used as it is."""
    return _REQUEST_ID.fullmatch(value) is not None
