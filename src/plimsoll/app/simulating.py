"""A plan's replica, multiplied and put under a load that is made up or read from a public trace."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from plimsoll.errors import PlanError, SpecError
from plimsoll.plan.simulate import (
    Fleet,
    Limits,
    Outcome,
    Requests,
    StepCosts,
    simulate,
    smallest_fleet,
    step_costs,
    summarise,
)
from plimsoll.plan.speed import Load, Predictor, shipped
from plimsoll.plan.types import Plan, Replica

BLOCK_TOKENS = 512
"""Of one hash in Mooncake's traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulating:
    """What to simulate: a replica, how it is run and what is asked of it."""

    replica: Replica
    requests: Requests
    fleet: Fleet
    """`replicas` are filled in from `replica`; the rest holds."""
    count: int
    """Replicas; with an autoscaler, the most of them."""
    limits: Limits
    price_per_device_hour: float | None = None
    predictor: Predictor | None = None

    @property
    def costs(self) -> StepCosts:
        """The replica's step times at the load's mean lengths."""
        prompt, output = _means(self.requests)
        return step_costs(
            self.replica.candidate, self.replica.ledger, typical_tokens=prompt + output / 2, predictor=self.predictor
        )


def replica_of(plan: Plan) -> Replica:
    """The one replica whose copies are simulated. SpecError where the plan serves several models."""
    if len({replica.candidate.deployment.name for replica in plan.replicas}) != 1:
        raise SpecError("a simulation is of one model", hint="give a spec with one model, or a model's id")
    replica = plan.replicas[0]
    if replica.candidate.engine.fake or replica.candidate.model.task not in ("chat", "completion"):
        raise PlanError("only engines that generate text can be simulated", hint="the speed model knows no others")
    return replica


def run_simulation(simulating: Simulating) -> Outcome:
    """One run of so many replicas."""
    return _outcome_of(simulating)(simulating.count)


def find_fleet(simulating: Simulating, *, most: int = 65536) -> tuple[Outcome, dict[int, Outcome]]:
    """The smallest fleet that keeps the limits, and each number of replicas that was tried. PlanError if none does."""
    if simulating.limits == Limits():
        raise SpecError("nothing says when a fleet is large enough", hint="--slo ttft=1s,tpot=50ms")
    at = simulating.requests.arrivals_s
    if len(at) < 2 or at[-1] <= at[0]:
        raise SpecError("the smallest fleet is found for requests that arrive", hint="--rate or --trace")
    most = min(most, len(at))  # with a replica for each request, another one would have nothing to do
    return smallest_fleet(_outcome_of(simulating), start=_first_guess(simulating), most=most)


def _outcome_of(simulating: Simulating) -> Callable[[int], Outcome]:
    costs = simulating.costs

    def outcome_of(count: int) -> Outcome:
        fleet = replace(simulating.fleet, replicas=(costs,) * count)
        run = simulate(fleet, simulating.requests)
        return summarise(run, limits=simulating.limits, price_per_device_hour=simulating.price_per_device_hour)

    return outcome_of


def _first_guess(simulating: Simulating) -> int:
    """As many as the load's throughput needs of replicas that are full."""
    candidate = simulating.replica.candidate
    prompt, output = _means(simulating.requests)
    load = Load(prompt_tokens=prompt, output_tokens=output, concurrency=candidate.sequences)
    timing = (simulating.predictor or shipped()).timing(candidate, load, simulating.replica.ledger)
    at = simulating.requests.arrivals_s
    return max(1, math.ceil(len(at) / (at[-1] - at[0]) / timing.requests_per_s))


def _means(requests: Requests) -> tuple[float, float]:
    return sum(requests.prompt_tokens) / len(requests), sum(requests.output_tokens) / len(requests)


def read_trace(
    path: Path, *, requests: int | None = None, seconds: float | None = None, speed: float = 1.0
) -> Requests:
    """The first `requests`, or those of the first `seconds`, of a trace; arrivals `speed` times as fast.

    Azure's LLM inference traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) and Mooncake's (JSONL: timestamp in
    ms, input_length, output_length, hash_ids of 512 tokens each). SpecError with file and line where it cannot be read.
    """
    arrivals, prompt, output = array("d"), array("q"), array("q")
    blocks: list[tuple[int, ...]] = []
    first_s = before_s = -math.inf
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            begins = file.readline()
            file.seek(0)
            rows = _mooncake(file, path) if begins.lstrip().startswith("{") else _azure(file, path)
            for number, (at_s, asked, answered, hashes) in enumerate(rows):
                first_s = at_s if number == 0 else first_s
                if number == requests or (seconds is not None and at_s - first_s > seconds):
                    break
                if at_s < before_s:
                    raise SpecError(f"{path}: its times run backwards at request {number + 1}", hint="sort it by time")
                before_s = at_s
                arrivals.append((at_s - first_s) / speed)
                prompt.append(max(1, asked))
                output.append(max(1, answered))
                blocks.append(hashes)
    except (OSError, UnicodeDecodeError) as problem:
        raise SpecError(f"cannot read the trace {path}: {problem}") from problem
    if not arrivals:
        raise SpecError(f"{path} holds no request")
    return Requests(
        arrivals_s=arrivals,
        prompt_tokens=prompt,
        output_tokens=output,
        blocks=blocks if any(blocks) else (),
        block_tokens=BLOCK_TOKENS,
    )


_Row = tuple[float, int, int, tuple[int, ...]]


def _azure(lines: Any, path: Path) -> Iterator[_Row]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    try:
        at, asked, answered = (header.index(name) for name in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    except ValueError as problem:
        raise SpecError(
            f"{path} is no trace that is known",
            hint="Azure's have TIMESTAMP,ContextTokens,GeneratedTokens; Mooncake's are JSON lines",
        ) from problem
    for row in reader:
        if not row:
            continue
        try:
            yield datetime.fromisoformat(row[at]).timestamp(), int(row[asked]), int(row[answered]), ()
        except (ValueError, IndexError) as problem:
            raise SpecError(
                f"a request of the trace cannot be read: {problem}", source=f"{path}:{reader.line_num}"
            ) from (problem)


def _mooncake(lines: Any, path: Path) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
            hashes = tuple(row.get("hash_ids", ()))
            yield row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"]), hashes
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise SpecError(
                f"a request of the trace cannot be read: {problem!r}",
                hint="each line has timestamp (ms), input_length and output_length",
                source=f"{path}:{number}",
            ) from problem
