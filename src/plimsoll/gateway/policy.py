"""Which replica takes a request: pure functions over a snapshot of the candidates' load.

In this order: the replica that a session was on, the one that has most of the prompt in its cache, the one with least
to do. The first two only while that replica is not much busier than the others, so that no prefix can pile up on one.
"""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_BLOCK_BYTES = 512
"""About 128 tokens: engines share prompts in blocks of 16 to 256 tokens."""
_BLOCKS = 128
"""Of a prompt; 64 KiB are enough to tell prompts apart."""
_BUSIER = 1.25
"""Times the mean: what a replica may carry and still be preferred (consistent hashing with bounded loads)."""


@dataclass(frozen=True, slots=True)
class Load:
    """One candidate that has a free slot."""

    name: str
    running: int
    tokens: int
    """Estimated tokens of the requests that it has not finished."""
    weight: float = 1.0


def choose(loads: Sequence[Load], *, session: bytes = b"", prefix: Mapping[str, int] | None = None) -> int:
    """Index of the candidate to take; `prefix`: blocks of the prompt that each has probably cached."""
    if session:
        by_session = max(range(len(loads)), key=lambda i: _rendezvous(session, loads[i]))
        if not _too_busy(loads, by_session):
            return by_session
    if prefix:
        by_prefix = max(range(len(loads)), key=lambda i: prefix.get(loads[i].name, 0))
        if prefix.get(loads[by_prefix].name) and not _too_busy(loads, by_prefix):
            return by_prefix
    return min(range(len(loads)), key=lambda i: (loads[i].tokens / loads[i].weight, loads[i].running))


def _too_busy(loads: Sequence[Load], index: int) -> bool:
    """Whether one more request would put a candidate above its share of what all carry."""
    share = loads[index].weight / sum(load.weight for load in loads)
    fair = math.ceil(_BUSIER * share * (sum(load.running for load in loads) + 1))
    return loads[index].running + 1 > fair


def _rendezvous(session: bytes, load: Load) -> float:
    """Weighted rendezvous hashing: a session moves only when its own replica goes."""
    digest = hashlib.blake2b(session + b"\0" + load.name.encode(), digest_size=8).digest()
    draw = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -load.weight / math.log(draw)


def prompt_blocks(body: bytes) -> list[int]:
    """Hashes of a request body's prompt, one for each block and all before it: equal hashes, equal beginnings."""
    start = max(body.find(b'"messages"'), body.find(b'"prompt"'), 0)
    blocks = []
    before = 0
    for at in range(start, min(len(body) - _BLOCK_BYTES, start + _BLOCKS * _BLOCK_BYTES) + 1, _BLOCK_BYTES):
        before = hash((before, body[at : at + _BLOCK_BYTES]))
        blocks.append(before)
    return blocks


class PrefixMap:
    """Which replica has last seen each beginning of a prompt; the least recently used blocks are forgotten."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int = 1 << 16) -> None:
        self._limit = limit
        self._seen: collections.OrderedDict[int, str] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def match(self, blocks: Sequence[int]) -> dict[str, int]:
        """Blocks from the start that each replica has probably cached."""
        found: dict[str, int] = {}
        for depth, block in enumerate(blocks, 1):
            name = self._seen.get(block)
            if name is None:
                break
            found[name] = depth
        return found

    def add(self, blocks: Sequence[int], name: str) -> None:
        """`name` works on this prompt now."""
        seen = self._seen
        for block in reversed(blocks):  # so that the end of a prompt is forgotten before its beginning
            seen[block] = name
            seen.move_to_end(block)
        while len(seen) > self._limit:
            seen.popitem(last=False)
