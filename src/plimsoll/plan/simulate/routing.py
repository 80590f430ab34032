"""Which replica takes a request, as the gateway decides it, at a cost that hardly grows with the number of replicas."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

from plimsoll.plan.simulate.book import Book

Policy = Literal["round-robin", "least-outstanding", "least-tokens", "prefix"]
_BUSIER = 1.25
"""Times the mean: what a replica may carry and still be preferred for its cache."""
_BLOCKS = 1 << 16
"""That the router remembers; the least recently used are forgotten."""


class Router(Protocol):
    """Told of every request that a replica takes and ends, and of replicas that come and go."""

    def pick(self, request: int) -> int:
        """The replica for `request`; -1 if none is there."""

    def took(self, replica: int, request: int) -> None:
        """`replica` works on it now."""

    def ended(self, replica: int, request: int) -> None:
        """`replica` is rid of it."""

    def join(self, replica: int) -> None:
        """`replica` takes requests; it has none."""

    def leave(self, replica: int) -> None:
        """`replica` takes no more."""


def router_for(policy: Policy, book: Book, *, replicas: int) -> Router:
    """A router that knows no replica yet; they are numbered below `replicas`."""
    if policy == "round-robin":
        return _RoundRobin()
    if policy == "prefix":
        return _PrefixAffinity(book, replicas)
    return _LeastLoaded(book, replicas, by_tokens=policy == "least-tokens")


class _RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._there: list[int] = []
        self._next = 0

    def pick(self, request: int) -> int:
        if not self._there:
            return -1
        self._next = (self._next + 1) % len(self._there)
        return self._there[self._next - 1]

    def took(self, replica: int, request: int) -> None:
        pass

    def ended(self, replica: int, request: int) -> None:
        pass

    def join(self, replica: int) -> None:
        self._there.append(replica)

    def leave(self, replica: int) -> None:
        self._there.remove(replica)


class _LeastLoaded:
    """The one with the fewest unfinished requests, or the fewest tokens of such; the first of several."""

    def __init__(self, book: Book, replicas: int, *, by_tokens: bool) -> None:
        self._book = book
        self._count = replicas
        self._by_tokens = by_tokens
        self._loads = [-1] * replicas
        """-1: not there."""
        self._heap: list[int] = []
        """load x replicas + replica; entries that are no longer true are thrown away when they come up."""

    def pick(self, request: int) -> int:
        heap, count, loads = self._heap, self._count, self._loads
        while heap:
            load, replica = divmod(heap[0], count)
            if loads[replica] == load:
                return replica
            heappop(heap)
        return -1

    def took(self, replica: int, request: int) -> None:
        self._move(replica, self._weight(request))

    def ended(self, replica: int, request: int) -> None:
        if self._loads[replica] >= 0:
            self._move(replica, -self._weight(request))

    def join(self, replica: int) -> None:
        self._loads[replica] = 0
        heappush(self._heap, replica)

    def leave(self, replica: int) -> None:
        self._loads[replica] = -1

    def _weight(self, request: int) -> int:
        return self._book.prompt[request] + self._book.output[request] if self._by_tokens else 1

    def _move(self, replica: int, by: int) -> None:
        load = self._loads[replica] = self._loads[replica] + by
        heappush(self._heap, load * self._count + replica)
        if len(self._heap) > 8 * self._count + 64:
            self._heap = [load * self._count + i for i, load in enumerate(self._loads) if load >= 0]
            heapify(self._heap)


class _PrefixAffinity(_LeastLoaded):
    """The one that has last seen most of the prompt, unless it is much busier than the mean; else by tokens."""

    def __init__(self, book: Book, replicas: int) -> None:
        super().__init__(book, replicas, by_tokens=True)
        self._seen: dict[int, int] = {}
        """The replica that has last worked on each block."""
        self._running = [0] * replicas
        self._there = 0
        self._all = 0
        """Requests on replicas that are there."""

    def pick(self, request: int) -> int:
        depths: dict[int, int] = {}
        blocks = self._book.blocks[request] if self._book.blocks else ()
        for depth, block in enumerate(blocks, 1):
            replica = self._seen.get(block, -1)
            if replica < 0:
                break
            if self._loads[replica] >= 0:
                depths[replica] = depth
        if depths:
            best = max(depths, key=depths.__getitem__)
            if self._running[best] + 1 <= math.ceil(_BUSIER * (self._all + 1) / self._there):
                return best
        return super().pick(request)

    def took(self, replica: int, request: int) -> None:
        super().took(replica, request)
        self._running[replica] += 1
        self._all += 1
        seen = self._seen
        for block in reversed(self._book.blocks[request] if self._book.blocks else ()):
            seen.pop(block, None)
            seen[block] = replica
        while len(seen) > _BLOCKS:
            del seen[next(iter(seen))]

    def ended(self, replica: int, request: int) -> None:
        super().ended(replica, request)
        if self._loads[replica] >= 0:
            self._running[replica] -= 1
            self._all -= 1

    def join(self, replica: int) -> None:
        super().join(replica)
        self._running[replica] = 0
        self._there += 1

    def leave(self, replica: int) -> None:
        super().leave(replica)
        self._all -= self._running[replica]
        self._there -= 1
