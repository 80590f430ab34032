"""What the stand-ins for engines share: an HTTP server that knows JSON routes and refuses all else."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any

Json = dict[str, Any]
Route = Callable[[Json], "Json | list[Json]"]
"""A request's body to an answer; a list is streamed, one event or line for each."""


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(json.dumps(body))
        self.status = status
        self.body = body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        route = self.server.routes.get(f"{self.command} {self.path}")
        if route is None:
            self._send(404, json.dumps({"error": f"{self.path} is no route"}))
            return
        try:
            answer = route(json.loads(data or b"{}"))
        except RefusedError as refused:
            self._send(refused.status, json.dumps(refused.body))
            return
        if isinstance(answer, dict):
            self._send(200, answer["text"] if set(answer) == {"text"} else json.dumps(answer))
        elif self.path.startswith("/v1/"):
            events = [*(json.dumps(one) for one in answer), "[DONE]"]
            self._send(200, "".join(f"data: {event}\n\n" for event in events), "text/event-stream")
        else:
            self._send(200, "".join(f"{json.dumps(one)}\n" for one in answer), "application/x-ndjson")

    def _send(self, status: int, text: str, kind: str = "application/json") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Routes by `METHOD /path`."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], routes: Mapping[str, Route]) -> None:
        super().__init__(address, _Handler)
        self.routes = routes


def serve(servers: Iterable[Server]) -> None:
    """Until SIGTERM, then exit 0."""
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.pause()


def only(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse what the real engine would ignore in silence: here it is a mistake of the adapter."""
    if unknown := sorted(set(given) - set(known)):
        raise RefusedError(400, {"error": f"stand-in: unknown {what}: {', '.join(unknown)}"})


def answer_to(body: Json, model: str, kind: str) -> Json | list[Json]:
    """One token in OpenAI's form, streamed or not."""
    chat = kind == "chat.completion"
    choice = {"message": {"role": "assistant", "content": "yes"}} if chat else {"text": "yes"}
    if not body.get("stream"):
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        done = {"index": 0, "finish_reason": "stop", **choice}
        return {"id": "stand-in", "object": kind, "model": model, "choices": [done], "usage": usage}
    piece = {"delta": {"content": "yes"}} if chat else {"text": "yes"}
    end = {"delta": {}} if chat else {"text": ""}
    chunks = [{"index": 0, **piece}, {"index": 0, "finish_reason": "stop", **end}]
    return [{"id": "stand-in", "object": f"{kind}.chunk", "model": model, "choices": [one]} for one in chunks]
