"""A process that speaks the OpenAI API and infers nothing: set pacing and set failures, for tests and demos.

`python -m plimsoll.engines.serve_fake --port 8101 --model tiny` answers with the same words always, under a model
name that starts with `fake-`. Token i of an answer leaves at `start + ttft + i * tpot`, deadlines that do not drift.
It is as strict on its input as a real engine, frees the slot of a client that leaves, and fails in the ways that
were seen of real ones: an exit while loading, an exit in mid stream, a health route that answers while nothing else
does, a worker that dies behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from plimsoll.engines import fake_answers
from plimsoll.engines.fake_answers import Ask
from plimsoll.engines.openai_http import STREAM_END, STREAM_HEAD, ApiError, Connection, read_body

TAG = "fake-engine"
"""Every line of the log starts with it."""
VERSION = "1.0"
WORKER = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
"""A worker that only SIGKILL ends, as one that hangs in a collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it answers and how it fails; times in seconds."""

    host: str
    port: int
    model: str
    ttft: float
    tpot: float
    slots: int
    load_seconds: float
    silent_load: bool
    context_tokens: int
    kv_tokens: int
    weights_bytes: int
    kv_bytes_per_token: int
    workers: int
    fail_at_start: str | None
    fail_after_requests: int | None
    crash_mid_stream: int | None
    hang_after: int | None


def parse_args(argv: list[str] | None = None) -> Settings:
    """Settings of a command line; argparse's own exit 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="serve_fake", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="answers carry it with fake- in front")
    parser.add_argument("--ttft", type=float, default=0.1, help="seconds to the first token, from the slot on")
    parser.add_argument("--tpot", type=float, default=0.02, help="seconds per further token")
    parser.add_argument("--slots", type=int, default=4, help="requests served at once; the rest wait in order")
    parser.add_argument("--load-seconds", type=float, default=0.5)
    parser.add_argument("--silent-load", action="store_true", help="no line in the log while loading")
    parser.add_argument("--context-tokens", type=int, default=4096, help="a longer prompt is refused with 400")
    parser.add_argument("--kv-tokens", type=int, default=16384, help="only reported")
    parser.add_argument("--weights-bytes", type=int, default=98_362_432, help="only reported")
    parser.add_argument("--kv-bytes-per-token", type=int, default=23_040, help="only reported")
    parser.add_argument("--workers", type=int, default=0, help="child processes that ignore SIGTERM")
    parser.add_argument("--fail-at-start", metavar="MESSAGE", help="print it and exit 1 after loading")
    parser.add_argument("--fail-after-requests", type=int, metavar="N", help="500 to every request after N")
    parser.add_argument("--crash-mid-stream", type=int, metavar="N", help="exit 1 before token N of a stream")
    parser.add_argument("--hang-after", type=int, metavar="N", help="after N requests only /health answers")
    return Settings(**vars(parser.parse_args(argv)))


@dataclass(slots=True)
class Engine:
    """What all connections share: slots, counters, workers."""

    settings: Settings
    slots: asyncio.Semaphore
    workers: list[subprocess.Popen[bytes]]
    requests: int = 0
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    kv_used: int = 0
    ids: count[int] = field(default_factory=lambda: count(1))

    @property
    def name(self) -> str:
        """The model name in every answer."""
        model = self.settings.model
        return model if model.startswith("fake-") else f"fake-{model}"

    async def admit(self) -> None:
        """Count a request, and fail or hang if it was set so."""
        self.requests += 1
        settings = self.settings
        dead = any(worker.poll() is not None for worker in self.workers)
        if dead or (settings.hang_after is not None and self.requests > settings.hang_after):
            await asyncio.Event().wait()
        if settings.fail_after_requests is not None and self.requests > settings.fail_after_requests:
            raise ApiError(500, f"{TAG} fails after {settings.fail_after_requests} requests, as set")

    @asynccontextmanager
    async def slot(self, ask: Ask) -> AsyncIterator[float]:
        """Hold one of the slots; yields the loop time at which it was had."""
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.kv_used += ask.prompt_tokens + ask.output_tokens
        self.prompt_tokens += ask.prompt_tokens
        try:
            yield asyncio.get_running_loop().time()
        finally:
            self.running -= 1
            self.kv_used -= ask.prompt_tokens + ask.output_tokens
            self.slots.release()

    def exposition(self) -> str:
        """Prometheus text."""
        values = {
            "requests_running": self.running,
            "requests_waiting": self.waiting,
            "kv_cache_usage_ratio": self.kv_used / max(1, self.settings.kv_tokens),
            "prompt_tokens_total": self.prompt_tokens,
            "output_tokens_total": self.output_tokens,
        }
        return "".join(f"fake_{name} {value:g}\n" for name, value in values.items())


ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


