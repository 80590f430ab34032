"""What the OpenVINO server takes and gives: OpenAI's bodies checked, text cut where it must stop. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from plimsoll.engines.openai_http import ApiError

REFUSED = (
    "tools", "tool_choice", "functions", "response_format", "logprobs", "top_logprobs", "logit_bias", "suffix", "echo",
    "best_of", "audio", "modalities",
)  # fmt: skip
"""Asked for, they would be promises that this server does not keep."""
_MOST_STOPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A generation request that was checked; sampling as OpenAI names it."""

    kind: Literal["chat", "completion"]
    prompt: str | tuple[int, ...]
    """Text or token ids, of a completion."""
    messages: tuple[dict[str, str], ...]
    """For the chat template, of a chat."""
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    stop: tuple[str, ...]
    ignore_eos: bool
    stream: bool
    include_usage: bool

    @property
    def object(self) -> str:
        """OpenAI's name of what is answered."""
        if self.kind == "completion":
            return "text_completion"
        return "chat.completion.chunk" if self.stream else "chat.completion"

    def choice(self, text: str, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        """One choice of an answer, or of an event of a stream."""
        part: dict[str, Any]
        if self.kind == "completion":
            part = {"text": text}
        elif self.stream:
            part = {"delta": ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})}
        else:
            part = {"message": {"role": "assistant", "content": text}}
        return {"index": 0, **part, "logprobs": None, "finish_reason": finish}


def parse_ask(body: Mapping[str, Any], kind: Literal["chat", "completion"]) -> Ask:
    """The request in `body`, or an ApiError that names the field."""
    for name in REFUSED:
        if body.get(name) not in (None, False, [], {}, "none", {"type": "text"}):
            raise ApiError(400, f"'{name}' is not served by this engine", param=name)
    if _take(body, "n", int, default=1) != 1:
        raise ApiError(400, "only n=1 is served", param="n")
    options = _take(body, "stream_options", dict, default={})
    stop = body.get("stop")
    stops = tuple([stop] if isinstance(stop, str) else stop or ())
    if len(stops) > _MOST_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise ApiError(400, f"'stop' must be text or a list of at most {_MOST_STOPS} texts", param="stop")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return Ask(
        kind=kind,
        prompt=_prompt(body.get("prompt")) if kind == "completion" else "",
        messages=_messages(body.get("messages")) if kind == "chat" else (),
        max_tokens=_whole(body, limit, least=1),
        temperature=_number(body, "temperature", 1.0, low=0, high=2),
        top_p=_number(body, "top_p", 1.0, low=0, high=1),
        top_k=_whole(body, "top_k", least=1),
        seed=_whole(body, "seed", least=0),
        presence_penalty=_number(body, "presence_penalty", 0.0, low=-2, high=2),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, low=-2, high=2),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, low=0, high=10),
        stop=stops,
        ignore_eos=bool(_take(body, "ignore_eos", bool)),
        stream=bool(_take(body, "stream", bool)),
        include_usage=bool(_take(options, "include_usage", bool)),
    )


@dataclass(slots=True)
class Text:
    """An answer as it grows: what may be given out now, with whole characters and nothing of a stop text."""

    stops: tuple[str, ...]
    whole: str = ""
    given: int = 0
    stopped: bool = False

    def grow(self, text: str, *, last: bool) -> str:
        """The part of `text` (all that was decoded so far) that is new and certain."""
        self.whole = text if last else text.rstrip("\ufffd")
        cut = min((at for stop in self.stops if (at := self.whole.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.whole, self.stopped = self.whole[:cut], True
        end = len(self.whole) if last or self.stopped else len(self.whole) - self._held()
        new = self.whole[self.given : end]
        self.given = max(self.given, end)
        return new

    def _held(self) -> int:
        """Characters at the end that a stop text may begin with."""
        longest = max((len(stop) for stop in self.stops), default=1)
        tail = range(min(longest - 1, len(self.whole)), 0, -1)
        return next((size for size in tail if any(stop.startswith(self.whole[-size:]) for stop in self.stops)), 0)


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "'messages' must be a non-empty list", param="messages")
    return tuple(_message(one) for one in value)


def _message(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise ApiError(400, "each of 'messages' needs a 'role' and a 'content'", param="messages")
    content = value.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ApiError(400, "only parts of text are served", param="messages")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, "'content' must be text or a list of parts of text", param="messages")
    return {"role": value["role"], "content": content}


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value):
        return tuple(value)
    raise ApiError(400, "'prompt' must be a non-empty text or list of token ids", param="prompt")


def _take(body: Mapping[str, Any], key: str, *kinds: type, default: Any = None) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ApiError(400, f"'{key}' is of the wrong type: {json.dumps(value)[:80]}", param=key)
    return value


def _whole(body: Mapping[str, Any], key: str, *, least: int) -> int | None:
    value: int | None = _take(body, key, int)
    if value is not None and not least <= value < 1 << 31:
        raise ApiError(400, f"'{key}' must be at least {least}, got {value}", param=key)
    return value


def _number(body: Mapping[str, Any], key: str, default: float, *, low: float, high: float) -> float:
    value = float(_take(body, key, int, float, default=default))
    if not low <= value <= high:
        raise ApiError(400, f"'{key}' must lie in {low} to {high}, got {value:g}", param=key)
    return value
