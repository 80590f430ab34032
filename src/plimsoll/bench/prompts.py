"""Synthetic prompts of a wanted number of tokens: plain words, shared prefixes, sessions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from plimsoll.bench.load import Dialect, Load, encode, request_for
from plimsoll.bench.work import Item, Session

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
TAIL = " Now tell a long story with these words in it."
_TAIL_TOKENS = 12
"""With the full stop before it."""


def words_text(rng: random.Random, tokens: int, words: Sequence[str] = WORDS, *, tail: bool = False) -> str:
    """A text of `tokens` words, one token each; with `tail` its end asks for a long answer if there is room."""
    if tail and tokens >= 2 * _TAIL_TOKENS:
        return " ".join(rng.choices(words, k=tokens - _TAIL_TOKENS)) + "." + TAIL
    return " ".join(rng.choices(words, k=max(tokens, 1)))


def synthetic(load: Load, dialect: Dialect, *, words: Sequence[str] = WORDS, share: int = 0) -> Iterator[Item]:
    """Requests (or sessions) without end, each of other words, so that no prefix cache can answer for the model.

    `share` tells processes apart that send the same load: it changes the words, not the shared prefixes.
    """
    rng = random.Random(f"{load.seed}/{share}")  # noqa: S311
    prefixes = [
        words_text(random.Random(f"{load.seed}/prefix/{i}"), load.prefix_tokens, words) + " "  # noqa: S311
        for i in range(load.families)
    ]
    while True:
        family = rng.randrange(load.families)
        size = _drawn(rng, load.prompt_tokens, load.spread)
        output = _drawn(rng, load.output_tokens, load.spread)
        prefix = prefixes[family] if load.prefix_tokens else ""
        own = max(1, size - load.prefix_tokens - dialect.overhead_tokens)
        tag = f"family {family}" if load.families > 1 else ""
        if load.turns > 1:
            texts = [prefix + words_text(rng, own, words, tail=True)]
            texts += [words_text(rng, load.prompt_tokens, words, tail=True) for _ in range(load.turns - 1)]
            yield Session(load=load, dialect=dialect, texts=tuple(texts), output_tokens=output)
            continue
        content: Any = prefix + words_text(rng, own, words, tail=load.generates)
        if load.route == "rerank":
            query, *rest = (words_text(rng, n, words) for n in (8, *([load.prompt_tokens] * load.documents)))
            content = [query, *rest]
        body = encode(load, dialect, content, output_tokens=output)
        yield request_for(load, body, keep_text=dialect.recount, tag=tag)


def _drawn(rng: random.Random, size: int, spread: float) -> int:
    return size if not spread else max(1, rng.randint(round(size * (1 - spread)), round(size * (1 + spread))))
