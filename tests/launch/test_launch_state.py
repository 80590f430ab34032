"""The state file: what goes in comes out, one owner per deployment, and one clear error for every way it can fail."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from plimsoll.errors import LaunchError
from plimsoll.launch.identity import Identity, identity_of, own_identity
from plimsoll.launch.state import MIGRATIONS, DeploymentRow, Observation, ProcessRow, State

ROW = DeploymentRow(id="d", name="harbour", spec="models: []", plan="{}", gateway="127.0.0.1:8000", created=5.0)
RUN = ProcessRow(
    run="r1", deployment="d", replica="tiny-0", process="engine", argv=("a", "b c"), rendered="x", ports=(1, 2),
    log_path="/log", started=1.5,
)  # fmt: skip
SEEN = Observation(
    run="r1", engine="fake", engine_version="1", device="cpu", model="m", quantity="kv_tokens", planned=None,
    actual=7.0, created=2.0,
)  # fmt: skip


def test_what_goes_in_comes_out_of_another_connection(tmp_path: Path) -> None:
    with State(tmp_path) as state, State(tmp_path) as other:
        state.save_deployment(ROW)
        state.set_replica("d", "tiny-0", state="ready", reason="")
        state.save_process(RUN)
        state.save_process(replace(RUN, pid=12, birth="b/1", pgid=12))
        state.save_process(replace(RUN, run="r2"))
        state.end_process("r2", cause="died", signal=9)
        state.add_observations([SEEN, replace(SEEN, quantity="load_s"), SEEN])
        state.add_bench_run("b1", '{"a": 1}')
        assert other.deployments() == (ROW,)
        assert [(row.name, row.state) for row in other.replicas("d")] == [("tiny-0", "ready")]
        assert other.processes("d", running=True) == (replace(RUN, pid=12, birth="b/1", pgid=12),)
        ended = other.processes("d")[1]
        assert (ended.cause, ended.signal, ended.exit_code) == ("died", 9, None)
        assert {row.quantity for row in other.observations(run="r1", engine="fake")} == {"kv_tokens", "load_s"}
        assert other.observations(run="r2") == ()
        assert [(row[0], row[2]) for row in other.bench_runs()] == [("b1", '{"a": 1}')]
    assert tmp_path.joinpath("state.db").is_file()


def test_the_first_word_on_an_end_stands(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.save_process(RUN)
        state.end_process("r1", cause="died", exit_code=1)
        state.end_process("r1", cause="stopped")
        assert state.processes("d")[0].cause == "died"


def test_one_living_plimsoll_owns_a_deployment(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        state.save_deployment(ROW)
        me = own_identity()
        parent = identity_of(os.getppid())
        assert parent is not None
        state.claim("d", Identity(pid=me.pid, birth="another boot/1"))
        state.claim("d", me)
        state.claim("d", me)
        with pytest.raises(LaunchError, match=f"harbour is already run by the plimsoll with pid {me.pid}"):
            state.claim("d", parent)
        state.save_deployment(replace(ROW, plan="new"))
        assert state.deployments()[0].supervisor == me
        state.set_deployment("d", "stopped")
        state.claim("d", parent)
        with pytest.raises(LaunchError, match="no deployment e"):
            state.claim("e", me)


def damaged(directory: Path) -> None:
    directory.joinpath("state.db").write_text("not a database at all, " * 50)


def newer(directory: Path) -> None:
    with sqlite3.connect(directory / "state.db") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()


def a_file_in_its_place(directory: Path) -> None:
    directory.rmdir()
    directory.write_text("")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(damaged, "not a database"), (newer, "newer Plimsoll"), (a_file_in_its_place, "cannot be used")],
)
def test_a_spoilt_file_is_one_clear_error(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    spoil(directory)
    with pytest.raises(LaunchError, match=words) as caught:
        State(directory)
    assert caught.value.hint


def test_a_locked_file_is_one_clear_error(tmp_path: Path) -> None:
    with State(tmp_path, busy_s=0.05) as state:
        holder = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LaunchError, match="locked"):
            state.save_deployment(ROW)
        assert state.deployments() == (), "reading goes on"
        holder.close()
        state.save_deployment(ROW)


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path]).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, State(disk) as state:
        state.save_deployment(ROW)
        with pytest.raises(LaunchError, match="full") as caught:
            state.save_deployment(replace(ROW, id="e", plan="x" * (1 << 20)))
        assert "disk space" in str(caught.value.hint)
        assert state.deployments() == (ROW,), "what was written before is still there"


def test_a_read_only_directory_is_one_clear_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(LaunchError, match="cannot be used") as caught:
            State(disk / "state")
        assert "writable" in str(caught.value.hint)


def test_a_file_size_limit_is_one_clear_error(tmp_path: Path) -> None:
    """The full disk of those who are not root."""
    program = (
        "import sys; from pathlib import Path; from plimsoll.launch.state import *; import resource, signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); state = State(Path(sys.argv[1]));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18));"
        "state.save_deployment(DeploymentRow(id='e', name='e', plan='x' * (1 << 20)))"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert "LaunchError: the state directory" in done.stderr


def test_a_number_that_was_given_away_is_another_process() -> None:
    me = own_identity()
    assert me.alive
    assert not Identity(pid=me.pid, birth=me.birth + "0").alive
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity_of(child.pid) is None, "a zombie does not run"
    child.wait()
    assert identity_of(child.pid) is None
