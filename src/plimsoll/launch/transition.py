"""What a replica does next: events in, effects out. Pure; its owner task feeds the events and runs the effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from plimsoll.errors import LaunchError

Phase = Literal["planned", "starting", "ready", "backoff", "failed", "stopping", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How patient the supervisor is; all times in seconds."""

    restarts: int = 5
    """Failures within `window_s` after which it gives up."""
    window_s: float = 600.0
    backoff_s: float = 1.0
    """Wait before the first restart; doubled with every failure in the window."""
    backoff_max_s: float = 60.0
    grace_s: float = 2.5
    """From SIGTERM to SIGKILL on a stop; with what comes before and after, everything is gone within 5 s."""
    start_limit_s: float = 7200.0
    """For a start that shows signs of life all the time."""
    look_every_s: float = 1.0
    """At what costs nothing: whether all workers live, how long requests have waited."""
    health_every_s: float = 10.0
    """Between two questions to the health route of an engine that nobody waits for."""
    health_timeout_s: float = 2.0
    silent_after_s: float = 3.0
    """No byte to anyone while requests are outstanding: a real token is asked for."""
    probe_timeout_s: float = 4.0
    stall_limit_s: float = 300.0
    """Silent but hard at work (a long prefill) is borne for so long."""
    logs_kept: int = 10
    """Per process; older ones are removed when a new run starts."""
    log_limit_bytes: int = 256 << 20
    """A longer log is put aside as `.old` and begun anew while its engine runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a replica went down, in words, with the engine's own last ones."""

    cause: str
    hint: str | None = None
    log: tuple[str, ...] = ()
    log_path: str | None = None

    def error(self, replica: str) -> LaunchError:
        """The same as an error."""
        return LaunchError(f"{replica}: {self.cause}", hint=self.hint, source=self.log_path, log=self.log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start it, or take over processes that a dead plimsoll left."""

    inherited: bool = False


@dataclass(frozen=True, slots=True)
class Up:
    """A real token came out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """One of its processes ended, or it hung, or it could not be started."""

    failure: Failure
    port_taken: bool = False
    """Another program took the port between choosing and listening: another port will do."""


@dataclass(frozen=True, slots=True)
class Waited:
    """The wait before a restart is over."""


@dataclass(frozen=True, slots=True)
class Stop:
    """It shall not run any more."""


@dataclass(frozen=True, slots=True)
class Gone:
    """None of its processes is left."""


Event = Start | Up | Down | Waited | Stop | Gone


@dataclass(frozen=True, slots=True)
class Launch:
    """Start its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanUp:
    """End whatever is left of its processes, SIGTERM first, SIGKILL after `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Let `seconds` pass, then report `Waited`."""

    seconds: float


Effect = Launch | CleanUp | Wait

CRASH_GRACE_S = 0.5
"""For what a crash left over: its head is dead, there is nothing to finish."""
PORT_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a replica stands. `attempt` counts starts; events of an earlier attempt mean nothing."""

    phase: Phase = "planned"
    attempt: int = 0
    was_ready: bool = False
    failures: tuple[float, ...] = ()
    """When it failed, on the monotonic clock, within the policy's window."""
    failure: Failure | None = None
    """The last one; None again once it is ready."""

    @property
    def reason(self) -> str:
        """Why it is where it is; "" when there is nothing to say."""
        return "" if self.failure is None else self.failure.cause


def transition(standing: Standing, event: Event, *, now: float, policy: Policy) -> tuple[Standing, tuple[Effect, ...]]:
    """The next standing and what to do about it; an event that means nothing in this phase changes nothing.

    `now` is on the monotonic clock, in seconds.
    """
    match event, standing.phase:
        case Start(inherited=inherited), "planned":
            # What was inherited ran before: should it fail now, it is restarted and not given up.
            return _launched(replace(standing, was_ready=inherited))
        case Up(), "starting":
            return replace(standing, phase="ready", was_ready=True, failure=None), ()
        case Down(), "starting" | "ready":
            return _down(standing, event, now, policy)
        case Waited(), "backoff":
            return _launched(standing)
        case Stop(), "planned" | "failed":
            return replace(standing, phase="stopped"), ()
        case Stop(), "starting" | "ready" | "backoff":
            return replace(standing, phase="stopping"), (CleanUp(grace_s=policy.grace_s),)
        case Gone(), "stopping":
            return replace(standing, phase="stopped", failure=None), ()
    return standing, ()


def _launched(standing: Standing) -> tuple[Standing, tuple[Effect, ...]]:
    return replace(standing, phase="starting", attempt=standing.attempt + 1), (Launch(),)


def _down(standing: Standing, event: Down, now: float, policy: Policy) -> tuple[Standing, tuple[Effect, ...]]:
    clean = CleanUp(grace_s=CRASH_GRACE_S)
    recent = (*(at for at in standing.failures if now - at < policy.window_s), now)
    after = replace(standing, failures=recent, failure=event.failure)
    if standing.phase == "starting" and event.port_taken and len(recent) < PORT_TRIES:
        return replace(after, phase="backoff"), (clean, Wait(seconds=0.0))
    if not standing.was_ready:
        # What never worked does not mend itself: say so at once.
        return replace(after, phase="failed"), (clean,)
    if len(recent) > policy.restarts:
        words = f"{event.failure.cause}; it failed {len(recent)} times in {policy.window_s:g} s and is given up"
        return replace(after, phase="failed", failure=replace(event.failure, cause=words)), (clean,)
    seconds = min(policy.backoff_max_s, policy.backoff_s * 2 ** (len(recent) - 1))
    return replace(after, phase="backoff"), (clean, Wait(seconds=seconds))
