"""How a load is paced: a fixed number in flight, arrivals at a rate, or a trace's own times."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from plimsoll.errors import BenchError

Pattern = Literal["poisson", "constant", "bursty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A fixed number of requests in flight."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise BenchError(f"a concurrency of {self.concurrency} sends nothing", hint="at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests that come whether or not the server keeps up."""

    rate_per_s: float
    pattern: Pattern = "poisson"
    burstiness: float = 0.25
    """For `bursty`: shape of the gamma distribution of gaps; 1 is Poisson, smaller comes in clusters."""

    def __post_init__(self) -> None:
        if self.rate_per_s <= 0 or self.burstiness <= 0:
            raise BenchError("a rate of arrivals and its burstiness are above zero")

    def offsets(self, seed: int) -> Iterator[float]:
        """Arrival times without end, the same for the same seed."""
        rng = random.Random(f"{seed}/arrivals")  # noqa: S311
        mean_s = 1 / self.rate_per_s
        at_s, number = 0.0, 0
        while True:
            yield at_s
            number += 1
            if self.pattern == "constant":
                at_s = number * mean_s
            elif self.pattern == "poisson":
                at_s += rng.expovariate(self.rate_per_s)
            else:
                at_s += rng.gammavariate(self.burstiness, mean_s / self.burstiness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The data file's own arrival times, `speed` times as fast."""

    speed: float = 1.0


Pace = Closed | Arrivals | Replay


def label(pace: Pace) -> str:
    """What is asked for, short: "16" in flight, "2.5/s", or "trace x2"."""
    if isinstance(pace, Closed):
        return str(pace.concurrency)
    return f"{pace.rate_per_s:g}/s" if isinstance(pace, Arrivals) else f"trace x{pace.speed:g}"


def replay(stamps_s: Sequence[float], *, speed: float = 1.0) -> Iterator[float]:
    """A trace's arrival times from its first one on, `speed` times as fast; BenchError when they run backwards."""
    if any(later < earlier for earlier, later in itertools.pairwise(stamps_s)):
        raise BenchError("the trace's timestamps are not in order", hint="sort its lines by time")
    return ((stamp - stamps_s[0]) / speed for stamp in stamps_s)
