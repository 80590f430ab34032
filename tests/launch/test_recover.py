"""When plimsoll itself dies: what it left is told truthfully, taken over, or cleaned down."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import launch_kit
import pytest
from launch_kit import ENGINE, QUICK, make_replica, running_fleet, until, view
from test_fleet import in_loop

from plimsoll.errors import LaunchError
from plimsoll.launch.files import directory_of
from plimsoll.launch.identity import identity_of
from plimsoll.launch.process import marked, place_of
from plimsoll.launch.recover import left_behind, list_running, stop_all
from plimsoll.launch.state import State
from plimsoll.launch.supervisor import Fleet


@contextmanager
def other_plimsoll(directory: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A plimsoll in a process of its own, with a fleet that is ready."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    command = [sys.executable, launch_kit.__file__, str(directory), *pairs]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        with State(directory) as state:
            stop_all(state, "d", grace_s=0.2)
        assert not marked(place_of(directory, "d"))


def engine_pid(directory: Path) -> int:
    with State(directory) as state:
        (row,) = state.processes("d", running=True)
    assert row.pid is not None
    return row.pid


def test_the_truth_about_a_killed_plimsoll_and_down(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path, workers=1) as plimsoll, State(tmp_path) as state:
        (running,) = list_running(state)
        assert (running.truth, running.replicas[0].state) == ("running", "ready")
        assert left_behind(state) == ()
        plimsoll.kill()
        plimsoll.wait()
        (running,) = list_running(state)
        assert (running.truth, running.replicas[0].state) == ("orphaned", "orphaned")
        assert [row.pid for row in running.replicas[0].alive] == [engine_pid(tmp_path)]
        assert left_behind(state) == (running.deployment,)
        head = engine_pid(tmp_path)
        os.kill(head, signal.SIGKILL)
        while identity_of(head):
            time.sleep(0.01)
        (running,) = list_running(state)
        assert (running.truth, running.replicas[0].alive) == ("orphaned", ()), "its deaf worker lives on"
        assert running.replicas[0].last[0].pid == head
        assert directory_of(tmp_path, "d", "tiny-0").is_dir()
        stop_all(state, "d", grace_s=0.2)
        assert not directory_of(tmp_path, "d").exists()
        assert list_running(state) == ()
        assert state.processes("d", running=True) == ()
        assert not marked(place_of(tmp_path, "d"))


def test_all_dead_is_gone(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll, State(tmp_path) as state:
        plimsoll.kill()
        plimsoll.wait()
        os.kill(engine_pid(tmp_path), signal.SIGKILL)
        deadline = time.monotonic() + 5
        # A process that is being torn down has lost its mark before its number.
        while [running.truth for running in list_running(state)] != ["gone"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_down_asks_a_living_plimsoll_to_stop(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll, State(tmp_path) as state:
        stop_all(state, "d")
        # Its own assertions, that nothing is left among them, speak through its exit code.
        assert plimsoll.wait(5) == 0
        assert list_running(state) == ()
        with pytest.raises(LaunchError, match="no deployment e"):
            stop_all(state, "e")


def test_down_does_not_wait_for_ever_for_a_plimsoll_that_hangs(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll, State(tmp_path) as state:
        plimsoll.send_signal(signal.SIGSTOP)
        stop_all(state, "d", wait_s=0.3, grace_s=0.2)
        assert plimsoll.wait(5) == -signal.SIGKILL
        assert list_running(state) == ()


def test_an_engine_that_was_never_recorded_is_found(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll, State(tmp_path) as state:
        plimsoll.kill()
        plimsoll.wait()
        pid = engine_pid(tmp_path)
        state.end_process(state.processes("d")[0].run, cause="the record is wrong")
        assert [running.truth for running in list_running(state)] == ["orphaned"]
        stop_all(state, "d", grace_s=0.2)
        assert identity_of(pid) is None


@in_loop
async def test_the_next_plimsoll_takes_the_engine_over_and_keeps_it_up(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll:
        with State(tmp_path) as state:
            refused = Fleet(state=state, deployment="d", replicas=[(make_replica(), ENGINE)])
            with pytest.raises(LaunchError, match=f"already run by the plimsoll with pid {plimsoll.pid}"):
                await refused.start()
            await refused.stop()
            assert list_running(state)[0].truth == "running", "who was refused leaves the owner alone"
        plimsoll.kill()
        plimsoll.wait()
        pid = engine_pid(tmp_path)
        async with running_fleet(tmp_path, make_replica(), make_replica("tiny-1"), adopt=True) as fleet:
            await fleet.wait_ready()
            assert view(fleet).pids == (pid,)
            assert (view(fleet).restarts, view(fleet).start_s) == (0, None)
            os.kill(pid, signal.SIGKILL)
            await until(lambda: view(fleet).phase == "backoff")
            assert "its exit code went to the plimsoll that had started it" in view(fleet).reason
            await until(lambda: view(fleet).phase == "ready")


@in_loop
async def test_what_does_not_fit_the_plan_is_ended_not_taken_over(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll:
        plimsoll.kill()
        plimsoll.wait()
        pid = engine_pid(tmp_path)
        async with running_fleet(tmp_path, make_replica(slots=2), adopt=True) as fleet:
            assert identity_of(pid) is None
            await fleet.wait_ready()
        with State(tmp_path) as state:
            assert state.processes("d")[0].cause == "ended at the next start: plimsoll had died"


@in_loop
async def test_one_that_hung_while_nobody_watched_is_started_anew(tmp_path: Path) -> None:
    with other_plimsoll(tmp_path) as plimsoll:
        plimsoll.kill()
        plimsoll.wait()
        pid = engine_pid(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        policy = replace(QUICK, probe_timeout_s=0.2)
        async with running_fleet(tmp_path, make_replica(), policy=policy, adopt=True) as fleet:
            await asyncio.wait_for(fleet.wait_ready(), 5)
            assert view(fleet).restarts == 1
            assert identity_of(pid) is None
