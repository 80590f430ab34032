"""What runs: deployments as the state database and the operating system together tell, their logs, stopping them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plimsoll.app.keys import own_key
from plimsoll.app.settings import Settings
from plimsoll.errors import LaunchError
from plimsoll.launch.logs import read_lines
from plimsoll.launch.recover import Running, list_running, stop_all
from plimsoll.launch.state import Observation, ProcessRow, State
from plimsoll.spec.load import parse_spec

_FOLLOW_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningProcess:
    """One engine process: where it answers and where its log is. `pid` is None once it is gone."""

    name: str
    pid: int | None
    port: int | None
    log_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningReplica:
    """One replica as it is now."""

    name: str
    state: str
    reason: str
    processes: tuple[RunningProcess, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedAndReported:
    """One quantity: what the plan said (None: nothing) and what the engine reported. Bytes, tokens or counts."""

    replica: str
    quantity: str
    planned: float | None
    actual: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningDeployment:
    """One deployment: what it serves, where, and how it stands."""

    id: str
    name: str
    state: str
    """starting, running, failed, stopping; orphaned: its engines run on without Plimsoll; gone: nothing is left."""
    address: str
    """`http://host:port`, "" while there is none."""
    models: tuple[str, ...]
    created: float
    """Seconds since the epoch."""
    replicas: tuple[RunningReplica, ...]
    observations: tuple[PlannedAndReported, ...]
    api_key: str
    """That this machine's own commands come with."""
    asks_key: bool
    """Whether others need one."""
    supervised: bool

    def as_json(self) -> dict[str, Any]:
        """Plain data, without the key."""
        data = asdict(self)
        del data["api_key"]
        return data


def list_deployments(settings: Settings) -> tuple[RunningDeployment, ...]:
    """Every deployment that was not stopped in good order, newest first."""
    if not settings.state_dir.exists():
        return ()
    with State(settings.state_dir) as state:
        return tuple(_deployment(state, one) for one in list_running(state))


def find(settings: Settings, name: str | None) -> RunningDeployment:
    """The deployment of that name, or the only one. LaunchError if there is none, or more than one to choose from."""
    listed = list_deployments(settings)
    chosen = [one for one in listed if name is None or name in (one.name, one.id)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(one.name for one in listed)
    if not listed:
        raise LaunchError("nothing runs", hint="`plimsoll up` starts the built-in model")
    if not chosen:
        raise LaunchError(f"there is no deployment {name!r}", hint=f"these run: {names}")
    raise LaunchError(f"{len(chosen)} deployments run", hint=f"name one of them: {names}")


def named(settings: Settings, name: str) -> RunningDeployment | None:
    """The deployment of that name, if it was not stopped in good order."""
    return next((one for one in list_deployments(settings) if one.name == name), None)


def by_id(settings: Settings, deployment: str) -> RunningDeployment:
    """The deployment of that id. LaunchError if it is over."""
    return next(
        (one for one in list_deployments(settings) if one.id == deployment),
        None,
    ) or _over(deployment)


def stop(settings: Settings, name: str | None, *, every: bool) -> Iterator[str]:
    """Stop one deployment, or all; names as they are down. Also what a killed Plimsoll left behind."""
    chosen = list_deployments(settings) if every else (find(settings, name),)
    for one in chosen:
        with State(settings.state_dir) as state:
            stop_all(state, one.id)
        yield one.name


def log_lines(settings: Settings, name: str | None, *, replica: str | None, last: int, follow: bool) -> Iterator[str]:
    """Lines of the engines' logs, the last run of each process; with several, each line begins with its replica.

    Also of a deployment that is over. With `follow` it goes on until the deployment is down.
    """
    with State(settings.state_dir) as state:
        deployment = _logged(state, name)
        rows = [row for row in _newest(state, deployment) if replica in (None, row.replica)]
        if not rows:
            raise LaunchError("there is no log yet", hint="`plimsoll status` says what has been started")
        for row in rows:
            mark = f"{row.replica}: " if len(rows) > 1 else ""
            for line in read_lines(Path(row.log_path))[-last:] if last else ():
                yield mark + line
        if follow:
            yield from _followed(state, deployment, rows)


def _followed(state: State, deployment: str, rows: Sequence[ProcessRow]) -> Iterator[str]:
    """New lines, also of runs that begin meanwhile."""
    offsets = {row.log_path: _size(Path(row.log_path)) for row in rows}
    replicas = {row.replica for row in rows}
    while True:
        # Read before looking whether it is over: what was written before the end is shown.
        over = not any(running.deployment.id == deployment for running in list_running(state))
        for row in _newest(state, deployment):
            if row.replica not in replicas:
                continue
            path = Path(row.log_path)
            fresh, offsets[row.log_path] = _read_from(path, offsets.get(row.log_path, 0))
            for line in fresh:
                yield (f"{row.replica}: " if len(replicas) > 1 else "") + line
        if over:
            return
        time.sleep(_FOLLOW_S)


def _read_from(path: Path, offset: int) -> tuple[list[str], int]:
    """Whole lines after `offset`, and where they end."""
    try:
        with path.open("rb") as file:
            file.seek(offset if offset <= _size(path) else 0)
            start, data = file.tell(), file.read()
    except OSError:
        return [], offset
    whole = data.rfind(b"\n") + 1
    return data[:whole].decode(errors="replace").splitlines(), start + whole


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _logged(state: State, name: str | None) -> str:
    """Id of the deployment whose logs are meant: of that name, or the newest, running or not."""
    rows = [row for row in state.deployments() if name is None or name in (row.name, row.id)]
    if not rows:
        raise LaunchError("there are no logs" if name is None else f"there is no deployment {name!r}")
    running = {one.deployment.id for one in list_running(state)}
    return next((row.id for row in rows if row.id in running), rows[0].id)


def _newest(state: State, deployment: str) -> list[ProcessRow]:
    newest = {(row.replica, row.process): row for row in state.processes(deployment)}
    return list(newest.values())


def _deployment(state: State, running: Running) -> RunningDeployment:
    row = running.deployment
    spec = parse_spec(row.spec, name=row.name)
    return RunningDeployment(
        id=row.id,
        name=row.name,
        state=running.truth,
        address=f"http://{row.gateway}" if row.gateway and running.truth not in ("orphaned", "gone") else "",
        models=tuple(model.name for model in spec.models),
        created=row.created,
        replicas=tuple(
            RunningReplica(
                name=replica.name,
                state=replica.state,
                reason=replica.reason,
                processes=tuple(_process(one) for one in replica.last),
            )
            for replica in running.replicas
        ),
        observations=tuple(
            _reported(one, replica.name)
            for replica in running.replicas
            for process in replica.last
            for one in state.observations(run=process.run)
        ),
        api_key=own_key(state.directory),
        asks_key=bool(spec.gateway.api_keys),
        supervised=row.supervisor is not None and row.supervisor.alive,
    )


def _process(row: ProcessRow) -> RunningProcess:
    alive = row.identity is not None and row.identity.alive
    return RunningProcess(
        name=row.process, pid=row.pid if alive else None, port=next(iter(row.ports), None), log_path=row.log_path
    )


def _reported(one: Observation, replica: str) -> PlannedAndReported:
    return PlannedAndReported(replica=replica, quantity=one.quantity, planned=one.planned, actual=one.actual)


def _over(deployment: str) -> RunningDeployment:
    raise LaunchError(f"the deployment {deployment} is over", hint="`plimsoll logs` shows its last logs")
