"""The same load out of several processes at once, for servers that one core cannot saturate."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from plimsoll.bench.arrivals import Arrivals, replay
from plimsoll.bench.client import Client, clock
from plimsoll.bench.datasets import read_dataset, recorded, stamps
from plimsoll.bench.load import Dialect, Load
from plimsoll.bench.openloop import open_loop
from plimsoll.bench.prompts import synthetic
from plimsoll.bench.run import Run, closed_loop, merge
from plimsoll.bench.target import Target
from plimsoll.bench.work import Item
from plimsoll.errors import BenchError

_AHEAD_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A fixed number of requests in flight."""

    concurrency: int


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


def run_in_processes(jobs: list[Job]) -> Run:
    """Run the jobs of one level in a process each, started together; blocks. BenchError as a child raised it."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    children = []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(job, theirs), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        for pipe in pipes:
            _received(pipe)
        start_s = clock() + _AHEAD_S
        for pipe in pipes:
            pipe.send(start_s)
        return merge([_received(pipe) for pipe in pipes])
    finally:
        for child in children:
            child.join(timeout=5.0)
            child.kill()


def _received(pipe: Connection) -> Run:
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise BenchError("a process of the load generator died", hint="was it out of memory?") from error
    if isinstance(answer, BenchError):
        raise answer
    run: Run = answer
    return run


def _child(job: Job, pipe: Connection) -> None:
    async def main() -> Run:
        client = Client(job.target)
        try:
            if isinstance(job.pace, Closed):
                await client.open(job.portion(job.pace.concurrency) or 0)
            pipe.send("ready")
            start_s = pipe.recv()
            time.sleep(max(0.0, start_s - clock()))  # noqa: ASYNC251 - nothing else runs on this loop yet
            return await run_job(client, job, start_s=start_s)
        finally:
            await client.close()

    try:
        pipe.send(uvloop.run(main()))
    except BenchError as error:
        pipe.send(error)
