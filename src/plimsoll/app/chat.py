"""One question to a running deployment, answered token by token."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from plimsoll.errors import GatewayError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and how to answer it; `model` None: the first one served."""

    prompt: str
    model: str | None = None
    max_tokens: int = 512
    temperature: float | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstAnswer:
    """What came back to the first request after the start."""

    text: str
    model: str
    first_token_s: float
    """From sending to the first piece of text."""


def ask(address: str, asked: Asked) -> Iterator[str]:
    """Pieces of the answer as they come. GatewayError with the server's own words if it refuses or breaks off."""
    headers = {"Authorization": f"Bearer {asked.api_key}"} if asked.api_key else {}
    try:
        with httpx.Client(
            base_url=address, headers=headers, timeout=httpx.Timeout(600, connect=5), trust_env=False
        ) as client:
            body: dict[str, Any] = {
                "model": asked.model or _first_model(client),
                "messages": [{"role": "user", "content": asked.prompt}],
                "max_tokens": asked.max_tokens,
                "stream": True,
            }
            if asked.temperature is not None:
                body["temperature"] = asked.temperature
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    raise _refusal(answer)
                yield from _pieces(answer.iter_lines())
    except httpx.TransportError as problem:
        raise GatewayError(
            f"{address} does not answer: {problem or type(problem).__name__}",
            status=502,
            hint="`plimsoll ps` says what runs",
        ) from problem


def first_answer(address: str, *, model: str, api_key: str | None) -> FirstAnswer:
    """Send one real request and time its first token."""
    began = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    asked = Asked(prompt="Say hello in one short sentence.", model=model, max_tokens=24, temperature=0, api_key=api_key)
    for piece in ask(address, asked):
        if first is None:
            first = time.monotonic() - began
        pieces.append(piece)
    if first is None:
        raise GatewayError(
            "the first request came back without any text", hint="`plimsoll logs` holds the engine's log"
        )
    return FirstAnswer(text="".join(pieces).strip(), model=model, first_token_s=first)


def _first_model(client: httpx.Client) -> str:
    answer = client.get("/v1/models")
    if answer.status_code != httpx.codes.OK:
        raise _refusal(answer)
    names = [model["id"] for model in answer.json()["data"]]
    if not names:
        raise GatewayError("no model is being served", status=503, hint="`plimsoll status` says why")
    return str(names[0])


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """The text in a stream of server-sent events."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise GatewayError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            if piece := delta.get("content") or delta.get("reasoning_content"):
                yield piece


def _refusal(answer: httpx.Response) -> GatewayError:
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text[:500] or answer.reason_phrase
    return GatewayError(f"{message} (HTTP {answer.status_code})", status=answer.status_code)
