"""A sweep: the same load at one concurrency after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plimsoll.bench.client import Client
from plimsoll.bench.load import Load, probe, synthetic
from plimsoll.bench.run import Run, closed_loop
from plimsoll.bench.summary import Slo, Summary, summarise
from plimsoll.bench.target import Target
from plimsoll.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One concurrency of a sweep: its figures and the rows that they come from."""

    concurrency: int
    summary: Summary
    run: Run
    model: str
    notes: tuple[str, ...] = ()
    """What the server would not take or tell, found before the first level."""


def _ignore(_: Level) -> None:
    return


async def sweep(
    target: Target,
    levels: Sequence[int],
    *,
    load: Load,
    slo: Slo | None = None,
    on_level: Callable[[Level], None] = _ignore,
) -> tuple[Level, ...]:
    """Measure `load` in a closed loop at each of `levels`; `on_level` is called as each one is done.

    Every level keeps its own connections open before its first request. BenchError when the target cannot be reached,
    refuses a first small request, or goes away; requests that fail one by one are counted in the summaries.
    """
    if not levels or min(levels) < 1:
        raise BenchError("a sweep needs at least one concurrency, each at least 1", hint="such as 1,2,4,8,16")
    client = Client(target)
    try:
        dialect = await probe(client, load)
        work = synthetic(load, dialect)
        done = []
        for concurrency in levels:
            run = await closed_loop(
                client,
                work,
                concurrency=concurrency,
                requests=load.requests_at(concurrency),
                seconds=load.seconds,
                warmup=load.warmup,
            )
            summary = summarise(run, concurrency=concurrency, slo=slo)
            level = Level(concurrency=concurrency, summary=summary, run=run, model=dialect.model, notes=dialect.notes)
            on_level(level)
            done.append(level)
        return tuple(done)
    finally:
        await client.close()
