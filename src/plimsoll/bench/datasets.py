"""Prompts out of a file: ShareGPT's layout, Mooncake's traces, or lines of our own.

Our own lines (JSONL) have `prompt` (text), `messages` (list) or `texts` (embeddings, rerank), and may have
`output_tokens`, `at_s` (arrival, for replay) and `tag`. ShareGPT: a JSON list or JSONL of {"conversations": [{"from":
"human", "value": ...}, ...]}. Mooncake: {"timestamp": ms, "input_length": .., "output_length": .., "hash_ids": [..]},
each hash one block of 512 tokens that prompts share.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from plimsoll.bench.load import Dialect, Load, encode, request_for
from plimsoll.bench.prompts import words_text
from plimsoll.bench.work import Item, Session
from plimsoll.errors import BenchError

_BLOCK_TOKENS = 512
_TOKENS_PER_CHARACTER = 0.25
"""For the length of a recorded answer when nothing can count it; English in today's vocabularies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One line of a data file."""

    content: Any = None
    """Text, message list, or list of texts."""
    turns: tuple[str, ...] = ()
    """What the user says in each turn of a recorded talk."""
    output_tokens: int | None = None
    at_s: float | None = None
    tag: str = ""
    input_tokens: int | None = None
    blocks: tuple[int, ...] = ()
    """Hashes of shared blocks, when only lengths were recorded."""


def read_dataset(path: str) -> tuple[Prompt, ...]:
    """All prompts of a JSON or JSONL file; BenchError with file and line where one cannot be read."""
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BenchError(
            f"cannot read {path}: {error.strerror}", hint="give the path of a JSON or JSONL file"
        ) from error
    lines: list[Any] = []
    try:
        if data.lstrip().startswith(b"["):
            lines = orjson.loads(data)
        else:
            for number, line in enumerate(data.splitlines(), 1):  # noqa: B007 - told when a line cannot be read
                if line.strip():
                    lines.append(orjson.loads(line))
    except orjson.JSONDecodeError as error:
        where = path if data.lstrip().startswith(b"[") else f"{path}:{number}"
        raise BenchError(f"{where} is not JSON: {error}", hint="JSONL has one object per line") from error
    prompts = [prompt for i, line in enumerate(lines, 1) if (prompt := _prompt(line, f"{path}, entry {i}")) is not None]
    if not prompts:
        raise BenchError(f"{path} holds no prompt", hint=__doc__.splitlines()[2] if __doc__ else None)
    return tuple(prompts)


def _prompt(line: Any, where: str) -> Prompt | None:
    """One entry as a prompt; None for a ShareGPT talk that no person begins."""
    if not isinstance(line, dict):
        raise BenchError(f"{where} is not an object", hint="each entry is a JSON object")
    if "conversations" in line or "conversation" in line:
        return _sharegpt(line.get("conversations") or line.get("conversation") or [])
    if "input_length" in line:
        return Prompt(
            input_tokens=int(line["input_length"]),
            output_tokens=max(1, int(line.get("output_length", 1))),
            at_s=line["timestamp"] / 1e3 if "timestamp" in line else None,
            blocks=tuple(line.get("hash_ids", ())),
        )
    content = next((line[name] for name in ("prompt", "messages", "texts") if line.get(name)), None)
    if content is None:
        raise BenchError(
            f"{where} has no prompt", hint="an entry has prompt, messages, texts, conversations or input_length"
        )
    return Prompt(
        content=content, output_tokens=line.get("output_tokens"), at_s=line.get("at_s"), tag=str(line.get("tag", ""))
    )


def _sharegpt(talk: list[dict[str, Any]]) -> Prompt | None:
    turns = tuple(str(said["value"]) for said in talk if said.get("from") in ("human", "user"))
    answers = [str(said["value"]) for said in talk if said.get("from") in ("gpt", "assistant", "chatgpt", "bard")]
    if not turns or not answers or talk[0].get("from") not in ("human", "user", "system"):
        return None
    return Prompt(turns=turns, output_tokens=max(1, round(len(answers[0]) * _TOKENS_PER_CHARACTER)))


def stamps(prompts: Sequence[Prompt], path: str) -> list[float]:
    """Arrival times of a trace, seconds; BenchError when an entry has none."""
    found = [prompt.at_s for prompt in prompts if prompt.at_s is not None]
    if len(found) < len(prompts):
        raise BenchError(f"{path} is no trace: entries lack a time", hint="each needs at_s (seconds) or timestamp (ms)")
    return found


def recorded(
    load: Load, dialect: Dialect, prompts: Sequence[Prompt], words: Sequence[str], *, in_order: bool, share: int = 0
) -> Iterator[Item]:
    """Requests (with `load.turns` above 1, sessions) of these prompts: in order once, or shuffled again and again."""
    rng = random.Random(f"{load.seed}/{share}")  # noqa: S311
    while True:
        for prompt in prompts if in_order else rng.sample(prompts, len(prompts)):
            yield _item(load, dialect, prompt, words, rng)
        if in_order:
            return


def _item(load: Load, dialect: Dialect, prompt: Prompt, words: Sequence[str], rng: random.Random) -> Item:
    output = prompt.output_tokens or load.output_tokens
    if prompt.turns and load.turns > 1:
        return Session(load=load, dialect=dialect, texts=prompt.turns[: load.turns], output_tokens=output)
    content = prompt.turns[0] if prompt.turns else prompt.content
    if prompt.input_tokens is not None:
        size = max(1, prompt.input_tokens - dialect.overhead_tokens)
        blocks = (words_text(random.Random(f"block/{block}"), _BLOCK_TOKENS, words) for block in prompt.blocks)  # noqa: S311
        taken = " ".join(blocks).split()[:size]
        content = " ".join([*taken, *([words_text(rng, size - len(taken), words)] if len(taken) < size else [])])
    body = encode(load, dialect, content, output_tokens=output)
    return request_for(load, body, keep_text=dialect.recount, tag=prompt.tag)
