"""Operating-system processes: started in a session of their own, waited for, adopted, and ended with all they begot."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from plimsoll.engines.protocol import Process
from plimsoll.errors import LaunchError
from plimsoll.launch.identity import Identity, identity_of

MARK = "PLIMSOLL_RUN"
"""In the environment of whatever we start, and so of all that it starts: `RUN PLACE`. Orphans are known by it."""
_AFTER_KILL_S = 1.5
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One run whose processes are meant: the mark it was given, and its first process, dead or alive."""

    run: str
    root: Identity | None = None


def free_ports(count: int, *, host: str = "127.0.0.1", avoid: Collection[int] = ()) -> tuple[int, ...]:
    """Ports that nothing listened on just now, none of `avoid`; they are not held, another program may take one."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            try:
                server = held.enter_context(socket.create_server((host, 0)))
            except OSError as error:
                raise LaunchError(f"no port can be had on {host}: {error.strerror}") from error
            port = server.getsockname()[1]
            if port not in avoid:
                found.append(port)
    return tuple(found)


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether one could listen on it now."""
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def interface_of(address: str) -> str | None:
    """The network interface of this host that has `address`; None where none has."""
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return name
    return None


def digest_of(processes: Sequence[Process]) -> str:
    """What all of them are started with, in short; equal digests mean the same commands, files and environment."""
    parts = [
        (item.name, item.argv, sorted(item.env.items()), sorted(item.files.items()), item.cwd, item.setup, item.once_up,
         item.node)
        for item in processes
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def place_of(directory: Path, deployment: str) -> str:
    """What the processes of one deployment in one state directory are marked with."""
    return f"{deployment}@{directory.resolve()}"


def spawn(
    argv: Sequence[str], *, mark: str, log: Path, env: Mapping[str, str], cwd: str | None
) -> subprocess.Popen[bytes]:
    """Start a command in a new session, both outputs appended to `log`, no pipe to us: it outlives our death.

    LaunchError when there is no such command or it may not be run.
    """
    # Python buffers what it writes to a file: without this the last words of a killed engine are lost.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **env, MARK: mark}
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        missing = cwd is not None and not Path(cwd).is_dir()
        what = f"in {cwd}: no such directory" if missing else error.strerror
        found = shutil.which(argv[0], path=environment.get("PATH"))
        raise LaunchError(
            f"cannot start {argv[0]}: {what}",
            hint="make the directory" if missing else "install it, or put it in PATH" if found is None else None,
        ) from error


async def wait_for_end(identity: Identity, popen: subprocess.Popen[bytes] | None) -> int | None:
    """Popen's return code once the process is over (negative: a signal); None for one that we did not start."""
    if sys.platform == "linux":
        with contextlib.suppress(ProcessLookupError):
            await _readable(os.pidfd_open(identity.pid), while_alive=identity)
    while identity.alive:  # noqa: ASYNC110  where there is no pidfd there is nothing to be told by
        await asyncio.sleep(0.2)
    if popen is None:
        return None
    while (code := popen.poll()) is None:  # noqa: ASYNC110  dead already: the kernel is about to tell
        await asyncio.sleep(0.001)
    return code


async def _readable(pidfd: int, *, while_alive: Identity) -> None:
    """Wait for a pidfd, which the kernel makes readable at the end of its process."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    try:
        loop.add_reader(pidfd, over.cancel)
        # The number may have gone to another process before the pidfd was opened.
        if while_alive.alive:
            await asyncio.wait([over])
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def members(targets: Collection[Target]) -> frozenset[Identity]:
    """All living processes of these runs: those in the session of a root, below it, or with a run's mark.

    Reads the whole process table: some milliseconds.
    """
    runs = {target.run for target in targets}
    roots = {target.root.pid: target.root for target in targets if target.root is not None}
    # While anyone is in a session its number is not given away: a session whose leader's number belongs to a
    # stranger is a stranger's.
    ours = {pid for pid, root in roots.items() if identity_of(pid) in (None, root) and _same_boot(root)}
    found = set()
    for pid in psutil.pids():
        try:
            belongs = os.getsid(pid) in ours
        except (ProcessLookupError, PermissionError):
            belongs = False
        if belongs or _mark(pid)[0] in runs:
            found.add(pid)
    for root in roots.values():
        if root.alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid for child in psutil.Process(root.pid).children(recursive=True)}
    identities = (identity_of(pid) for pid in found - {os.getpid()})
    return frozenset(identity for identity in identities if identity is not None)


def _same_boot(root: Identity) -> bool:
    me = identity_of(os.getpid())
    return me is not None and me.birth.partition("/")[0] == root.birth.partition("/")[0]


def _mark(pid: int) -> tuple[str, str]:
    """(run, place) of a process; two empty strings for a stranger."""
    try:
        run, _, place = psutil.Process(pid).environ().get(MARK, "").partition(" ")
    except (psutil.Error, OSError):
        return "", ""
    return run, place


def marked(place: str) -> frozenset[Target]:
    """The runs that live in this place, whether or not they were ever recorded."""
    marks = (_mark(pid) for pid in psutil.pids() if pid != os.getpid())
    return frozenset(Target(run=run) for run, where in marks if run and where == place)


def end(targets: Collection[Target], *, grace_s: float) -> None:
    """End all processes of these runs: SIGTERM, after `grace_s` SIGKILL to whatever is left, children included.

    Blocks for `grace_s` + 1.5 s at most. LaunchError when something survives SIGKILL (it hangs in the kernel).
    """
    found = members(targets)
    for identity in found:
        send_signal(identity, signal.SIGTERM)
    _wait_gone(found, seconds=grace_s)
    deadline = time.monotonic() + _AFTER_KILL_S
    while left := members(targets):
        if time.monotonic() > deadline:
            pids = ", ".join(str(identity.pid) for identity in left)
            raise LaunchError(
                f"processes {pids} do not end, not even by SIGKILL",
                hint="they hang in the kernel, in a device or a network file system: `ps -o stat,wchan -p PID`",
            )
        for identity in left:
            send_signal(identity, signal.SIGKILL)
        _wait_gone(left, seconds=0.3)


def _wait_gone(identities: Collection[Identity], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(identity.alive for identity in identities) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def send_signal(identity: Identity, number: signal.Signals) -> None:
    """Send a signal to this very process, never to a later one of the same number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform != "linux":
            if identity.alive:
                os.kill(identity.pid, number)
            return
        pidfd = os.pidfd_open(identity.pid)
        try:
            if identity.alive:
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
