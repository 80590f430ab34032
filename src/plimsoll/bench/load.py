"""What is sent: the load as the user states it, and the dialect in which one server takes it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from plimsoll.bench.client import Request
from plimsoll.errors import BenchError

Route = Literal["chat", "completions", "embeddings", "rerank"]
PATHS: Mapping[Route, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of request and how many of them; sizes in tokens of the target's own tokenizer."""

    route: Route = "chat"
    prompt_tokens: int = 64
    """Chat template and shared prefix included."""
    output_tokens: int = 48
    spread: float = 0.0
    """Both lengths are drawn evenly from within this share of themselves: 0.5 means half to one and a half times."""
    prefix_tokens: int = 0
    """Of `prompt_tokens`, how many each family's prompts share at their start."""
    families: int = 1
    """How many different shared prefixes there are."""
    turns: int = 1
    """Turns of a session: each sends the whole talk so far, answers included."""
    think_s: float = 0.0
    """Between an answer and the session's next turn."""
    data: str | None = None
    """A JSON or JSONL file of prompts instead of synthetic ones: see `datasets`."""
    documents: int = 4
    """Per rerank request; `prompt_tokens` each."""
    requests: int | None = None
    """Per concurrency level; None: max(4, 2 x level), or without a limit when `seconds` is set."""
    seconds: float | None = None
    """Per level; with `requests` as well, whichever ends first. What is in flight then is let end."""
    warmup: int = 0
    """Requests of each worker (in an open loop: in all) before the measured ones; kept, marked, left out of figures."""
    ignore_eos: bool = True
    """Ask for the full output length; a server that refuses the field is asked without it, and a note says so."""
    stream: bool = True
    seed: int = field(default_factory=lambda: secrets.randbelow(1 << 31))
    """Of prompts and arrivals. Drawn anew unless given: prompts seen before are answered out of a prefix cache."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body (temperature, top_p ...)."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1 or self.turns < 1 or self.families < 1:
            raise BenchError("a load needs at least one prompt token, output token, turn and family")
        if self.requests is not None and self.requests < 1:
            raise BenchError("a load needs at least one request")
        if not 0 <= self.spread < 1:
            raise BenchError(
                f"a spread of {self.spread} is not within 0 and 1", hint="0.5 means half to one and a half"
            )
        if self.prefix_tokens >= self.prompt_tokens:
            raise BenchError("the shared prefix leaves no token of the prompt", hint="make prompt_tokens larger")
        if self.turns > 1 and self.route != "chat":
            raise BenchError(f"sessions of several turns are chats, not {self.route}")

    @property
    def generates(self) -> bool:
        """Whether answers are made of tokens (chat, completions) and not of numbers."""
        return self.route in ("chat", "completions")

    def requests_at(self, concurrency: int) -> int | None:
        """Measured requests at one level; None when only time ends it."""
        if self.requests is None and self.seconds is None:
            return max(4, 2 * concurrency)
        return self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What one server turned out to accept, found by asking it."""

    model: str
    limit_field: str = "max_tokens"
    ignore_eos: bool = True
    usage: bool = True
    overhead_tokens: int = 0
    """Prompt tokens beyond the words: what the chat template adds."""
    recount: bool = False
    """Answers are kept and counted with the tokenizer afterwards, for want of usage."""
    notes: tuple[str, ...] = ()


def encode(load: Load, dialect: Dialect, content: Any, *, output_tokens: int) -> bytes:
    """The request body for `content`: a text; a message list; for rerank, texts of which the first is the query."""
    body: dict[str, Any] = {"model": dialect.model}
    if load.route == "embeddings":
        body["input"] = content
    elif load.route == "rerank":
        body |= {"query": content[0], "documents": list(content[1:])}
    else:
        if load.route == "chat":
            body["messages"] = content if isinstance(content, list) else [{"role": "user", "content": content}]
        else:
            body["prompt"] = content
        body |= {dialect.limit_field: output_tokens, "stream": load.stream, "temperature": 0}
        if load.stream and dialect.usage:
            body["stream_options"] = {"include_usage": True}
        if load.ignore_eos and dialect.ignore_eos:
            body["ignore_eos"] = True
    return orjson.dumps(body | dict(load.extra))


def request_for(load: Load, body: bytes, *, keep_text: bool = False, tag: str = "") -> Request:
    """`body` on its way to the load's route."""
    streamed = load.stream and load.generates
    return Request(path=PATHS[load.route], body=body, stream=streamed, keep_text=keep_text, tag=tag)
