"""The command that simulates a fleet under load: nothing is started, everything is predicted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from plimsoll.app.planning import make_plan, refuse_unfit
from plimsoll.app.settings import Settings
from plimsoll.app.simulating import Simulating, find_fleet, read_trace, replica_of, run_simulation
from plimsoll.app.target import Overrides, spec_of
from plimsoll.cli import options
from plimsoll.errors import SpecError
from plimsoll.plan.rank import Goal
from plimsoll.plan.simulate import (
    Autoscale,
    Failures,
    Fleet,
    Lengths,
    Limits,
    Outcome,
    Pattern,
    Policy,
    Requests,
    closed,
    drawn,
)
from plimsoll.plan.types import Replica
from plimsoll.spec.deployment import Slo
from plimsoll.units import format_seconds, parse_seconds

_LEAST_REQUESTS, _LEAST_S = 10_000, 60.0
"""Simulated where nobody says how many: the larger of this number and this long."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command()(simulate)


def simulate(
    target: options.Target = None,
    engine: options.Engine = None,
    context: options.Context = None,
    concurrency: options.Concurrency = None,
    on: options.On = None,
    goal: Annotated[Goal, typer.Option("--for", help="What to prefer among the ways to run a replica.")] = "balanced",
    rate: Annotated[float | None, typer.Option(help="Requests per second that arrive.")] = None,
    arrivals: Annotated[Pattern, typer.Option(help="How they come, with --rate.")] = "poisson",
    trace: Annotated[Path | None, typer.Option(help="Azure's LLM trace (CSV) or Mooncake's (JSONL) instead.")] = None,
    speed: Annotated[float, typer.Option(help="Replay the trace so many times as fast.")] = 1.0,
    clients: Annotated[int | None, typer.Option(min=1, help="A closed loop of so many clients instead.")] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 512,
    output_tokens: Annotated[int, typer.Option(min=1)] = 256,
    spread: Annotated[float, typer.Option(min=0, max=1, help="Of lengths: 0.5 is half to one and a half.")] = 0.0,
    prefix_tokens: Annotated[int, typer.Option(min=0, help="Of the prompt, shared within a family.")] = 0,
    families: Annotated[int, typer.Option(min=1)] = 1,
    hours: Annotated[float | None, typer.Option(help="Hours to simulate.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Requests to simulate.")] = None,
    replicas: Annotated[str, typer.Option(help='How many, or "auto": the fewest that keep the --slo.')] = "1",
    policy: Annotated[Policy, typer.Option(help="Which replica takes a request.")] = "least-tokens",
    slo: Annotated[str | None, typer.Option(help="Service level, such as ttft=1s,tpot=50ms,e2e=30s.")] = None,
    autoscale: Annotated[str | None, typer.Option(metavar="LEAST:MOST", help="As many as the load needs.")] = None,
    scale_at: Annotated[
        float | None, typer.Option(help="Unfinished requests per replica; left out: half of what it serves at once.")
    ] = None,
    start_time: Annotated[str, typer.Option(help="Until a started replica serves.")] = "2m",
    mtbf: Annotated[str | None, typer.Option(help="Mean time until a replica fails, such as 24h.")] = None,
    down: Annotated[str, typer.Option(help="How long a failed replica is away.")] = "5m",
    price: Annotated[float | None, typer.Option(min=0, help="Of one device for one hour.")] = None,
    seed: Annotated[int, typer.Option(help="Another one: other arrivals, lengths and failures.")] = 1,
    as_json: options.Json = False,
) -> None:
    """Simulate a fleet: latencies, goodput, utilisation, cost; or the smallest one that keeps a service level."""
    settings = Settings.resolve(os.environ)
    if sum(one is not None for one in (rate, trace, clients)) != 1:
        raise SpecError("what is asked of the fleet?", hint="one of --rate 5, --trace FILE, --clients 16")
    if any(one is not None and one <= 0 for one in (rate, hours, speed)):
        raise SpecError("--rate, --hours and --speed are above zero", hint="such as --rate 5 --hours 0.5")
    spec = spec_of(target, Overrides(engine=engine, context=context, concurrency=concurrency))
    plan = make_plan(spec, settings, on=on, goal=goal)
    refuse_unfit(plan)
    replica = replica_of(plan)
    lengths = Lengths(
        prompt_tokens=prompt_tokens, output_tokens=output_tokens, spread=spread,
        prefix_tokens=min(prefix_tokens, prompt_tokens - 1), families=families,
    )  # fmt: skip
    count = requests or (None if hours is None or rate is None else max(1, round(rate * hours * 3600)))
    demand: Requests
    if trace is not None:
        seconds = None if hours is None else hours * 3600
        demand = read_trace(trace, requests=requests, seconds=seconds, speed=speed)
    elif rate is not None:
        count = count or max(_LEAST_REQUESTS, round(rate * _LEAST_S))
        demand = drawn(rate_per_s=rate, requests=count, lengths=lengths, pattern=arrivals, seed=seed)
    else:
        demand = closed(clients=clients or 1, requests=count or _LEAST_REQUESTS, lengths=lengths, seed=seed)
    scale = _autoscale(autoscale, start_time, scale_at or max(1.0, replica.candidate.sequences / 2))
    auto = replicas == "auto"
    if auto and scale:
        raise SpecError("--replicas auto and --autoscale exclude each other", hint="the first finds a fixed number")
    simulating = Simulating(
        replica=replica,
        requests=demand,
        fleet=Fleet(replicas=(), policy=policy, failures=_failures(mtbf, down), autoscale=scale, seed=seed),
        count=scale.most if scale else 1 if auto else _count(replicas),
        limits=_limits(slo, replica.candidate.deployment.slo),
        price_per_device_hour=price,
    )
    tried: dict[int, Outcome] = {}
    if auto:
        outcome, tried = find_fleet(simulating)
    else:
        outcome = run_simulation(simulating)
    if as_json:
        shares = {count: min(one.kept, one.kept_late) for count, one in sorted(tried.items())}
        print(json.dumps(asdict(outcome) | {"holds": outcome.holds, "tried": shares}, indent=2))
    else:
        print("\n".join(_lines(simulating, outcome, tried)))


