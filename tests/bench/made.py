"""Rows and records made up for tests, from a seed, without a server."""

from __future__ import annotations

import random
from array import array

from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level
from plimsoll.bench.pace import Closed
from plimsoll.bench.records import Record, make_record
from plimsoll.bench.row import Row
from plimsoll.bench.run import Generator, Run
from plimsoll.bench.sampling import Sample
from plimsoll.bench.summary import Slo, summarise

GENERATOR = Generator(cpu_share=0.1, timer_lag_s=0.001, peak_in_flight=4, connections_opened=4)


def run(seed: int, *, concurrency: int = 4, requests: int = 80, tpot_s: float = 0.01, tokens: int = 20) -> Run:
    """A closed loop of workers whose requests take about 0.1 s to the first token and `tpot_s` for each further one."""
    rng = random.Random(seed)
    free = [1000.0] * concurrency
    rows = []
    for _ in range(requests):
        worker = free.index(min(free))
        start = free[worker]
        stamps = array("d", [start + rng.gauss(0.1, 0.01)])
        for _ in range(tokens - 1):
            stamps.append(stamps[-1] + max(1e-4, rng.gauss(tpot_s, tpot_s / 10)))
        free[worker] = stamps[-1]
        rows.append(
            Row(
                intended_s=start,
                sent_s=start + 1e-5,
                end_s=stamps[-1],
                arrivals_s=stamps,
                arrival_tokens=array("d", [1.0] * tokens),
                first_answer_s=stamps[0],
                prompt_tokens=64,
                output_tokens=tokens,
                counted_by="usage",
                status=200,
                finish="length",
                done_seen=True,
            )
        )
    return Run(rows=tuple(rows), window_s=(1000.0, min(free)), generator=GENERATOR)


def level(*runs: Run, concurrency: int = 4, slo: Slo | None = None) -> Level:
    summaries = tuple(summarise(one, concurrency=concurrency, slo=slo) for one in runs)
    samples = tuple(
        Sample(at_s=1000.0 + i / 2, cpu_share=0.5, ram_used_bytes=1 << 30, gpu_share=(0.9,), gpu_used_bytes=(1 << 30,))
        for i in range(6)
    )
    return Level(
        pace=Closed(concurrency=concurrency),
        summary=summaries[0],
        run=runs[0],
        model="made-up",
        repeats=summaries,
        runs=runs,
        samples=samples,
    )


def record(*seeds: int, tpot_s: float = 0.01, levels: tuple[int, ...] = (4,), **known) -> Record:
    made = [
        level(
            *(run(seed, concurrency=c, requests=20 * c, tpot_s=tpot_s * (1 + 0.1 * c)) for seed in seeds), concurrency=c
        )
        for c in levels
    ]
    return make_record(made, load=Load(seed=1), address="http://127.0.0.1:8000/v1", **known)
