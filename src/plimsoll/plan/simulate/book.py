"""The requests of a run and what became of each: columns, one entry a request, so that a million fit in memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What is asked of a fleet, in order of arrival; lengths in tokens, at least one each."""

    prompt_tokens: array[int]
    output_tokens: array[int]
    arrivals_s: array[float] = field(default_factory=lambda: array("d"))
    """Never running backwards. Empty in a closed loop."""
    clients: int = 0
    """Of a closed loop: each sends its next request when it has its answer."""
    blocks: Sequence[tuple[int, ...]] = ()
    """By request, the blocks that its prompt begins with; equal numbers, equal beginnings. Empty: nothing is shared."""
    block_tokens: int = 512

    def __len__(self) -> int:
        return len(self.prompt_tokens)


class Book:
    """What became of each request; times in seconds, NaN for what never happened."""

    __slots__ = (
        "arrival_s",
        "begun_s",
        "block_tokens",
        "blocks",
        "done",
        "end_s",
        "first_s",
        "left",
        "output",
        "prompt",
        "state",
    )

    def __init__(self, requests: Requests) -> None:
        count = len(requests)
        never = array("d", [math.nan]) * count
        self.prompt = requests.prompt_tokens
        self.output = requests.output_tokens
        self.blocks = requests.blocks
        self.block_tokens = requests.block_tokens
        self.arrival_s = requests.arrivals_s if len(requests.arrivals_s) else array("d", never)
        self.begun_s = array("d", never)
        """When an engine began with the prompt; of a request sent elsewhere after a failure, the last one."""
        self.first_s = array("d", never)
        self.end_s = array("d", never)
        self.left = array("q", requests.output_tokens)
        """Output tokens that are still to be made by a request that waits."""
        self.state = bytearray(count)
        """One of WAITING, DONE, BROKEN, REFUSED."""
        self.done = 0
        """Requests whose fate is known."""

    def settle(self, request: int, state: int) -> None:
        """The fate of `request`."""
        self.state[request] = state
        self.done += 1


WAITING, DONE, BROKEN, REFUSED = range(4)
"""BROKEN: its replica failed under its answer. REFUSED: longer than the cache of a replica."""
