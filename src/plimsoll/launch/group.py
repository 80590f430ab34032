"""The processes of one attempt at a replica: started in order, awaited until a token comes out, ended together."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from plimsoll.engines.protocol import Ports, Process
from plimsoll.errors import LaunchError
from plimsoll.launch.ending import Ending
from plimsoll.launch.files import directory_of, make_directory, write_files
from plimsoll.launch.identity import Identity
from plimsoll.launch.logs import last_words, new_log, read_lines
from plimsoll.launch.probe import ask
from plimsoll.launch.process import Target, digest_of, end, place_of, port_is_free
from plimsoll.launch.run import Run, adopt_run, plan_run, run_to_end, start_run
from plimsoll.launch.state import ProcessRow, State
from plimsoll.launch.transition import Failure, Policy
from plimsoll.launch.vitals import Vitals, take_vitals

T = TypeVar("T")
Diagnose = Callable[[Sequence[str]], tuple[str, str] | None]
"""Log lines to (cause, hint), or None when it knows no better than the log itself."""

_NO_PORT = re.compile(r"in use|bind|EADDRINUSE|errno 98", re.IGNORECASE)
LOG_ROOM_BYTES = 1 << 20
"""Free on the disk, for a restart to keep a log."""
_LOOK_EVERY_S = 1.0
_REFUSALS = 3
_logger = logging.getLogger("plimsoll.launch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What the gateway sees of a replica now."""

    outstanding: int
    """Requests that it has sent on and that have not ended."""
    silent_s: float
    """Since the replica last sent a byte of an answer, or since the oldest of them was sent on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all replicas of a fleet share."""

    state: State
    deployment: str
    policy: Policy
    host: str
    diagnose: Diagnose
    traffic: Callable[[str], Traffic | None]
    addresses: tuple[str, ...] = ()
    """Of the hosts, this one's first; empty where there is no other."""
    interface: str | None = None
    """Of this host, to the others."""

    @property
    def place(self) -> str:
        """What all processes are marked with."""
        return place_of(self.state.directory, self.deployment)

    def ports(self, replica: str, numbers: Sequence[int]) -> Ports:
        """What a replica may use: of `numbers` the first to serve on, and its directory, which need not be there."""
        return Ports(
            host=self.host,
            serve=numbers[0],
            extra=tuple(numbers[1:]),
            addresses=self.addresses,
            interface=self.interface,
            directory=str(self.directory(replica)),
        )

    def directory(self, replica: str) -> Path:
        """Where the files of a replica go."""
        return directory_of(self.state.directory, self.deployment, replica)

    def note(self, write: Callable[[], None]) -> None:
        """Write to the state file; engines that run are not given up because the disk is full."""
        try:
            write()
        except LaunchError as error:
            _logger.warning("%s", error)


class DownError(Exception):
    """The replica went down, or could not come up."""

    def __init__(self, failure: Failure, *, port_taken: bool = False) -> None:
        super().__init__(failure.cause)
        self.failure = failure
        self.port_taken = port_taken


