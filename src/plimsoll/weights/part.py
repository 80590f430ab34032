"""A file that is still arriving: its bytes in `NAME.part`, the ranges that are there in `NAME.part.log`.

A range is written to the log only after its bytes were written to the file, so a process killed at any moment leaves
a log that claims no byte that is not there. A machine that lost power may: then, if no checksum will tell, the part
is thrown away (the log's first line holds the kernel's boot id).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Names the time since the machine started; the same for all processes."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"


class Part:
    """`identity` says which content this is the beginning of; a part of another content is thrown away on opening."""

    def __init__(self, target: Path, *, identity: str) -> None:
        self.path = target.with_name(target.name + ".part")
        self._log_path = target.with_name(target.name + ".part.log")
        self._head = f"{identity}\n"
        self._guard = threading.Lock()
        self._file = self._log = -1
        self.size: int | None = None
        """Of the whole file, if it was noted."""
        self._have: list[tuple[int, int]] = []

    def __enter__(self) -> Part:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._log = os.open(self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._have = self._read_log()
        if not self._have:
            self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._log)

    @property
    def have_bytes(self) -> int:
        """How much has arrived."""
        with self._guard:
            return sum(end - start for start, end in self._have)

    @property
    def prefix_bytes(self) -> int:
        """How much has arrived without a gap from the start."""
        with self._guard:
            return self._have[0][1] if self._have and self._have[0][0] == 0 else 0

    def missing(self, size: int) -> list[tuple[int, int]]:
        """The ranges (start, end) of `size` bytes that have not arrived."""
        gaps, position = [], 0
        with self._guard:
            for start, end in self._have:
                if start > position:
                    gaps.append((position, min(start, size)))
                position = max(position, end)
        if position < size:
            gaps.append((position, size))
        return gaps

    def write(self, data: memoryview, start: int) -> None:
        """Put `data` at `start`. Safe from several threads for ranges that do not overlap."""
        written = 0
        while written < len(data):
            written += os.pwrite(self._file, data[written:], start + written)

    def record(self, start: int, end: int) -> None:
        """Note that the bytes from `start` to `end` were written."""
        if start == end:
            return
        with self._guard:
            os.write(self._log, f"{start} {end}\n".encode())
            self._have = _union([*self._have, (start, end)])

    def note_size(self, size: int) -> None:
        """Keep the size of the whole file for the next time."""
        if size != self.size:
            self.size = size
            os.write(self._log, f"size {size}\n".encode())

    def read(self, start: int, length: int) -> bytes:
        """Bytes that have arrived."""
        return os.pread(self._file, length, start)

    def restart(self) -> None:
        """Forget everything that has arrived."""
        with self._guard:
            self._have, self.size = [], None
            os.ftruncate(self._log, 0)
            os.write(self._log, self._head.encode())
            os.ftruncate(self._file, 0)

    def finish(self, target: Path) -> None:
        """Give it its own name."""
        self.path.replace(target)
        self._log_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete what has arrived."""
        self.path.unlink(missing_ok=True)
        self._log_path.unlink(missing_ok=True)

    def _read_log(self) -> list[tuple[int, int]]:
        with os.fdopen(os.dup(self._log), "rb") as file:
            file.seek(0)
            head, *lines = file.read().decode("ascii", "replace").split("\n")
        if f"{head}\n" != self._head:
            return []
        size = os.fstat(self._file).st_size
        ranges = []
        for line in lines[:-1]:  # the last one is empty, or was cut while being written
            start, _, end = line.partition(" ")
            if start == "size" and end.isdigit():
                self.size = int(end)
            elif start.isdigit() and end.isdigit() and int(start) < int(end) <= size:
                ranges.append((int(start), int(end)))
        return _union(ranges)


def part_identity(*, sha256: str | None, etag: str | None, size_bytes: int | None) -> str:
    """What must be equal for a part to be continued: the checksum, or else etag, size and the machine's uptime."""
    if sha256:
        return f"sha256 {sha256}"
    return f"etag {etag} size {size_bytes} boot {boot_id()}"


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
