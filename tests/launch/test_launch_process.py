"""Processes: started apart from us, found again whatever they do, ended with all they begot, explained in words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plimsoll.engines.protocol import Process
from plimsoll.errors import LaunchError
from plimsoll.launch.ending import Ending, OomWatch, ending_of
from plimsoll.launch.files import write_files
from plimsoll.launch.identity import identity_of
from plimsoll.launch.logs import LogWatch, last_words, new_log, put_aside, read_lines, run_logs
from plimsoll.launch.process import (
    Target,
    digest_of,
    end,
    free_ports,
    marked,
    members,
    port_is_free,
    spawn,
    wait_for_end,
)

PLACE = "d@/nowhere"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT_OF_DEAF = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"
ORPHANS = (
    # A child in another session whose parent is gone, as a daemon makes itself.
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True)"
)


@contextmanager
def started(program: str, log: Path, run: str = "r1") -> Iterator[subprocess.Popen[bytes]]:
    log.touch()
    popen = spawn([sys.executable, "-c", program], mark=f"{run} {PLACE}", log=log, env={}, cwd=None)
    try:
        yield popen
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


def until_logged(log: Path, words: str) -> None:
    deadline = time.monotonic() + 5
    while words not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("program", [DEAF, PARENT_OF_DEAF, ORPHANS], ids=["deaf", "deaf child", "deaf orphan"])
def test_nothing_survives_the_end(tmp_path: Path, program: str) -> None:
    with started(program, log := tmp_path / "log") as popen:
        until_logged(log, "up")
        root = identity_of(popen.pid)
        target = Target(run="r1", root=root)
        assert members([target])
        began = time.monotonic()
        end([target], grace_s=0.2)
        assert time.monotonic() - began < 2
        assert not members([target])
        assert not marked(PLACE)


def test_a_kind_process_is_let_to_finish(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.1), sys.exit(5)));"
        "print('up', flush=True); time.sleep(60)"
    )
    with started(program, log := tmp_path / "log") as popen:
        until_logged(log, "up")
        end([Target(run="r1", root=identity_of(popen.pid))], grace_s=3)
        assert popen.wait() == 5


def test_a_stranger_is_left_alone(tmp_path: Path) -> None:
    with started(DEAF, tmp_path / "log", run="other") as popen:
        me = identity_of(popen.pid)
        assert me is not None
        # The number of our dead root went to a stranger, who leads a session of that number.
        old = Target(run="r1", root=type(me)(pid=popen.pid, birth=me.birth + "0"))
        end([old], grace_s=0)
        assert me.alive
        assert marked(PLACE) == {Target(run="other")}


def test_waiting_for_the_end_of_a_child_and_of_an_adopted_one(tmp_path: Path) -> None:
    async def wait(identity: object, popen: subprocess.Popen[bytes] | None) -> int | None:
        return await asyncio.wait_for(wait_for_end(identity, popen), 5)  # type: ignore[arg-type]

    with started("import sys, time; time.sleep(0.3); sys.exit(3)", tmp_path / "a") as popen:
        assert asyncio.run(wait(identity_of(popen.pid), popen)) == 3
    with started("import time; time.sleep(0.2)", tmp_path / "b") as popen:
        assert asyncio.run(wait(identity_of(popen.pid), None)) is None


def test_outputs_go_to_the_log_and_the_environment_on_top(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    code = "import os, sys; print(os.environ['TINY'], os.getcwd()); print('err', file=sys.stderr)"
    argv = [sys.executable, "-c", code]
    assert spawn(argv, mark="r x", log=log, env={"TINY": "1"}, cwd=str(tmp_path)).wait() == 0
    assert sorted(log.read_text().splitlines()) == ["1 " + str(tmp_path), "before", "err"]


@pytest.mark.parametrize(
    ("argv", "cwd", "words", "hint"),
    [
        (["no-such-engine"], None, "cannot start no-such-engine: No such file", "install it"),
        (["/etc/passwd"], None, "Permission denied", None),
        (["true"], "/no/such/place", "no such directory", "make the directory"),
    ],
)
def test_what_cannot_be_started(tmp_path: Path, argv: list[str], cwd: str | None, words: str, hint: str) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        spawn(argv, mark="r x", log=tmp_path / "log", env={}, cwd=cwd)
    assert hint is None or hint in str(caught.value.hint)


def test_free_ports() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert not set(free_ports(5, avoid=ports)) & set(ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        assert not port_is_free(ports[0])
    assert port_is_free(ports[0])
    with pytest.raises(LaunchError, match="no port can be had"):
        free_ports(1, host="203.0.113.1")


def test_the_digest_tells_what_a_process_is_started_with() -> None:
    one = Process(name="a", argv=("x", "y z"), env={"A": "1", "B": "2"})
    assert digest_of([one]) == digest_of([Process(name="a", argv=("x", "y z"), env={"B": "2", "A": "1"})])
    others = [
        Process(name="a", argv=("x", "y", "z"), env=one.env),
        Process(name="a", argv=one.argv),
        Process(name="a", argv=one.argv, env=one.env, once_up=(("z",),)),
    ]
    assert len({digest_of([one]), *(digest_of([other]) for other in others)}) == 4


def test_files_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.json"
    write_files({str(path): "{}"})
    path.chmod(0o400)
    before = path.stat().st_mtime_ns
    write_files({str(path): "{}"})
    assert (path.read_text(), path.stat().st_mtime_ns) == ("{}", before)
    path.chmod(0o644)
    write_files({str(path): "{}"})
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("{}", 0o640), "for owner and group alone"
    with pytest.raises(LaunchError, match="cannot write"):
        write_files({str(path / "below"): ""})


def test_a_log_per_run_and_the_oldest_go(tmp_path: Path) -> None:
    def log(keep: int = 3) -> Path:
        return new_log(tmp_path, deployment="org/d", replica="..", process="engine", keep=keep)

    paths = [log() for _ in range(5)]
    assert len(set(paths)) == 5
    assert run_logs(paths[0].parent, "engine") == paths[2:]
    assert tmp_path in paths[0].resolve().parents
    assert log().name == "engine-0006.log"
    tmp_path.joinpath("file").touch()
    with pytest.raises(LaunchError, match="no log can be written"):
        new_log(tmp_path / "file", deployment="d", replica="r", process="p", keep=1)


def test_a_long_log_is_put_aside_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "engine-0001.log"
    watch = LogWatch(log, ignore=["/health"])
    with log.open("ab", buffering=0) as engine:
        engine.write(b"loading\n" * 10)
        assert not put_aside(log, limit_bytes=100)
        assert watch.grew()
        engine.write(b"GET /health 200\n")
        assert not watch.grew(), "the echo of our own asking is no sign of life"
        assert put_aside(log, limit_bytes=50)
        engine.write(b"on\n")
        assert watch.grew()
    assert read_lines(log) == ("on",)
    assert len(read_lines(tmp_path / "engine-0001.log.old")) == 11


def test_last_words() -> None:
    lines = ["loading", "ValueError: no tensors", "", "cleaning up"]
    assert last_words(lines) == ("ValueError: no tensors",)
    assert last_words(["a", "", "b "], count=1) == ("b",)
    assert last_words([]) == ()


@pytest.mark.parametrize(
    ("returncode", "oom", "stopped", "words"),
    [
        (1, False, False, "exit code 1"),
        (0, True, False, "exit code 0"),
        (-9, False, False, "killed from outside"),
        (-9, True, False, "want of memory"),
        (1, True, False, "want of memory"),
        (-6, True, False, "SIGABRT"),
        (-9, True, True, "stopped by plimsoll"),
        (None, False, False, "its exit code went to"),
    ],
)
def test_endings_in_words(returncode: int | None, oom: bool, stopped: bool, words: str) -> None:
    ending = ending_of(returncode, oom=oom, stopped=stopped)
    assert words in ending.words
    assert (ending.hint is not None) == ("memory" in words)
    assert isinstance(ending, Ending)


@contextmanager
def tight_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup of its own below ours, version 2 or 1; the kernel's killer really comes."""
    two = Path("/sys/fs/cgroup")
    one = two / "memory"
    base, name = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = base / f"plimsoll-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("making a cgroup takes root")
    try:
        try:
            group.joinpath(name).write_text(str(limit_bytes))
        except OSError:
            pytest.skip("this cgroup has no memory controller")
        yield group
    finally:
        deadline = time.monotonic() + 2
        while group.joinpath("cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        group.rmdir()


def test_the_oom_killer_is_recognised(tmp_path: Path) -> None:
    hog = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\nx = [b'x' * (i + 2**20) for i in range(99)]"
    with tight_cgroup(48 << 20) as group:
        watch = OomWatch()
        argv = [sys.executable, "-c", hog, str(group / "cgroup.procs")]
        (tmp_path / "log").touch()
        code = spawn(argv, mark="r x", log=tmp_path / "log", env={}, cwd=None).wait()
        watch.look()
        assert code == -signal.SIGKILL
        assert ending_of(code, oom=watch.recent, stopped=False).oom_killed
