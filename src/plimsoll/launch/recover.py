"""What really runs, whoever started it: the records held against the operating system, and cleaned down."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Literal

from plimsoll.errors import LaunchError
from plimsoll.launch.files import directory_of, remove_directory
from plimsoll.launch.identity import Identity
from plimsoll.launch.process import Target, end, marked, place_of, send_signal
from plimsoll.launch.state import DeploymentRow, ProcessRow, State

Truth = Literal["starting", "running", "failed", "stopping", "orphaned", "gone", "stopped"]
"""What the supervisor says while it lives; without it: orphaned (engines run on alone), gone (nothing runs), or
stopped in good order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """One deployment as it is, not as it was last heard of."""

    deployment: DeploymentRow
    truth: Truth
    replicas: tuple[RunningReplica, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningReplica:
    """One replica: its last words to the records, and the processes of it that live."""

    name: str
    state: str
    """The phase while a supervisor lives; else orphaned or gone."""
    reason: str
    alive: tuple[ProcessRow, ...]
    last: tuple[ProcessRow, ...]
    """The newest run of each of its processes, dead or alive: their logs are the ones to read."""


def list_running(state: State) -> tuple[Running, ...]:
    """Every deployment that was not stopped in good order, newest first. Changes nothing."""
    found = [_look(state, row) for row in state.deployments()]
    return tuple(running for running in found if running.truth != "stopped")


def left_behind(state: State) -> tuple[DeploymentRow, ...]:
    """Deployments whose plimsoll died: to adopt by `Fleet.adopt` under the same id, or to end by `stop_all`."""
    return tuple(running.deployment for running in list_running(state) if running.truth in ("orphaned", "gone"))


def stop_all(state: State, deployment: str, *, wait_s: float = 15.0, grace_s: float = 2.5) -> None:
    """Stop a deployment from any process: by its supervisor while that lives, else by hand.

    Blocks: `wait_s` at most for the supervisor, then `grace_s` + 1.5 s. LaunchError when it is not known, or when
    a process survives SIGKILL.
    """
    row = state.deployment(deployment)
    if row is None:
        raise LaunchError(f"there is no deployment {deployment}", hint="`plimsoll ps` lists them")
    supervisor = row.supervisor
    if supervisor is not None and supervisor.pid != os.getpid() and not _dismissed(supervisor, wait_s=wait_s):
        send_signal(supervisor, signal.SIGKILL)
    rows = state.processes(deployment, running=True)
    targets = {Target(run=each.run, root=each.identity) for each in rows}
    targets |= marked(place_of(state.directory, deployment))
    if targets:
        end(targets, grace_s=grace_s)
    for each in rows:
        state.end_process(each.run, cause="ended by `plimsoll down`: its plimsoll had died")
    for replica in state.replicas(deployment):
        state.set_replica(deployment, replica.name, state="stopped", reason="")
    remove_directory(directory_of(state.directory, deployment))
    state.set_deployment(deployment, "stopped")


def _dismissed(supervisor: Identity, *, wait_s: float) -> bool:
    """Ask it to stop, and wait until it has; whether it did."""
    send_signal(supervisor, signal.SIGTERM)
    deadline = time.monotonic() + wait_s
    while supervisor.alive and time.monotonic() < deadline:
        time.sleep(0.02)
    return not supervisor.alive


def _look(state: State, row: DeploymentRow) -> Running:
    supervised = row.supervisor is not None and row.supervisor.alive
    newest: dict[tuple[str, str], ProcessRow] = {}
    for process in state.processes(row.id):
        newest[process.replica, process.process] = process
    replicas = []
    for replica in state.replicas(row.id):
        last = tuple(process for (name, _), process in newest.items() if name == replica.name)
        alive = tuple(process for process in last if process.identity is not None and process.identity.alive)
        replicas.append(
            RunningReplica(
                name=replica.name,
                state=replica.state if supervised else "orphaned" if alive else "gone",
                reason=replica.reason,
                alive=alive,
                last=last,
            )
        )
    truth: Truth = row.state
    if not supervised and row.state != "stopped":
        # A head may be dead while its workers live: they are found by their mark.
        living = any(replica.alive for replica in replicas) or marked(place_of(state.directory, row.id))
        truth = "orphaned" if living else "gone"
    return Running(deployment=row, truth=truth, replicas=tuple(replicas))
