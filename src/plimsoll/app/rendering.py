"""The exact commands and files of a plan, for reading and for copying: the same ones that `up` starts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from plimsoll.app.settings import Settings
from plimsoll.app.weights import weights_path
from plimsoll.discover.engines import engines
from plimsoll.engines.protocol import Ports, Process
from plimsoll.plan.types import Plan

_FIRST_PORT = 8100
"""Shown where a free port would be chosen at launch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process of one replica."""

    replica: str
    process: Process

    def as_shell(self) -> str:
        """A shell script that does the same: files, setup, then the command with its environment."""
        lines = [f"# {self.replica}: {self.process.name}"]
        for path, text in self.process.files.items():
            lines += [f"cat > {shlex.quote(path)} <<'PLIMSOLL'", text.rstrip("\n"), "PLIMSOLL"]
        lines += [shlex.join(command) for command in self.process.setup]
        if self.process.cwd:
            lines.append(f"cd {shlex.quote(self.process.cwd)}")
        environment = [f"{key}={shlex.quote(value)}" for key, value in sorted(self.process.env.items())]
        lines.append(" ".join([*environment, _wrapped(self.process.argv)]))
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """The same as plain data."""
        return {
            "replica": self.replica,
            "process": self.process.name,
            "argv": list(self.process.argv),
            "env": dict(self.process.env),
            "files": dict(self.process.files),
            "setup": [list(command) for command in self.process.setup],
            "cwd": self.process.cwd,
        }


def rendered(plan: Plan, settings: Settings) -> list[Command]:
    """Every process of every replica, in the order in which they start."""
    known = engines()
    return [
        Command(replica=replica.name, process=process)
        for index, replica in enumerate(plan.replicas)
        for process in known[replica.candidate.engine.name].processes(
            replace(replica, model_path=weights_path(replica, settings)), Ports(serve=_FIRST_PORT + index)
        )
    ]


def _wrapped(argv: tuple[str, ...]) -> str:
    """One flag a line, for the eye."""
    lines: list[str] = []
    for word in argv:
        if word.startswith("--") and lines:
            lines.append(shlex.quote(word))
        elif lines:
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return " \\\n  ".join(lines)
