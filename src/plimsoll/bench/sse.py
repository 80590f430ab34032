"""Server-sent events out of bytes that arrive in any pieces."""

from __future__ import annotations


class EventParser:
    r"""Incremental parser of one event stream: lines end in \n, \r\n or \r; comments and unknown fields are skipped.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
    """

    __slots__ = ("_after_cr", "_data", "_name", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes]]:
        """(event name, data) of every event that `piece` completes; the name is b"" where none was given."""
        if self._after_cr and piece:
            # The line was taken as ended at \r, so that a stream of lone \r is not held back by one read.
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in piece:
            self._after_cr = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        events: list[tuple[bytes, bytes]] = []
        for line in lines:
            # One data line and a blank one is nearly every event there is.
            if line.startswith(b"data: ") and not self._data:
                self._data = [line[6:]]
            elif not line and len(self._data) == 1:
                events.append((self._name, self._data[0]))
                self._data, self._name = [], b""
            else:
                self._take(line, events)
        return events

    def close(self) -> list[tuple[bytes, bytes]]:
        """What was begun when the stream ended: servers forget the last blank line, so it still counts as an event."""
        events: list[tuple[bytes, bytes]] = []
        for line in (self._rest, b""):
            self._take(line, events)
        self._rest = b""
        return events

    def _take(self, line: bytes, events: list[tuple[bytes, bytes]]) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif not line:
            if self._data:
                events.append((self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
                self._data = []
            self._name = b""
        elif line.startswith(b"event:"):
            self._name = line[6:].strip()
        elif line == b"data":
            self._data.append(b"")
