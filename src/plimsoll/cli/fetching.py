"""Weights arriving: a bar on a terminal, one line for each file in a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from plimsoll.units import format_bytes


class FetchProgress:
    """A `weights.Progress` that draws; begins with the first news, ends with the block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> FetchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def __call__(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """How far `name` is."""
        if name not in self._tasks:
            self._bars.start()
            self._tasks[name] = self._bars.add_task(f"Fetching {name}", total=total_bytes)
        self._bars.update(self._tasks[name], completed=done_bytes, total=total_bytes)
        if total_bytes is not None and done_bytes >= total_bytes and name not in self._told:
            self._told.add(name)
            self._bars.console.print(f"Fetched {name}, {format_bytes(total_bytes)}", markup=False, soft_wrap=True)

    def wait_for(self, holder: str) -> None:
        """Another process fetches the same model."""
        self._console.print(f"Waiting for process {holder}, which fetches the same model", markup=False)
