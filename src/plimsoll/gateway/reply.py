"""An engine's answer on its way to the client.

It is held back while it may still be retried, passed on event by event, or translated where the two speak differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from plimsoll.errors import GatewayError
from plimsoll.gateway import answers
from plimsoll.gateway.adapters import MALFORMED
from plimsoll.gateway.answers import JSON
from plimsoll.gateway.bodies import is_event_stream
from plimsoll.gateway.sse import EventTap, event_json, find_counts, split_events

if TYPE_CHECKING:
    from plimsoll.gateway.adapters import Adapter, Events
    from plimsoll.gateway.client import Client, Request
    from plimsoll.gateway.upstream import Connection

_NOT_PASSED_BACK = frozenset({
    b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"trailer", b"upgrade", b"proxy-connection",
    b"server", b"date", b"x-request-id", b"access-control-allow-origin", b"access-control-allow-credentials",
    b"access-control-expose-headers", b"vary",
})  # fmt: skip
_TAIL_BYTES = 4096
"""Enough for the usage object at the end of a JSON body."""
_LAST_CHUNK = b"0\r\n\r\n"


class Reply:
    """One answer of one engine. `feed` it until the answer is complete, or let it `fail`."""

    __slots__ = (
        "_adapter", "_anthropic", "_buffer", "_buffered", "_chunked", "_client", "_connection", "_events",
        "_hold_bytes", "_request", "_request_id", "_tail", "begun", "status", "tap",
    )  # fmt: skip

    def __init__(
        self, client: Client, request: Request, request_id: bytes, connection: Connection, *, adapter: Adapter | None,
        stream: bool, strip_usage: bool, anthropic: bool, hold_bytes: int,
    ) -> None:  # fmt: skip
        self._client = client
        self._request = request
        self._request_id = request_id
        self._connection = connection
        self._adapter = adapter
        self._events = adapter.events if adapter is not None else None
        self._anthropic = anthropic
        self._hold_bytes = hold_bytes
        self._chunked = False
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._tail = b""
        self.status = connection.status
        self.begun = False
        """Whether anything has been sent to the client."""
        self.tap: EventTap | None = None
        if stream and connection.status == 200 and is_event_stream(connection.headers):
            self.tap = EventTap(strip_usage=strip_usage)

    @property
    def has_text(self) -> bool:
        """Whether the client has got more than a head and a role."""
        return self.begun and (self.tap is None or self.tap.started)

    @property
    def framed(self) -> bool:
        """Whether the client can tell the end of the answer without the end of the connection."""
        return self._chunked or self.tap is None

    @property
    def counts(self) -> tuple[int, int, bool]:
        """Prompt and output tokens, and whether the engine reported them (else output is the number of events)."""
        found = self.tap.usage if self.tap is not None else find_counts(self._tail)
        if found is not None:
            return (*found, True)
        return 0, self.tap.events if self.tap is not None else 0, False

    def feed(self, data: bytes, *, complete: bool) -> None:
        """Pass on a part of the body; GatewayError if it is not what the route promises.

        EOFError: the connection's end is the answer's end, and the rest of the answer is missing.
        """
        if self.tap is not None:
            self._feed_events(self.tap, data, complete=complete)
        elif self.begun:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            self._write(data)
        elif complete:
            data = b"".join((*self._buffer, data)) if self._buffer else data
            if self._connection.by_close and not _is_whole(data, self._connection.headers):
                raise EOFError
            self._whole(data)
        else:
            self._hold(data)
        if complete and self._chunked:
            self._client.write(_LAST_CHUNK)

    def fail(self, error: GatewayError) -> bool:
        """Tell the client in the middle of a stream; False if there is no way to, and the connection must be cut."""
        if self.tap is None:
            return False
        if self._events is not None:
            event = self._events.error(answers.error_body(error))
        else:
            event = answers.error_event(error, anthropic=self._anthropic)
        self._write(event)
        if self._chunked:
            self._client.write(_LAST_CHUNK)
        return True

    def _feed_events(self, tap: EventTap, data: bytes, *, complete: bool) -> None:
        out = tap.feed(data)
        if complete:
            out += tap.rest()
            if self._connection.by_close and not tap.done:
                raise EOFError
        if self._events is not None:
            out = _translate(self._events, out, complete=complete)
        if self.begun:
            self._write(out)
        elif out or complete:
            self._chunked = self._request.minor_version == 1
            head = self._head(b"transfer-encoding: chunked\r\n" if self._chunked else b"connection: close\r\n")
            self._client.write(head)
            self._write(out)

    def _whole(self, data: bytes) -> None:
        self._tail = data[-_TAIL_BYTES:]
        if self.status >= 400:
            data = answers.wrap_engine_error(self.status, data)
        elif self._adapter is not None:
            try:
                data = self._adapter.answer(data)
            except MALFORMED as error:
                raise _not_as_expected(error) from error
        self._client.write(self._head(b"content-length: %d\r\n" % len(data)) + data)

    def _hold(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        if self._buffered <= self._hold_bytes or self._adapter is not None:
            return
        data = b"".join(self._buffer)
        self._buffer = []
        self._tail = data[-_TAIL_BYTES:]
        length = next((value for name, value in self._connection.headers if name == b"content-length"), None)
        if length is not None:
            framing = b"content-length: %b\r\n" % length
        elif self._request.minor_version == 1:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b"connection: close\r\n"
            self._request.keep_alive = False
        self._client.write(self._head(framing))
        self._write(data)

    def _write(self, data: bytes) -> None:
        if data:
            self._client.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _head(self, framing: bytes) -> bytes:
        self.begun = True
        parts = [
            answers.status_line(self.status), framing, b"x-request-id: ", self._request_id, b"\r\n", self._request.cors,
        ]  # fmt: skip
        for name, value in self._connection.headers:
            if name not in _NOT_PASSED_BACK:
                parts += (name, b": ", value, b"\r\n")
        if not self._request.keep_alive and framing[:10] != b"connection":
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)


def _translate(events: Events, data: bytes, *, complete: bool) -> bytes:
    contents = (event_json(event) for event in split_events(data))
    try:
        out = b"".join(events.event(content) for content in contents if content is not None)
        return out + events.end() if complete else out
    except MALFORMED as error:
        raise _not_as_expected(error) from error


def _is_whole(data: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether an answer of unknown length can be all of it: JSON that was cut short is no JSON."""
    if (b"content-type", JSON) not in headers:
        return True
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True


def _not_as_expected(error: Exception) -> GatewayError:
    return GatewayError(f"The engine's answer is not of the form that is expected of it ({error}).", status=502)
