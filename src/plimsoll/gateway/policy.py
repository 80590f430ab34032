"""Which replica takes a request: pure functions over a snapshot of the candidates' load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """One candidate that has a free slot."""

    name: str
    running: int
    concurrency: int
    tokens: int
    """Estimated tokens of the requests that it has not finished."""
    weight: float = 1.0


def least_tokens(loads: Sequence[Load]) -> int:
    """Index of the candidate with the fewest outstanding tokens per weight, then the fewest requests."""
    return min(range(len(loads)), key=lambda i: (loads[i].tokens / loads[i].weight, loads[i].running))
