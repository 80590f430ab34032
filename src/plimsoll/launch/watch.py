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

    async def run(self) -> None:
        """Look every `health_every_s`, or when it is suspected; raise DownError when it is down or hangs."""
        while True:
            suspected = await self._pause()
            look = await self.group.look()
            self._keep_logs_short()
            lost = self._workers - look.processes
            health = await self._health()
            traffic = self.group.around.traffic(self.group.name)
            flowing = traffic is not None and traffic.outstanding > 0 and traffic.silent_s < self.policy.silent_after_s
            silent = traffic is not None and traffic.outstanding > 0 and not flowing
            if flowing or not (suspected or lost or silent or health.outcome != "answered"):
                self._strikes, self._stalled_since = 0, None
                continue
            began = time.monotonic()
            answer = await self._probe(health)
            if answer.outcome in ("answered", "refused"):
                self._workers -= lost
                self._strikes, self._stalled_since = 0, None
            elif answer.outcome == "silent":
                busy = (await self.group.look()).busy_since(look)
                self._judge_silence(busy=busy, lost=lost, began=began, traffic=traffic)
            else:
                self._judge_error(answer, lost=lost)

    async def _pause(self) -> bool:
        try:
            async with asyncio.timeout(self.policy.health_every_s):
                await self.suspected.wait()
        except TimeoutError:
            return False
        self.suspected.clear()
        return True

    async def _health(self) -> Answer:
        run = self.group.serving
        path, port = run.process.ready.health_path, run.process.port
        if path is None or port is None:
            return Answer(outcome="answered")
        return await ask(self.group.around.host, port, path, timeout_s=self.policy.health_timeout_s)

    async def _probe(self, health: Answer) -> Answer:
        run = self.group.serving
        ready, port = run.process.ready, run.process.port
        if ready.probe_path is None or port is None:
            return health
        timeout_s = self.policy.probe_timeout_s
        return await ask(self.group.around.host, port, ready.probe_path, body=ready.probe_body, timeout_s=timeout_s)

    def _judge_silence(self, *, busy: bool, lost: frozenset[Identity], began: float, traffic: Traffic | None) -> None:
        self._stalled_since = began if self._stalled_since is None else self._stalled_since
        stalled_s = time.monotonic() - self._stalled_since
        if lost:
            pids = ", ".join(str(worker.pid) for worker in lost)
            killed = " (the kernel's OOM killer was at work)" if self.group.serving.oom.recent else ""
            raise self._down(f"its worker process {pids} is gone{killed} and it answers nothing any more")
        if busy and stalled_s < self.policy.stall_limit_s:
            return
        waiting = f"; {traffic.outstanding} requests wait" if traffic is not None and traffic.outstanding else ""
        how = "busy, but without a token" if busy else "no token and no processor time"
        raise self._down(f"it hangs: {how} for {stalled_s:.0f} s{waiting}")

    def _judge_error(self, answer: Answer, *, lost: frozenset[Identity]) -> None:
        self._strikes += 1
        if self._strikes < _STRIKES and not lost:
            self.suspected.set()
            return
        if answer.outcome == "closed":
            raise self._down("it runs, but nobody answers on its port any more")
        said = answer.body.decode(errors="replace")[:300]
        raise self._down(f"it answers {answer.status} to a request for one token: {said}")

    def _down(self, words: str) -> DownError:
        return DownError(self.group.failure(self.group.serving, words))

    def _keep_logs_short(self) -> None:
        for run in self.group.runs:
            if str(run.log) == os.devnull:
                continue
            try:
                put_aside(run.log, limit_bytes=self.policy.log_limit_bytes)
            except OSError as error:
                _logger.debug("%s: %s", run.log, error)