class FakeConnection(Connection):
    """One client of the fake engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def note(self, line: str) -> None:
        """To stdout."""
        log(line)

    async def route(self, method: str, path: str, raw: bytes) -> int:
        """Answer one request; returns the status."""
        if path in ("/health", "/v1/models", "/metrics") and method == "GET":
            if path == "/metrics":
                return self.send(200, self.engine.exposition().encode(), "text/plain; version=0.0.4")
            card = {"id": self.engine.name, "object": "model", "created": 0, "owned_by": TAG}
            card["max_model_len"] = self.engine.settings.context_tokens
            return self.send_json(200, {"status": "ok"} if path == "/health" else {"object": "list", "data": [card]})
        models = (self.engine.settings.model, self.engine.name)
        body = read_body(method, path, raw, routes=ROUTES, models=models)
        await self.engine.admit()
        if path == "/v1/embeddings":
            return self.send_json(200, {**fake_answers.embeddings(body), "model": self.engine.name})
        kind: Literal["chat", "completion"] = "chat" if path == "/v1/chat/completions" else "completion"
        ask = fake_answers.check(body, kind, self.engine.settings.context_tokens)
        async with self.engine.slot(ask) as start:
            frame = {"id": f"fake-{next(self.engine.ids)}", "created": int(time.time()), "model": self.engine.name}
            if ask.stream:
                await self.stream(ask, frame, start)
            else:
                await self.until(start, ask.output_tokens - 1)
                self.engine.output_tokens += ask.output_tokens
                self.send_json(200, fake_answers.answer(ask, frame))
        return 200

    async def until(self, start: float, token: int) -> None:
        """Sleep to the moment at which a token leaves."""
        deadline = start + self.engine.settings.ttft + token * self.engine.settings.tpot
        await asyncio.sleep(max(0.0, deadline - self.loop.time()))

    async def stream(self, ask: Ask, frame: dict[str, Any], start: float) -> None:
        """Server-sent events, one per token, then the reason it ended, the usage if asked for, and [DONE]."""
        for token in range(ask.output_tokens):
            await self.until(start, token)
            if token == self.engine.settings.crash_mid_stream:
                log(f"error: crash before token {token}, as set")
                os._exit(1)
            if token == 0:
                self.transport.write(STREAM_HEAD)
            self.engine.output_tokens += 1
            self.event(fake_answers.event(ask, frame, token))
        self.event(fake_answers.event(ask, frame, None))
        if ask.include_usage:
            self.event(fake_answers.usage_event(ask, frame))
        self.transport.write(STREAM_END)


def log(line: str) -> None:
    """One line of the fixed form to stdout."""
    print(f"{TAG} {line}", flush=True)


def load(settings: Settings) -> None:
    """Take the time that loading takes, a line at every tenth, and report sizes as an engine does."""
    began = time.monotonic()
    log(f"version={VERSION} model={settings.model}")
    for tenth in range(1, 11):
        time.sleep(max(0.0, began + settings.load_seconds * tenth / 10 - time.monotonic()))
        if not settings.silent_load:
            log(f"loading {tenth * 10} %")
    if settings.fail_at_start is not None:
        log(f"error: {settings.fail_at_start}")
        sys.exit(1)
    sizes = {
        "weights_bytes": settings.weights_bytes,
        "kv_cache_bytes": settings.kv_tokens * settings.kv_bytes_per_token,
        "kv_tokens": settings.kv_tokens,
        "context_tokens": settings.context_tokens,
        "sequences": settings.slots,
        "load_s": round(time.monotonic() - began, 3),
    }
    log("report " + " ".join(f"{name}={value}" for name, value in sizes.items()))


async def serve(settings: Settings) -> None:
    """Listen until killed."""
    workers = [subprocess.Popen([sys.executable, "-c", WORKER]) for _ in range(settings.workers)]  # noqa: ASYNC220
    engine = Engine(settings, asyncio.Semaphore(settings.slots), workers)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: FakeConnection(engine), settings.host, settings.port, backlog=1024)
    except OSError as error:
        log(f"error: cannot listen on {settings.host}:{settings.port}: {error.strerror}")
        sys.exit(1)
    log(f"listening on {settings.host}:{settings.port}")
    await server.serve_forever()


def main() -> None:
    """Load, then serve."""
    settings = parse_args()
    load(settings)
    try:
        asyncio.run(serve(settings))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
