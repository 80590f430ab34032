"""Shell scripts: one for each node, each process in the background but the last; and the same in tmux's windows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from plimsoll.engines.protocol import Process
from plimsoll.engines.render.placed import (
    Placed,
    RenderedFile,
    by_node,
    health_url,
    node_suffix,
    plain_name,
    wait_command,
)

_HEAD = "#!/usr/bin/env bash\nset -euo pipefail\n"


def shell_scripts(placed: Sequence[Placed], *, stem: str = "run") -> tuple[RenderedFile, ...]:
    """`run.sh`, or `run-node0.sh` and so on: files, setup, then the processes; all end when one does."""
    return tuple(
        RenderedFile(path=f"{stem}{node_suffix(placed, node)}.sh", text=_script(group), executable=True)
        for node, group in by_node(placed)
    )


def tmux_scripts(placed: Sequence[Placed]) -> tuple[RenderedFile, ...]:
    """One script for each node that opens a session with a window for each process."""
    files = []
    for node, group in by_node(placed):
        session = plain_name(f"plimsoll-{group[0].replica.candidate.deployment.name}")
        lines = [_HEAD, f"session={session}"]
        for place, one in enumerate(group):
            # A window's shell reads the command once more: it is quoted twice.
            text = "\n".join([*_waits(one), *prepare(one.process), command_line(one.process)])
            opening = "new-session -d -s" if place == 0 else "new-window -t"
            target = '"$session"' if place == 0 else '"$session:"'
            lines.append(f"tmux {opening} {target} -n {shlex.quote(one.name)} {shlex.quote(f'set -e; {text}')}")
            if one.process.once_up:
                after = "\n".join([*_wait_for(one.process), *_after(one.process)])
                name = shlex.quote(f"{one.name}-setup")
                lines.append(f'tmux new-window -t "$session:" -n {name} {shlex.quote(f"set -e; {after}")}')
        lines.append('echo "tmux attach -t $session"')
        text = "\n".join(lines) + "\n"
        files.append(RenderedFile(path=f"tmux{node_suffix(placed, node)}.sh", text=text, executable=True))
    return tuple(files)


def command_line(process: Process, *, wrap: bool = False) -> str:
    """The process as one simple command with its environment in front; `wrap`: one flag a line, for the eye."""
    words = [f"{key}={shlex.quote(value)}" for key, value in sorted(process.env.items())]
    lines: list[str] = []
    for word in process.argv:
        if not lines or (wrap and word.startswith("--")):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    # `env` takes the variables also in front of `exec` and of a command in the background.
    front = " ".join(["env", *words, ""]) if words else ""
    return front + " \\\n  ".join(lines)


def _script(group: Sequence[Placed]) -> str:
    lines = [_HEAD]
    if len(group) > 1 or any(one.process.once_up for one in group):
        lines.append("trap 'kill $(jobs -p) 2>/dev/null' EXIT\n")
        for one in group:
            lines += [f"# {one.replica.name}: {one.process.name}", *_waits(one), *prepare(one.process)]
            lines += [_in_directory(one.process, command_line(one.process, wrap=True)) + " &"]
            if one.process.once_up:
                lines += [*_wait_for(one.process), *_after(one.process)]
            lines.append("")
        lines.append("wait -n")
    else:
        process = group[0].process
        lines += [f"# {group[0].replica.name}: {process.name}", *prepare(process)]
        if process.cwd:
            lines.append(f"cd {shlex.quote(process.cwd)}")
        lines.append(f"exec {command_line(process, wrap=True)}")
    return "\n".join(lines) + "\n"


def _in_directory(process: Process, command: str) -> str:
    return f"(cd {shlex.quote(process.cwd)} && exec {command})" if process.cwd else command


def _waits(one: Placed) -> list[str]:
    return [wait_command(url) for process in one.before() if (url := health_url(process))]


def _wait_for(process: Process) -> list[str]:
    url = health_url(process)
    return [wait_command(url)] if url else []


def prepare(process: Process) -> list[str]:
    """Lines that write its files and run its setup, each command under the process's environment."""
    lines = []
    for path, text in process.files.items():
        if directory := path.rpartition("/")[0]:
            lines.append(f"mkdir -p {shlex.quote(directory)}")
        lines.append(f"printf %s {shlex.quote(text)} > {shlex.quote(path)}")
        lines.append(f"chmod 640 {shlex.quote(path)}")
    return lines + [_with_env(process, argv) for argv in process.setup]


def _after(process: Process) -> list[str]:
    return [_with_env(process, argv) for argv in process.once_up]


def _with_env(process: Process, argv: Sequence[str]) -> str:
    words = [f"{key}={shlex.quote(value)}" for key, value in sorted(process.env.items())]
    return " ".join(["env", *words, shlex.join(argv)]) if words else shlex.join(argv)
