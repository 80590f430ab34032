"""What a replica's processes read at their start: a private directory for each replica, and the files in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from plimsoll.errors import LaunchError

_FILE_MODE = 0o640
"""MindIE reads nothing that is more open (`FILE_MODE_640` in its src/config_manager/param_checker.cpp)."""


def directory_of(state: Path, deployment: str, replica: str | None = None) -> Path:
    """Where the files of a replica go, or those of all replicas of a deployment; the same at every start."""
    whole = state.resolve() / "replicas" / quote(deployment, safe="")
    return whole if replica is None else whole / quote(replica, safe="")


def make_directory(path: Path) -> None:
    """Make it, for its owner alone to look into; LaunchError when that cannot be."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"cannot make {path}: {error.strerror}", hint="make the state directory writable", source=str(path)
        ) from error


def remove_directory(path: Path) -> None:
    """Remove it with all that is in it; what cannot be removed is left."""
    shutil.rmtree(path, ignore_errors=True)


def write_files(files: Mapping[str, str]) -> None:
    """Write what a process reads at its start, for owner and group alone; a file that is so already is left alone."""
    for name, text in files.items():
        path = Path(name)
        try:
            if path.is_file() and path.read_text() == text and not path.stat().st_mode & 0o777 & ~_FILE_MODE:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE), "w") as file:  # noqa: PTH123
                os.fchmod(file.fileno(), _FILE_MODE)
                file.write(text)
        except OSError as error:
            raise LaunchError(f"cannot write {path}: {error.strerror}", source=str(path)) from error
