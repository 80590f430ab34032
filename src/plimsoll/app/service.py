"""The service process: supervisor and gateway of one deployment in one event loop, until SIGTERM.

`python -m plimsoll.app.service --state DIR --id DEPLOYMENT --report FD [--attached]`, started by `up`. It reads the
plan from the state database, says once on `FD`, in one line of JSON, whether it is up or why not, and, when attached,
stops as soon as its standard input closes: the `up` in the foreground is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from plimsoll.app.environments import known_engines
from plimsoll.app.keys import own_key
from plimsoll.app.serial import error_to_json, plan_from_json
from plimsoll.app.settings import Settings
from plimsoll.engines.diagnosis import explain
from plimsoll.engines.protocol import Engine
from plimsoll.errors import LaunchError, PlimsollError
from plimsoll.gateway.access_log import AccessLog
from plimsoll.gateway.accounts import Accounts
from plimsoll.gateway.server import Gateway
from plimsoll.gateway.settings import Settings as GatewaySettings
from plimsoll.gateway.store import Store
from plimsoll.gateway.table import RouteTable, Upstream
from plimsoll.launch.group import Traffic
from plimsoll.launch.owner import ReplicaView
from plimsoll.launch.state import State
from plimsoll.launch.supervisor import Fleet, Snapshot
from plimsoll.plan.types import Plan, Replica
from plimsoll.spec.load import parse_spec

_DRAIN_S = 1.0
"""For answers under way when it is told to stop; with the engines' own grace everything is gone within 5 s."""


def route_table(plan: Plan, snapshot: Snapshot) -> RouteTable:
    """What the gateway may route to, by the replicas as they are now."""
    views = {view.name: view for view in snapshot}
    models: dict[str, list[Upstream]] = {}
    for replica in plan.replicas:
        if view := views.get(replica.name):
            models.setdefault(replica.candidate.deployment.name, []).append(_upstream(replica, view))
    return RouteTable(models={name: tuple(group) for name, group in models.items()}, created_s=time.time())


def _engine(replica: Replica, settings: Settings) -> Engine:
    return known_engines(settings, (replica.candidate.deployment,))[replica.candidate.engine.name]


def _upstream(replica: Replica, view: ReplicaView) -> Upstream:
    candidate = replica.candidate
    reason = view.reason or {"starting": "it is still starting", "backoff": "it is being restarted"}.get(view.phase)
    return Upstream(
        name=replica.name,
        host=view.host,
        port=view.port or 0,
        model=view.served_name,
        tasks=("chat", "completion") if candidate.model.task in ("chat", "completion") else (candidate.model.task,),
        concurrency=candidate.sequences,
        healthy=view.phase == "ready" and view.port is not None,
        reason=reason,
        rerank_scores="logit" if candidate.engine.name == "llamacpp" else "unknown",
        routes=candidate.engine.routes,
        # Asked for usage, llama.cpp leaves out the timings that its own clients read.
        stream_usage=candidate.engine.name != "llamacpp",
    )


def _traffic(gateway: Gateway, replica: str) -> Traffic | None:
    seen = gateway.traffic(replica)
    return None if seen is None else Traffic(outstanding=seen[0], silent_s=seen[1])


def _diagnose(lines: Sequence[str]) -> tuple[str, str] | None:
    """Cause and fix of a known failure."""
    found = explain(lines)
    return (f"{found.what}: {found.cause}", found.fix) if found.known else None


async def serve(state: State, deployment: str, *, report: Report, attached: bool) -> None:
    """Run the deployment until it is told to stop. PlimsollError if it cannot be started; then nothing is left."""
    row = state.deployment(deployment)
    if row is None:
        raise LaunchError(f"there is no deployment {deployment}", source=str(state.path))
    plan, spec = plan_from_json(row.plan), parse_spec(row.spec, name=f"{row.name} (stored)")
    settings = Settings.resolve(os.environ)
    store = Store(state.directory / "gateway.db")
    accounts = Accounts(store, spec_keys=spec.gateway.api_keys, own_key=own_key(state.directory))
    access_log = AccessLog(state.directory / "logs" / deployment / "access.log")
    gateway = Gateway(GatewaySettings(), observe=accounts.note)
    gateway.observers.append(access_log.note)
    over = _stop_signals(attached=attached)
    fleet = Fleet(
        state=state,
        deployment=deployment,
        replicas=[(replica, _engine(replica, settings)) for replica in plan.replicas],
        diagnose=_diagnose,
        traffic=lambda name: _traffic(gateway, name),
        on_change=lambda snapshot: gateway.update(route_table(plan, snapshot)),
    )
    try:
        await accounts.start(gateway)
        await gateway.start(spec.gateway.host, spec.gateway.port)
    except PlimsollError:
        state.set_deployment(deployment, "stopped")
        raise
    try:
        gateway.update(route_table(plan, fleet.snapshot()))
        await fleet.adopt()
        await fleet.start()
        host, port = gateway.address
        bracketed = f"[{host}]" if ":" in host else host
        state.save_deployment(replace(row, gateway=f"{bracketed}:{port}", state="starting"))
        ready = asyncio.ensure_future(fleet.wait_ready())
        stopped = asyncio.ensure_future(over.wait())
        await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            state.set_deployment(deployment, "running")
            report.say({"ready": True})
            await stopped
        else:
            ready.cancel()
        state.set_deployment(deployment, "stopping")
    finally:
        await gateway.stop(_DRAIN_S)
        await accounts.stop()
        access_log.close()
        store.close()
        await fleet.stop()


def _stop_signals(*, attached: bool) -> asyncio.Event:
    """Set by SIGTERM or SIGINT and, when attached, by the end of standard input."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if attached:

        def read() -> None:
            if not os.read(sys.stdin.fileno(), 1024):
                loop.remove_reader(sys.stdin.fileno())
                over.set()

        loop.add_reader(sys.stdin.fileno(), read)
    return over


class Report:
    """One line to the `up` that started this, which may have gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def say(self, message: Mapping[str, object]) -> None:
        """Write it and close; the second time nothing is said."""
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, (json.dumps(message) + "\n").encode())
            os.close(self._descriptor)
        except OSError as problem:
            logging.info("up has gone: %s", problem)
        self._descriptor = None


def main() -> int:
    """The process; exit code as of the error that ended it."""
    parse = argparse.ArgumentParser(prog="plimsoll.app.service")
    parse.add_argument("--state", type=Path, required=True)
    parse.add_argument("--id", required=True)
    parse.add_argument("--report", type=int, required=True)
    parse.add_argument("--attached", action="store_true")
    args = parse.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    report = Report(args.report)
    try:
        with State(args.state) as state:
            uvloop.run(serve(state, args.id, report=report, attached=args.attached))
    except PlimsollError as error:
        logging.error("%s", error.message)  # noqa: TRY400 - it is an answer, not a bug
        report.say({"error": error_to_json(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
