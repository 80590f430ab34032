"""What an adapter may ask of launch beyond a command line: commands once it is up, other ports, files, names."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from launch_kit import ENGINE, make_replica, running_fleet, until, view
from test_fleet import altered, in_loop

from plimsoll.engines.protocol import Ports, Process
from plimsoll.errors import LaunchError
from plimsoll.launch.files import directory_of
from plimsoll.launch.observe import planned
from plimsoll.launch.process import interface_of
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger

ASK = "import sys, urllib.request as r; open(sys.argv[2], 'a').write(f'{r.urlopen(sys.argv[1]).status} ')"
RELAY = (
    # Health on a port of its own, as a management port has it.
    "import http.server, subprocess, sys\n"
    "class Health(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.send_header('content-length', '0'); self.end_headers()\n"
    "engine = subprocess.Popen(sys.argv[2:])\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Health).serve_forever()"
)


@in_loop
async def test_commands_run_in_order_between_health_and_probe(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def wishes(one: Process, ports: Ports) -> Sequence[Process]:
        health = f"http://{ports.host}:{ports.serve}/health"
        note = ("sh", "-c", f'printf "$WISH" >> {trace}')
        return [replace(one, env={"WISH": "then "}, once_up=((sys.executable, "-c", ASK, health, str(trace)), note))]

    async with running_fleet(tmp_path / "state") as fleet:
        await fleet.add(make_replica(), altered(wishes))
        await fleet.wait_ready()
        assert trace.read_text() == "200 then "
        log = Path(view(fleet).logs[0]).read_text()
        assert log.count("POST /v1/completions") == 1
        os.kill(view(fleet).pids[0], signal.SIGKILL)
        await until(lambda: view(fleet).restarts == 1 and view(fleet).phase == "ready")
        assert trace.read_text() == "200 then " * 2, "every start has them"


@in_loop
async def test_a_command_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    refusal = ("sh", "-c", "echo 'Error: unknown parameter'; exit 3")
    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(lambda one, ports: [replace(one, once_up=(refusal,))]))
        with pytest.raises(LaunchError, match="ended with exit code 3; its log ends: Error: unknown parameter"):
            await fleet.wait_ready()


@in_loop
async def test_an_engine_that_dies_takes_its_commands_with_it(tmp_path: Path) -> None:
    waits = (("sh", "-c", "echo waits; sleep 60"),)
    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(lambda one, ports: [replace(one, once_up=waits)]))
        await until(lambda: view(fleet).logs and "waits" in Path(view(fleet).logs[0]).read_text())
        os.kill(view(fleet).pids[0], signal.SIGKILL)
        with pytest.raises(LaunchError, match="killed from outside"):
            await fleet.wait_ready()


@in_loop
async def test_a_silent_command_may_take_long_while_it_works(tmp_path: Path) -> None:
    patience, works = 0.4, "import time; end = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass"

    def patient(one: Process, ports: Ports) -> Sequence[Process]:
        command = (sys.executable, "-S", "-c", works)
        return [replace(one, once_up=(command,), ready=replace(one.ready, timeout_s=patience))]

    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(patient))
        await fleet.wait_ready()
        assert (view(fleet).start_s or 0) > 2 * patience


@in_loop
async def test_health_is_asked_on_its_own_port(tmp_path: Path) -> None:
    def managed(one: Process, ports: Ports) -> Sequence[Process]:
        management = ports.extra[0]
        ready = replace(one.ready, health_path="/managed", health_port=management)
        return [replace(one, argv=(sys.executable, "-c", RELAY, str(management), *one.argv), ready=ready)]

    async with running_fleet(tmp_path) as fleet:
        await fleet.add(make_replica(), altered(managed))
        await fleet.wait_ready()
        # Both this one's log and the engine's own show what was asked.
        log = Path(view(fleet).logs[0])
        await until(lambda: log.read_text().count("GET /managed") >= 3)
        assert "GET /health" not in log.read_text()
        assert (view(fleet).phase, log.read_text().count("POST /v1/completions")) == ("ready", 1)


@in_loop
async def test_a_replica_has_a_directory_of_its_own_until_it_is_stopped(tmp_path: Path) -> None:
    seen: list[Ports] = []

    def filed(one: Process, ports: Ports) -> Sequence[Process]:
        seen.append(ports)
        return [replace(one, files={f"{ports.directory}/config.json": str(ports.serve)}, served_name="other")]

    def modes() -> list[str]:
        directory = Path(seen[-1].directory)
        return [stat.filemode(path.stat().st_mode) for path in (directory, directory / "config.json")]

    async with running_fleet(tmp_path, addresses=("127.0.0.1", "10.0.0.2")) as fleet:
        await fleet.add(make_replica(), altered(filed))
        await fleet.wait_ready()
        directory = Path(seen[0].directory)
        assert (directory, view(fleet).served_name) == (directory_of(tmp_path, "d", "tiny-0"), "other")
        assert (seen[0].addresses, seen[0].interface) == (("127.0.0.1", "10.0.0.2"), interface_of("127.0.0.1"))
        assert modes() == ["drwx------", "-rw-r-----"]
        os.kill(view(fleet).pids[0], signal.SIGKILL)
        await until(lambda: view(fleet).restarts == 1 and view(fleet).phase == "ready")
        assert (directory / "config.json").read_text() == str(seen[-1].serve), "the new ports are in it"
        assert len(seen[-1].extra) >= 3
        await fleet.add(make_replica("tiny-1"), ENGINE)
        await fleet.wait_ready()
        assert view(fleet, "tiny-1").served_name is None
        await fleet.remove("tiny-0")
        assert [path.name for path in directory.parent.iterdir()] == ["tiny-1"]
    assert not list(directory.parent.iterdir())


def test_what_was_planned_of_the_quantities_of_newer_logs() -> None:
    entries = tuple(
        Entry(name=name, bytes=size, basis="derived", source="test") for name, size in (("overhead", 5), ("weights", 7))
    )
    one = DeviceLedger(device="cpu", total_bytes=99, limit_bytes=99, entries=entries)
    replica = replace(make_replica(), ledger=Ledger(devices=(one,), kv_tokens=1, max_concurrency=2.5))
    assert (planned(replica, "max_concurrency"), planned(replica, "non_torch_bytes")) == (2.5, 5)
    assert planned(make_replica(), "max_concurrency") is None
