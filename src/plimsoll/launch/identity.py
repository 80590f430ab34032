"""Which process is meant: a number that the system will use again, and the moment of birth that it will not."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process for all time: `birth` differs between two processes that had the same `pid`."""

    pid: int
    birth: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return birth_of(self.pid) == self.birth


def birth_of(pid: int) -> str | None:
    """Boot id and clock ticks since boot at which `pid` was born; None when it does not run (any more).

    On Linux neither part moves when the wall clock is set, as psutil's `create_time` does; elsewhere that is used.
    """
    if sys.platform != "linux":
        return _birth_by_psutil(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, second field, may hold spaces and brackets: what counts starts after the last one.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{_boot_id()}/{rest[18]}"


def identity_of(pid: int) -> Identity | None:
    """The process that has this number now."""
    birth = birth_of(pid)
    return None if birth is None else Identity(pid=pid, birth=birth)


def own_identity() -> Identity:
    """This process."""
    me = identity_of(os.getpid())
    if me is None:
        raise RuntimeError("this process does not find itself in the process table")
    return me


@cache
def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _birth_by_psutil(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None
