"""An HTTP server of known pacing, to hold load generators against: one thread, epoll, absolute deadlines, busy waiting.

    python benchmarks/paced_server.py --port 18500 --ttft-ms 100 --itl-ms 20

It answers /v1/chat/completions and /v1/completions as vLLM does: an empty role chunk at once, then one chunk per token,
the first `ttft` after the request was read and each next one `itl` later (never "after the last write", so lateness
does not add up), finish chunk, usage chunk, [DONE]. The first and the last token's text is when they were written, so
that a generator's error is not taken for the server's own. GET /stats tells when answers ended. Pin it to a core of its
own.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import re
import select
import socket
import time

LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
SPIN_S = 0.0015
clock = time.perf_counter


def framed(piece: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def event(**fields: object) -> bytes:
    """One event, of the size that vLLM's have."""
    base = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "object": "chat.completion.chunk", "created": 1763600000}
    return b"data: " + json.dumps({**base, "model": "paced", **fields}).encode() + b"\n\n"


def choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, object]]:
    """The choices of one chunk; `text` serves the completions route."""
    return [{"index": 0, "delta": delta, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}]


ROLE = framed(event(choices=choice({"role": "assistant", "content": ""})))
TOKEN = framed(event(choices=choice({"content": " token"})))
STAMPED = framed(event(choices=choice({"content": f" @{0:016.6f}"}))).replace(b"@%016.6f" % 0, b"@%016.6f")
"""A token whose text is when it was written, on a clock that all processes of the machine share."""


@functools.cache
def tail(tokens: int) -> bytes:
    """Everything after the last token."""
    usage = {"prompt_tokens": 64, "completion_tokens": tokens, "total_tokens": 64 + tokens}
    last = event(choices=choice({}, "length")) + event(choices=[], usage=usage) + b"data: [DONE]\n\n"
    return framed(last) + b"0\r\n\r\n"


class Stream:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.buffer, self.open = sock, b"", True
        self.start_s, self.tokens, self.sent = 0.0, 0, 0


class Server:
    """All of it."""

    def __init__(self, port: int, ttft_s: float, itl_s: float) -> None:
        self.ttft_s, self.itl_s = ttft_s, itl_s
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.streams: dict[int, Stream] = {}
        self.due: list[tuple[float, int, Stream]] = []
        self.order = 0
        self.reads: list[tuple[Stream, bytes, float]] = []
        self.ends_s: list[float] = []
        self.peak = 0
        self.live = 0

    def run(self) -> None:
        """Serve for ever."""
        while True:
            wait_s = self.due[0][0] - clock() - SPIN_S if self.due else 0.05
            for number, _ in self.epoll.poll(max(wait_s, 0.0)):
                if number == self.listener.fileno():
                    self.accept()
                else:
                    self.read(self.streams[number])
            # Requests that came together are all stamped before the first of them is answered.
            reads, self.reads = self.reads, []
            for stream, data, stamp_s in reads:
                self.take(stream, data, stamp_s)
            now = clock()
            while self.due and self.due[0][0] <= now:
                self.token(heapq.heappop(self.due)[2])

    def accept(self) -> None:
        """Take the connections that wait."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.streams[sock.fileno()] = Stream(sock)
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def close(self, stream: Stream) -> None:
        """Forget a connection."""
        stream.open = False
        del self.streams[stream.sock.fileno()]
        stream.sock.close()

    def read(self, stream: Stream) -> None:
        """Read what came, and stamp it."""
        try:
            data = stream.sock.recv(1 << 18)
        except ConnectionError:
            data = b""
        if data:
            self.reads.append((stream, data, clock()))
        else:
            self.close(stream)

    def take(self, stream: Stream, data: bytes, now: float) -> None:
        """Answer a whole request."""
        stream.buffer += data
        head, found, rest = stream.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        match = LENGTH.search(head)
        length = int(match[1]) if match else 0
        if len(rest) < length:
            return
        stream.buffer = rest[length:]
        if head.startswith(b"POST") and b"completions" in head.split(b"\r\n", 1)[0]:
            self.begin(stream, rest[:length], now)
        else:
            self.other(stream, head)

    def begin(self, stream: Stream, body: bytes, now: float) -> None:
        """Start one answer."""
        match = TOKENS.search(body)
        stream.tokens, stream.start_s, stream.sent = int(match[1]) if match else 16, now, 0
        if b'"stream":true' not in body.replace(b": ", b":"):
            self.whole(stream)
            return
        self.live += 1
        self.peak = max(self.peak, self.live)
        if self.ttft_s or self.itl_s:
            self.write(stream, HEAD + ROLE)
            self.plan(stream, now + self.ttft_s)
            return
        # Without pacing all events leave in one write, so that this server is not what is measured.
        self.live -= 1
        self.write(stream, HEAD + ROLE + TOKEN * stream.tokens + tail(stream.tokens))
        self.ends_s.append(clock())

    def plan(self, stream: Stream, deadline: float) -> None:
        """Note when the next token is due."""
        self.order += 1
        heapq.heappush(self.due, (deadline, self.order, stream))

    def token(self, stream: Stream) -> None:
        """Write one token that is due."""
        if not stream.open:
            self.live -= 1
            return
        stream.sent += 1
        self.write(stream, STAMPED % ((clock(),) * 2) if stream.sent in (1, stream.tokens) else TOKEN)
        if stream.sent < stream.tokens:
            self.plan(stream, stream.start_s + self.ttft_s + stream.sent * self.itl_s)
        else:
            self.end(stream)

    def end(self, stream: Stream) -> None:
        """Write what follows the last token."""
        self.live -= 1
        self.write(stream, tail(stream.tokens))
        self.ends_s.append(clock())

    def whole(self, stream: Stream) -> None:
        """Answer without streaming, at once: tools ask so before they begin."""
        usage = {"prompt_tokens": 64, "completion_tokens": 1, "total_tokens": 65}
        text = {"message": {"role": "assistant", "content": "ok"}, "text": "ok"}
        choices = [{"index": 0, **text, "finish_reason": "stop"}]
        self.json(
            stream, {"id": "x", "object": "chat.completion", "model": "paced", "choices": choices, "usage": usage}
        )

    def other(self, stream: Stream, head: bytes) -> None:
        """GET routes."""
        if b"/stats" in head:
            answer: dict[str, object] = {"ends_s": self.ends_s, "peak_streams": self.peak}
            self.ends_s, self.peak = [], 0
        elif b"/models" in head:
            answer = {"object": "list", "data": [{"id": "paced", "object": "model", "max_model_len": 32768}]}
        else:
            answer = {}
        self.json(stream, answer)

    def json(self, stream: Stream, answer: object) -> None:
        """A whole JSON answer."""
        body = json.dumps(answer).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.write(stream, head + body)

    def write(self, stream: Stream, data: bytes) -> None:
        """Write all of it, waiting for a slow reader."""
        while data and stream.open:
            try:
                data = data[stream.sock.send(data) :]
            except BlockingIOError:
                select.select((), (stream.sock,), (), 1.0)
            except ConnectionError:
                self.close(stream)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=18500)
    parser.add_argument("--ttft-ms", type=float, default=100.0)
    parser.add_argument("--itl-ms", type=float, default=20.0)
    options = parser.parse_args()
    Server(options.port, options.ttft_ms / 1e3, options.itl_ms / 1e3).run()
