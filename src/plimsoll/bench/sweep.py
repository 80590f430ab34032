"""A sweep: the same load at one concurrency after the other. And the edge of a service level, found by ramping."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level, ignore, measure
from plimsoll.bench.pace import Closed
from plimsoll.bench.summary import Slo
from plimsoll.bench.target import Target
from plimsoll.errors import BenchError

__all__ = ["Level", "find_edge", "sweep"]


async def sweep(
    target: Target,
    levels: Sequence[int],
    *,
    load: Load,
    slo: Slo | None = None,
    repeats: int = 1,
    processes: int = 1,
    pids: Sequence[int] = (),
    on_level: Callable[[Level], None] = ignore,
) -> tuple[Level, ...]:
    """Measure `load` in a closed loop at each of `levels`; what may be given is as in `measure`.

    Every level has its connections open before its first request.
    """
    if not levels:
        raise BenchError("a sweep needs at least one concurrency", hint="such as 1,2,4,8,16")
    paces = [Closed(concurrency=level) for level in levels]
    return await measure(
        target, paces, load=load, slo=slo, repeats=repeats, processes=processes, pids=pids, on_level=on_level
    )


async def find_edge(
    measured: Callable[[float], Awaitable[Level]],
    *,
    start: float = 1.0,
    share: float = 0.95,
    most: float = 1024.0,
    resolution: float = 0.1,
    whole: bool = True,
) -> tuple[Level | None, tuple[Level, ...]]:
    """The highest pace at which at least `share` of the requests keep the service level, and every level tried.

    `measured` runs one pace (a concurrency, or with `whole` False a rate) and gives its level, which must have been
    summed up with an Slo. The pace is doubled until it breaks, then halved in between until the edge is known to
    `resolution` of itself. None when even `start` breaks it.
    """
    tried: list[Level] = []
    good: tuple[float, Level] | None = None
    bad: float | None = None
    pace = start
    while pace <= most:
        level = await measured(pace)
        tried.append(level)
        if level.summary.slo_share is None:
            raise BenchError("an edge needs a service level to be the edge of", hint="give an SLO: TTFT, TPOT or e2e")
        if level.summary.slo_share >= share:
            good = (pace, level)
        else:
            bad = pace
        if good is None:
            break
        if bad is None:
            pace = good[0] * 2
            continue
        pace = (good[0] + bad) / 2
        if whole:
            pace = float(int(pace))
        if pace in (good[0], bad) or bad - good[0] <= resolution * good[0]:
            break
    return (good[1] if good else None), tuple(tried)
