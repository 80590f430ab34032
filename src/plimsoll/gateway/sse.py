"""Server-sent events as they pass: only whole events go on, and the token counts are read from the last one.

Nothing is parsed but events that hold `"usage"`, and those up to the first that carries text.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_HELD_BYTES = 1 << 20
"""An event longer than this goes on in pieces."""
_EVENT_END = re.compile(rb"\r?\n\r?\n|\r\r")
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DONE = b"[DONE]"


class EventTap:
    """Reads one stream; `strip_usage` drops the usage event that the gateway asked for on its own account."""

    __slots__ = ("_held", "_strip_usage", "done", "events", "started", "usage")

    def __init__(self, *, strip_usage: bool) -> None:
        self._held = b""
        self._strip_usage = strip_usage
        self.done = False
        self.events = 0
        """With text: what tokens are counted by when the engine does not report usage."""
        self.started = False
        """Whether an event with text has passed; a first event with only a role does not count."""
        self.usage: tuple[int, int] | None = None

    def feed(self, data: bytes) -> bytes:
        """What may go on of `data` and of what was held back: whole events only."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not data.endswith(_ENDS):
            cut = max((at + len(end) for end in _ENDS if (at := data.rfind(end)) >= 0), default=0)
            if len(data) - cut > _HELD_BYTES:
                return data
            self._held = data[cut:]
            data = data[:cut]
        if not self.started:
            self.started = _has_text(data)
        if self.started:
            self.events += data.count(b"data:")
        if b'"usage"' in data or b'"timings"' in data:
            data = self._read_usage(data)
        if _DONE in data and data.rstrip().endswith(_DONE):
            self.done = True
        return data

    def rest(self) -> bytes:
        """What was held back when the stream ended without an empty line."""
        held, self._held = self._held, b""
        if _DONE in held:
            self.done = True
        return held

    def _read_usage(self, data: bytes) -> bytes:
        kept = []
        start = 0
        for end in _EVENT_END.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if (b'"usage"' in event or b'"timings"' in event) and (content := event_json(event)) is not None:
                counts = read_counts(content)
                if counts is not None:
                    prompt, output = self.usage or (0, 0)
                    self.usage = max(prompt, counts[0]), max(output, counts[1])
                    if self._strip_usage and content.get("choices") == [] and "usage" in content:
                        continue
            kept.append(event)
        kept.append(data[start:])
        return b"".join(kept)


def event_json(event: bytes) -> dict[str, Any] | None:
    """The object in the data lines of one event; None if there is none."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    try:
        content = orjson.loads(b"\n".join(lines))
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def split_events(data: bytes) -> list[bytes]:
    """Whole events, each with the empty line that ends it; `data` holds nothing but whole events."""
    events = []
    start = 0
    for end in _EVENT_END.finditer(data):
        events.append(data[start : end.end()])
        start = end.end()
    return events


def _has_text(data: bytes) -> bool:
    """Whether any of the events carries text, reasoning or a tool call."""
    for event in split_events(data):
        content = event_json(event)
        if content is None:
            continue
        choices = content.get("choices")
        if not isinstance(choices, list):
            return "delta" in str(content.get("type", "delta"))  # /v1/messages and /v1/responses name their events
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            delta = choice.get("delta")
            if choice.get("text") or (
                isinstance(delta, dict) and any(value for name, value in delta.items() if name != "role")
            ):
                return True
    return False


def read_counts(content: dict[str, Any]) -> tuple[int, int] | None:
    """Prompt and output tokens of a body's `usage`; None if it has none."""
    usage = content.get("usage")
    if usage is None:  # Anthropic's first event, and the last of /v1/responses
        usage = (content.get("message") or content.get("response") or {}).get("usage")
    if not isinstance(usage, dict):
        return _llamacpp_counts(content.get("timings"))
    prompt = usage.get("prompt_tokens", usage.get("input_tokens", usage.get("total_tokens")))
    output = usage.get("completion_tokens", usage.get("output_tokens", 0))
    if not isinstance(prompt, int) and "output_tokens" not in usage:
        return None
    return prompt if isinstance(prompt, int) else 0, output if isinstance(output, int) else 0


def _llamacpp_counts(timings: object) -> tuple[int, int] | None:
    """llama.cpp's last event has these whether or not it was asked for usage."""
    if not isinstance(timings, dict):
        return None
    counts = [timings.get(name, 0) for name in ("cache_n", "prompt_n", "predicted_n")]
    if not all(isinstance(count, int) for count in counts):
        return None
    return counts[0] + counts[1], counts[2]


_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens"\s*:\s*(\d+)')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d+)')


def find_counts(tail: bytes) -> tuple[int, int] | None:
    """Prompt and output tokens from the end of a JSON body, without parsing it.

    A quotation mark inside a JSON string is escaped, so text of the model cannot be mistaken for the key.
    """
    at = tail.rfind(b'"usage"')
    if at < 0 or not _USAGE.match(tail, at):
        return None
    prompt = _PROMPT.search(tail, at)
    if prompt is None:
        return None
    output = _OUTPUT.search(tail, at)
    return int(prompt[1]), int(output[1]) if output else 0