def _lines(simulating: Simulating, outcome: Outcome, tried: dict[int, Outcome]) -> Iterator[str]:
    demand, limits = simulating.requests, simulating.limits
    yield _replica_line(simulating.replica, outcome.replicas)
    mean_in, mean_out = (sum(one) / len(demand) for one in (demand.prompt_tokens, demand.output_tokens))
    came = f"{demand.clients} clients" if demand.clients else f"{outcome.offered_per_s:.4g} requests/s"
    yield (
        f"  load       {outcome.requests} requests in {format_seconds(outcome.span_s)}, {came}, "
        f"{mean_in:.0f} tokens in, {mean_out:.0f} out; {simulating.fleet.policy}"
    )
    yield f"  served     {outcome.requests_per_s:.4g} requests/s, {outcome.tokens_per_s:.4g} tokens/s" + "".join(
        f", {count} {what}"
        for count, what in (
            (outcome.broken, "broken off by failures"),
            (outcome.refused, "refused, longer than the cache"),
        )
        if count
    )
    yield "                  mean        p50        p95        p99"
    spreads = (("queue", outcome.queue_s), ("TTFT", outcome.ttft_s), ("TPOT", outcome.tpot_s), ("whole", outcome.e2e_s))
    for name, spread in spreads:
        cells = (format_seconds(one) for one in (spread.mean, spread.p50, spread.p95, spread.p99))
        yield f"  {name:<9}" + "".join(f"{cell:>11}" for cell in cells)
    asked = [
        f"{name} {format_seconds(limit)}"
        for name, limit in (("TTFT", limits.ttft_s), ("TPOT", limits.tpot_s), ("whole", limits.e2e_s))
        if limit is not None
    ]
    if asked:
        verdict = "holds" if outcome.holds else "does not hold"
        yield (
            f"  goodput    {outcome.goodput_per_s:.4g} requests/s within {', '.join(asked)}: {outcome.kept:.1%} of all,"
            f" {outcome.kept_late:.1%} of the later half; {verdict} for 95%"
        )
    yield (
        f"  replicas   {outcome.utilisation:.0%} busy, {outcome.prefix_hits:.0%} of prompt tokens from the cache, "
        f"{outcome.preempted} preemptions, {outcome.failures} failures"
    )
    if outcome.cost is not None and outcome.cost_per_million_tokens is not None:
        yield (
            f"  cost       {outcome.cost:.2f} for {outcome.device_hours:.2f} device hours, "
            f"{outcome.cost_per_million_tokens:.3g} per million output tokens"
        )
    if tried:
        shares = (f"{count}: {min(one.kept, one.kept_late):.1%}" for count, one in sorted(tried.items()))
        yield f"  tried      {', '.join(shares)}"


def _replica_line(replica: Replica, count: int) -> str:
    candidate = replica.candidate
    kv = f", {replica.ledger.kv_tokens} tokens of cache" if replica.ledger.kv_tokens else ""
    return (
        f"{count} x {candidate.deployment.name}, {candidate.engine.name} {candidate.engine.version} on "
        f"{len(candidate.devices)} x {candidate.devices[0].name}: up to {candidate.sequences} at once each{kv}"
    )


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise SpecError(f"--replicas {text!r} is not a number of replicas", hint="such as 8, or auto")
    return int(text)


def _autoscale(text: str | None, start_time: str, target: float) -> Autoscale | None:
    if text is None:
        return None
    least, colon, most = text.partition(":")
    if not colon or not least.isdigit() or not most.isdigit() or not 1 <= int(least) <= int(most):
        raise SpecError(f"--autoscale {text!r} is not a range", hint="such as 2:20")
    return Autoscale(least=int(least), most=int(most), target=target, start_s=_seconds(start_time, "--start-time"))


def _failures(mtbf: str | None, down: str) -> Failures | None:
    if mtbf is None:
        return None
    mean_s = _seconds(mtbf, "--mtbf")
    if mean_s <= 0:
        raise SpecError("--mtbf is above zero", hint="such as 24h")
    return Failures(mean_s=mean_s, down_s=_seconds(down, "--down"))


def _limits(text: str | None, stated: Slo) -> Limits:
    """The flag's limits, or the deployment's own."""
    if text is None:
        return Limits(ttft_s=stated.ttft, tpot_s=stated.tpot)
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name.strip() not in ("ttft", "tpot", "e2e") or not equals:
            raise SpecError(f"--slo {part!r} is not a limit", hint="such as ttft=500ms,tpot=50ms,e2e=10s")
        limits[f"{name.strip()}_s"] = _seconds(value, "--slo")
    return Limits(**limits)


def _seconds(text: str, flag: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as problem:
        raise SpecError(f"{flag}: {problem}") from problem
