"""A user's shell: `plimsoll` as a process of its own, with a home of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plimsoll.cli.main import main

FakeSpec = Callable[..., str]


@dataclass(frozen=True)
class Shell:
    """Runs commands with PLIMSOLL_HOME at `home`."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PLIMSOLL_HOME": str(self.home), "NO_COLOR": "1", "COLUMNS": "200"}

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "plimsoll", *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment, **more,
        )  # fmt: skip

    def run(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "plimsoll", *words], text=True, capture_output=True, env=self.environment,
            timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def here(self, *words: str) -> tuple[int, str, str]:
        """The same without a process: exit code, stdout, stderr. What would be a traceback is raised."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["plimsoll", *words])
            patch.setenv("PLIMSOLL_HOME", str(self.home))
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0), out.getvalue(), err.getvalue()

    def ok(self, *words: str, timeout_s: float = 60) -> str:
        done = self.run(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def only(self) -> dict[str, Any]:
        """The one deployment that `ps` lists."""
        (one,) = self.json("ps")
        return one
