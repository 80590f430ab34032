"""The HTTP/1.1 client of the load generator: one asyncio.Protocol per connection, stamps first, parsing after.

A read is stamped and queued at once; queued reads are parsed after every socket that was ready has been read. So the
stamps of 256 streams that move together are not delayed by each other's JSON.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from dataclasses import dataclass
from typing import cast

import httptools

from plimsoll.bench.answer import StreamReader, read_whole
from plimsoll.bench.row import Row
from plimsoll.bench.target import Target, resolve
from plimsoll.errors import BenchError

clock = time.perf_counter
"""Monotonic; on Linux it is CLOCK_MONOTONIC and shared by all processes, so their stamps compare."""

_REAP_S = 0.25
_RETRY_S = 0.2
_DEAD_AFTER = 20
"""Connections refused in a row, none made: the server is gone."""
_FILES_SPARE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One POST, encoded before its time comes."""

    path: str
    """Under the target's root: /v1/chat/completions ..."""
    body: bytes
    stream: bool = True
    keep_text: bool = False
    tag: str = ""


class Client:
    """All connections to one target, on one event loop."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.address = resolve(target)
        self.idle: list[Connection] = []
        self.keeps_alive = True
        """False once the server was caught closing a connection that it had promised to keep."""
        self.opened = 0
        self.peak_in_flight = 0
        self.in_flight = 0
        self._refused = 0
        self._loop = asyncio.get_running_loop()
        self._reads: list[tuple[Connection, bytes, float]] = []
        self._busy: set[Connection] = set()
        self._prefixes: dict[tuple[str, bool], bytes] = {}
        self._reaper: asyncio.TimerHandle | None = self._loop.call_later(_REAP_S, self._reap)

    async def open(self, count: int) -> None:
        """Open connections until `count` lie idle; BenchError when the target does not take them."""
        allow_files(count + _FILES_SPARE)
        self.idle = [kept for kept in self.idle if kept.reusable]
        missing = count - len(self.idle)
        if missing > 0:
            opened = await asyncio.gather(*(self.connect() for _ in range(missing)))
            self.idle += opened

    async def ready(self) -> None:
        """See that a connection lies open, so that making one is in no latency; BenchError when none is to be had."""
        while not self.idle or not self.idle[-1].reusable:
            try:
                connection = await self.connect()
            except BenchError:
                self._refused += 1
                if self._refused >= _DEAD_AFTER:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                self._refused = 0
                self.idle = [kept for kept in self.idle if kept.reusable]
                self.idle.append(connection)

    async def connect(self) -> Connection:
        """One new connection; BenchError with the reason when there is none to be had."""
        address = self.address
        try:
            _, connection = await asyncio.wait_for(
                self._loop.create_connection(lambda: Connection(self), address.host, address.port, ssl=address.tls),
                timeout=min(self.target.timeout_s, 30.0),
            )
        except (OSError, TimeoutError) as error:
            raise BenchError(
                f"cannot connect to {self.target.url}: {str(error) or 'no answer'}",
                hint="is the server up, and is this its address? (its own /health or /v1/models should answer)",
            ) from error
        self.opened += 1
        return connection

    async def send(self, request: Request, intended_s: float) -> Row:
        """Send on an idle connection (a new one if there is none) and wait for the answer's end; failures are rows."""
        row = Row(intended_s=intended_s, tag=request.tag)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            connection = self._take()
            fresh = connection is None
            while True:
                if connection is None:
                    connection = await self.connect()
                await connection.exchange(request, row)
                if fresh or row.error != "disconnected" or row.status:
                    break
                # A server may close a kept-alive connection as we write: real clients send again, and so do we.
                row.error, row.detail, row.resent = None, "", True
                self.keeps_alive = False
                connection, fresh = None, True
        except BenchError as error:
            row.error, row.detail, row.end_s = "connect", error.message, clock()
            row.sent_s = row.sent_s or row.end_s
        finally:
            self.in_flight -= 1
        if connection is not None and connection.reusable:
            self.idle.append(connection)
        return row

    def prefix(self, request: Request) -> bytes:
        """Request line and headers, made once per route."""
        key = (request.path, request.stream)
        if key not in self._prefixes:
            accept = "text/event-stream" if request.stream else "application/json"
            self._prefixes[key] = self.address.prefix(request.path, accept)
        return self._prefixes[key]

    def received(self, connection: Connection, data: bytes) -> None:
        """Stamp a read and put it by; the parsing waits until all ready sockets are read."""
        self._reads.append((connection, data, clock()))
        if len(self._reads) == 1:
            self._loop.call_soon(self.parse)

    def parse(self) -> None:
        """Parse what was read, in order."""
        reads, self._reads = self._reads, []
        for connection, data, stamp_s in reads:
            connection.parse(data, stamp_s)

    def mark(self, connection: Connection, *, busy: bool) -> None:
        """Watch a connection for its time limit, or stop to."""
        if busy:
            self._busy.add(connection)
        else:
            self._busy.discard(connection)

    async def close(self) -> None:
        """Drop every connection."""
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        for connection in [*self.idle, *self._busy]:
            connection.abort()
        self.idle.clear()
        await asyncio.sleep(0)

    def _take(self) -> Connection | None:
        while self.idle:
            connection = self.idle.pop()
            if connection.reusable:
                return connection
        return None

    def _reap(self) -> None:
        limit_s = clock() - self.target.timeout_s
        for connection in list(self._busy):
            if connection.sent_s < limit_s:
                connection.fail("timeout", f"no end after {self.target.timeout_s:.0f} s")
        self._reaper = self._loop.call_later(_REAP_S, self._reap)


