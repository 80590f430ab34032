"""What is sent: the load as the user states it, and the dialect in which this server takes it."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx
import orjson

from plimsoll.bench.client import Client, Request, clock
from plimsoll.bench.row import Row
from plimsoll.bench.target import Target, resolve
from plimsoll.errors import BenchError

Route = Literal["chat", "completions", "embeddings", "rerank"]
PATHS: Mapping[Route, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
}
_WORD_LIST = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea body information back parent
face others level office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college interest death
experience effect use class control field development role effort rate heart drug show leader light
"""
WORDS = tuple(_WORD_LIST.split())
"""Common English words: with a space before them, one token each in nearly every vocabulary."""
_TAIL = " Now tell a long story with these words in it."
_TAIL_TOKENS = 12
_PROBE_WORDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of request and how many of them; sizes in tokens of the target's own tokenizer."""

    route: Route = "chat"
    prompt_tokens: int = 64
    output_tokens: int = 48
    requests: int | None = None
    """Per concurrency level; None: max(4, 2 x level), or without a limit when `seconds` is set."""
    seconds: float | None = None
    """Per level; with `requests` as well, whichever ends first. What is in flight then is let end."""
    warmup: int = 0
    """Requests of each worker before the measured ones; they are kept, marked, and left out of every figure."""
    ignore_eos: bool = True
    """Ask for the full output length; a server that refuses the field is asked without it, and a note says so."""
    stream: bool = True
    documents: int = 4
    """Per rerank request; `prompt_tokens` each."""
    seed: int = field(default_factory=lambda: secrets.randbelow(1 << 31))
    """Of prompts and arrivals. Drawn anew unless given: prompts seen before are answered out of a prefix cache."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request body (temperature, top_p ...)."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise BenchError("a load needs at least one prompt token and one output token")
        if self.requests is not None and self.requests < 1:
            raise BenchError("a load needs at least one request")

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
    """What one server turned out to accept, found by asking it once."""

    model: str
    limit_field: str = "max_tokens"
    ignore_eos: bool = True
    usage: bool = True
    overhead_tokens: int = 0
    """Prompt tokens that the chat template adds."""
    notes: tuple[str, ...] = ()


def encode(load: Load, dialect: Dialect, content: Any, *, output_tokens: int | None = None) -> bytes:
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
        body |= {dialect.limit_field: output_tokens or load.output_tokens, "stream": load.stream, "temperature": 0}
        if load.stream and dialect.usage:
            body["stream_options"] = {"include_usage": True}
        if load.ignore_eos and dialect.ignore_eos:
            body["ignore_eos"] = True
    return orjson.dumps(body | dict(load.extra))


def request_for(load: Load, body: bytes, *, keep_text: bool = False, tag: str = "") -> Request:
    """`body` on its way to the load's route."""
    streamed = load.stream and load.generates
    return Request(path=PATHS[load.route], body=body, stream=streamed, keep_text=keep_text, tag=tag)


def synthetic(load: Load, dialect: Dialect) -> Iterator[Request]:
    """Requests without end, each of other words, so that no prefix cache can answer for the model."""
    rng = random.Random(load.seed)  # noqa: S311
    while True:
        content: Any = _text(rng, max(1, load.prompt_tokens - dialect.overhead_tokens), tail=load.generates)
        if load.route == "rerank":
            content = [_text(rng, 8), *(_text(rng, load.prompt_tokens) for _ in range(load.documents))]
        yield request_for(load, encode(load, dialect, content))


def _text(rng: random.Random, tokens: int, *, tail: bool = False) -> str:
    if tail and tokens >= 2 * _TAIL_TOKENS:
        return " ".join(rng.choices(WORDS, k=tokens - _TAIL_TOKENS)) + "." + _TAIL
    return " ".join(rng.choices(WORDS, k=tokens))


async def find_model(target: Target) -> str:
    """The target's model: as given, else the first of its /v1/models; BenchError when there is none."""
    if target.model:
        return target.model
    address = resolve(target)
    url = f"{'https' if address.tls else 'http'}://{address.host}:{address.port}{address.root}/v1/models"
    headers = dict(target.headers) | ({"Authorization": f"Bearer {target.api_key}"} if target.api_key else {})
    try:
        async with httpx.AsyncClient(verify=target.verify_tls, timeout=30.0) as http:
            answer = await http.get(url, headers=headers)
        models = answer.json()["data"] if answer.status_code == 200 else []
    except httpx.HTTPError as error:
        raise BenchError(f"cannot reach {url}: {error or type(error).__name__}", hint="is the server up?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{url} did not answer with a model list", hint="name the model with --model") from error
    if not models:
        raise BenchError(
            f"{url} named no model (status {answer.status_code})",
            hint="give the API key if it wants one, or name the model with --model",
        )
    return str(models[0]["id"])


async def probe(client: Client, load: Load) -> Dialect:
    """Ask once, small, and learn what the server accepts; BenchError with its own words when it takes nothing.

    Fields that are not in OpenAI's API or not in every copy of it (ignore_eos, stream_options, max_tokens) are given up
    one at a time when a refusal names them, and otherwise in that order.
    """
    dialect = Dialect(model=await find_model(client.target))
    content: Any = " ".join(WORDS[:_PROBE_WORDS])
    if load.route == "rerank":
        content = [content, content]
    while True:
        body = encode(load, dialect, content, output_tokens=4)
        await client.open(1)
        row = await client.send(request_for(load, body), clock())
        if row.ok or row.error == "empty":
            break
        retry = _give_up(row, load, dialect)
        if retry is None:
            raise _refusal(row, client.target)
        dialect = retry
    await client.send(request_for(load, body), clock())  # whether the connection is really kept shows at its second use
    if load.generates:
        if row.counted_by != "usage":
            note = "the server gives no usage: output tokens are chunks counted as one token each"
            dialect = replace(dialect, notes=(*dialect.notes, note))
        if row.prompt_tokens is not None:
            dialect = replace(dialect, overhead_tokens=max(0, row.prompt_tokens - _PROBE_WORDS))
    return dialect


def _give_up(row: Row, load: Load, dialect: Dialect) -> Dialect | None:
    """The dialect with one optional field less, or None when the refusal is about something else."""
    if row.status not in (400, 422) or not load.generates:
        return None
    optional: Sequence[tuple[str, bool, Dialect]] = (
        ("ignore_eos", load.ignore_eos and dialect.ignore_eos, replace(dialect, ignore_eos=False)),
        ("stream_options", load.stream and dialect.usage, replace(dialect, usage=False)),
        ("max_tokens", dialect.limit_field == "max_tokens", replace(dialect, limit_field="max_completion_tokens")),
    )
    sent = [(name, less) for name, in_use, less in optional if in_use]
    named = [(name, less) for name, less in sent if name in row.detail]
    for name, less in named or sent:
        note = f"the server refuses {name}: sent without it"
        return replace(less, notes=(*dialect.notes, note))
    return None


def _refusal(row: Row, target: Target) -> BenchError:
    hints = {
        401: "give the API key",
        403: "the API key does not allow this",
        404: "check the path (the base URL ends before /chat/completions) and the model's name",
        429: "the server limits the rate: raise its limit, or lower the load",
    }
    return BenchError(
        f"{target.url} refused a first small request: {row.error}: {row.detail}",
        hint=hints.get(row.status, "the server's own log says more"),
    )
