"""Logs: one file per run of a process, never overwritten by a restart; the oldest go first."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from plimsoll.errors import LaunchError

_NUMBER = re.compile(r"-(\d+)\.log$")
_TELLING = re.compile(
    r"error|exception|fail|fatal|abort|denied|refused|cannot|could not|unable|not found|no such|invalid|out of memory",
    re.IGNORECASE,
)


def new_log(directory: Path, *, deployment: str, replica: str, process: str, keep: int) -> Path:
    """A fresh, empty `DIRECTORY/DEPLOYMENT/REPLICA/PROCESS-N.log`; of the earlier ones `keep - 1` stay.

    LaunchError when it cannot be made.
    """
    folder = directory / quote(deployment, safe="") / quote(replica, safe="")
    stem = quote(process, safe="")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs = run_logs(folder, stem)
        number = 1 + (_number(runs[-1]) if runs else 0)
        for old in runs[: len(runs) - keep + 1]:
            old.unlink(missing_ok=True)
            old.with_suffix(".log.old").unlink(missing_ok=True)
        path = folder / f"{stem}-{number:04d}.log"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise LaunchError(
            f"no log can be written under {folder}: {error.strerror}",
            hint="make the state directory writable and leave some room on its disk",
            source=str(folder),
        ) from error
    return path


def run_logs(folder: Path, stem: str) -> list[Path]:
    """The logs of one process, oldest run first."""
    return sorted((path for path in folder.glob(f"{stem}-*.log") if _NUMBER.search(path.name)), key=_number)


def _number(path: Path) -> int:
    match = _NUMBER.search(path.name)
    return int(match[1]) if match else 0


def read_lines(path: Path, *, limit_bytes: int = 4 << 20) -> tuple[str, ...]:
    """The log's lines, of its last `limit_bytes`; none when it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit_bytes))
            return tuple(file.read(limit_bytes).decode(errors="replace").splitlines())
    except OSError:
        return ()


def last_words(lines: Sequence[str], *, count: int = 8) -> tuple[str, ...]:
    """The last lines that speak of an error, or simply the last ones."""
    spoken = [line.rstrip() for line in lines if line.strip()]
    telling = [line for line in spoken if _TELLING.search(line)]
    return tuple((telling or spoken)[-count:])


def put_aside(path: Path, *, limit_bytes: int) -> bool:
    """Empty a log that grew beyond the limit, its text kept as `.old`; whether it had to be.

    The engine keeps writing to the same open file: it was opened to append, so it goes on at the new end. What it
    writes between copy and cut is lost.
    """
    if path.stat().st_size <= limit_bytes:
        return False
    try:
        shutil.copyfile(path, path.with_suffix(".log.old"))
    except OSError:
        # No room for the copy: the log itself is what fills the disk.
        path.with_suffix(".log.old").unlink(missing_ok=True)
    os.truncate(path, 0)
    return True


class LogWatch:
    """Tells whether the engine wrote lines of its own, not only the echo of our probing its routes."""

    def __init__(self, path: Path, *, ignore: Sequence[str]) -> None:
        self.path = path
        self._ignore = tuple(word.encode() for word in ignore)
        self._offset = 0

    def grew(self) -> bool:
        """Whether there is a new line since the last call that names none of the ignored routes."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                fresh = file.read(1 << 16)
        except OSError:
            return False
        self._offset = size
        return any(line.strip() and not any(word in line for word in self._ignore) for line in fresh.splitlines())
