"""Replicas of the fake engine for the launch tests, and a fleet program that can be killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from plimsoll.engines.fake import FACTS, Fake
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import ModelFacts
from plimsoll.launch.owner import ReplicaView
from plimsoll.launch.process import marked, place_of
from plimsoll.launch.state import DeploymentRow, State
from plimsoll.launch.supervisor import Fleet
from plimsoll.launch.transition import Policy
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.types import Candidate, Replica
from plimsoll.spec.deployment import Deployment

ENGINE = Fake(command=(sys.executable, "-m", "plimsoll.engines.serve_fake"))
QUICK = Policy(
    restarts=2,
    backoff_s=0.05,
    grace_s=0.5,
    look_every_s=0.1,
    health_every_s=0.2,
    health_timeout_s=0.5,
    silent_after_s=0.2,
    probe_timeout_s=0.5,
)
CPU = Device(name="cpu", vendor="cpu", arch="x86-64-v3", memory_bytes=8 << 30, free_bytes=8 << 30, bandwidth=1e10)
MODEL = ModelFacts(
    id="tiny",
    architecture="FakeForCausalLM",
    task="chat",
    layers=1,
    hidden_size=8,
    intermediate_size=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    vocab_size=8,
    max_context_tokens=4096,
    tied_embeddings=True,
    dtype="float32",
    format="gguf",
    attention=(),
    tensors=(),
    source="test",
)
LEDGER = Ledger(
    devices=(
        DeviceLedger(
            device="cpu",
            total_bytes=8 << 30,
            limit_bytes=8 << 30,
            entries=(Entry(name="weights", bytes=98_000_000, basis="derived", source="test"),),
        ),
    ),
    kv_tokens=16384,
)


def make_replica(name: str = "tiny-0", **options: str | int | float | bool) -> Replica:
    """A replica of the fake engine; options are `serve_fake`'s flags, without delays unless they are given."""
    quick = {"load_seconds": 0, "ttft": 0, "tpot": 0.001}
    candidate = Candidate(
        deployment=Deployment(name="tiny", model="tiny.gguf"),
        model=MODEL,
        engine=FACTS,
        host=Host(name="here", cpu=CPU, cores=2, ram_bytes=8 << 30, ram_free_bytes=8 << 30),
        devices=(CPU,),
        sequences=4,
        options={**quick, **options},
    )
    return Replica(name=name, candidate=candidate, ledger=LEDGER)


def with_env(replica: Replica, **env: str) -> Replica:
    """The same with a variable in its deployment's environment."""
    deployment = replica.candidate.deployment.model_copy(update={"env": env})
    return replace(replica, candidate=replace(replica.candidate, deployment=deployment))


@asynccontextmanager
async def running_fleet(
    directory: Path, *replicas: Replica, policy: Policy = QUICK, adopt: bool = False, **options: Any
) -> AsyncIterator[Fleet]:
    """A fleet that was started; at the end it is stopped, and nothing of it may be left."""
    with State(directory) as state:
        state.save_deployment(DeploymentRow(id="d", name="harbour"))
        engines = [(replica, ENGINE) for replica in replicas]
        fleet = Fleet(state=state, deployment="d", replicas=engines, policy=policy, **options)
        tasks = asyncio.all_tasks()
        if adopt:
            await fleet.adopt()
        await fleet.start()
        try:
            yield fleet
        finally:
            began = time.monotonic()
            await fleet.stop()
            assert time.monotonic() - began < 5
            assert not marked(place_of(directory, "d"))
            assert asyncio.all_tasks() == tasks
            assert state.processes("d", running=True) == ()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """Wait until it holds; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come to be"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def view(fleet: Fleet, name: str = "tiny-0") -> ReplicaView:
    """One replica as it is now."""
    return next(item for item in fleet.snapshot() if item.name == name)


def main() -> None:
    """A plimsoll of its own to be killed: `launch_kit.py DIRECTORY FLAG=VALUE ...` runs a fleet until SIGTERM."""

    async def serve() -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        options = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in sys.argv[2:])}
        async with running_fleet(Path(sys.argv[1]), make_replica(**options)) as fleet:
            await fleet.wait_ready()
            print("ready", flush=True)
            await over.wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
