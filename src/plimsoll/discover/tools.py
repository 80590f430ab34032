"""Running a vendor's tool for its text: a missing, failing or hanging tool is silence, never an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence

RunTool = Callable[[Sequence[str]], str]
"""Standard output of a command; empty if it is not installed, fails, or takes too long."""

_TIMEOUT_S = 10.0
"""npu-smi and nvidia-smi take seconds on a machine with eight devices; a hung driver must not hang the plan."""


def run_tool(argv: Sequence[str]) -> str:
    """Standard output of `argv`, or empty text."""
    path = shutil.which(argv[0])
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *argv[1:]], capture_output=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else ""
