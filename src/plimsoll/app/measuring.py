"""Measured runs: through a deployment's gateway or any other address, kept as records in the state database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from plimsoll.app.running import RunningDeployment
from plimsoll.app.settings import Settings
from plimsoll.bench.formats import from_aiperf, from_vllm
from plimsoll.bench.load import Load
from plimsoll.bench.measure import Level
from plimsoll.bench.measure import measure as run_levels
from plimsoll.bench.pace import Arrivals, Closed, Pace
from plimsoll.bench.records import Record, from_json, make_record, to_json
from plimsoll.bench.summary import Slo
from plimsoll.bench.sweep import find_edge
from plimsoll.bench.target import Target
from plimsoll.discover.machine import this_machine
from plimsoll.errors import BenchError
from plimsoll.launch.state import State

LEVELS = (1, 2, 4, 8, 16)
FIRST_LOAD = Load(prompt_tokens=64, output_tokens=48)
"""What `up` measures with: short enough that the whole sweep takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """One measurement: where, what, how paced, how often."""

    target: Target
    load: Load = FIRST_LOAD
    paces: tuple[Pace, ...] = tuple(Closed(concurrency=level) for level in LEVELS)
    slo: Slo | None = None
    repeats: int = 1
    processes: int = 1
    edge: bool = False
    """Look for the highest pace that keeps the service level instead of measuring `paces`; they say where to start."""
    running: RunningDeployment | None = None
    """The deployment behind the target, when it is ours."""
    pids: tuple[int, ...] = field(default=())


def of_deployment(running: RunningDeployment, model: str) -> Measuring:
    """The measurement of one model of a deployment of ours, its processes sampled alongside."""
    pids = tuple(process.pid for replica in running.replicas for process in replica.processes if process.pid)
    target = Target(url=f"{running.address}/v1", model=model, api_key=running.api_key)
    return Measuring(target=target, running=running, pids=pids)


def measure(measuring: Measuring, *, settings: Settings, on_level: Callable[[Level], None]) -> Record:
    """Run it and keep the record. BenchError if the server cannot be measured."""
    levels = asyncio.run(_edge(measuring, on_level) if measuring.edge else _levels(measuring, on_level))
    known: dict[str, object] = {"hardware": _hardware()}
    with State(settings.state_dir) as state:
        if measuring.running is not None:
            row = state.deployment(measuring.running.id)
            replica = next(iter(measuring.running.replicas), None)
            runs = [one for one in state.processes(measuring.running.id) if replica and one.replica == replica.name]
            known |= {
                "name": measuring.running.name,
                "spec": row.spec if row else "",
                "plan": orjson.loads(row.plan) if row else None,
                "command": runs[-1].argv if runs else (),
            }
            seen = state.observations(run=runs[-1].run) if runs else ()
            if seen:
                known |= {"engine": seen[0].engine, "engine_version": seen[0].engine_version}
        record = make_record(levels, load=measuring.load, slo=measuring.slo, address=measuring.target.url, **known)
        state.add_bench_run(record.id, to_json(record).decode())
    return record


def list_records(settings: Settings) -> tuple[Record, ...]:
    """Every record kept, newest first."""
    with State(settings.state_dir) as state:
        return tuple(from_json(text) for _, _, text in state.bench_runs())


def find_record(settings: Settings, name: str) -> Record:
    """The record with that id (or the beginning of one), or in that file: ours, vLLM's JSON or AIPerf's CSV."""
    path = Path(name)
    if path.is_file():
        return read_record(path)
    with State(settings.state_dir) as state:
        found = [text for key, _, text in state.bench_runs() if key.startswith(name)]
    if len(found) == 1:
        return from_json(found[0])
    what = f"{len(found)} records begin with {name!r}" if found else f"there is no record {name!r}"
    raise BenchError(what, hint="`plimsoll runs list` names them; a file of `bench --out` will do too")


def read_record(path: Path) -> Record:
    """A record out of a file of ours, of `vllm bench serve` or of AIPerf. BenchError if it is none of these."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise BenchError(f"cannot read {path}: {problem}") from problem
    if path.suffix == ".csv":
        return from_aiperf(text)
    try:
        ours = "levels" in orjson.loads(text)
    except (orjson.JSONDecodeError, TypeError) as problem:
        raise BenchError(f"{path} is no record: it is not JSON", source=str(path)) from problem
    return from_json(text) if ours else from_vllm(text)


def keep_record(record: Record, settings: Settings) -> str:
    """Put an imported record among our own; its id."""
    with State(settings.state_dir) as state:
        if record.id not in {key for key, _, _ in state.bench_runs()}:
            state.add_bench_run(record.id, to_json(record).decode())
    return record.id


async def _levels(measuring: Measuring, on_level: Callable[[Level], None]) -> Sequence[Level]:
    return await run_levels(
        measuring.target,
        measuring.paces,
        load=measuring.load,
        slo=measuring.slo,
        repeats=measuring.repeats,
        processes=measuring.processes,
        pids=measuring.pids,
        on_level=on_level,
    )


async def _edge(measuring: Measuring, on_level: Callable[[Level], None]) -> Sequence[Level]:
    """Every pace tried on the way to the edge of the service level, the edge last."""
    open_loop = isinstance(measuring.paces[0], Arrivals)

    async def at(pace: float) -> Level:
        one: Pace = Arrivals(rate_per_s=pace) if open_loop else Closed(concurrency=int(pace))
        (level,) = await run_levels(
            measuring.target, (one,), load=measuring.load, slo=measuring.slo, processes=measuring.processes,
            pids=measuring.pids, on_level=on_level,
        )  # fmt: skip
        return level

    first = measuring.paces[0]
    start = first.rate_per_s if isinstance(first, Arrivals) else 1.0
    edge, tried = await find_edge(at, start=start, whole=not open_loop)
    if edge is None:
        raise BenchError("even the first pace does not keep the service level", hint="loosen --slo, or start lower")
    return (*(level for level in tried if level is not edge), edge)


def _hardware() -> dict[str, object]:
    host = this_machine()
    return {
        "cpu": host.cpu.name,
        "cores": host.cores,
        "ram_bytes": host.ram_bytes,
        "devices": [asdict(device)["name"] for device in host.devices],
    }
