"""The main road with the fake engine: up, use, break, recover, down - each step as a user would do it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
from user_shell import FakeSpec, Shell


def _wait(condition: Callable[[], Any], *, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def _engine_pid(shell: Shell) -> int:
    return int(shell.only()["replicas"][0]["processes"][0]["pid"])


def _service_pid(shell: Shell) -> int:
    (pid,) = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "plimsoll.app.service" in (line := process.info["cmdline"] or []) and str(shell.home / "state") in line
    ]
    return pid


def _alive(pid: int) -> bool:
    """A zombie that nobody collects is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stream(address: str, **body: Any) -> tuple[int, str]:
    with httpx.Client(trust_env=False, timeout=30) as client:
        answer = client.post(
            f"{address}/v1/completions", json={"model": "demo", "prompt": "go", "stream": True, **body}
        )
        return answer.status_code, answer.text


def test_detached_up_serves_until_down(shell: Shell, fake_spec: FakeSpec) -> None:
    said = shell.ok("up", fake_spec("--ttft", "0.01", "--tpot", "0.001"), "--detach")

    assert "tokens/s" in said
    assert "curl http://127.0.0.1:" in said
    one = shell.only()
    assert (one["name"], one["state"], one["models"]) == ("demo", "running", ["demo"])
    assert shell.ok("chat", "hello").strip()
    assert one["address"] in shell.ok("status")
    assert shell.ok("logs").strip()
    assert "already up" in shell.run("up", fake_spec()).stderr

    assert shell.ok("down") == "demo is down\n"
    assert shell.json("ps") == []
    assert shell.ok("logs").strip(), "logs outlive the deployment"
    assert shell.run("chat", "hello").returncode == 6


def test_ctrl_c_stops_everything_it_started(shell: Shell, fake_spec: FakeSpec) -> None:
    up = shell.start("up", fake_spec(), "--no-bench")
    assert up.stdout
    for line in up.stdout:
        if "Ctrl-C" in line:
            break
    engine = _engine_pid(shell)

    up.send_signal(signal.SIGINT)
    began = time.monotonic()
    up.communicate(timeout=10)

    assert up.returncode == 0
    assert time.monotonic() - began < 5
    assert not _alive(engine)
    assert shell.json("ps") == []


def test_foreground_killed_stops_the_rest(shell: Shell, fake_spec: FakeSpec) -> None:
    up = shell.start("up", fake_spec(), "--no-bench")
    assert up.stdout
    for line in up.stdout:
        if "Ctrl-C" in line:
            break

    up.kill()
    up.communicate()

    _wait(lambda: shell.json("ps") == [])


def test_json_is_one_document(shell: Shell, fake_spec: FakeSpec) -> None:
    document = json.loads(shell.ok("up", fake_spec("--ttft", "0.01", "--tpot", "0.001"), "--detach", "--json"))

    assert [level["concurrency"] for level in document["measured"]] == [1, 2, 4, 8, 16]
    assert document["address"] == document["deployment"]["address"]
    assert document["plan"]["replicas"][0]["candidate"]["sequences"] == 4
    assert document["first_answer"]["text"]


def test_engine_killed_mid_stream_comes_back(shell: Shell, fake_spec: FakeSpec) -> None:
    shell.ok("up", fake_spec("--tpot", "0.05"), "--detach", "--no-bench")
    one = shell.only()
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {_engine_pid(shell)}"])

    _, text = _stream(one["address"], max_tokens=200)

    killer.wait()
    assert '"error"' in text.rsplit("data:", 2)[-2] or '"error"' in text.rsplit("data:", 1)[-1]
    _wait(lambda: shell.only()["replicas"][0]["state"] == "ready" and shell.run("chat", "hi").returncode == 0)
    logs = list((shell.home / "state" / "logs").glob("*/demo-1/*.log"))
    assert len(logs) == 2, "the first run's log is kept"


def test_killed_plimsoll_is_told_adopted_and_cleaned(shell: Shell, fake_spec: FakeSpec) -> None:
    spec = fake_spec()
    shell.ok("up", spec, "--detach", "--no-bench")
    engine = _engine_pid(shell)
    os.kill(_service_pid(shell), signal.SIGKILL)
    _wait(lambda: shell.only()["state"] == "orphaned")

    shell.ok("up", spec, "--detach", "--no-bench")
    assert _engine_pid(shell) == engine, "the engine that ran on was taken over"
    assert shell.ok("chat", "hi").strip()

    os.kill(_service_pid(shell), signal.SIGKILL)
    _wait(lambda: shell.only()["state"] == "orphaned")
    shell.ok("down")
    assert not _alive(engine)
    assert shell.json("ps") == []


def test_render_is_what_up_starts(shell: Shell, fake_spec: FakeSpec) -> None:
    spec = fake_spec("--tpot", "0.002")
    (rendered,) = json.loads(shell.ok("render", spec, "--json"))
    shell.ok("up", spec, "--detach", "--no-bench")

    (process,) = shell.only()["replicas"][0]["processes"]
    ran = psutil.Process(process["pid"]).cmdline()
    assert [word for word in ran if word != str(process["port"])] == [
        word for word in rendered["argv"] if word != "8100"
    ]
    assert "--tpot" in shell.ok("render", spec)


def test_dry_run_starts_nothing(shell: Shell, fake_spec: FakeSpec) -> None:
    assert "demo" in shell.ok("up", fake_spec(), "--dry-run")
    assert shell.json("ps") == []


def test_an_engine_that_hangs_behind_a_healthy_route_is_started_anew(shell: Shell, fake_spec: FakeSpec) -> None:
    # The readiness probe and `up`'s own first request are the first two.
    shell.ok("up", fake_spec("--hang-after", "2"), "--detach", "--no-bench")
    one, before = shell.only(), _engine_pid(shell)

    with contextlib.suppress(httpx.HTTPError):
        _stream(one["address"], max_tokens=4)

    _wait(lambda: shell.only()["replicas"][0]["state"] == "ready" and _engine_pid(shell) != before, seconds=20)
