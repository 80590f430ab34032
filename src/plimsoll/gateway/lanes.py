"""Admission: how many requests a replica has at once, who waits, and which replica is left alone after failures.

Everything runs in the gateway's event loop; a slot is taken and given back without awaiting.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Mapping
from typing import Protocol

from plimsoll.errors import GatewayError
from plimsoll.gateway.policy import Load, PrefixMap, choose, prompt_blocks
from plimsoll.gateway.settings import Settings
from plimsoll.gateway.table import Upstream, unknown_model
from plimsoll.gateway.upstream import Pool, Sender

_OPEN_AFTER = 3
"""Failures in a row before a replica is left alone."""
_OPEN_S = 1.0
_OPEN_MAX_S = 30.0


class Waiter(Sender, Protocol):
    """A request as its lane sees it."""

    key: str
    body: bytes
    session: bytes
    """Requests with the same one go to the same replica; empty: of none."""
    tokens: int
    """Estimated, prompt and answer together."""
    deadline_s: float
    avoid: str
    """Name of a replica that has just failed it."""

    def assign(self, target: Target) -> None:
        """A slot of `target` is yours: send."""
        ...

    def move(self, lane: Lane, now_s: float) -> None:
        """Wait in another lane."""
        ...

    def refuse(self, error: GatewayError) -> None:
        """No slot will come."""
        ...


class Target:
    """A replica, its load and its connections."""

    __slots__ = (
        "failures", "freed_s", "heard_s", "host", "lanes", "open_until_s", "pool", "probing", "running", "tokens",
        "upstream",
    )  # fmt: skip

    def __init__(self, upstream: Upstream, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.upstream = upstream
        self.pool = Pool(upstream.host, upstream.port, settings, loop)
        self.host = f"{upstream.host}:{upstream.port}".encode()
        """For the Host header."""
        self.lanes: list[Lane] = []
        self.running = 0
        self.tokens = 0
        self.failures = 0
        self.open_until_s = 0.0
        self.probing = False
        self.freed_s = 0.0
        self.heard_s = 0.0
        """When a byte of an answer last came, to a quarter of a second, or when it was given work after none."""

    def usable(self, now_s: float) -> bool:
        """Whether it may be sent anything: healthy, and not left alone after failures (one probe at a time then)."""
        if not self.upstream.healthy:
            return False
        if self.failures < _OPEN_AFTER:
            return True
        return now_s >= self.open_until_s and not self.probing

    def take(self, waiter: Waiter) -> None:
        """Give `waiter` a slot."""
        self.running += 1
        self.tokens += waiter.tokens
        if self.failures >= _OPEN_AFTER:
            self.probing = True

    def give_back(self, tokens: int, *, failed: bool, answered: bool, now_s: float) -> None:
        """The slot is free again; `answered`: the replica gave any answer of its own, so it is alive."""
        self.running -= 1
        self.tokens -= tokens
        self.freed_s = now_s
        if failed:
            if self.failures < _OPEN_AFTER or self.probing:  # those sent before it was left alone say nothing new
                self.failures += 1
                self.open_until_s = now_s + min(_OPEN_S * 2.0 ** (self.failures - _OPEN_AFTER), _OPEN_MAX_S)
            self.probing = False
        elif answered:
            self.failures = 0
            self.probing = False
        elif self.running == 0:
            self.probing = False
        for lane in self.lanes:
            if lane.waiting:
                lane.pump(now_s)


class Lane:
    """The replicas of one model and the requests that wait for them, in turn between keys."""

    __slots__ = ("_prefixes", "_queues", "_settings", "_wanted", "name", "targets", "used_s", "waiting")

    def __init__(
        self, name: str, targets: tuple[Target, ...], settings: Settings, wanted: Callable[[str], None]
    ) -> None:
        self.name = name
        self.used_s = 0.0
        """When it was last asked for, on the loop's clock."""
        self._wanted = wanted
        self.targets = targets
        self.waiting = 0
        self._queues: collections.OrderedDict[str, collections.deque[Waiter]] = collections.OrderedDict()
        self._settings = settings
        self._prefixes = PrefixMap()

    def submit(self, waiter: Waiter, now_s: float) -> None:
        """Give `waiter` a slot now, let it wait, or raise GatewayError 429 (full) or 503 (nothing to wait for)."""
        self.used_s = now_s
        if not self.waiting and (target := self._choose(waiter, now_s)):
            target.take(waiter)
            waiter.assign(target)
            return
        if not self._alive(now_s):
            if not any(target.upstream.asleep for target in self.targets):
                raise self.down(now_s)
            self._wanted(self.name)
        if self.waiting >= self._settings.queue:
            raise GatewayError(
                f"{self.waiting} requests are already waiting for the model '{self.name}'.",
                status=429,
                kind="rate_limit_error",
                hint="Try again later, or serve more replicas.",
                retry_after_s=self._wait_s(),
            )
        waiter.deadline_s = now_s + self._settings.queue_wait_s
        self._queues.setdefault(waiter.key, collections.deque()).append(waiter)
        self.waiting += 1

    def leave(self, waiter: Waiter) -> None:
        """Take a waiting request out."""
        queue = self._queues.get(waiter.key)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            self.waiting -= 1
            if not queue:
                del self._queues[waiter.key]

    def pump(self, now_s: float) -> None:
        """Hand free slots to those who wait."""
        while self.waiting:
            key, queue = next(iter(self._queues.items()))
            target = self._choose(queue[0], now_s)
            if target is None:
                return
            waiter = queue.popleft()
            self.waiting -= 1
            if queue:
                self._queues.move_to_end(key)
            else:
                del self._queues[key]
            target.take(waiter)
            waiter.assign(target)

    def sweep(self, now_s: float) -> None:
        """Refuse those who waited too long, and all when no replica is left; pump after a pause of the breaker."""
        if not self.waiting:
            return
        self.pump(now_s)
        down = not self._alive(now_s) and not any(target.upstream.asleep for target in self.targets)
        for queue in list(self._queues.values()):
            for waiter in [each for each in queue if down or now_s >= each.deadline_s]:
                self.leave(waiter)
                waiter.refuse(self.down(now_s) if down else self._late())

    def dissolve(self, others: Mapping[str, Lane], now_s: float) -> None:
        """The lane is no more: those who wait go to the one that serves their model's name now, or are refused."""
        waiters = [waiter for queue in self._queues.values() for waiter in queue]
        self._queues.clear()
        self.waiting = 0
        for waiter in waiters:
            lane = others.get(self.name)
            try:
                if lane is None:
                    raise unknown_model(self.name, others)
                waiter.move(lane, now_s)
            except GatewayError as error:
                waiter.refuse(error)

    def down(self, now_s: float) -> GatewayError:
        """503 with the cause that the supervisor gave, or that the gateway saw."""
        reasons = [
            f"{target.upstream.name}: {target.upstream.reason or 'not ready'}"
            if not target.upstream.healthy
            else f"{target.upstream.name}: {target.failures} failures in a row, left alone for a moment"
            for target in self.targets
        ]
        wait_s = min(
            (t.upstream.retry_after_s if not t.upstream.healthy else t.open_until_s - now_s for t in self.targets),
            default=5.0,
        )
        return GatewayError(
            f"No replica of the model '{self.name}' can answer ({'; '.join(reasons) or 'none is planned'}).",
            status=503,
            kind="server_error",
            hint="It is being restarted if it can be; `plimsoll status` and `plimsoll logs` say more.",
            retry_after_s=max(wait_s, 1.0),
        )

    def _alive(self, now_s: float) -> bool:
        return any(target.usable(now_s) or target.probing for target in self.targets)

    def _late(self) -> GatewayError:
        return GatewayError(
            f"No slot of the model '{self.name}' became free within {self._settings.queue_wait_s:.0f} s.",
            status=503,
            kind="server_error",
            hint="Try again later, or serve more replicas.",
            retry_after_s=self._wait_s(),
        )

    def _wait_s(self) -> float:
        slots = sum(target.upstream.concurrency for target in self.targets)
        return min(60.0, 1.0 + self.waiting / max(slots, 1))

    def _choose(self, waiter: Waiter, now_s: float) -> Target | None:
        if len(self.targets) == 1:
            only = self.targets[0]
            return only if only.running < only.upstream.concurrency and only.usable(now_s) else None
        free = [t for t in self.targets if t.running < t.upstream.concurrency and t.usable(now_s)]
        if waiter.avoid and any(t.upstream.name != waiter.avoid and t.usable(now_s) for t in self.targets):
            free = [target for target in free if target.upstream.name != waiter.avoid]
        if not free:
            return None
        blocks = prompt_blocks(waiter.body)
        index = 0
        if len(free) > 1:
            loads = [Load(t.upstream.name, t.running, t.tokens, t.upstream.weight) for t in free]
            index = choose(loads, session=waiter.session, prefix=self._prefixes.match(blocks))
        self._prefixes.add(blocks, free[index].upstream.name)
        return free[index]
