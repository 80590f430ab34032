"""An upstream that sends exactly the bytes that a test says, and clients that read exactly what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import uvloop

from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Record, Settings
from plimsoll.gateway.table import RouteTable, Upstream


@dataclass
class Got:
    """A request as the upstream received it."""

    head: bytes
    body: bytes
    peer: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Got, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class StandIn:
    """Every request is handed to `script`; the connection stays open unless the script closes it."""

    script: Script
    got: list[Got] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    """When the gateway hung up in the middle of a script."""
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[1]
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.got.append(Got(head, await reader.readexactly(length), peer))
                script = asyncio.ensure_future(self.script(self.got[-1], writer))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait((script, gone), return_when=asyncio.FIRST_COMPLETED)
                if gone.done() and not script.done():
                    self.left.append(time.perf_counter())
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
                if not script.done():
                    script.cancel()
                    return
                script.result()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def standing(script: Script, port: int = 0) -> AsyncIterator[StandIn]:
    upstream = StandIn(script)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        await upstream.serve(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", port)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def upstream(port: int, **changes: Any) -> Upstream:
    fields = {"name": f"m-{port}", "host": "127.0.0.1", "port": port, "tasks": ("chat", "completion", "embed")}
    return Upstream(**{**fields, **changes})


@contextlib.asynccontextmanager
async def gateway(
    *upstreams: Upstream, table: RouteTable | None = None, settings: Settings | None = None
) -> AsyncIterator[tuple[Gateway, list[Record]]]:
    records: list[Record] = []
    front = Gateway(settings, observe=records.append)
    await front.start("127.0.0.1", 0)
    front.update(table or RouteTable(models={"m": upstreams}))
    try:
        yield front, records
    finally:
        await front.stop(0)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


def post(path: str, body: Any, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{lines}\r\n".encode() + data


def chat(**fields: Any) -> bytes:
    return post("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer, its body without the framing."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answer(int(lines[0].split()[1]), headers, body)


async def ask(address: tuple[str, int], request: bytes) -> Answer:
    """Send one request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        return await asyncio.wait_for(read_answer(reader), 10)
    finally:
        writer.close()
        await writer.wait_closed()


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(asyncio.wait_for(test, 30))


def sized(body: bytes, status: str = "200 OK", content_type: str = "application/json", extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{extra}\r\n".encode()
        + body
    )


EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def delta(text: str | None, role: str | None = None) -> bytes:
    content = {k: v for k, v in (("role", role), ("content", text)) if v is not None}
    body = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [{"index": 0, "delta": content}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


USAGE = (
    b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
)
DONE = b"data: [DONE]\n\n"
