"""Drives a client: closed loop at a fixed concurrency. (Open loops: see `openloop`.)"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from plimsoll.bench.client import Client, clock
from plimsoll.bench.row import Row
from plimsoll.bench.work import Item, do
from plimsoll.errors import BenchError

_BEAT_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """How the load generator itself fared: when it was too slow, the figures are its own and not the server's."""

    cpu_share: float
    """CPU time of this process over wall time; 1 is one core. Of several processes, the busiest."""
    timer_lag_s: float
    """99th percentile of how late the event loop ran a timer; includes about 1 ms of timer grain."""
    peak_in_flight: int
    connections_opened: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The rows of one run, in order of completion, and the window in which the load was as asked for."""

    rows: tuple[Row, ...]
    window_s: tuple[float, float]
    """Steady state: from the end of the last worker's warm-up to the moment the first one found nothing left."""
    generator: Generator


async def closed_loop(
    client: Client,
    work: Iterator[Item],
    *,
    concurrency: int,
    requests: int | None = None,
    seconds: float | None = None,
    warmup: int = 0,
) -> Run:
    """Keep `concurrency` requests in flight: each worker sends its next one when its last one has ended.

    Ends after `requests` measured requests in all or after `seconds`, whichever comes first; what is in flight then is
    let end. Connections are open before the first stamp. BenchError when the server is gone.
    """
    if requests is None and seconds is None:
        raise BenchError("a closed loop needs an end", hint="give requests or seconds")
    await client.open(concurrency)
    state = _Closed(client=client, work=work, left=requests, seconds=seconds, warmup=warmup)
    try:
        async with watch(client) as watched, asyncio.TaskGroup() as group:
            state.begin(concurrency)
            for _ in range(concurrency):
                group.create_task(state.worker())
    except* BenchError as errors:
        raise errors.exceptions[0] from None
    end_s = state.first_idle_s or clock()
    return Run(rows=tuple(state.rows), window_s=(state.start_s, end_s), generator=watched.read())


class _Closed:
    """What the workers of one closed loop share."""

    def __init__(
        self, *, client: Client, work: Iterator[Item], left: int | None, seconds: float | None, warmup: int
    ) -> None:
        self.client = client
        self.work = work
        self.left = left
        self.seconds = seconds
        self.warmup = warmup
        self.warming = 0
        self.rows: list[Row] = []
        self.start_s = 0.0
        self.deadline_s = float("inf")
        self.first_idle_s = 0.0

    def begin(self, workers: int) -> None:
        if self.warmup:
            self.warming = workers
        else:
            self.steady()

    def steady(self) -> None:
        self.start_s = clock()
        if self.seconds is not None:
            self.deadline_s = self.start_s + self.seconds

    async def worker(self) -> None:
        for _ in range(self.warmup):
            item = next(self.work, None)
            if item is None:
                break
            await self.one(item, warming=True)
        if self.warming:
            self.warming -= 1
            if self.warming == 0:
                self.steady()
        did = False
        while (item := self.next()) is not None:
            await self.one(item, warming=self.warming > 0)
            did = True
        # A worker that never had anything to do does not end the window: there were fewer requests than workers.
        if did:
            self.first_idle_s = self.first_idle_s or clock()

    def next(self) -> Item | None:
        if self.left == 0 or clock() >= self.deadline_s:
            return None
        # What is sent while another worker still warms up keeps the load as asked for, but does not count.
        if self.left is not None and self.warming == 0:
            self.left -= 1
        return next(self.work, None)

    async def one(self, item: Item, *, warming: bool) -> None:
        await self.client.ready()
        for row in await do(self.client, item, clock()):
            if warming:
                row.phase = "warmup"
            self.rows.append(row)


class Watch:
    """Measures the generator while it runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._opened = client.opened
        self._cpu_s, self._wall_s = time.process_time(), clock()
        self._lags: list[float] = []

    async def beat(self) -> None:
        """Note how late each timer comes."""
        while True:
            due_s = clock() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._lags.append(clock() - due_s)

    def read(self) -> Generator:
        """What was seen since the start."""
        lags = sorted(self._lags)
        return Generator(
            cpu_share=(time.process_time() - self._cpu_s) / max(clock() - self._wall_s, 1e-9),
            timer_lag_s=lags[int(0.99 * (len(lags) - 1))] if lags else 0.0,
            peak_in_flight=self._client.peak_in_flight,
            connections_opened=self._client.opened - self._opened,
        )


@contextlib.asynccontextmanager
async def watch(client: Client) -> AsyncIterator[Watch]:
    """Watch the generator, with the garbage collector held off: a full collection stops every stream for its time."""
    watched = Watch(client)
    client.peak_in_flight = client.in_flight
    collecting = gc.isenabled()
    gc.disable()
    beat = asyncio.create_task(watched.beat())
    try:
        yield watched
    finally:
        beat.cancel()
        if collecting:
            gc.enable()


def merge(runs: Sequence[Run]) -> Run:
    """Runs of several processes at the same time as one: the window in which all of them were steady."""
    if len(runs) == 1:
        return runs[0]
    rows = sorted((row for run in runs for row in run.rows), key=lambda row: row.end_s)
    window_s = (max(run.window_s[0] for run in runs), min(run.window_s[1] for run in runs))
    generator = Generator(
        cpu_share=max(run.generator.cpu_share for run in runs),
        timer_lag_s=max(run.generator.timer_lag_s for run in runs),
        peak_in_flight=sum(run.generator.peak_in_flight for run in runs),
        connections_opened=sum(run.generator.connections_opened for run in runs),
    )
    return Run(rows=tuple(rows), window_s=window_s, generator=generator)
