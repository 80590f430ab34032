"""Replicas for the adapters' tests, and golden files of what they are rendered to."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from plimsoll.engines.protocol import Engine, Ports, Process
from plimsoll.plan.memory import account
from plimsoll.plan.rules.examples import candidate
from plimsoll.plan.types import Replica

GOLDEN = Path(__file__).parents[1] / "golden"
PORTS = Ports(serve=8100, extra=(8101, 8102, 8103), directory="/run/plimsoll/served-1")
FOUR_NODES = replace(PORTS, addresses=("10.10.10.1", "10.10.10.2", "10.10.10.3", "10.10.10.10"), interface="bond0")
A72 = {"layers": 80, "heads": 64, "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568,
       "gpu_names": ("NVIDIA RTX A6000",) * 2, "arch": "8.6", "memory_gib": 48, "weight_gib": 39}  # fmt: skip


def replica(engine: Any, *, path: str = "/models/it", **overrides: Any) -> Replica:
    """An 8B Llama on one H100, but for what is overridden, planned for the engine."""
    made = candidate(**{"engine": engine.facts.name, "version": engine.facts.version} | overrides)
    made = replace(made, engine=replace(engine, version=made.engine.version).facts)
    if made.devices[0].vendor == "cpu":
        made = replace(made, host=replace(made.host, devices=()))
    if made.nodes > 1:
        # Hosts alike: each counts its own devices from 0.
        each = len(made.devices) // made.nodes
        devices = tuple(replace(device, index=place % each) for place, device in enumerate(made.devices))
        made = replace(made, devices=devices, host=replace(made.host, devices=devices[:each]))
    return Replica(name="served-1", candidate=made, ledger=account(made), model_path=path)


def argv_of(engine: Engine, ports: Ports = PORTS, **overrides: Any) -> tuple[str, ...]:
    """The command line of the one process."""
    (process,) = engine.processes(replica(engine, **overrides), ports)
    return process.argv


def check_golden(name: str, processes: tuple[Process, ...]) -> None:
    """Compare with `tests/golden/NAME.json`; UPDATE_GOLDEN=1 writes it."""
    shown = json.dumps([shorten(process) for process in processes], indent=1, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(shown)
    assert shown == path.read_text(), f"{path.name} differs; UPDATE_GOLDEN=1 accepts what is rendered now"


def shorten(process: Process) -> dict[str, Any]:
    """A process without what it leaves at its default; JSON files as JSON."""
    ready = {key: value for key, value in asdict(process.ready).items() if value not in (None, {}, "")}
    files = {path: json.loads(text) if path.endswith(".json") else text.splitlines() for path, text in
             process.files.items()}  # fmt: skip
    shown = {key: value for key, value in asdict(process).items() if value not in ((), {}, None, 0, "")}
    if process.ready.health_path is None:
        shown.pop("ready")
        return shown | ({"files": files} if files else {})
    return shown | {"ready": ready} | ({"files": files} if files else {})
