"""The access log: one JSON line for each finished request, written once a second; no prompt, no answer, no key."""

from __future__ import annotations

import asyncio
import pathlib
import time

import orjson

from plimsoll.gateway.settings import Record

_EVERY_S = 1.0
_PENDING = 10_000
"""Lines that are written before their second is over."""


class AccessLog:
    """Appends to `path`; give `note` to the gateway as an observer, and `close` it after the gateway has stopped."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def note(self, record: Record) -> None:
        """Add one line."""
        fields = record._asdict()
        fields["unix_s"] = round(time.time(), 3)
        for name in ("queued_s", "first_byte_s", "duration_s"):
            fields[name] = round(fields[name], 6)
        self._lines.append(orjson.dumps(fields))
        if len(self._lines) >= _PENDING:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_EVERY_S, self.flush)

    def flush(self) -> None:
        """Write what is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._lines:
            self._file.write(b"\n".join(self._lines) + b"\n")
            self._lines = []

    def close(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        self._file.close()
