"""The event loop: arrivals, the ends of replicas' spans, failures, starts and the autoscaler, in order of time."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

from plimsoll.errors import PlanError
from plimsoll.plan.simulate.book import BROKEN, DONE, REFUSED, Book, Requests
from plimsoll.plan.simulate.costs import StepCosts
from plimsoll.plan.simulate.replica import Replica
from plimsoll.plan.simulate.routing import Policy, router_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A replica fails at a stated time and takes requests again `down_s` later."""

    at_s: float
    replica: int
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Replicas fail by chance, each after `mean_s` of service on average, and are back after `down_s`."""

    mean_s: float
    down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscale:
    """So many replicas that each has `target` unfinished requests; looked at every `interval_s`.

    More are started at once and serve after `start_s`; one goes, when it has finished what it has, once fewer were
    enough for all of `patience_s`.
    """

    least: int
    most: int
    target: float
    start_s: float
    interval_s: float = 15.0
    patience_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Equal or unequal replicas behind one gateway."""

    replicas: tuple[StepCosts, ...]
    policy: Policy = "least-tokens"
    failures: Failures | None = None
    outages: tuple[Outage, ...] = ()
    autoscale: Autoscale | None = None
    """Then `replicas` are the most that there can be: `autoscale.most` of them."""
    seed: int = 0
    """Of failures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What happened: the book of requests, the replicas' counters, and what was paid for."""

    book: Book
    replicas: tuple[Replica, ...]
    paid_s: tuple[float, ...]
    """By replica, from when it was started until it was given back or the last request ended."""
    most_replicas: int
    """That took requests at once."""
    failures: int = 0


def simulate(fleet: Fleet, requests: Requests) -> Run:
    """Serve `requests` to the last one. PlanError for a fleet that can have no replica."""
    if not fleet.replicas or (fleet.autoscale and not 1 <= fleet.autoscale.least <= len(fleet.replicas)):
        raise PlanError(
            "a fleet needs at least one replica", hint="at least 1, and no fewer than the autoscaler's least"
        )
    return _Simulation(fleet, requests).run()


@dataclass(slots=True)
class _Presence:
    """Whether a replica takes requests (`there`), is paid for (`since_s`), and how much was paid for before."""

    there: bool = False
    since_s: float | None = None
    paid_s: float = 0.0
    turn: int = 0
    """How often it has begun to take requests."""


