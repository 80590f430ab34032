"""Measures one load at one pace after the other: probe, run, repeat, sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plimsoll.bench.client import Client
from plimsoll.bench.job import Job, run_job
from plimsoll.bench.load import Load
from plimsoll.bench.pace import Closed, Pace, Replay, label
from plimsoll.bench.probe import probe, recount
from plimsoll.bench.processes import run_in_processes
from plimsoll.bench.run import Run
from plimsoll.bench.sampling import Sample, Sampler
from plimsoll.bench.summary import Slo, Summary, summarise
from plimsoll.bench.target import Target
from plimsoll.errors import BenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One pace of a measurement: its figures and the rows that they come from."""

    pace: Pace
    summary: Summary
    """Of the repeat with the middle throughput, among the valid ones if there are any."""
    run: Run
    """The rows of that repeat."""
    model: str
    notes: tuple[str, ...] = ()
    """What the server would not take or tell, found before the first level."""
    repeats: tuple[Summary, ...] = ()
    """All repeats, in order."""
    runs: tuple[Run, ...] = ()
    """Their rows."""
    samples: tuple[Sample, ...] = ()

    @property
    def concurrency(self) -> int | None:
        """Requests in flight, of a closed loop; None of an open one."""
        return self.pace.concurrency if isinstance(self.pace, Closed) else None

    @property
    def label(self) -> str:
        """What was asked for, short: "16" in flight, "2.5/s", or "trace"."""
        return label(self.pace)

    @property
    def spread(self) -> float | None:
        """Largest less smallest throughput of the repeats, over their middle; None of a single run."""
        found = sorted(_throughput(summary) for summary in self.repeats)
        return (found[-1] - found[0]) / max(_throughput(self.summary), 1e-9) if len(found) > 1 else None


def ignore(_: Level) -> None:
    """For callers that wait for the end."""


async def measure(
    target: Target,
    paces: Sequence[Pace],
    *,
    load: Load,
    slo: Slo | None = None,
    repeats: int = 1,
    processes: int = 1,
    pids: Sequence[int] = (),
    on_level: Callable[[Level], None] = ignore,
) -> tuple[Level, ...]:
    """Measure `load` at each of `paces`, `repeats` times over, out of `processes` processes.

    Repeats go round all paces before they start again, so that a drift of the machine shows as spread. `pids` are the
    server's processes, if they are on this machine: their memory is sampled. `on_level` is called as each run is done.
    BenchError when the target cannot be reached, refuses a first small request, or goes away; requests that fail one by
    one are counted in the summaries.
    """
    if repeats < 1 or processes < 1:
        raise BenchError("a measurement needs at least one repeat and one process")
    if any(isinstance(pace, Replay) for pace in paces) and load.data is None:
        raise BenchError("a trace is replayed out of a data file", hint="name it with --data")
    client = Client(target)
    found: list[list[Level]] = [[] for _ in paces]
    try:
        probed = await probe(client, load)
        for number in range(repeats * len(paces)):
            pace = paces[number % len(paces)]
            many = min(processes, pace.concurrency) if isinstance(pace, Closed) else processes
            job = Job(
                target=replace(target, model=probed.dialect.model),
                load=load,
                dialect=probed.dialect,
                words=probed.words,
                pace=pace,
                level=number,
                processes=many,
            )
            with Sampler(pids) as sampler:
                if many == 1:
                    run = await run_job(client, job)
                else:
                    run = await run_in_processes([replace(job, index=i) for i in range(many)])
            if probed.dialect.recount:
                await recount(target, probed.dialect, run.rows)
            # In a session, thinking is part of the pace: fewer are in flight than there are sessions.
            thinks = load.turns > 1 and load.think_s > 0
            asked = pace.concurrency if isinstance(pace, Closed) and not thinks else None
            summary = summarise(run, concurrency=asked, slo=slo)
            level = Level(
                pace=pace,
                summary=summary,
                run=run,
                model=probed.dialect.model,
                notes=probed.dialect.notes,
                samples=tuple(sampler.samples),
            )
            on_level(level)
            found[number % len(paces)].append(level)
        return tuple(_middle(levels) for levels in found)
    finally:
        await client.close()


def _middle(levels: Sequence[Level]) -> Level:
    """The repeat with the middle throughput, all summaries beside it; invalid ones only where there is no other."""
    summaries = tuple(level.summary for level in levels)
    usable = [level for level in levels if level.summary.valid] or list(levels)
    usable.sort(key=lambda level: _throughput(level.summary))
    runs = tuple(level.run for level in levels)
    return replace(usable[(len(usable) - 1) // 2], repeats=summaries, runs=runs)


def _throughput(summary: Summary) -> float:
    return summary.tokens_per_s or summary.requests_per_s
