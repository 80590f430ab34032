"""RAM of this machine: how much this process may have, and how fast it is read."""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from plimsoll.discover.cgroup import Allowance
from plimsoll.discover.procfs import read_bytes, read_fields
from plimsoll.units import KIB, MIB

_PROBE_BYTES, _PROBE_THREAD_BYTES = 128 * MIB, 16 * MIB
"""The buffer, and its least share per thread: more than any last-level cache has (105 MiB on a large Xeon, 12 MiB a
core on an EPYC with stacked cache)."""
_PROBE_S = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """Bytes in all and free now, both as this process may use them."""

    total_bytes: int
    free_bytes: int
    capped_by: str = ""
    """The cgroup that allows less than the machine has; empty if none does."""


def read_ram(allowance: Allowance, root: Path = Path("/")) -> Ram:
    """RAM by /proc/meminfo below `root`, cut down to what the cgroups allow."""
    fields = read_fields(root / "proc/meminfo")
    total = fields.get("MemTotal", 0) * KIB
    # Kernels before 3.14 have no MemAvailable: free pages and the page cache are then the nearest.
    available = fields.get("MemAvailable", fields.get("MemFree", 0) + fields.get("Cached", 0)) * KIB
    limit = allowance.memory_bytes
    if limit is None or limit >= total > 0:
        free = available if allowance.memory_free_bytes is None else min(available, allowance.memory_free_bytes)
        return Ram(total_bytes=total, free_bytes=free)
    return Ram(
        total_bytes=limit,
        free_bytes=min(available, allowance.memory_free_bytes or 0) if total else allowance.memory_free_bytes or 0,
        capped_by=allowance.source,
    )


def measure_bandwidth(*, threads: int, free_bytes: int) -> float | None:
    """Bytes per second that `threads` threads read from RAM together; None where too little memory is free to tell.

    Reading is what decoding does with weights, so libc's memchr (vectorised, a pure read) is timed over a buffer that
    no cache holds. The best pass counts, since anything else on the machine only makes it slower.
    """
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    libc.memchr.argtypes, libc.memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    size = (
        min(max(_PROBE_BYTES, _PROBE_THREAD_BYTES * threads), free_bytes // 8)
        // mmap.PAGESIZE
        // threads
        * mmap.PAGESIZE
    )
    if size < MIB:
        return None
    with mmap.mmap(-1, size * threads) as buffer, ThreadPoolExecutor(threads) as pool:
        view = ctypes.c_char.from_buffer(buffer)
        slices = [ctypes.addressof(view) + size * index for index in range(threads)]
        list(pool.map(lambda start: ctypes.memset(start, 1, size), slices))
        best = 0.0
        deadline = time.perf_counter() + _PROBE_S
        while True:
            started = time.perf_counter()
            list(pool.map(lambda start: libc.memchr(start, 0, size), slices))
            ended = time.perf_counter()
            best = max(best, size * threads / (ended - started))
            if ended > deadline:
                break
        del view  # the map cannot be closed while a pointer into it lives
    return best


def read_glibc(root: Path = Path("/")) -> str | None:
    """The C library's version, such as "2.36", from the library below `root`; None if it is not glibc."""
    for pattern in ("lib/*-linux-gnu/libc.so.6", "lib64/libc.so.6", "usr/lib64/libc.so.6", "usr/lib/libc.so.6"):
        for path in sorted(root.glob(pattern)):
            found = re.search(rb"GNU C Library [^\n]*version (\d+\.\d+)", read_bytes(path))
            if found:
                return found[1].decode()
    return None