@dataclass(slots=True, kw_only=True)
class Group:
    """One attempt: what is to run, what runs."""

    name: str
    """Of the replica."""
    processes: tuple[Process, ...]
    ports: Ports
    around: Surroundings
    first: bool
    """Whether the replica was never ready: then a log that cannot be made is an error."""
    runs: list[Run] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    commands: list[Identity] = field(default_factory=list)
    """The commands of its processes that were run: while one works, the group is alive."""
    fell: asyncio.Future[Run] = field(init=False)
    """The first run that ended."""

    def __post_init__(self) -> None:
        self.fell = asyncio.get_running_loop().create_future()

    @property
    def serving(self) -> Run:
        """The run to talk to; the last one when none listens on the serving port."""
        return next((run for run in self.runs if run.process.port == self.ports.serve), self.runs[-1])

    @property
    def served_name(self) -> str | None:
        """The name that requests must carry, where it is not the deployment's."""
        serving = (process for process in self.processes if process.port == self.ports.serve)
        return next((process.served_name for process in serving), None)

    @property
    def roots(self) -> tuple[Identity, ...]:
        """The processes that we started, without what they begot."""
        return (*(run.identity for run in self.runs), *self.commands)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; DownError as soon as one of the processes ends before it."""
        task = asyncio.ensure_future(work)
        either: list[asyncio.Future[Any]] = [task, self.fell]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            run = self.fell.result()
            raise self.down(run, await run.ending)
        finally:
            await _drop(task)

    def down(self, run: Run, ending: Ending) -> DownError:
        """Why the group is down: `run` ended."""
        who = "the engine" if len(self.processes) == 1 else f"its process {run.process.name}"
        # Who was killed from outside could not say why: what its log complains of is something else.
        failure = self.failure(run.log, f"{who} {ending.words}", hint=ending.hint, known=ending.killed)
        said = any(_NO_PORT.search(line) for line in failure.log)
        return DownError(failure, port_taken=said and self._lacks_port(run.process))

    def _lacks_port(self, process: Process) -> bool:
        """Whether another program listens on a port that `process` may want; to be asked when it has ended."""
        others = {
            port for each in self.processes if each is not process for port in (each.port, each.ready.health_port)
        }
        mine = {self.ports.serve, *self.ports.extra} - others
        return not all(port_is_free(port, host=self.around.host) for port in mine)

    def failure(self, log: Path, words: str, *, hint: str | None = None, known: bool = False) -> Failure:
        """A failure in these words; unless the cause is `known`, with what the engine's log says of it."""
        lines = read_lines(log)
        said = last_words(lines)
        diagnosis = None if known else self.around.diagnose(lines)
        if diagnosis is not None:
            words, hint = f"{diagnosis[0]} ({words})", diagnosis[1]
        elif said and not known:
            words = f"{words}; its log ends: {said[-1][:200]}"
        return Failure(cause=words, hint=hint, log=said, log_path=str(log))

    # Coming up.

    async def bring_up(self) -> None:
        """Start all processes, each after those that it waits for, until all are ready; DownError, LaunchError."""
        if away := [process.name for process in self.processes if process.node]:
            raise LaunchError(f"{self.name}: {', '.join(away)} belongs on another host; only this one is used")
        make_directory(self.around.directory(self.name))
        waiting = list(self.processes)
        while waiting:
            up = {run.process.name for run in self.runs}
            now = [process for process in waiting if up.issuperset(process.after)]
            if not now:
                stuck = ", ".join(process.name for process in waiting)
                raise LaunchError(f"{self.name}: {stuck} wait for processes that there are not")
            started = [await self.guard(self._start(process)) for process in now]
            for run in started:
                await self.guard(self._ready(run))
            waiting = [process for process in waiting if process not in now]

    async def adopt(self, rows: Sequence[ProcessRow]) -> None:
        """Take over the processes that `rows` tell of, until all are ready; DownError, LaunchError.

        They had time enough to start: one that shows no life for long enough to be asked thrice is not waited for.
        """
        by_name = {row.process: row for row in rows}
        for process in self.processes:
            self._enter(adopt_run(process, by_name[process.name]))
        patience_s = 3 * self.around.policy.probe_timeout_s
        for run in tuple(self.runs):
            await self.guard(self._ready(run, patience_s=patience_s))

    async def _start(self, process: Process) -> Run:
        around = self.around
        write_files(process.files)
        row = plan_run(
            process,
            deployment=around.deployment,
            replica=self.name,
            rendered=digest_of(self.processes),
            ports=self.ports,
            log=self._log(process),
        )
        # The record comes first: were we killed between the two, the mark in the process leads back to it.
        around.note(lambda: around.state.save_process(row))
        self.targets.append(Target(run=row.run))
        await self._carry_out(process.setup, process, row)
        try:
            run = start_run(process, row, place=around.place)
        except LaunchError as error:
            cause = str(error)
            around.note(lambda: around.state.end_process(row.run, cause=cause))
            raise
        around.note(lambda: around.state.save_process(run.row))
        self._enter(run)
        return run

    async def _carry_out(self, commands: Sequence[tuple[str, ...]], process: Process, row: ProcessRow) -> None:
        """Run a process's own commands, one after the other; DownError with what it said for one that fails."""
        for argv in commands:
            code = await run_to_end(argv, process, row, place=self.around.place, begun=self.commands.append)
            if code != 0:
                words = f"{shlex.join(argv)} ended with exit code {code}"
                raise DownError(self.failure(Path(row.log_path), words))

    def _log(self, process: Process) -> Path:
        around = self.around
        if not self.first and shutil.disk_usage(around.state.directory).free < LOG_ROOM_BYTES:
            # Many an engine dies when it cannot write its log: better one that keeps none.
            _logger.warning("%s: the disk is full; this run of it keeps no log", self.name)
            return Path(os.devnull)
        try:
            return new_log(
                around.state.directory / "logs",
                deployment=around.deployment,
                replica=self.name,
                process=process.name,
                keep=around.policy.logs_kept,
            )
        except LaunchError as error:
            if self.first:
                raise
            _logger.warning("%s; this run of it keeps no log", error)
            return Path(os.devnull)

    def _enter(self, run: Run) -> None:
        self.runs.append(run)
        self.targets.append(run.target)
        run.ending.add_done_callback(lambda task: None if task.cancelled() else self._ended(run, task.result()))

    def _ended(self, run: Run, ending: Ending) -> None:
        state, words = self.around.state, ending.words
        self.around.note(
            lambda: state.end_process(run.row.run, cause=words, exit_code=ending.exit_code, signal=ending.signal)
        )
        if not self.fell.done():
            self.fell.set_result(run)

    # Readiness.

    async def _ready(self, run: Run, *, patience_s: float = inf) -> None:
        ready = run.process.ready
        answering = asyncio.ensure_future(self._answers(run))
        lifeless = asyncio.ensure_future(self._shows_no_life(run, min(patience_s, ready.timeout_s)))
        try:
            await asyncio.wait([answering, lifeless], return_when=asyncio.FIRST_COMPLETED)
            (answering if answering.done() else lifeless).result()
        finally:
            await _drop(answering, lifeless)

    async def _answers(self, run: Run) -> None:
        """Until the health route says 200, what is to be done then is done, and a request is answered."""
        process, began = run.process, time.monotonic()
        await self._healthy(run, began)
        if run.popen is not None:
            # One that was adopted has had it.
            await self._carry_out(process.once_up, process, run.row)
        ready, port, refusals = process.ready, process.port, 0
        while ready.probe_path is not None and port is not None:
            # No limit of time: some engines load the model now. `_shows_no_life` watches meanwhile.
            probe = await ask(self.around.host, port, ready.probe_path, body=ready.probe_body, timeout_s=None)
            if probe.outcome == "answered":
                return
            if probe.status and probe.status not in (429, 503):
                refusals += 1
            if refusals >= _REFUSALS:
                said = probe.body.decode(errors="replace")[:300]
                words = f"its health route says that it is up, but {ready.probe_path} answers {probe.status}: {said}"
                raise DownError(self.failure(run.log, words))
            await self._healthy(run, began)

    async def _healthy(self, run: Run, began: float) -> None:
        """Until the health route says 200; at once where there is none."""
        path, port = run.process.ready.health_path, run.health_port
        while path is not None and port is not None:
            # A start of half a second must not wait for us, one of ten minutes need not be asked so often.
            await asyncio.sleep(min(0.25, 0.02 + (time.monotonic() - began) / 20))
            health = await ask(self.around.host, port, path, timeout_s=self.around.policy.health_timeout_s)
            if health.outcome == "answered":
                return

    async def _shows_no_life(self, run: Run, patience_s: float) -> None:
        """DownError when nothing moves for `patience_s`: no line in a log, no processor time, no I/O."""
        began = alive = time.monotonic()
        before = await self.look()
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, patience_s / 4))
            now = time.monotonic()
            look = await self.look()
            # Each is asked every time: a log that is not looked at would be news for ever.
            grew = [each.watch.grew() for each in self.runs]
            if any(grew) or look.busy_since(before):
                alive = now
            before = look
            if now - alive >= patience_s:
                words = f"it hangs while starting: no log line, processor time or I/O for {now - alive:.0f} s"
                raise DownError(self.failure(run.log, words))
            if now - began >= self.around.policy.start_limit_s:
                raise DownError(self.failure(run.log, f"it was not ready within {now - began:.0f} s"))

    async def look(self) -> Vitals:
        """The vitals of all processes now."""
        vitals = await asyncio.to_thread(take_vitals, self.roots, at=time.monotonic())
        for run in self.runs:
            # Not for one that just ended: its end is still to be explained by the difference.
            if run.identity.alive:
                run.oom.look()
        return vitals

    # The end.

    async def clean_up(self, *, grace_s: float) -> None:
        """End every process of the group and all that they begot."""
        for run in self.runs:
            if not run.ending.done():
                run.stopping = True
        # A thread of its own: those of the loop are few, and many a replica may be deaf at the same time.
        thread = ThreadPoolExecutor(max_workers=1)
        work = partial(end, tuple(self.targets), grace_s=grace_s)
        try:
            await asyncio.get_running_loop().run_in_executor(thread, work)
        except LaunchError as error:
            _logger.warning("%s: %s", self.name, error)
            return
        finally:
            thread.shutdown(wait=False)
        for run in self.runs:
            if run.ending.cancelled() and run.popen is not None:
                # The loop is being torn down: nobody else is going to ask for its exit code.
                run.popen.poll()
            elif not run.ending.cancelled():
                await run.ending
        state = self.around.state
        for target in self.targets:
            # A run whose setup was cut short has no process whose end could be seen.
            self.around.note(partial(state.end_process, target.run, cause="stopped by plimsoll"))


async def _drop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and see to the end: what is dropped must not start another process behind our back."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
