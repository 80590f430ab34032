"""One process's share of a level, and how it is run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from plimsoll.bench.client import Client
from plimsoll.bench.datasets import read_dataset, recorded, stamps
from plimsoll.bench.load import Dialect, Load
from plimsoll.bench.openloop import open_loop
from plimsoll.bench.pace import Arrivals, Closed, Pace, Replay, replay
from plimsoll.bench.prompts import synthetic
from plimsoll.bench.run import Run, closed_loop
from plimsoll.bench.target import Target
from plimsoll.bench.work import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process is told to do: its share of a level."""

    target: Target
    load: Load
    dialect: Dialect
    words: tuple[str, ...]
    pace: Pace
    level: int = 0
    """Which measurement this is, so that no two send the same words."""
    index: int = 0
    processes: int = 1

    def portion(self, whole: int | None) -> int | None:
        """This process's part of a number that is cut evenly."""
        return None if whole is None else (whole + self.processes - 1 - self.index) // self.processes


async def run_job(client: Client, job: Job, *, start_s: float | None = None) -> Run:
    """Run this process's share of a level on `client`."""
    load, pace = job.load, job.pace
    if isinstance(pace, Closed):
        return await closed_loop(
            client,
            _work(job),
            concurrency=job.portion(pace.concurrency) or 0,
            requests=job.portion(load.requests_at(pace.concurrency)),
            seconds=load.seconds,
            warmup=load.warmup,
        )
    if isinstance(pace, Arrivals):
        offsets, rate = pace.offsets(load.seed + job.level), pace.rate_per_s
        requests = load.requests if load.requests or load.seconds else max(20, round(10 * rate))
    else:
        times = stamps(read_dataset(load.data or ""), load.data or "")
        offsets, rate = replay(times, speed=pace.speed), len(times) / max(times[-1] - times[0], 1.0) * pace.speed
        requests = load.requests
    return await open_loop(
        client,
        _work(job),
        itertools.islice(offsets, job.index, None, job.processes),
        requests=job.portion(requests),
        seconds=load.seconds,
        warmup=job.portion(load.warmup) or 0,
        rate_per_s=rate / job.processes,
        start_s=start_s,
    )


def _work(job: Job) -> Iterator[Item]:
    share = job.level * 1000 + job.index
    if job.load.data is None:
        return synthetic(job.load, job.dialect, words=job.words, share=share)
    in_order = isinstance(job.pace, Replay)
    work = recorded(job.load, job.dialect, read_dataset(job.load.data), job.words, in_order=in_order, share=share)
    return itertools.islice(work, job.index, None, job.processes) if in_order else work
