"""A short concurrency sweep through the gateway, and its record."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plimsoll.app.running import RunningDeployment
from plimsoll.app.settings import Settings
from plimsoll.bench.load import Load
from plimsoll.bench.report import level_json, remarks, table_cells
from plimsoll.bench.sweep import Level, sweep
from plimsoll.bench.target import Target
from plimsoll.launch.state import State

LEVELS = (1, 2, 4, 8, 16)
_LOAD = Load(prompt_tokens=64, output_tokens=48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One concurrency: cells for a table, the same as JSON, and what to know about it."""

    what: str
    cells: tuple[str, ...]
    json: dict[str, Any]
    notes: tuple[str, ...]


def measure(
    running: RunningDeployment,
    *,
    model: str,
    levels: Sequence[int],
    settings: Settings,
    on_level: Callable[[Measured], None],
) -> None:
    """Measure `model` at each of `levels` and keep the record. BenchError if the server cannot be measured."""
    what = f"{_LOAD.prompt_tokens} tokens in, {_LOAD.output_tokens} out, all of them"

    def seen(level: Level) -> None:
        cells = table_cells(level)
        on_level(Measured(what=what, cells=cells[:-1], json=level_json(level), notes=tuple(remarks([level]))))

    done = asyncio.run(
        sweep(
            Target(url=f"{running.address}/v1", model=model, api_key=running.api_key),
            levels,
            load=_LOAD,
            on_level=seen,
        )
    )
    record = {"deployment": running.name, "model": model, "levels": [level_json(level) for level in done]}
    with State(settings.state_dir) as state:
        state.add_bench_run(uuid.uuid4().hex[:12], json.dumps(record))