def allow_files(count: int, *, enough: int | None = None) -> None:
    """Raise this process's limit of open files to `count`; BenchError when the system allows less than `enough`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count <= soft or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and count > hard:
        if enough is not None and enough <= hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return
        raise BenchError(
            f"{count} open files are needed and {hard} are allowed",
            hint="raise the limit (ulimit -Hn), or spread the load over more processes",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reusable = False
        self.sent_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._row: Row | None = None
        self._reader: StreamReader | None = None
        self._request: Request | None = None
        self._done: asyncio.Future[None] | None = None
        self._body: list[bytes] = []
        self._stamp_s = 0.0
        self._json = False
        self._framed = False

    async def exchange(self, request: Request, row: Row) -> None:
        """Send `request`, return when `row` is complete."""
        transport = cast("asyncio.Transport", self._transport)
        loop = asyncio.get_running_loop()
        self._done = done = loop.create_future()
        self._row, self._request, self._reader = row, request, None
        self._body, self._json, self._framed = [], False, False
        self.reusable = False
        self.client.mark(self, busy=True)
        head = self.client.prefix(request)
        self.sent_s = row.sent_s = clock()
        transport.write(b"%b%d\r\n\r\n%b" % (head, len(request.body), request.body))
        try:
            await done
        except asyncio.CancelledError:
            self.abort()
            raise

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: small writes leave at once."""
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reusable = True

    def data_received(self, data: bytes) -> None:
        """Stamp, nothing else."""
        self.client.received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side has closed: the end of an unframed body, or a failure."""
        self.reusable = False
        self.client.parse()
        row = self._row
        if row is None:
            return
        if error is None and row.status and not self._framed:
            self._stamp_s = clock()
            self.on_message_complete()
        else:
            self.fail("truncated" if row.status else "disconnected", str(error or "the server closed the connection"))

    # -- parsing

    def parse(self, data: bytes, stamp_s: float) -> None:
        """Take bytes that were read at `stamp_s`."""
        self._stamp_s = stamp_s
        if self._row is None:
            # Bytes that no request asked for: the connection cannot be trusted with the next one.
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail("malformed", f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        lower = name.lower()
        if lower == b"content-type":
            self._json = value.lower().startswith(b"application/json")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """httptools: the head is whole."""
        row = cast("Row", self._row)
        status = self._parser.get_status_code()
        if status < 200:
            return
        row.status = status
        request = cast("Request", self._request)
        # Some servers stream events as text/plain; one that cannot stream answers in JSON all the same.
        if status == 200 and request.stream and not self._json:
            self._reader = StreamReader(row, keep_text=request.keep_text)

    def on_body(self, piece: bytes) -> None:
        """httptools: some of the body, chunk framing taken off."""
        if self._reader is not None:
            self._reader.feed(piece, self._stamp_s)
        else:
            self._body.append(piece)

    def on_message_complete(self) -> None:
        """httptools: the answer has ended properly."""
        row = self._row
        if row is None or row.status == 0:
            return
        if self._reader is not None:
            self._reader.finish(self._stamp_s)
        else:
            keep = cast("Request", self._request).keep_text
            read_whole(row, b"".join(self._body), self._stamp_s, keep_text=keep)
        transport = self._transport
        self.reusable = (
            self.client.keeps_alive
            and self._framed
            and self._parser.should_keep_alive()
            and transport is not None
            and not transport.is_closing()
        )
        self._finish()
        if not self.reusable:
            self.abort()

    # -- endings

    def fail(self, kind: str, detail: str) -> None:
        """End the request in flight as a failure, and the connection with it."""
        row = self._row
        if row is not None:
            if self._reader is not None:
                self._reader.settle()
            row.end_s = clock()
            if row.error is None:
                row.error, row.detail = kind, detail
            self._finish()
        self.abort()

    def abort(self) -> None:
        """Close without waiting."""
        self.reusable = False
        self.client.mark(self, busy=False)
        if self._transport is not None:
            self._transport.abort()

    def _finish(self) -> None:
        self._row = None
        self.client.mark(self, busy=False)
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