class _Simulation:
    def __init__(self, fleet: Fleet, requests: Requests) -> None:
        self._fleet = fleet
        self._requests = requests
        self._book = Book(requests)
        self._replicas = tuple(Replica(costs, self._book) for costs in fleet.replicas)
        self._router = router_for(fleet.policy, self._book, replicas=len(fleet.replicas))
        self._presence = [_Presence() for _ in fleet.replicas]
        self._spans: list[tuple[float, int]] = []
        """Heap of (end, replica); an entry is stale when the replica's span has come to end at another time."""
        self._changes: list[tuple[float, int, Callable[[float], None]]] = []
        """Heap of what befalls the fleet: (time, number, what)."""
        self._changed = 0
        self._unplaced: deque[int] = deque()
        """Requests that came while no replica was there."""
        self._rng = random.Random(f"{fleet.seed}/failures")  # noqa: S311 - reproducible, nothing secret
        self._wanted: deque[tuple[float, int]] = deque()
        self._sent = 0
        self._there = self._most = self._failed = 0

    def run(self) -> Run:
        """Until the fate of every request is known."""
        book, spans, changes, replicas = self._book, self._spans, self._changes, self._replicas
        arrivals, total = self._requests.arrivals_s, len(self._requests)
        self._prepare()
        ended: list[int] = []
        upcoming, open_loop = 0, len(arrivals)
        next_s = arrivals[0] if open_loop else math.inf
        while book.done < total:
            span_s = spans[0][0] if spans else math.inf
            if changes and changes[0][0] <= span_s and changes[0][0] <= next_s:
                now_s, _, change = heappop(changes)
                change(now_s)
            elif next_s < span_s:
                self._place(upcoming, next_s)
                upcoming += 1
                next_s = arrivals[upcoming] if upcoming < open_loop else math.inf
            else:
                number = heappop(spans)[1]
                replica = replicas[number]
                if replica.end_s != span_s:
                    continue
                replica.pass_span(ended)
                if replica.end_s != math.inf:
                    heappush(spans, (replica.end_s, number))
                if ended:
                    self._settle(number, ended)
                    ended.clear()
        end_s = max((at for at in book.end_s if at == at), default=0.0)
        paid = tuple(
            one.paid_s + (max(0.0, end_s - one.since_s) if one.since_s is not None else 0.0) for one in self._presence
        )
        return Run(book=book, replicas=replicas, paid_s=paid, most_replicas=self._most, failures=self._failed)

    def _prepare(self) -> None:
        fleet, scale = self._fleet, self._fleet.autoscale
        for number in range(scale.least if scale else len(fleet.replicas)):
            self._start(number, 0.0)
        for outage in fleet.outages:
            self._at(outage.at_s, self._failing(outage.replica, outage.down_s))
        if scale:
            self._at(scale.interval_s, self._rescale)
        for _ in range(min(self._requests.clients, len(self._requests))):
            self._at(0.0, self._send)

    def _at(self, at_s: float, change: Callable[[float], None]) -> None:
        self._changed += 1
        heappush(self._changes, (at_s, self._changed, change))

    def _place(self, request: int, now_s: float) -> None:
        """Give `request` to a replica, or keep it until there is one."""
        number = self._router.pick(request)
        if number < 0:
            self._unplaced.append(request)
            return
        replica = self._replicas[number]
        if not replica.holds(request):
            self._book.settle(request, REFUSED)
            self._next_turn(now_s)
            return
        self._router.took(number, request)
        if replica.add(request, now_s):
            heappush(self._spans, (replica.end_s, number))

    def _settle(self, number: int, ended: Iterable[int]) -> None:
        book = self._book
        for request in ended:
            book.settle(request, DONE)
            self._router.ended(number, request)
            self._next_turn(book.end_s[request])
        if not self._presence[number].there and not self._replicas[number].outstanding:
            self._stop(number, max(book.end_s[request] for request in ended))

    def _next_turn(self, now_s: float) -> None:
        """In a closed loop, whoever has an answer sends the next request."""
        if self._requests.clients and self._sent < len(self._requests):
            self._at(now_s, self._send)

    def _send(self, now_s: float) -> None:
        if self._sent < len(self._requests):
            self._book.arrival_s[self._sent] = now_s
            self._sent += 1
            self._place(self._sent - 1, now_s)

    def _start(self, number: int, now_s: float) -> None:
        """`number` takes requests from now on."""
        presence = self._presence[number]
        presence.there = True
        presence.turn += 1
        if presence.since_s is None:
            presence.since_s = now_s
        self._router.join(number)
        self._there += 1
        self._most = max(self._most, self._there)
        if self._fleet.failures:
            after_s = self._rng.expovariate(1.0 / self._fleet.failures.mean_s)
            self._at(now_s + after_s, self._failing(number, self._fleet.failures.down_s, presence.turn))
        for _ in range(len(self._unplaced)):
            self._place(self._unplaced.popleft(), now_s)

    def _leave(self, number: int) -> None:
        self._presence[number].there = False
        self._router.leave(number)
        self._there -= 1

    def _stop(self, number: int, now_s: float) -> None:
        """`number` is given back: no longer paid for."""
        presence = self._presence[number]
        if presence.since_s is not None:
            presence.paid_s += now_s - presence.since_s
            presence.since_s = None

    def _failing(self, number: int, down_s: float, turn: int | None = None) -> Callable[[float], None]:
        """A failure to come: of whatever serves then, or only in that `turn` of the replica."""

        def fail(now_s: float) -> None:
            presence = self._presence[number]
            if not presence.there or turn not in (None, presence.turn):
                return
            self._failed += 1
            self._leave(number)
            unanswered, broken = self._replicas[number].fail()
            for request in broken:
                self._book.settle(request, BROKEN)
                self._next_turn(now_s)
            for request in unanswered:  # nobody has seen a token of theirs: the gateway sends them elsewhere
                self._place(request, now_s)
            self._at(now_s + down_s, lambda at_s: self._start(number, at_s))

        return fail

    def _rescale(self, now_s: float) -> None:
        """Start what is missing; let one go that was not needed for long."""
        scale = self._fleet.autoscale
        if scale is None:
            return
        unfinished = len(self._unplaced) + sum(replica.outstanding for replica in self._replicas)
        want = max(scale.least, min(scale.most, math.ceil(unfinished / scale.target)))
        self._wanted.append((now_s, want))
        while self._wanted[0][0] <= now_s - scale.patience_s:
            self._wanted.popleft()
        paid = [number for number, one in enumerate(self._presence) if one.since_s is not None]
        staying = [number for number in paid if self._presence[number].there or not self._replicas[number].outstanding]
        free = [number for number, one in enumerate(self._presence) if one.since_s is None]
        for number in free[: max(0, want - len(staying))]:
            self._presence[number].since_s = now_s
            self._at(now_s + scale.start_s, lambda at_s, number=number: self._start(number, at_s))  # type: ignore[misc]
        lately = max(count for _, count in self._wanted)
        there = [number for number in staying if self._presence[number].there]
        if len(staying) > lately and there and now_s >= scale.patience_s:
            last = there[-1]
            self._leave(last)
            if not self._replicas[last].outstanding:
                self._stop(last, now_s)
        self._at(now_s + scale.interval_s, self._rescale)
