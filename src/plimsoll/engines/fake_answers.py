"""What the fake engine takes and gives: OpenAI's bodies checked, and answers of fixed words. Pure."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import dataclass
from typing import Any, Literal

from plimsoll.engines.openai_http import ApiError

WORDS = ("This", " is", " a", " fake", " answer", ".")
NATURAL_TOKENS = 18
"""Length of an answer that nothing cuts short."""
EMBEDDING_WIDTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A generation request that was checked."""

    kind: Literal["chat", "completion"]
    prompt_tokens: int
    output_tokens: int
    finish: Literal["stop", "length"]
    stream: bool
    include_usage: bool

    @property
    def object(self) -> str:
        """OpenAI's name of what is answered."""
        if self.kind == "completion":
            return "text_completion"
        return "chat.completion.chunk" if self.stream else "chat.completion"

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        }


def _take(body: dict[str, Any], key: str, *kinds: type, default: Any = None) -> Any:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ApiError(400, f"'{key}' is of the wrong type: {json.dumps(value)[:80]}", param=key)
    return value


def _count(value: Any, param: str) -> int:
    """One token per word of text; token ids count themselves."""
    if isinstance(value, str):
        return max(1, len(value.split()))
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return len(value)
    raise ApiError(400, f"'{param}' must be a non-empty string or list of token ids", param=param)


def _count_messages(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "'messages' must be a non-empty list", param="messages")
    tokens = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, "each of 'messages' needs a 'role' and a 'content'", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if content is not None and not isinstance(content, str):
            raise ApiError(400, "'content' must be text or a list of parts", param="messages")
        tokens += 1 + len((content or "").split())
    return tokens


def check(body: dict[str, Any], kind: Literal["chat", "completion"], context_tokens: int) -> Ask:
    """The request in `body`, or an `ApiError` that names the field."""
    if kind == "chat":
        prompt_tokens = _count_messages(body.get("messages"))
    elif "prompt" in body:
        prompt_tokens = _count(body["prompt"], "prompt")
    else:
        raise ApiError(400, "'prompt' is missing", param="prompt")
    if _take(body, "n", int, default=1) != 1:
        raise ApiError(400, "only n=1 is served", param="n")
    temperature = _take(body, "temperature", int, float, default=1.0)
    if not 0 <= temperature <= 2:
        raise ApiError(400, "'temperature' must lie in 0 to 2", param="temperature")
    limit = _take(body, "max_completion_tokens", int, default=_take(body, "max_tokens", int))
    if limit is not None and limit < 1:
        raise ApiError(400, f"'max_tokens' must be at least 1, got {limit}", param="max_tokens")
    room = context_tokens - prompt_tokens
    if room < 1 or (limit or 0) > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {context_tokens} tokens; the request has {prompt_tokens} in the"
            f" prompt and asks for {limit if limit is not None else 1} more.",
            param="messages" if kind == "chat" else "prompt",
            code="context_length_exceeded",
        )
    wanted = room if _take(body, "ignore_eos", bool) else min(NATURAL_TOKENS, room)
    output_tokens = wanted if limit is None else min(wanted, limit)
    options = _take(body, "stream_options", dict, default={})
    return Ask(
        kind=kind,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        finish="stop" if output_tokens == NATURAL_TOKENS and wanted == NATURAL_TOKENS else "length",
        stream=bool(_take(body, "stream", bool)),
        include_usage=bool(_take(options, "include_usage", bool)),
    )


def answer(ask: Ask, frame: dict[str, Any]) -> dict[str, Any]:
    """A whole answer; `frame` carries id, created and model."""
    text = "".join(WORDS[token % len(WORDS)] for token in range(ask.output_tokens))
    part: dict[str, Any] = {"text": text}
    if ask.kind == "chat":
        part = {"message": {"role": "assistant", "content": text, "refusal": None}}
    choice = {"index": 0, **part, "logprobs": None, "finish_reason": ask.finish}
    return {**frame, "object": ask.object, "choices": [choice], "usage": ask.usage}


def event(ask: Ask, frame: dict[str, Any], token: int | None) -> dict[str, Any]:
    """The event of one token of a stream; None: the one that says why it ended."""
    text = "" if token is None else WORDS[token % len(WORDS)]
    part: dict[str, Any] = {"text": text}
    if ask.kind == "chat":
        role = {"role": "assistant"} if token == 0 else {}
        part = {"delta": {} if token is None else {**role, "content": text}}
    choice = {"index": 0, **part, "logprobs": None, "finish_reason": ask.finish if token is None else None}
    usage = {"usage": None} if ask.include_usage else {}
    return {**frame, "object": ask.object, "choices": [choice], **usage}


def usage_event(ask: Ask, frame: dict[str, Any]) -> dict[str, Any]:
    """The last event where `stream_options.include_usage` was set."""
    return {**frame, "object": ask.object, "choices": [], "usage": ask.usage}


def embeddings(body: dict[str, Any]) -> dict[str, Any]:
    """Vectors for `input`, as floats or base64 of little-endian float32; `model` is left to the caller."""
    texts = body.get("input")
    if isinstance(texts, str) or (isinstance(texts, list) and texts and type(texts[0]) is int):
        texts = [texts]
    if not isinstance(texts, list) or not texts:
        raise ApiError(400, "'input' must be a non-empty string or list", param="input")
    tokens = sum(_count(text, "input") for text in texts)
    form = _take(body, "encoding_format", str, default="float")
    if form not in ("float", "base64"):
        raise ApiError(400, f"'encoding_format' must be float or base64, not {form}", param="encoding_format")
    data = []
    for index, text in enumerate(texts):
        vector = _vector(text if isinstance(text, str) else json.dumps(text))
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if form == "base64" else vector})
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _vector(text: str) -> list[float]:
    """A unit vector that depends on the text alone, of no meaning whatever."""
    raw = [1.0 + sum(map(ord, text[i::EMBEDDING_WIDTH])) % 17 for i in range(EMBEDDING_WIDTH)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]
