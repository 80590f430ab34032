"""One task per replica owns its state: it takes events one by one, runs `transition`, and carries out the effects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from plimsoll.engines.protocol import Engine
from plimsoll.errors import LaunchError
from plimsoll.launch.files import remove_directory
from plimsoll.launch.group import DownError, Group, Surroundings
from plimsoll.launch.logs import read_lines
from plimsoll.launch.observe import observations
from plimsoll.launch.process import free_ports
from plimsoll.launch.state import ProcessRow
from plimsoll.launch.transition import (
    CleanUp,
    Down,
    Event,
    Failure,
    Gone,
    Launch,
    Phase,
    Standing,
    Up,
    Wait,
    Waited,
    transition,
)
from plimsoll.launch.watch import Watch
from plimsoll.plan.types import Replica

EXTRA_PORTS = 8
"""Besides the one that serves; FastChat takes the most of them, three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """What the outside may know of a replica; a value, safe to keep."""

    name: str
    model: str
    """The name that clients use."""
    served_name: str | None
    """The name that requests to it must carry, where it is not `model`; None also before it was ever started."""
    engine: str
    phase: Phase
    reason: str
    """Why it is not ready, in words; "" when there is nothing to say."""
    host: str
    port: int | None
    """Where it answers; None unless it is ready. Every start has a port of its own."""
    pids: tuple[int, ...]
    logs: tuple[str, ...]
    """Of the present or last run, one per process."""
    restarts: int
    start_s: float | None
    """From the start of its processes to its first token, in seconds; None until then, or when it was adopted."""


class Owner:
    """The replica's one owner; `post` is the only way to change it, `view` the way to see it."""

    def __init__(
        self, replica: Replica, engine: Engine, around: Surroundings, changed: Callable[[], None], taken: set[int]
    ) -> None:
        self.replica = replica
        self.engine = engine
        self.standing = Standing()
        self.settled = asyncio.Event()
        """Set while it is ready or failed or stopped."""
        self._around = around
        self._changed = changed
        self._taken = taken
        self._events: asyncio.Queue[tuple[int | None, Event | BaseException]] = asyncio.Queue()
        self._group: Group | None = None
        self._watch: Watch | None = None
        self._work: asyncio.Task[None] | None = None
        self._inherited: tuple[ProcessRow, ...] = ()
        self._start_s: float | None = None

    def post(self, event: Event, *, attempt: int | None = None) -> None:
        """Let it happen; an event of an attempt that is over is dropped."""
        self._events.put_nowait((attempt, event))

    def inherit(self, rows: Sequence[ProcessRow]) -> None:
        """Take these processes over at the first start, instead of starting new ones."""
        self._inherited = tuple(rows)

    def suspect(self) -> None:
        """Look at once whether it still makes tokens."""
        if self._watch is not None:
            self._watch.suspected.set()

    @property
    def view(self) -> ReplicaView:
        """As it is now."""
        group, standing = self._group, self.standing
        candidate = self.replica.candidate
        runs = [] if group is None else group.runs
        return ReplicaView(
            name=self.replica.name,
            model=candidate.deployment.name,
            served_name=None if group is None else group.served_name,
            engine=candidate.engine.name,
            phase=standing.phase,
            reason=standing.reason,
            host=self._around.host,
            port=group.ports.serve if group is not None and standing.phase == "ready" else None,
            pids=tuple(run.identity.pid for run in runs if not run.ending.done()),
            logs=tuple(str(run.log) for run in runs),
            restarts=max(0, standing.attempt - 1),
            start_s=self._start_s,
        )

    async def own(self) -> None:
        """Until it is stopped."""
        try:
            while self.standing.phase != "stopped":
                attempt, event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                if attempt is None or attempt == self.standing.attempt:
                    await self._handle(event)
        finally:
            # Cancelled, or a bug: nothing may be left running that nobody watches.
            if self.standing.phase != "stopped":
                await self._clean_up(self._around.policy.grace_s)

    async def _handle(self, event: Event) -> None:
        before = self.standing
        policy = self._around.policy
        self.standing, effects = transition(before, event, now=time.monotonic(), policy=policy)
        if self.standing != before:
            self._tell()
        for effect in effects:
            match effect:
                case Launch():
                    self._work_on(self._live(self.standing.attempt))
                case CleanUp(grace_s=grace_s):
                    await self._clean_up(grace_s)
                    self.post(Gone())
                case Wait(seconds=seconds):
                    self._work_on(self._wait(self.standing.attempt, seconds))
        if self.standing.phase == "stopped":
            remove_directory(self._around.directory(self.replica.name))
        if self.standing.phase in ("ready", "failed", "stopped"):
            self.settled.set()
        else:
            self.settled.clear()

    def _tell(self) -> None:
        around, standing = self._around, self.standing
        around.note(
            lambda: around.state.set_replica(
                around.deployment, self.replica.name, state=standing.phase, reason=standing.reason
            )
        )
        self._changed()

    def _work_on(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work, name=f"work on {self.replica.name}")
        self._work.add_done_callback(self._worked)

    def _worked(self, work: asyncio.Task[None]) -> None:
        """A bug in the work is the owner's end, not a replica that starts for ever."""
        if not work.cancelled() and (error := work.exception()) is not None:
            self._events.put_nowait((None, error))

    async def _clean_up(self, grace_s: float) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._work = self._watch = None
        if self._group is not None:
            await self._group.clean_up(grace_s=grace_s)

    async def _wait(self, attempt: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.post(Waited(), attempt=attempt)

    async def _live(self, attempt: int) -> None:
        """One attempt from its start to its fall."""
        try:
            group = await self._come_up()
            self._watch = Watch(group, (await group.look()).processes)
            self.post(Up(), attempt=attempt)
            self._observe(group)
            await group.guard(self._watch.run())
        except DownError as down:
            self.post(Down(failure=down.failure, port_taken=down.port_taken), attempt=attempt)
        except LaunchError as error:
            failure = Failure(cause=error.message, hint=error.hint, log=error.log, log_path=error.source)
            self.post(Down(failure=failure), attempt=attempt)

    async def _come_up(self) -> Group:
        rows, self._inherited = self._inherited, ()
        first = not self.standing.was_ready
        if rows:
            ports = self._around.ports(self.replica.name, rows[0].ports)
        else:
            numbers = free_ports(1 + EXTRA_PORTS, host=self._around.host, avoid=self._taken)
            ports = self._around.ports(self.replica.name, numbers)
            if self._group is not None:
                self._taken.difference_update((self._group.ports.serve, *self._group.ports.extra))
        self._taken.update((ports.serve, *ports.extra))
        processes = self.engine.processes(self.replica, ports)
        group = Group(name=self.replica.name, processes=processes, ports=ports, around=self._around, first=first)
        self._group = group
        began = time.monotonic()
        if rows:
            await group.adopt(rows)
        else:
            await group.bring_up()
            self._start_s = time.monotonic() - began
        return group

    def _observe(self, group: Group) -> None:
        """Store what the engine reported while it came up."""
        state = self._around.state
        for run in group.runs:
            observed = self.engine.read_log(read_lines(run.log))
            rows = observations(self.replica, observed, run=run.row.run, at=time.time())
            self._around.note(partial(state.add_observations, rows))
