"""The fleet: all replicas of a deployment, each with its owner, kept running until they are stopped.

fleet = Fleet(state=state, deployment="default", replicas=[(replica, engine)], on_change=...)
await fleet.adopt()        # what a dead plimsoll left, if anything
await fleet.start()        # the rest
await fleet.wait_ready()   # LaunchError with the engine's last words when one cannot start
...
await fleet.stop()         # nothing is left, within 5 s
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from plimsoll.engines.protocol import Engine
from plimsoll.errors import LaunchError
from plimsoll.launch.files import remove_directory
from plimsoll.launch.group import Diagnose, Surroundings, Traffic
from plimsoll.launch.identity import own_identity
from plimsoll.launch.owner import Owner, ReplicaView
from plimsoll.launch.process import Target, digest_of, end, interface_of, marked
from plimsoll.launch.state import ProcessRow, State
from plimsoll.launch.transition import CRASH_GRACE_S, Policy, Start, Stop
from plimsoll.plan.types import Replica

Snapshot = tuple[ReplicaView, ...]
_logger = logging.getLogger("plimsoll.launch")


class Fleet:
    """All replicas of one deployment; lives in one event loop.

    `deployment` is the id of a row that `state` has already. `addresses`: of all hosts, this one's first, where engines
    run on several. `diagnose` turns an engine's log lines into (cause,
    hint). `on_change` is called in the loop with a fresh snapshot after every change of a replica. `traffic` says of
    a replica how many requests it owes and for how long it has been silent: with it an engine that hangs behind a
    healthy health route is caught within 10 s.
    """

    def __init__(
        self,
        *,
        state: State,
        deployment: str,
        replicas: Sequence[tuple[Replica, Engine]],
        policy: Policy | None = None,
        host: str = "127.0.0.1",
        addresses: Sequence[str] = (),
        diagnose: Diagnose = lambda lines: None,
        on_change: Callable[[Snapshot], None] = lambda snapshot: None,
        traffic: Callable[[str], Traffic | None] = lambda replica: None,
    ) -> None:
        self._state = state
        self._deployment = deployment
        self._around = Surroundings(
            state=state,
            deployment=deployment,
            policy=Policy() if policy is None else policy,
            host=host,
            diagnose=diagnose,
            traffic=traffic,
            addresses=tuple(addresses),
            interface=interface_of(addresses[0]) if addresses else None,
        )
        self._on_change = on_change
        self._claimed = False
        self._taken: set[int] = set()
        self._owners: dict[str, Owner] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for replica, engine in replicas:
            self._owners[replica.name] = self._owner(replica, engine)

    def snapshot(self) -> Snapshot:
        """Every replica as it is now, in the order of the plan."""
        return tuple(owner.view for owner in self._owners.values())

    async def adopt(self) -> tuple[str, ...]:
        """Take over what a dead plimsoll left of this deployment; what does not fit the plan is ended.

        Returns the names of the replicas whose processes run on. LaunchError when another plimsoll owns them.
        """
        self._claim()
        rows = self._state.processes(self._deployment, running=True)
        by_replica: dict[str, list[ProcessRow]] = {}
        for row in rows:
            by_replica.setdefault(row.replica, []).append(row)
        adopted = [name for name, group in by_replica.items() if self._fits(name, group)]
        kept = {row.run for row in rows if row.replica in adopted}
        rest = [row for row in rows if row.run not in kept]
        strays = await asyncio.to_thread(marked, self._around.place)
        targets = {Target(run=row.run, root=row.identity) for row in rest}
        targets |= {stray for stray in strays if stray.run not in kept}
        if targets:
            whole = any(row.identity is not None and row.identity.alive for row in rest)
            grace_s = self._around.policy.grace_s if whole else CRASH_GRACE_S
            await asyncio.to_thread(end, targets, grace_s=grace_s)
        for row in rest:
            self._state.end_process(row.run, cause="ended at the next start: plimsoll had died")
        for name in by_replica.keys() - set(adopted):
            remove_directory(self._around.directory(name))
        for name in adopted:
            self._owners[name].inherit(by_replica[name])
            self._begin(name, inherited=True)
        return tuple(adopted)

    async def start(self) -> None:
        """Start every replica that does not run yet; returns at once. LaunchError when the state is not ours."""
        self._claim()
        for name in self._owners:
            if name not in self._tasks:
                self._begin(name, inherited=False)

    async def wait_ready(self) -> None:
        """Until every replica has made a token; LaunchError of the first that failed for good."""
        owners = list(self._owners.values())
        waits = [asyncio.ensure_future(self._settle(owner)) for owner in owners]
        try:
            for wait in asyncio.as_completed(waits):
                await wait
        except LaunchError:
            self._around.note(lambda: self._state.set_deployment(self._deployment, "failed"))
            raise
        else:
            self._around.note(lambda: self._state.set_deployment(self._deployment, "running"))
        finally:
            for pending in waits:
                pending.cancel()

    async def add(self, replica: Replica, engine: Engine) -> None:
        """Start one more replica."""
        if replica.name in self._owners:
            raise LaunchError(f"there is a replica {replica.name} already")
        self._owners[replica.name] = self._owner(replica, engine)
        self._begin(replica.name, inherited=False)

    async def remove(self, name: str) -> None:
        """Stop one replica and forget it; whoever sends it requests has let them end before."""
        await self._stop((name,))
        del self._owners[name]
        self._on_change(self.snapshot())

    async def stop(self) -> None:
        """Stop everything that was started, children included; within 5 s."""
        await self._stop(tuple(self._owners))
        if self._claimed:
            self._around.note(lambda: self._state.set_deployment(self._deployment, "stopped"))

    def suspect(self, name: str) -> None:
        """Someone got an error or nothing from this replica: look at once whether it still makes tokens."""
        if name in self._owners:
            self._owners[name].suspect()

    def _owner(self, replica: Replica, engine: Engine) -> Owner:
        return Owner(replica, engine, self._around, lambda: self._on_change(self.snapshot()), self._taken)

    def _claim(self) -> None:
        self._state.claim(self._deployment, own_identity())
        self._claimed = True

    def _begin(self, name: str, *, inherited: bool) -> None:
        owner = self._owners[name]
        self._tasks[name] = asyncio.create_task(owner.own(), name=f"owner of {name}")
        self._tasks[name].add_done_callback(_report)
        owner.post(Start(inherited=inherited))

    def _fits(self, name: str, rows: Sequence[ProcessRow]) -> bool:
        """Whether these processes are exactly what the plan would start now, all alive."""
        owner = self._owners.get(name)
        if owner is None or not rows[0].ports:
            return False
        processes = owner.engine.processes(owner.replica, self._around.ports(name, rows[0].ports))
        if {process.name for process in processes} != {row.process for row in rows} or len(processes) != len(rows):
            return False
        digest = digest_of(processes)
        return all(row.rendered == digest and row.identity is not None and row.identity.alive for row in rows)

    async def _settle(self, owner: Owner) -> None:
        """Until it is ready; LaunchError when it failed or was stopped instead, the owner's own error if it died."""
        task = self._tasks[owner.replica.name]
        while owner.standing.phase not in ("ready", "failed", "stopped"):
            settled = asyncio.ensure_future(owner.settled.wait())
            either: list[asyncio.Future[Any]] = [settled, task]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                settled.cancel()
            if task.done():
                task.result()
        if owner.standing.phase == "failed" and owner.standing.failure is not None:
            raise owner.standing.failure.error(owner.replica.name)
        if owner.standing.phase == "stopped":
            raise LaunchError(f"{owner.replica.name} was stopped before it was ready")

    async def _stop(self, names: Sequence[str]) -> None:
        tasks = [self._tasks.pop(name) for name in names if name in self._tasks]
        for name in names:
            self._owners[name].post(Stop())
        await asyncio.gather(*tasks)


def _report(task: asyncio.Task[None]) -> None:
    """An owner that dies is a bug; it must be heard of before someone waits for it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("%s died", task.get_name(), exc_info=error)
