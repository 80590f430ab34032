"""Counts tokens with the model's own tokenizer, by the server's /tokenize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from plimsoll.bench.target import Target, resolve
from plimsoll.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """The server's own /tokenize: vLLM and SGLang take `prompt`, llama.cpp takes `content`."""

    url: str
    http: httpx.AsyncClient
    body: dict[str, Any]
    field: str

    async def count(self, text: str) -> int:
        """Tokens of `text`; BenchError when the route stops answering."""
        found = await _ask(self.http, self.url, self.body | {self.field: text})
        if found is None:
            raise BenchError(f"{self.url} no longer answers")
        return found


def http_client(target: Target) -> httpx.AsyncClient:
    """A client for what is asked before and after the measuring, with the target's key and headers."""
    headers = dict(target.headers) | ({"Authorization": f"Bearer {target.api_key}"} if target.api_key else {})
    verify = resolve(target).tls or False  # no certificates are loaded for plain http
    return httpx.AsyncClient(verify=verify, timeout=30.0, headers=headers, trust_env=False)


def base_url(target: Target) -> str:
    """Scheme, host, port and root of the target, without /v1."""
    address = resolve(target)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{'https' if address.tls else 'http'}://{host}:{address.port}{address.root}"


async def find_tokenizer(target: Target, model: str, http: httpx.AsyncClient) -> Tokenizer | None:
    """The server's /tokenize if it has one that counts, else None."""
    url = base_url(target) + "/tokenize"
    for field, body in (("prompt", {"model": model, "add_special_tokens": False}), ("content", {"add_special": False})):
        if await _ask(http, url, body | {field: "one two three"}):
            return Tokenizer(url=url, http=http, body=body, field=field)
    return None


async def single_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[str, ...]:
    """Those of `words` that are one token each after a space, found by halving: 126 words take some 20 questions."""
    count = await tokenizer.count("a" + "".join(f" {word}" for word in words))
    if count == len(words) + 1:
        return tuple(words)
    if len(words) <= 1:
        return ()
    half = len(words) // 2
    return await single_tokens(tokenizer, words[:half]) + await single_tokens(tokenizer, words[half:])


async def _ask(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> int | None:
    try:
        answer = await http.post(url, json=body)
        found = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return None
    tokens = found.get("tokens") if isinstance(found, dict) else None
    return len(tokens) if isinstance(tokens, list) and tokens else None
