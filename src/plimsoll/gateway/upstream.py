"""Connections to one replica: HTTP/1.1 kept alive and reused, one request at a time on each.

Nothing of a client's framing is passed on: the request's head is written anew with a length, and the answer is taken
apart before it is framed for the client, so no request can be smuggled past the gateway.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import httptools

from plimsoll.gateway.settings import Settings

_HEAD_BYTES = 256 << 10
_IDLE_CONNECTIONS = 256
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Sender(Protocol):
    """The request that a connection works for."""

    gone: bool
    connection: Connection | None

    def request_bytes(self) -> bytes:
        """The whole request, head and body."""
        ...

    def received(self, connection: Connection, data: bytes, *, complete: bool) -> None:
        """A part of the answer's body; the first call comes with the head in `connection.status` and `.headers`."""
        ...

    def lost(self, reason: str, *, stale: bool = False, status: int = 503) -> None:
        """The connection ended before the answer did; `stale`: it had been idle, and no byte came."""
        ...


class Connection(asyncio.Protocol):
    """One connection; `sender` is None while it is idle."""

    __slots__ = (
        "_begun", "_complete", "_in_head", "_parser", "_parts", "_pool", "_seen_bytes", "_until_close", "_used",
        "by_close", "headers", "keep_alive", "sender", "status", "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._begun = False
        self._in_head = True
        self._complete = False
        self._until_close = False
        self._seen_bytes = 0
        self._used = 0
        self.by_close = False
        """Whether the end of the connection was the only end of the answer."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = True
        self.sender: Sender | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is a stream's."""
        self.transport = transport  # type: ignore[assignment]

    def send(self, sender: Sender) -> None:
        """Send a request on a connection that is idle."""
        transport = self.transport
        assert transport is not None  # noqa: S101 - connection_made comes before anybody gets hold of it
        self.sender = sender
        sender.connection = self
        self._used += 1
        self._seen_bytes = 0
        self._begun = False
        self._complete = False
        self.by_close = False
        transport.write(sender.request_bytes())

    def abort(self) -> None:
        """Drop the connection at once: the engine sees it and stops working on the request."""
        self.sender = None
        if self.transport is not None:
            self.transport.abort()

    def pause(self) -> None:
        """Read no more until `resume`: the client is slower than the engine."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        sender = self.sender
        if sender is None or self._complete:
            self.abort()  # bytes that nobody asked for: whatever they are, they answer no request of ours
            return
        self._seen_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                if self._begun and self._parts:  # what came before the fault is good
                    sender.received(self, b"".join(self._parts), complete=False)
                self._fail(f"the engine's answer is not valid HTTP ({error})")
                return
            self.keep_alive = False
        if not self._begun:
            if self._seen_bytes > _HEAD_BYTES:
                self._fail("the head of the engine's answer does not end")
            return
        parts = self._parts
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._parts = []
        else:
            data = b""
        complete = self._complete
        if complete:
            self.sender = None
            if self.keep_alive:
                self._pool.put_back(self)
            elif self.transport is not None:
                self.transport.close()
        sender.received(self, data, complete=complete)

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine hung up, or we did."""
        self._pool.forget(self)
        self.transport = None
        sender, self.sender = self.sender, None
        if sender is None:
            return
        if self._begun and self._until_close and exc is None:
            self.by_close = True
            sender.received(self, b"", complete=True)
            return
        when = "in the middle of its answer" if self._begun else "before it answered"
        sender.lost(f"the engine closed the connection {when}", stale=self._used > 1 and not self._seen_bytes)

    def _fail(self, reason: str) -> None:
        sender = self.sender
        self.abort()
        if sender is not None:
            sender.lost(reason, status=502)

    # httptools calls these

    def on_message_begin(self) -> None:
        """A head begins; after a complete answer it is one too many."""
        if self._complete:
            self.keep_alive = False
            return
        self._in_head = True
        self._until_close = True
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; trailers are dropped."""
        if self._in_head:
            name = name.lower()
            self.headers.append((name, value))
            if name in _FRAMING:
                self._until_close = False

    def on_headers_complete(self) -> None:
        """The head is whole; of a 1xx answer another follows."""
        if self._complete:
            return
        self._in_head = False
        self.status = status = self._parser.get_status_code()
        if status >= 200:
            self._begun = True
            self.keep_alive = self._parser.should_keep_alive()
            if status in (204, 304):
                self._until_close = False

    def on_body(self, data: bytes) -> None:
        """A part of the body, without its framing."""
        if not self._complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self.status >= 200:
            self._complete = True


class Pool:
    """The connections to one replica; the most recently used idle one is used first."""

    __slots__ = ("_closed", "_connecting", "_host", "_idle", "_loop", "_port", "_settings", "connected")

    def __init__(self, host: str, port: int, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._port = port
        self._settings = settings
        self._loop = loop
        self._idle: list[Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self.connected = 0
        """Connections opened so far."""

    def send(self, sender: Sender, *, fresh: bool = False) -> Connection | None:
        """Send on an idle connection, which is returned, or on a new one as soon as it is there.

        With `fresh` no idle connection is used: the one before proved to be dead.
        """
        if fresh:
            self._drop_idle()
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(sender)
                return connection
        task = self._loop.create_task(self._connect(sender))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return None

    def put_back(self, connection: Connection) -> None:
        """The connection is idle."""
        if self._closed or len(self._idle) >= _IDLE_CONNECTIONS:
            if connection.transport is not None:
                connection.transport.close()
            return
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close what is idle now, and the rest when it becomes so."""
        self._closed = True
        self._drop_idle()

    def cancel(self) -> None:
        """Give up on connections that are being made."""
        for task in self._connecting:
            task.cancel()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    async def _connect(self, sender: Sender) -> None:
        try:
            async with asyncio.timeout(self._settings.connect_wait_s):
                _, connection = await self._loop.create_connection(lambda: Connection(self), self._host, self._port)
        except TimeoutError:
            sender.lost(f"no connection within {self._settings.connect_wait_s:g} s")
            return
        except OSError as error:
            sender.lost(f"no connection: {error.strerror or error}")
            return
        self.connected += 1
        if sender.gone:
            self.put_back(connection)
        else:
            connection.send(sender)
