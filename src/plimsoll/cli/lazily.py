"""Commands that are imported when they are called: `plimsoll ps` does not wait for what only `plan` needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "bench_commands": ("bench", "report", "runs"),
    "check_commands": ("check", "explain", "fieldnotes", "import"),
    "engine_commands": ("engines",),
    "key_commands": ("keys", "usage"),
    "plan_commands": ("plan", "render", "schema"),
    "run_commands": ("chat", "down", "logs", "ps", "status", "up"),
    "simulate_commands": ("simulate",),
    "tune_commands": ("tune",),
    "weight_commands": ("models", "pull"),
}
"""Module of this package to the commands that its `register` adds."""
_MODULES = {command: module for module, commands in COMMANDS.items() for command in commands}


class LazyGroup(TyperGroup):
    """The root of the command line."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, sorted; imports nothing."""
        return sorted(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, its module imported; None if there is none of that name."""
        return load_command(cmd_name) if cmd_name in _MODULES else None


def load_command(name: str) -> Any:
    """One command out of its module."""
    part = typer.Typer(rich_markup_mode=None)
    part.callback()(_nothing)  # keeps a lone command a member of a group
    import_module(f"plimsoll.cli.{_MODULES[name]}").register(part)
    group: Any = typer.main.get_command(part)
    return group.commands[name]


def _nothing() -> None:
    pass
