"""One run of one process, from its start or adoption to its end: what it is, its log, and how it ended."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from plimsoll.engines.protocol import Ports, Process
from plimsoll.errors import LaunchError
from plimsoll.launch.ending import Ending, OomWatch, ending_of
from plimsoll.launch.identity import Identity, identity_of
from plimsoll.launch.logs import LogWatch
from plimsoll.launch.process import Target, spawn, wait_for_end
from plimsoll.launch.state import ProcessRow


@dataclass(slots=True, kw_only=True)
class Run:
    """A process that runs, or ran. `ending` is done when it is over."""

    process: Process
    row: ProcessRow
    identity: Identity
    watch: LogWatch
    popen: subprocess.Popen[bytes] | None
    oom: OomWatch
    stopping: bool = False
    ending: asyncio.Task[Ending] = field(init=False)

    def __post_init__(self) -> None:
        self.ending = asyncio.create_task(self._end(), name=f"end of {self.row.replica}/{self.row.process}")

    @property
    def target(self) -> Target:
        """To end it by."""
        return Target(run=self.row.run, root=self.identity)

    @property
    def log(self) -> Path:
        """Where its outputs go."""
        return Path(self.row.log_path)

    @property
    def health_port(self) -> int | None:
        """Where its health route answers; None where nothing does."""
        return self.process.ready.health_port or self.process.port

    async def _end(self) -> Ending:
        code = await wait_for_end(self.identity, self.popen)
        self.oom.look()
        return ending_of(code, oom=self.oom.recent, stopped=self.stopping)


def plan_run(process: Process, *, deployment: str, replica: str, rendered: str, ports: Ports, log: Path) -> ProcessRow:
    """The record of a run that is about to start; it has no pid yet."""
    return ProcessRow(
        run=secrets.token_hex(8),
        deployment=deployment,
        replica=replica,
        process=process.name,
        argv=process.argv,
        rendered=rendered,
        ports=(ports.serve, *ports.extra),
        log_path=str(log),
        started=time.time(),
    )


def start_run(process: Process, row: ProcessRow, *, place: str) -> Run:
    """Start it; LaunchError when it cannot be."""
    oom = OomWatch()
    popen = spawn(process.argv, mark=f"{row.run} {place}", log=Path(row.log_path), env=process.env, cwd=process.cwd)
    # Even one that ended at once is there until we ask for its code: a zombie has its number and, here, no birth.
    identity = identity_of(popen.pid) or Identity(pid=popen.pid, birth="")
    row = replace(row, pid=identity.pid, birth=identity.birth, pgid=popen.pid)
    return _run(process, row, identity, popen, oom)


def adopt_run(process: Process, row: ProcessRow) -> Run:
    """Take over a process that another plimsoll started; LaunchError when it is gone."""
    if row.identity is None or not row.identity.alive:
        raise LaunchError(f"{row.replica}: {row.process} is gone")
    return _run(process, row, row.identity, None, OomWatch())


def _run(
    process: Process, row: ProcessRow, identity: Identity, popen: subprocess.Popen[bytes] | None, oom: OomWatch
) -> Run:
    routes = [path for path in (process.ready.health_path, process.ready.probe_path) if path is not None]
    watch = LogWatch(Path(row.log_path), ignore=routes)
    return Run(process=process, row=row, identity=identity, watch=watch, popen=popen, oom=oom)


async def run_to_end(
    argv: tuple[str, ...], process: Process, row: ProcessRow, *, place: str, begun: Callable[[Identity], None]
) -> int | None:
    """Run one of a process's own commands; its return code. Its output goes to the same log; `begun` is told of it."""
    popen = spawn(argv, mark=f"{row.run} {place}", log=Path(row.log_path), env=process.env, cwd=process.cwd)
    identity = identity_of(popen.pid) or Identity(pid=popen.pid, birth="")
    begun(identity)
    try:
        return await wait_for_end(identity, popen)
    except asyncio.CancelledError:
        popen.kill()
        popen.wait()
        raise
