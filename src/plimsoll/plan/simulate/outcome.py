"""What a run comes to: latencies, goodput under a service level, utilisation, what it costs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from plimsoll.plan.simulate.book import BROKEN, DONE, REFUSED
from plimsoll.plan.simulate.fleet import Run

HOLDS = 0.95
"""Of the requests, how many shall keep the limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The service level that a request must meet to count as goodput, in seconds; None: not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a quantity is spread over the requests that have it; all zero when none has."""

    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of one run. Rates are of what ended between the first and the last arrival, per second."""

    requests: int
    completed: int
    broken: int
    """Their replica failed under their answer."""
    refused: int
    """Longer than a replica's cache."""
    span_s: float
    """From the first to the last arrival."""
    duration_s: float
    """From the first arrival to the last answer."""
    offered_per_s: float
    requests_per_s: float
    tokens_per_s: float
    """Output tokens."""
    goodput_per_s: float
    """Of the requests that came, those that meet the limits, per second of `span_s`."""
    kept: float
    """Share of all requests that meet the limits."""
    kept_late: float
    """The same of the later half of them: less than `kept` where a queue grows."""
    queue_s: Spread
    """From a request's arrival to the first step that works on it."""
    ttft_s: Spread
    tpot_s: Spread
    e2e_s: Spread
    replicas: int
    """Most that took requests at once."""
    utilisation: float
    """Of the time that replicas were paid for, how much they were in a step."""
    device_hours: float
    cost: float | None
    """In the unit of the price, None without one."""
    cost_per_million_tokens: float | None
    """Of output."""
    prefix_hits: float
    """Of the prompts' tokens, how many came out of the cache."""
    preempted: int
    failures: int

    @property
    def holds(self) -> bool:
        """Whether 95 of 100 requests keep the limits, and of the later half as well."""
        return min(self.kept, self.kept_late) >= HOLDS


def summarise(run: Run, *, limits: Limits | None = None, price_per_device_hour: float | None = None) -> Outcome:
    """Figures of `run`."""
    book, state, output = run.book, run.book.state, run.book.output
    limits = limits or Limits()
    begin_s, last_s = min(book.arrival_s, default=0.0), max(book.arrival_s, default=0.0)
    done = [i for i in range(len(state)) if state[i] == DONE]
    end_s = max((book.end_s[i] for i in done), default=begin_s)
    span_s = (last_s - begin_s) or (end_s - begin_s) or 1.0
    good = _kept(run, limits, done)
    half = len(state) // 2
    ttft = array("d", (book.first_s[i] - book.arrival_s[i] for i in done))
    tpot = array("d", ((book.end_s[i] - book.first_s[i]) / (output[i] - 1) for i in done if output[i] > 1))
    within = [i for i in done if book.end_s[i] <= begin_s + span_s]
    tokens = sum(output[i] for i in done)
    hits = sum(replica.hit_tokens for replica in run.replicas)
    asked = hits + sum(replica.computed_tokens for replica in run.replicas)
    hours = sum(paid * replica.devices for paid, replica in zip(run.paid_s, run.replicas, strict=True)) / 3600.0
    cost = None if price_per_device_hour is None else hours * price_per_device_hour
    return Outcome(
        requests=len(state),
        completed=len(done),
        broken=state.count(BROKEN),
        refused=state.count(REFUSED),
        span_s=span_s,
        duration_s=end_s - begin_s,
        offered_per_s=len(state) / span_s,
        requests_per_s=len(within) / span_s,
        tokens_per_s=sum(output[i] for i in within) / span_s,
        goodput_per_s=sum(good) / span_s,
        kept=sum(good) / max(1, len(state)),
        kept_late=sum(good[half:]) / max(1, len(state) - half),
        queue_s=_spread(book.begun_s[i] - book.arrival_s[i] for i in done),
        ttft_s=_spread(ttft),
        tpot_s=_spread(tpot),
        e2e_s=_spread(book.end_s[i] - book.arrival_s[i] for i in done),
        replicas=run.most_replicas,
        utilisation=sum(replica.busy_s for replica in run.replicas) / (sum(run.paid_s) or 1.0),
        device_hours=hours,
        cost=cost,
        cost_per_million_tokens=None if cost is None or not tokens else cost / tokens * 1e6,
        prefix_hits=hits / asked if asked else 0.0,
        preempted=sum(replica.preempted for replica in run.replicas),
        failures=run.failures,
    )


def _kept(run: Run, limits: Limits, done: Iterable[int]) -> bytearray:
    """By request, 1 where it was answered within the limits."""
    book = run.book
    never = float("inf")
    ttft_s, tpot_s, e2e_s = (
        never if limit is None else limit for limit in (limits.ttft_s, limits.tpot_s, limits.e2e_s)
    )
    good = bytearray(len(book.state))
    for i in done:
        first, end = book.first_s[i], book.end_s[i]
        good[i] = (
            first - book.arrival_s[i] <= ttft_s
            and end - first <= tpot_s * max(1, book.output[i] - 1)
            and end - book.arrival_s[i] <= e2e_s
        )
    return good


def _spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    if not ordered:
        return Spread()
    return Spread(
        mean=sum(ordered) / len(ordered),
        p50=_quantile(ordered, 0.5),
        p95=_quantile(ordered, 0.95),
        p99=_quantile(ordered, 0.99),
    )


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between order statistics."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
