"""Signs of life: processor time and I/O of a replica's processes, and which of them there are."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

import psutil

from plimsoll.launch.identity import Identity, identity_of

BUSY_SHARE = 0.05
"""Of one core: what an idle engine's timers take is well below, loading and prefill well above."""
BUSY_IO_BYTES = 1 << 20
"""Per second, read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """One look at the process table: seconds on a processor and bytes read and written, by process."""

    at: float
    """On the monotonic clock."""
    cpu_s: dict[Identity, float]
    io_bytes: dict[Identity, int]

    @property
    def processes(self) -> frozenset[Identity]:
        """Those that were alive."""
        return frozenset(self.cpu_s)

    def busy_since(self, earlier: Vitals) -> bool:
        """Whether the processes worked between two looks: computed, or moved data."""
        elapsed = max(self.at - earlier.at, 1e-3)
        computed = sum(value - earlier.cpu_s.get(key, 0.0) for key, value in self.cpu_s.items())
        moved = sum(value - earlier.io_bytes.get(key, 0) for key, value in self.io_bytes.items())
        return computed >= BUSY_SHARE * elapsed or moved >= BUSY_IO_BYTES * elapsed


def take_vitals(roots: Collection[Identity], *, at: float) -> Vitals:
    """Look at these processes and all below them. Reads the process table: some milliseconds."""
    cpu_s: dict[Identity, float] = {}
    io_bytes: dict[Identity, int] = {}
    for root in roots:
        if not root.alive:
            continue
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root.pid)
            for one in (process, *process.children(recursive=True)):
                _look(one, cpu_s, io_bytes)
    return Vitals(at=at, cpu_s=cpu_s, io_bytes=io_bytes)


def _look(process: psutil.Process, cpu_s: dict[Identity, float], io_bytes: dict[Identity, int]) -> None:
    identity = identity_of(process.pid)
    if identity is None:
        return
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        cpu_s[identity] = times.user + times.system
    # Not every system tells it, and not of every process.
    with contextlib.suppress(psutil.Error, AttributeError):
        counters = process.io_counters()
        io_bytes[identity] = counters.read_bytes + counters.write_bytes
