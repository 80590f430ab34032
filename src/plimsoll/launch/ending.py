"""How a process ended, in words: exit code, signal, or the kernel's out-of-memory killer."""

from __future__ import annotations

import signal as signals
import time
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
OOM_RECENT_S = 20.0
"""A head takes a while to notice that its worker was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of one run. Both numbers None: it was adopted, and only its parent is told them."""

    exit_code: int | None = None
    signal: int | None = None
    oom_killed: bool = False
    stopped: bool = False
    """We ended it ourselves."""

    @property
    def words(self) -> str:
        """For people: what happened, and what is known of why."""
        if self.stopped:
            return "stopped by plimsoll"
        if self.oom_killed:
            return "was killed by the kernel for want of memory (OOM killer)"
        if self.signal is not None:
            name = signals.Signals(self.signal).name if self.signal in set(signals.Signals) else str(self.signal)
            if self.signal == signals.SIGKILL:
                return "was killed from outside (SIGKILL; the OOM killer counted nothing)"
            return f"died of {name}"
        if self.exit_code is not None:
            return f"ended by itself with exit code {self.exit_code}"
        return "ended; its exit code went to the plimsoll that had started it"

    @property
    def killed(self) -> bool:
        """Whether it had no chance to say why."""
        return self.oom_killed or self.signal == signals.SIGKILL

    @property
    def hint(self) -> str | None:
        """What to do about it, where that is known without the log."""
        if self.oom_killed:
            return "give it less: fewer tokens of context, fewer sequences, smaller weights; or free memory"
        return None


class OomWatch:
    """Notices that the kernel's OOM killer was at work since it was made."""

    def __init__(self) -> None:
        self._count = count_oom_kills()
        self._at: float | None = None

    def look(self) -> None:
        """Read the counters again."""
        count = count_oom_kills()
        if count > self._count:
            self._count, self._at = count, time.monotonic()

    @property
    def recent(self) -> bool:
        """Whether it killed something within `OOM_RECENT_S` before the last looks."""
        return self._at is not None and time.monotonic() - self._at < OOM_RECENT_S


def ending_of(returncode: int | None, *, oom: bool, stopped: bool) -> Ending:
    """The ending of a process from Popen's `returncode`; `oom`: the OOM killer was at work shortly before."""
    if returncode is None:
        return Ending(stopped=stopped, oom_killed=oom and not stopped)
    signal = -returncode if returncode < 0 else None
    # A head whose worker was killed exits with a code of its own; 0 and other signals have other causes.
    killed = oom and (returncode > 0 or signal == signals.SIGKILL) and not stopped
    return Ending(exit_code=returncode if returncode >= 0 else None, signal=signal, oom_killed=killed, stopped=stopped)


def count_oom_kills() -> int:
    """OOM kills counted so far by the kernel and by our own cgroup, together; 0 where neither tells."""
    return sum(_counter(path) for path in (Path("/proc/vmstat"), *_cgroup_files()))


def _cgroup_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files.append(_CGROUPS / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            files.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return files


def _counter(path: Path) -> int:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill"), 0)
    except OSError:
        return 0
