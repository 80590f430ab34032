"""The fleet, on real processes of the fake engine: they come up, are kept up, are given up, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from launch_kit import ENGINE, QUICK, make_replica, running_fleet, until, view
from test_launch_state import small_disk

from plimsoll.engines.protocol import Engine, Observed, Ports, Process, Ready
from plimsoll.errors import LaunchError
from plimsoll.facts.engine import EngineFacts
from plimsoll.launch.group import Traffic
from plimsoll.launch.identity import identity_of
from plimsoll.launch.logs import read_lines
from plimsoll.launch.process import marked, place_of
from plimsoll.launch.state import DeploymentRow, State
from plimsoll.launch.supervisor import Fleet, Snapshot
from plimsoll.launch.transition import Policy
from plimsoll.plan.types import Replica


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        # The loop that the service runs on.
        uvloop.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


@dataclass
class Altered:
    """The fake engine with its processes altered by a function."""

    alter: Callable[[Process, Ports], Sequence[Process]]
    calls: int = 0
    facts: EngineFacts = field(default=ENGINE.facts)

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        self.calls += 1
        return tuple(self.alter(ENGINE.processes(replica, ports)[0], ports))

    def read_log(self, lines: Iterable[str]) -> Observed:
        return ENGINE.read_log(lines)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        return ENGINE.metrics(exposition)


def altered(alter: Callable[[Process, Ports], Sequence[Process]]) -> Engine:
    return Altered(alter)


@in_loop
async def test_it_comes_up_and_says_so(tmp_path: Path) -> None:
    seen: list[Snapshot] = []
    async with running_fleet(tmp_path, make_replica(), make_replica("tiny-1"), on_change=seen.append) as fleet:
        await fleet.wait_ready()
        ready = view(fleet)
        assert (ready.phase, ready.reason, ready.restarts, ready.model) == ("ready", "", 0, "tiny")
        assert ready.start_s is not None
        assert 0 < ready.start_s < 5
        with socket.create_connection((ready.host, ready.port or 0)):
            pass
        assert ready.port != view(fleet, "tiny-1").port
        assert "report" in "".join(read_lines(Path(ready.logs[0])))
        with State(tmp_path) as state:
            assert state.deployments()[0].state == "running"
            (weights,) = [row for row in state.observations() if row.quantity == "weights_bytes"][:1]
            assert (weights.planned, weights.actual) == (98_000_000, 98_362_432)
    phases = [snapshot[0].phase for snapshot in seen]
    assert [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before] == [
        "starting", "ready", "stopping", "stopped",
    ]  # fmt: skip


@in_loop
async def test_what_cannot_start_is_an_error_at_once_with_its_last_words(tmp_path: Path) -> None:
    bad = make_replica(fail_at_start="tensor data is truncated")

    def diagnose(lines: Sequence[str]) -> tuple[str, str] | None:
        return ("the file is cut short", "fetch it again") if "truncated" in lines[-1] else None

    async with running_fleet(tmp_path, bad, make_replica("tiny-1"), diagnose=diagnose) as fleet:
        with pytest.raises(LaunchError) as caught:
            await fleet.wait_ready()
        assert str(caught.value).startswith("tiny-0: the file is cut short (the engine ended by itself with exit code")
        assert caught.value.hint == "fetch it again"
        assert caught.value.log == ("fake-engine error: tensor data is truncated",)
        assert caught.value.source == view(fleet).logs[0]
        assert (view(fleet).phase, view(fleet).restarts) == ("failed", 0)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda one, ports: [replace(one, argv=("no-such-engine",))], "cannot start no-such-engine"),
        (lambda one, ports: [replace(one, setup=(("false",),))], "false ended with exit code 1"),
        (lambda one, ports: [replace(one, after=("nobody",))], "engine wait for processes that there are not"),
        (lambda one, ports: [replace(one, node=1)], "engine belongs on another host"),
        (lambda one, ports: [replace(one, files={"/proc/none": ""})], "cannot write /proc/none"),
        (
            lambda one, ports: [replace(one, ready=replace(one.ready, probe_body={"model": "other", "prompt": "a"}))],
            "/v1/completions answers 404: .*does not exist",
        ),
    ],
    ids=["no program", "setup fails", "nobody to wait for", "another host", "file", "probe refused"],
)
@in_loop
async def test_what_the_plan_got_wrong_is_an_error_at_once(tmp_path: Path, alter: Any, words: str) -> None:
    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(alter))
        with pytest.raises(LaunchError, match=words):
            await fleet.wait_ready()


@in_loop
async def test_a_killed_engine_comes_back_and_both_logs_are_kept(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica()) as fleet:
        await fleet.wait_ready()
        before = view(fleet)
        os.kill(before.pids[0], signal.SIGKILL)
        await until(lambda: view(fleet).phase == "backoff")
        assert "killed from outside (SIGKILL" in view(fleet).reason
        assert view(fleet).port is None
        assert await until(lambda: view(fleet).phase == "ready") < 3
        after = view(fleet)
        assert after.restarts == 1
        assert (before.pids, before.port) != (after.pids, after.port)
        assert all("report" in Path(log).read_text() for log in (*before.logs, *after.logs))
        with State(tmp_path) as state:
            assert [(row.signal, row.ended is None) for row in state.processes("d")] == [(9, False), (None, True)]


@in_loop
async def test_it_is_given_up_after_the_limit(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica()) as fleet:
        await fleet.wait_ready()
        for _ in range(QUICK.restarts + 1):
            await until(lambda: view(fleet).phase == "ready")
            os.kill(view(fleet).pids[0], signal.SIGKILL)
            await until(lambda: view(fleet).phase != "ready")
        await until(lambda: view(fleet).phase == "failed")
        assert "it failed 3 times in 600 s and is given up" in view(fleet).reason


@in_loop
async def test_an_engine_whose_health_lies_is_caught(tmp_path: Path) -> None:
    waiting = {"tiny-0": Traffic(outstanding=2, silent_s=0.0)}
    # The first request is the one that makes it ready.
    async with running_fleet(tmp_path, make_replica(hang_after=1), traffic=waiting.get) as fleet:
        await fleet.wait_ready()
        await asyncio.sleep(5 * QUICK.look_every_s)
        assert view(fleet).phase == "ready", "tokens flow: nothing is asked"
        waiting["tiny-0"] = Traffic(outstanding=2, silent_s=1.0)
        assert await until(lambda: view(fleet).phase == "backoff") < 2
        assert "it hangs: no token and no processor time" in view(fleet).reason
        assert "2 requests wait" in view(fleet).reason


@in_loop
async def test_silence_at_hard_work_is_borne_but_not_for_ever(tmp_path: Path) -> None:
    policy = replace(QUICK, stall_limit_s=0.7)
    beside = ("sh", "-c", 'while :; do :; done & exec "$@"', "sh")
    busy = altered(lambda one, ports: [replace(one, argv=(*beside, *one.argv))])
    silent = Traffic(outstanding=1, silent_s=9.0)
    async with running_fleet(tmp_path, policy=policy, traffic=lambda name: silent) as fleet:
        await fleet.add(make_replica(hang_after=1), busy)
        await fleet.wait_ready()
        assert await until(lambda: view(fleet).phase == "backoff") > 0.7
        assert "it hangs: busy, but without a token" in view(fleet).reason


@in_loop
async def test_a_dead_worker_takes_the_group_down_and_up_again(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica(workers=2)) as fleet:
        await fleet.wait_ready()
        head = view(fleet).pids[0]
        workers = psutil.Process(head).children()
        workers[0].kill()
        assert await until(lambda: view(fleet).phase == "backoff") < 3
        assert f"its worker process {workers[0].pid} is gone and it answers nothing" in view(fleet).reason
        await until(lambda: view(fleet).phase == "ready")
        assert identity_of(head) is None
        assert identity_of(workers[1].pid) is None


@in_loop
async def test_an_engine_that_only_fails_is_restarted(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica(fail_after_requests=1)) as fleet:
        await fleet.wait_ready()
        fleet.suspect("tiny-0")
        await until(lambda: view(fleet).phase == "backoff")
        assert "it answers 500 to a request for one token" in view(fleet).reason


@in_loop
async def test_a_suspicion_that_was_wrong_changes_nothing(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica()) as fleet:
        await fleet.wait_ready()
        pids = view(fleet).pids
        fleet.suspect("tiny-0")
        fleet.suspect("nobody")
        log = Path(view(fleet).logs[0])
        await until(lambda: log.read_text().count("POST /v1/completions status=200") == 2)
        assert (view(fleet).phase, view(fleet).pids) == ("ready", pids)


@in_loop
async def test_a_hang_is_told_from_a_slow_start(tmp_path: Path) -> None:
    patience = Ready(health_path="/health", timeout_s=0.4)
    engine = altered(lambda one, ports: [replace(one, ready=patience)])
    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica("slow", load_seconds=1), engine)
        await fleet.wait_ready()
        assert view(fleet, "slow").phase == "ready", "a line every 0.1 s is a sign of life"
        await fleet.add(make_replica("dead", load_seconds=60, silent_load=True), engine)
        began = time.monotonic()
        with pytest.raises(LaunchError, match="dead: it hangs while starting: no log line, processor time or I/O"):
            await fleet.wait_ready()
        assert (took := time.monotonic() - began) < 4, took


@in_loop
async def test_a_start_that_never_ends_has_a_limit(tmp_path: Path) -> None:
    policy = replace(QUICK, start_limit_s=0.5)
    async with running_fleet(tmp_path, make_replica(load_seconds=60), policy=policy) as fleet:
        with pytest.raises(LaunchError, match="it was not ready within"):
            await fleet.wait_ready()


@in_loop
async def test_a_port_that_another_program_took_is_exchanged(tmp_path: Path) -> None:
    thieves: list[socket.socket] = []

    def steal(one: Process, ports: Ports) -> Sequence[Process]:
        if not thieves:
            thieves.append(socket.create_server((ports.host, ports.serve)))
        return [one]

    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(steal))
        await fleet.wait_ready()
        assert view(fleet).restarts == 1
        assert view(fleet).port != thieves[0].getsockname()[1]
        thieves[0].close()


@in_loop
async def test_stopping_does_not_wait_for_the_deaf_nor_for_a_start(tmp_path: Path) -> None:
    policy = Policy(grace_s=1.0)
    async with running_fleet(tmp_path, make_replica(workers=2), make_replica("tiny-1"), policy=policy) as fleet:
        await fleet.wait_ready()
        await fleet.add(make_replica("tiny-2", load_seconds=60), ENGINE)
        await until(lambda: view(fleet, "tiny-2").pids)
        await fleet.stop()
        assert {item.phase for item in fleet.snapshot()} == {"stopped"}


@in_loop
async def test_replicas_come_and_go_while_others_serve(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, make_replica()) as fleet:
        await fleet.wait_ready()
        await fleet.add(make_replica("tiny-1"), ENGINE)
        with pytest.raises(LaunchError, match="already"):
            await fleet.add(make_replica("tiny-1"), ENGINE)
        await fleet.wait_ready()
        await fleet.remove("tiny-0")
        assert [(item.name, item.phase) for item in fleet.snapshot()] == [("tiny-1", "ready")]


@in_loop
async def test_a_replica_of_several_processes_starts_in_order_and_falls_as_one(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    note = "import sys, time; open(sys.argv[1], 'a').write(sys.argv[2] + open(sys.argv[3]).read()); time.sleep(60)"

    def three(one: Process, ports: Ports) -> Sequence[Process]:
        files = {str(tmp_path / "config"): f"{ports.extra[0]} "}
        helper = Process(
            name="helper", argv=(sys.executable, "-c", note, str(trace), "helper ", str(tmp_path / "config"))
        )
        late = replace(one, after=("helper",), setup=(("sh", "-c", f"sleep 0.2; echo setup >> {trace}"),))
        return [late, replace(helper, files=files)]

    async with running_fleet(tmp_path / "state") as fleet:
        await fleet.add(make_replica(), altered(three))
        await fleet.wait_ready()
        assert trace.read_text().split()[::2] == ["helper", "setup"]
        helper, engine = view(fleet).pids
        os.kill(helper, signal.SIGTERM)
        await until(lambda: view(fleet).phase == "backoff")
        assert view(fleet).reason.startswith("its process helper died of SIGTERM")
        await until(lambda: view(fleet).phase == "ready")
        assert identity_of(engine) is None


@in_loop
async def test_a_disk_that_fills_or_turns_read_only_costs_the_records_not_the_service(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, State(disk) as state:
        state.save_deployment(DeploymentRow(id="d", name="d"))
        fleet = Fleet(state=state, deployment="d", replicas=[(make_replica(), ENGINE)], policy=QUICK)
        await fleet.start()
        await fleet.wait_ready()
        try:
            with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
                while True:
                    filler.write(b"x" * 4096)
            os.kill(view(fleet).pids[0], signal.SIGKILL)
            await until(lambda: view(fleet).phase == "backoff")
            await until(lambda: view(fleet).phase == "ready")
        finally:
            await fleet.stop()
        assert not marked(place_of(disk, "d")), "what the records do not hold is found by its mark"


@in_loop
async def test_a_state_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path) -> None:
    with State(tmp_path) as state:
        fleet = Fleet(state=state, deployment="unknown", replicas=[(make_replica(), ENGINE)])
        with pytest.raises(LaunchError, match="no deployment unknown"):
            await fleet.start()
        assert view(fleet).phase == "planned"


@in_loop
async def test_a_bug_in_an_adapter_is_not_a_replica_that_starts_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(one: Process, ports: Ports) -> Sequence[Process]:
        raise KeyError("bug")

    with State(tmp_path) as state:
        state.save_deployment(DeploymentRow(id="d", name="d"))
        fleet = Fleet(state=state, deployment="d", replicas=[(make_replica(), altered(broken))])
        await fleet.start()
        with pytest.raises(KeyError, match="bug"):
            await fleet.wait_ready()
        assert "owner of tiny-0 died" in caplog.text


def test_a_program_that_fails_takes_its_engines_with_it(tmp_path: Path) -> None:
    async def fails() -> None:
        with State(tmp_path) as state:
            state.save_deployment(DeploymentRow(id="d", name="d"))
            fleet = Fleet(state=state, deployment="d", replicas=[(make_replica(workers=1), ENGINE)], policy=QUICK)
            await fleet.start()
            await fleet.wait_ready()
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fails())
    assert not marked(place_of(tmp_path, "d"))
