"""Watching a replica that is ready: a health route may lie, so in doubt a real token is asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import time

from plimsoll.launch.group import DownError, Group, Traffic
from plimsoll.launch.identity import Identity
from plimsoll.launch.logs import put_aside
from plimsoll.launch.probe import Answer, ask

_STRIKES = 3
"""Answers of 5xx, or connections refused, in a row."""
_logger = logging.getLogger("plimsoll.launch")


class Watch:
    """Keeps an eye on a group that is ready; `workers` are the processes it needs. `run` ends with DownError only."""

    def __init__(self, group: Group, workers: frozenset[Identity]) -> None:
        self.group = group
        self.policy = group.around.policy
        self.suspected = asyncio.Event()
        """Set from outside: look now."""
        self._workers = workers
        self._strikes = 0
        self._stalled_since: float | None = None
        self._asked = time.monotonic()
        """When its health route was last asked."""

    async def run(self) -> None:
        """Look every `look_every_s`, or when it is suspected; raise DownError when it is down or hangs."""
        while True:
            try:
                async with asyncio.timeout(self.policy.look_every_s):
                    await self.suspected.wait()
            except TimeoutError:
                self._keep_house()
            if not await self._in_doubt():
                self._relieve()
                continue
            lost = self._lost()
            before = await self.group.look()
            began = time.monotonic()
            answer = await self._probe()
            if answer.outcome in ("answered", "refused"):
                self._workers -= lost
                self._relieve()
            elif answer.outcome == "silent":
                self._judge_silence(busy=(await self.group.look()).busy_since(before), lost=lost, began=began)
            else:
                self._judge_error(answer, lost=lost)
            # However many suspect it: it is asked for one token at a time, with a pause between.
            await asyncio.sleep(self.policy.look_every_s)

    def _relieve(self) -> None:
        self._strikes, self._stalled_since = 0, None
        self.suspected.clear()

    async def _in_doubt(self) -> bool:
        """Whether a token must be asked for. Cheap as long as tokens flow or nobody waits for one."""
        traffic = self._traffic()
        if traffic is not None and traffic.outstanding > 0:
            return traffic.silent_s >= self.policy.silent_after_s
        if self.suspected.is_set() or self._strikes or self._stalled_since is not None or self._lost():
            return True
        if time.monotonic() - self._asked < self.policy.health_every_s:
            return False
        # Not every second: many an engine writes a line to its log each time.
        self._asked = time.monotonic()
        run = self.group.serving
        path, port = run.process.ready.health_path, run.health_port
        if path is None or port is None:
            return False
        health = await ask(self.group.around.host, port, path, timeout_s=self.policy.health_timeout_s)
        return health.outcome != "answered"

    async def _probe(self) -> Answer:
        run = self.group.serving
        ready, port, host = run.process.ready, run.process.port, self.group.around.host
        timeout_s = self.policy.probe_timeout_s
        if port is None or ready.health_path is None:
            return Answer(outcome="answered")
        if ready.probe_path is None:
            return await ask(host, run.health_port or port, ready.health_path, timeout_s=timeout_s)
        return await ask(host, port, ready.probe_path, body=ready.probe_body, timeout_s=timeout_s)

    def _lost(self) -> frozenset[Identity]:
        return frozenset(worker for worker in self._workers if not worker.alive)

    def _traffic(self) -> Traffic | None:
        return self.group.around.traffic(self.group.name)

    def _judge_silence(self, *, busy: bool, lost: frozenset[Identity], began: float) -> None:
        self._stalled_since = began if self._stalled_since is None else self._stalled_since
        stalled_s = time.monotonic() - self._stalled_since
        if lost:
            pids = ", ".join(str(worker.pid) for worker in lost)
            killed = " (the kernel's OOM killer was at work)" if self.group.serving.oom.recent else ""
            raise self._down(f"its worker process {pids} is gone{killed} and it answers nothing any more")
        if busy and stalled_s < self.policy.stall_limit_s:
            return
        traffic = self._traffic()
        waiting = f"; {traffic.outstanding} requests wait" if traffic is not None and traffic.outstanding else ""
        how = "busy, but without a token" if busy else "no token and no processor time"
        raise self._down(f"it hangs: {how} for {stalled_s:.0f} s{waiting}")

    def _judge_error(self, answer: Answer, *, lost: frozenset[Identity]) -> None:
        self._strikes += 1
        if self._strikes < _STRIKES and not lost:
            return
        if answer.outcome == "closed":
            raise self._down("it runs, but nobody answers on its port any more")
        said = answer.body.decode(errors="replace")[:300]
        raise self._down(f"it answers {answer.status} to a request for one token: {said}")

    def _down(self, words: str) -> DownError:
        return DownError(self.group.failure(self.group.serving.log, words))

    def _keep_house(self) -> None:
        for run in self.group.runs:
            if run.identity.alive:
                run.oom.look()
            if str(run.log) == os.devnull:
                continue
            try:
                put_aside(run.log, limit_bytes=self.policy.log_limit_bytes)
            except OSError as error:
                _logger.debug("%s: %s", run.log, error)
