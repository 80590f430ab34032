"""Drives a client in an open loop: requests leave when they are due, however slow the answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

from plimsoll.bench.client import Client, allow_files, clock
from plimsoll.bench.row import Row
from plimsoll.bench.run import Run, watch
from plimsoll.bench.work import Item, do
from plimsoll.errors import BenchError

_EARLY_S = 0.0015
"""Timers are good to about a millisecond; the rest is waited out in turns of the loop."""
_SPARE_S = 1.0
"""Connections are kept open for the arrivals of this long."""
_SPARE_MOST = 256
_FILES = 65_536
"""Nothing bounds what is in flight in an open loop but the server's speed."""


async def open_loop(
    client: Client,
    work: Iterator[Item],
    offsets_s: Iterator[float],
    *,
    requests: int | None = None,
    seconds: float | None = None,
    warmup: int = 0,
    rate_per_s: float | None = None,
    start_s: float | None = None,
) -> Run:
    """Send each item at its offset from `start_s` (now), until `requests` were sent or `seconds` are over.

    The first `warmup` arrivals are kept and marked. Latency counts from when an item was due. `rate_per_s` says how
    many connections to hold open ahead of the arrivals. What is in flight at the end is let end. BenchError when the
    server takes no connection at all.
    """
    spare = min(_SPARE_MOST, max(2, math.ceil((rate_per_s or 8.0) * _SPARE_S)))
    allow_files(_FILES, enough=spare)
    await client.open(spare)
    rows: list[Row] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(item: Item, due_s: float, *, warming: bool) -> None:
        for row in await do(client, item, due_s):
            row.phase = "warmup" if warming else "measured"
            rows.append(row)

    async with watch(client) as watched:
        filler = asyncio.create_task(_fill(client, spare))
        try:
            begin_s = clock() if start_s is None else start_s
            first_s = last_s = begin_s
            for number, offset_s in enumerate(offsets_s):
                over = requests is not None and number >= requests + warmup
                item = None if over or (seconds is not None and offset_s > seconds) else next(work, None)
                if item is None:
                    break
                last_s = begin_s + offset_s
                if number == warmup:
                    first_s = last_s
                await _until(last_s)
                task = asyncio.create_task(one(item, last_s, warming=number < warmup))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)  # let it send, even when the next one is due already
            if seconds is not None and requests is None:
                last_s = max(last_s, begin_s + seconds)
            await asyncio.gather(*tasks)
        finally:
            filler.cancel()
            for task in tasks:
                task.cancel()
    if not rows:
        raise BenchError("no request was due", hint="a longer run, a higher rate, or a trace with lines in it")
    return Run(rows=tuple(rows), window_s=(first_s, last_s), generator=watched.read())


async def _until(due_s: float) -> None:
    wait_s = due_s - clock() - _EARLY_S
    if wait_s > 0:
        await asyncio.sleep(wait_s)
    while clock() < due_s:  # noqa: ASYNC110 - nothing tells when a time has come but the clock
        await asyncio.sleep(0)


async def _fill(client: Client, spare: int) -> None:
    """Keep `spare` connections open and unused; what cannot be opened now is left to the request that needs it."""
    while True:
        await asyncio.sleep(0.02)
        while len(client.idle) < spare:
            try:
                client.idle.append(await client.connect())
            except BenchError:
                await asyncio.sleep(1.0)
