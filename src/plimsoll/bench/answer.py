"""Reads an OpenAI-compatible answer, streamed or whole, into a Row."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import orjson

from plimsoll.bench.row import ChunkBasis, Row
from plimsoll.bench.sse import EventParser

_WORDS = 300
"""Characters of a server's own words kept with a failure."""


def spread(
    characters: Sequence[int], counted: Sequence[int], total: int | None, finish: str | None
) -> tuple[list[float], ChunkBasis]:
    """Tokens of each chunk that carried text, and how they are known.

    `characters` and `counted` (tokens the chunk itself names, 0 where it does not) have one entry per chunk, `total` is
    the whole answer's count. A last token without text (end of sequence) leaves one token more than there are chunks.
    """
    chunks = len(characters)
    if chunks and all(counted):
        return [float(count) for count in counted], "chunk"
    if total is None or total == chunks or (total == chunks + 1 and finish == "stop"):
        return [1.0] * chunks, "one"
    whole = sum(characters)
    if total < chunks:
        return [total * c / whole for c in characters], "characters"
    return [1.0 + (total - chunks) * c / whole for c in characters], "characters"


class StreamReader:
    """Takes a streamed answer's bytes with their stamps; `finish` fills in the row."""

    __slots__ = ("_characters", "_counted", "_cumulative", "_parser", "_stamps", "_texts", "_total", "row")

    def __init__(self, row: Row, *, keep_text: bool) -> None:
        self.row = row
        self._parser = EventParser()
        self._stamps: list[float] = []
        self._characters: list[int] = []
        self._counted: list[int] = []
        self._cumulative = 0
        self._total: int | None = None
        self._texts: list[str] | None = [] if keep_text else None

    def feed(self, piece: bytes, stamp_s: float) -> None:
        """Take the next bytes of the body, read at `stamp_s`."""
        for name, data in self._parser.feed(piece):
            self._event(name, data, stamp_s)

    def finish(self, stamp_s: float) -> None:
        """The body has ended, properly, at `stamp_s`."""
        row = self.row
        for name, data in self._parser.close():
            self._event(name, data, stamp_s)
        if not row.end_s:
            row.end_s = stamp_s
        self.settle()
        if row.error is None and not row.done_seen and row.finish is None:
            row.error, row.detail = "truncated", "the stream ended without a finish reason and without [DONE]"
        if row.error is None and not self._stamps:
            row.error, row.detail = "empty", "the answer held no text"

    def settle(self) -> None:
        """Work out tokens and arrivals from what has come so far, of a failed stream too."""
        row = self.row
        tokens, row.chunk_basis = spread(self._characters, self._counted, self._total, row.finish)
        stamps, merged = array("d"), array("d")
        for stamp, count in zip(self._stamps, tokens, strict=True):
            # Events of one read arrived together: one arrival of several tokens, like a chunk that packs several.
            if stamps and stamps[-1] == stamp:
                merged[-1] += count
            else:
                stamps.append(stamp)
                merged.append(count)
        row.arrivals_s, row.arrival_tokens = stamps, merged
        if self._total is not None:
            row.output_tokens, row.counted_by = self._total, "usage"
        else:
            row.output_tokens, row.counted_by = round(sum(tokens)), "chunks"
        if self._texts is not None:
            row.text = "".join(self._texts)

    def _event(self, name: bytes, data: bytes, stamp_s: float) -> None:
        row = self.row
        if data == b"[DONE]":
            row.done_seen, row.end_s = True, stamp_s
            return
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            chunk = None
        if not isinstance(chunk, dict):
            self._fail("malformed", data.decode("utf-8", "replace"))
            return
        if name == b"error" or chunk.get("error"):
            self._fail("stream_error", _words(chunk))
            return
        usage = chunk.get("usage")
        if usage:
            self._usage(usage)
        characters = counted = 0
        for choice in chunk.get("choices") or ():
            size, answer = self._choice(choice)
            characters += size
            counted += _token_count(choice)
            if answer and row.first_answer_s is None:
                row.first_answer_s = stamp_s
        if characters:
            if usage and self._total is not None:
                counted = self._total - self._cumulative
                self._cumulative = self._total
            self._stamps.append(stamp_s)
            self._characters.append(characters)
            self._counted.append(counted)

    def _choice(self, choice: dict[str, Any]) -> tuple[int, bool]:
        """(characters of text in this choice's delta, whether any of it is the answer and not reasoning)."""
        if choice.get("finish_reason"):
            self.row.finish = choice["finish_reason"]
        delta = choice.get("delta")
        if delta is None:
            text = choice.get("text") or ""
            self._keep(text)
            return len(text), bool(text)
        text = delta.get("content") or delta.get("refusal") or ""
        self._keep(text)
        answer = len(text)
        # DeepSeek, SGLang and llama.cpp say reasoning_content; newer vLLM says reasoning.
        thought = len(delta.get("reasoning_content") or delta.get("reasoning") or "")
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            answer += len(function.get("name") or "") + len(function.get("arguments") or "")
        return answer + thought, answer > 0

    def _keep(self, text: str) -> None:
        if self._texts is not None and text:
            self._texts.append(text)

    def _usage(self, usage: dict[str, Any]) -> None:
        if usage.get("completion_tokens") is not None:
            self._total = usage["completion_tokens"]
        read_prompt_usage(self.row, usage)

    def _fail(self, kind: str, detail: str) -> None:
        if self.row.error is None:
            self.row.error, self.row.detail = kind, detail[:_WORDS]


def read_whole(row: Row, body: bytes, stamp_s: float, *, keep_text: bool) -> None:
    """Read an answer that was not streamed, or an error body, into `row`."""
    row.end_s = stamp_s
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if row.status != 200:
        words = _words(answer) if isinstance(answer, dict) else body.decode("utf-8", "replace")
        row.error, row.detail = f"http_{row.status}", words[:_WORDS]
        return
    if not isinstance(answer, dict | list):
        row.error, row.detail = "malformed", body[:_WORDS].decode("utf-8", "replace")
        return
    if isinstance(answer, list):
        return
    if answer.get("error"):
        row.error, row.detail = "stream_error", _words(answer)[:_WORDS]
        return
    usage = answer.get("usage") or {}
    read_prompt_usage(row, usage)
    choices = answer.get("choices")
    if choices:
        row.finish = choices[0].get("finish_reason")
        if usage.get("completion_tokens") is not None:
            row.output_tokens, row.counted_by = usage["completion_tokens"], "usage"
        if keep_text:
            row.text = (choices[0].get("message") or {}).get("content") or choices[0].get("text") or ""
    elif not answer.get("data") and not answer.get("results"):
        row.error, row.detail = "empty", "the answer held neither choices nor data nor results"


def read_prompt_usage(row: Row, usage: dict[str, Any]) -> None:
    """Take the prompt's tokens and how many of them the prefix cache held."""
    if usage.get("prompt_tokens") is not None:
        row.prompt_tokens = usage["prompt_tokens"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cached is not None:
        row.cached_tokens = cached


def _token_count(choice: dict[str, Any]) -> int:
    """Tokens that this chunk itself names: ids (vLLM) or log probabilities; 0 when it names none."""
    ids = choice.get("token_ids")
    if ids:
        return len(ids)
    logprobs = choice.get("logprobs")
    if logprobs:
        return len(logprobs.get("content") or logprobs.get("tokens") or ())
    return 0


def _words(answer: dict[str, Any]) -> str:
    error = answer.get("error", answer)
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(answer.get("message") or error)
