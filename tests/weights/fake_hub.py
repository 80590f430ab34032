"""A hub of our own on the loopback, with the faults that real ones have. A test says which fault comes next."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """One file of the hub and how it is served."""

    data: bytes
    etag: str | None = None
    ranges: bool = True
    length: bool = True
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    redirect: str | None = None

    def __post_init__(self) -> None:
        if self.etag is None and self.length:
            self.etag = f'"{hashlib.sha256(self.data).hexdigest()}"'


Fault = Callable[["Handler"], bool]
"""Answers the request itself and returns True, or changes how it is answered and returns False."""


class Hub(ThreadingHTTPServer):
    """`files` by path; `faults` are used up one per request; `seen` holds (method, path, headers) of each."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, File] = {}
        self.faults: deque[Fault] = deque()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.pause_s = 0.0
        """Between 16 KiB of body: a slow line."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what these tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        hub = self.server
        hub.seen.append((self.command, self.path, dict(self.headers)))
        self.cut_after: int | None = None
        self.spoil = False
        try:
            fault = hub.faults.popleft()
        except IndexError:
            pass
        else:
            if fault(self):
                return
        file = hub.files.get(self.path)
        if file is None:
            self.say(404)
        elif file.redirect:
            self.say(302, {"Location": file.redirect, **file.headers})
        elif file.status != 200:
            self.say(file.status)
        else:
            self.send(file)

    do_HEAD = do_GET  # noqa: N815

    def say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send(self, file: File) -> None:
        start, end, total = 0, len(file.data), len(file.data)
        asked = self.headers.get("Range")
        partial = file.ranges and asked is not None
        if partial:
            first, _, last = str(asked).removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else total, total)
            if start >= total:
                return self.say(416, {"Content-Range": f"bytes */{total}"})
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        if file.length:
            self.send_header("Content-Length", str(end - start))
        else:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", file.kind)
        if file.etag:
            self.send_header("ETag", file.etag)
        for name, value in file.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        body = file.data[start:end]
        if self.spoil:
            body = bytes(byte ^ 1 for byte in body)
        if self.cut_after is not None:
            body = body[: self.cut_after]
        for offset in range(0, len(body), 1 << 14):
            self.wfile.write(body[offset : offset + (1 << 14)])
            self.server.sent_bytes += len(body[offset : offset + (1 << 14)])
            if self.server.pause_s:
                time.sleep(self.server.pause_s)
        if self.cut_after is not None or not file.length:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return None


def status(code: int, **headers: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler) -> bool:
        handler.say(code, {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def cut(after: int) -> Fault:
    """Close the connection after so many bytes of the body."""

    def fault(handler: Handler) -> bool:
        handler.cut_after = after
        return False

    return fault


def spoil(handler: Handler) -> bool:
    """Send other bytes than the file's."""
    handler.spoil = True
    return False


def slam(handler: Handler) -> bool:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


@contextmanager
def hub() -> Iterator[Hub]:
    """A running hub."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
