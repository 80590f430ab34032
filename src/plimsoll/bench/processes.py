"""The same load out of several processes at once, for servers that one core cannot saturate."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import uvloop

from plimsoll.bench.client import Client, clock
from plimsoll.bench.job import Job, run_job
from plimsoll.bench.pace import Closed
from plimsoll.bench.run import Run, merge
from plimsoll.errors import BenchError

_AHEAD_S = 0.05


async def run_in_processes(jobs: Sequence[Job]) -> Run:
    """Run the jobs of one level in a process each, started together. BenchError as a child raised it."""
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
        return await asyncio.to_thread(_conduct, pipes)
    finally:
        # Also when this is cancelled: the thread that waits for them ends with them.
        for child in children:
            child.kill()
        for child in children:
            await asyncio.to_thread(child.join)


def _conduct(pipes: Sequence[Connection]) -> Run:
    """Wait until all are ready, give them one moment to start at, collect what they ran."""
    for pipe in pipes:
        _received(pipe)
    start_s = clock() + _AHEAD_S
    for pipe in pipes:
        pipe.send(start_s)
    return merge([_received(pipe) for pipe in pipes])


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its children

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
