"""Asks a server, before anything is measured, what it is and what it accepts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from plimsoll.bench.client import Client, clock
from plimsoll.bench.load import Dialect, Load, encode, request_for
from plimsoll.bench.prompts import WORDS, words_text
from plimsoll.bench.row import Row
from plimsoll.bench.target import Target
from plimsoll.bench.tokenizer import Tokenizer, base_url, find_tokenizer, http_client, single_tokens
from plimsoll.errors import BenchError

_FEW = 32
"""Fewer single-token words than this are too few to make prompts of: the vocabulary is not English, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was learnt: the dialect, and the words of which prompts are made."""

    dialect: Dialect
    words: tuple[str, ...] = WORDS


async def find_model(target: Target, http: httpx.AsyncClient) -> str:
    """The target's model: as given, else the first of its /v1/models; BenchError when there is none."""
    if target.model:
        return target.model
    url = base_url(target) + "/v1/models"
    try:
        answer = await http.get(url)
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


async def probe(client: Client, load: Load) -> Probed:
    """Ask small, and learn what the server accepts; BenchError with its own words when it takes nothing.

    Fields that are not in OpenAI's API or not in every copy of it (ignore_eos, stream_options, max_tokens) are given up
    one at a time when a refusal names them, and otherwise in that order. A second request of the wanted size then shows
    whether the connection is really kept, and what the server counts beyond the words.
    """
    async with http_client(client.target) as http:
        model = await find_model(client.target, http)
        tokenizer = await find_tokenizer(client.target, model, http)
        words = WORDS if tokenizer is None else await _choose(tokenizer)
    dialect = await _agree(client, load, Dialect(model=model))
    size = max(1, load.prompt_tokens - load.prefix_tokens)
    content: Any = words_text(random.Random(load.seed), size, words, tail=load.generates)  # noqa: S311
    if load.route == "rerank":
        content = [content, content]
    body = encode(load, dialect, content, output_tokens=2)
    row = await client.send(request_for(load, body), clock())
    if load.generates and row.ok:
        if row.counted_by != "usage":
            dialect = replace(dialect, recount=tokenizer is not None)
        if row.prompt_tokens is not None:
            dialect = replace(dialect, overhead_tokens=row.prompt_tokens - size)
    return Probed(dialect=dialect, words=words)


async def recount(target: Target, dialect: Dialect, rows: Iterable[Row]) -> None:
    """Count kept answers with the server's tokenizer, in the rows that the server gave no usage for."""
    async with http_client(target) as http:
        tokenizer = await find_tokenizer(target, dialect.model, http)
        if tokenizer is None:
            return
        for row in rows:
            if row.counted_by == "chunks" and row.text:
                row.output_tokens, row.counted_by = await tokenizer.count(row.text), "tokenizer"


async def _choose(tokenizer: Tokenizer) -> tuple[str, ...]:
    words = await single_tokens(tokenizer, WORDS)
    return words if len(words) >= _FEW else WORDS


async def _agree(client: Client, load: Load, dialect: Dialect) -> Dialect:
    content: Any = ["hello", "hello"] if load.route == "rerank" else "hello"
    while True:
        await client.open(1)
        row = await client.send(request_for(load, encode(load, dialect, content, output_tokens=4)), clock())
        if row.ok or row.error == "empty":
            return dialect
        less = _give_up(row, load, dialect)
        if less is None:
            raise _refusal(row, client.target)
        dialect = less


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
        return replace(less, notes=(*dialect.notes, f"the server refuses {name}: sent without it"))
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
