"""A lock between processes that dies with its holder: flock on a small file that is never deleted."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from plimsoll.errors import WeightError


@contextmanager
def locked(path: Path, *, waiting: Callable[[str], None] | None = None, poll_s: float = 0.1) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, `waiting` is told once who (its process id).

    The kernel frees it when the holder ends, however it ends, so no lock is ever stale (gpustack issue 3054 and
    others: downloads that wait for ever on the lock file of a dead process). WeightError if it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WeightError(
            f"cannot write to {path.parent}: {error.strerror}", hint="choose another place with PLIMSOLL_HOME"
        ) from None
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting and not told:
                    told = True
                    waiting(os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "?")
                time.sleep(poll_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
