"""The simulator measured (`python -m benchmarks.simulate speed`) and held against a run (`... validate RECORD.json`).

`speed`: CPU seconds and memory for many requests on many replicas. Goal: 1,000,000 on 1,000 in under 60 s, under 4 GiB.

`validate`: simulates the load of each level of a bench record (a file of `plimsoll bench --out`, of a deployment of
ours, so that it holds its plan) with the lengths and arrivals of its own requests, and prints how far p50 and p95 TTFT
and output tokens per second lie from what was measured. `--teach 1,4` first corrects the speed model by those levels.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import orjson

from plimsoll.app.serial import plan_from_json
from plimsoll.bench.load import Load as SentLoad
from plimsoll.bench.pace import Closed, label
from plimsoll.bench.records import Record, RecordedLevel, from_json, unpack_run
from plimsoll.bench.row import Row
from plimsoll.plan.simulate import (
    Fleet,
    Lengths,
    Outcome,
    Requests,
    StepCosts,
    drawn,
    simulate,
    step_costs,
    summarise,
)
from plimsoll.plan.simulate.routing import Policy
from plimsoll.plan.speed import Level, Load, MeasuredRun, Predictor, corrected, shipped
from plimsoll.plan.types import Plan


def speed(*, requests: int, replicas: int, policy: Policy) -> None:
    """One run of an engine about as fast as an 8B model on an H100, three quarters loaded."""
    costs = StepCosts(
        decode_s=[0.0] + [0.012 + n * 2e-5 for n in range(1, 257)],
        context_s=[0.0] + [2.5e-8] * 256,
        prefill_s=[0.0] + [0.012 + p * 2.5e-5 for p in range(1, 8193)],
        attention_s=1e-9,
        kv_tokens=400_000,
    )
    lengths = Lengths(prompt_tokens=512, output_tokens=256, spread=0.5, prefix_tokens=128, families=100)
    start = time.process_time()
    load = drawn(rate_per_s=10.0 * replicas, requests=requests, lengths=lengths, seed=1)
    outcome = summarise(simulate(Fleet(replicas=(costs,) * replicas, policy=policy), load))
    spent_s = time.process_time() - start
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(
        f"{requests} requests on {replicas} replicas, {policy}: {spent_s:.1f} s of one core, {peak_gib:.2f} GiB;"
        f" {outcome.completed} completed, {sum(load.output_tokens)} tokens"
    )


def validate(path: Path, *, teach: Sequence[str]) -> None:
    """One line a level: measured, simulated, error."""
    record = from_json(path.read_bytes())
    if record.plan is None:
        sys.exit(f"{path} holds no plan: measure a deployment of ours, by its name")
    plan = plan_from_json(orjson.dumps(record.plan))
    predictor = shipped()
    taught = [level for level in record.levels if label(level.pace) in teach]
    if taught:
        predictor = _taught(predictor, plan, record, taught)
    names = ("TTFT p50", "TTFT p95", "tokens/s")
    print(f"{'level':>8}  " + "".join(f"{name + ': measured, simulated, error':>40}" for name in names))
    for level in record.levels:
        rows = [row for row in unpack_run(level.runs[level.middle]).rows if row.ok] if level.runs else []
        if not rows:
            print(f"{label(level.pace):>8}  no requests are kept of this level")
            continue
        outcome = _simulated(plan, record, level, rows, predictor)
        ttft_s = level.summary.ttft_s
        pairs = (
            (ttft_s.p50, outcome.ttft_s.p50),
            (ttft_s.p95, outcome.ttft_s.p95),
            (_tokens_per_s(rows), sum(row.output_tokens for row in rows) / outcome.duration_s),
        )
        cells = (f"{seen:.4g}, {said:.4g}, {said / seen - 1:+.1%}" for seen, said in pairs)
        mark = " (taught)" if level in taught else ""
        print(f"{label(level.pace):>8}  " + "".join(f"{cell:>40}" for cell in cells) + mark)


def _simulated(plan: Plan, record: Record, level: RecordedLevel, rows: list[Row], predictor: Predictor) -> Outcome:
    """The same requests in the same order at the same times, or by as many clients; warm-up included."""
    rows = sorted(rows, key=lambda row: row.intended_s)
    sent = record.load or SentLoad()
    closed_loop = isinstance(level.pace, Closed)
    origin_s = rows[0].intended_s
    shared = sent.prefix_tokens > 0 and sent.families == 1
    requests = Requests(
        prompt_tokens=array("q", (max(1, row.prompt_tokens or sent.prompt_tokens) for row in rows)),
        output_tokens=array("q", (max(1, row.output_tokens) for row in rows)),
        arrivals_s=array("d") if closed_loop else array("d", (row.intended_s - origin_s for row in rows)),
        clients=level.pace.concurrency if isinstance(level.pace, Closed) else 0,
        blocks=[(0,)] * len(rows) if shared else (),
        block_tokens=sent.prefix_tokens or 512,
    )
    usual = sum(requests.prompt_tokens) / len(rows) + sum(requests.output_tokens) / len(rows) / 2
    fleet = Fleet(
        replicas=tuple(
            step_costs(one.candidate, one.ledger, typical_tokens=usual, predictor=predictor) for one in plan.replicas
        )
    )
    return summarise(simulate(fleet, requests))


def _tokens_per_s(rows: list[Row]) -> float:
    """From the first request to the last answer, as the simulation counts."""
    begin_s, end_s = min(row.intended_s for row in rows), max(row.end_s for row in rows)
    return sum(row.output_tokens for row in rows) / (end_s - begin_s)


def _taught(predictor: Predictor, plan: Plan, record: Record, levels: list[RecordedLevel]) -> Predictor:
    replica, learnt = plan.replicas[0], []
    for level in levels:
        summary = level.summary
        if not isinstance(level.pace, Closed) or not summary.requests:
            sys.exit("only levels of so many clients can teach")
        load = Load(
            prompt_tokens=summary.prompt_tokens / summary.requests,
            output_tokens=summary.output_tokens / summary.requests,
            concurrency=level.pace.concurrency,
            requests=summary.requests,
        )
        learnt.append(
            Level(load=load, ttft_s=summary.ttft_s.mean, tpot_s=summary.tpot_s.mean, tokens_per_s=summary.tokens_per_s)
        )
    run = MeasuredRun(
        candidate=replica.candidate, levels=tuple(learnt), ledger=replica.ledger, source=f"record {record.id}"
    )
    return corrected(predictor, run)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--requests", type=int, default=1_000_000)
    fast.add_argument("--replicas", type=int, default=1000)
    fast.add_argument("--policy", default="least-tokens")
    held = commands.add_parser("validate")
    held.add_argument("record", type=Path)
    held.add_argument("--teach", default="", help="levels that correct the model first, such as 1,4")
    given = parser.parse_args()
    if given.command == "speed":
        print(f"{platform.machine()}, Python {platform.python_version()}")
        speed(requests=given.requests, replicas=given.replicas, policy=given.policy)
    else:
        validate(given.record, teach=[level for level in given.teach.split(",") if level])


if __name__ == "__main__":
    main()
