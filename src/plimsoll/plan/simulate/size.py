"""The smallest fleet that keeps a service level, by doubling and bisection."""

from __future__ import annotations

from collections.abc import Callable

from plimsoll.errors import PlanError
from plimsoll.plan.simulate.outcome import Outcome


def smallest_fleet(
    outcome_of: Callable[[int], Outcome], *, start: int = 1, most: int = 65536
) -> tuple[Outcome, dict[int, Outcome]]:
    """The outcome of the fewest replicas that hold, and of every number that was tried.

    `outcome_of(replicas)` simulates; `start` is a first guess. PlanError where not even `most` hold.
    """
    tried: dict[int, Outcome] = {}

    def holds(replicas: int) -> bool:
        tried[replicas] = outcome_of(replicas)
        return tried[replicas].holds

    high = max(1, min(start, most))
    low = 0
    if holds(high):
        while high > 1 and high - 1 > low:
            below = max(1, high * 3 // 4) if high > 1 else 0
            if not holds(below):
                low = below
                break
            high = below
    else:
        while not holds(min(most, 2 * high)):
            high *= 2
            if high >= most:
                raise PlanError(
                    f"not even {most} replicas keep the service level: {tried[most].kept:.1%} of the requests do",
                    hint="one request alone may already miss it: a looser --slo, shorter prompts or a faster replica",
                )
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return tried[high], tried
