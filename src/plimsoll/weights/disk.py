"""Room on the disk, asked before it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from plimsoll.errors import WeightError
from plimsoll.units import MIB, format_bytes

_SPARE_BYTES = 64 * MIB
"""Left free on the disk."""


def check_disk(folder: Path, needed_bytes: int) -> None:
    """WeightError unless `folder`'s disk has room for `needed_bytes` more."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed_bytes + _SPARE_BYTES > free:
        raise WeightError(
            f"not enough disk: {format_bytes(needed_bytes)} to come, {format_bytes(free)} free in {existing}",
            hint="free some space, or choose another place with PLIMSOLL_HOME",
        )
