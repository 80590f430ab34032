"""The access log: one JSON line for each finished request, written once a second; no prompt, no answer, no key."""

from __future__ import annotations

import asyncio
import pathlib
import time

import orjson

from plimsoll.gateway.settings import Record

_EVERY_S = 1.0
_PENDING = 500
"""Lines that are written before their second is over."""
_NAMES = 1000
"""Combinations of route, model, replica and key whose JSON is kept: it is half of every line."""
_LINE = (
    b'{"unix_s":%.3f,"request_id":"%b","client":"%b","status":%d,"queued_s":%.6f,"first_byte_s":%.6f,"duration_s":%.6f,'
    b'"prompt_tokens":%d,"output_tokens":%d,"exact":%b,"error":%b,%b'
)


class AccessLog:
    """Appends to `path`; give `note` to the gateway as an observer, and `close` it after the gateway has stopped."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._lines: list[bytes] = []
        self._names: dict[tuple[str, str, str, str, bool], bytes] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, record: Record) -> None:
        """Add one line."""
        about = (record.route, record.model, record.upstream, record.key, record.stream)
        names = self._names.get(about)
        if names is None:
            if len(self._names) >= _NAMES:
                self._names.clear()
            named = dict(zip(("route", "model", "upstream", "key", "stream"), about, strict=True))
            names = self._names[about] = orjson.dumps(named)[1:]
        self._lines.append(
            _LINE % (
                time.time(), record.request_id.encode(), record.client.encode(), record.status, record.queued_s,
                record.first_byte_s, record.duration_s, record.prompt_tokens, record.output_tokens,
                b"true" if record.exact else b"false", orjson.dumps(record.error) if record.error else b'""', names,
            )
        )  # fmt: skip
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
