"""Counts what several threads have done, for one bar."""

from __future__ import annotations

import threading
import time

from plimsoll.weights.types import Progress

_TOLD_EVERY_S = 0.1


class Tally:
    """`add` from any thread; `progress` is told at most ten times a second, and at the end."""

    def __init__(self, name: str, total_bytes: int, progress: Progress | None) -> None:
        self._name = name
        self._total = total_bytes
        self._progress = progress
        self._done = 0
        self._told = 0.0
        self._guard = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes are done."""
        if self._progress is None:
            return
        with self._guard:
            self._done += count
            now = time.monotonic()
            if now - self._told >= _TOLD_EVERY_S or self._done >= self._total:
                self._told = now
                self._progress(self._name, self._done, self._total)
