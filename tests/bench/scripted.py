"""A server for tests that writes exactly what a script says: pieces of bytes, each at its own absolute time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

Script = Sequence[tuple[float, bytes | None]]
"""(seconds after the request was read, bytes to write); None closes the connection."""

Respond = Callable[[str, Any], Script]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def event(text: str | None = None, **more: Any) -> bytes:
    """One chat chunk as an event; `more` goes into the chunk, `finish`, `role`, `thought` into its choice."""
    delta: dict[str, Any] = {}
    if more.pop("role", False):
        delta = {"role": "assistant", "content": ""}
    if (thought := more.pop("thought", None)) is not None:
        delta["reasoning_content"] = thought
    if text is not None:
        delta["content"] = text
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish", None), **more.pop("choice", {})}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice], **more}).encode() + b"\n\n"


def usage_event(completion: int, prompt: int = 20) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream(*pieces: tuple[float, bytes]) -> Script:
    """A chunked 200 event stream with these pieces, properly ended with the last one."""
    timed: list[tuple[float, bytes | None]] = [(pieces[0][0], STREAM_HEAD)]
    timed += [(at, framed(piece)) for at, piece in pieces]
    return [*timed, (pieces[-1][0], b"0\r\n\r\n")]


def paced(tokens: int, *, ttft_s: float = 0.0, itl_s: float = 0.0, usage: bool = True) -> Script:
    """One token per chunk; the empty role chunk leaves at once, as vLLM's does."""
    pieces = [(0.0, event(role=True)), *((ttft_s + i * itl_s, event(" tok")) for i in range(tokens))]
    last = pieces[-1][0]
    tail = event(finish="length") + (usage_event(tokens) if usage else b"") + DONE
    return stream(*pieces, (last, tail))


def answer(status: int, body: Any, *, close: bool = False) -> Script:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return [(0.0, head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + data)]


class Server(asyncio.Protocol):
    """Answers each request with `respond(path, body)`'s script."""

    def __init__(self, respond: Respond, seen: list[Any], tokenize: Callable[[Any], Script]) -> None:
        self.respond, self.seen, self.tokenize = respond, seen, tokenize
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        path = lines[0].split()[1]
        body = json.loads(rest[:length]) if length else None
        if path.endswith("/tokenize"):
            self.task = asyncio.create_task(self.play(self.tokenize(body), 0.0))
            return
        self.seen.append((path, body, headers))
        self.task = asyncio.create_task(self.play(self.respond(path, body), asyncio.get_running_loop().time()))

    async def play(self, script: Script, start: float) -> None:
        for at, piece in script:
            wait = start + at - asyncio.get_running_loop().time()
            if wait > 0:
                await asyncio.sleep(wait)
            self.put(piece)

    def connection_lost(self, error: Exception | None) -> None:
        if self.task:
            self.task.cancel()

    def put(self, piece: bytes | None) -> None:
        if piece is None:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write(piece)


@contextlib.asynccontextmanager
async def serving(
    respond: Respond,
    tokenize: Callable[[Any], Script] = lambda _: answer(404, {}),
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[str, list[Any]]]:
    """(base URL, list of (path, body, headers) seen, /tokenize left out)."""
    seen: list[Any] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Server(respond, seen, tokenize), "127.0.0.1", 0, ssl=tls
    )
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1", seen
    finally:
        server.close()
        await asyncio.sleep(0)
