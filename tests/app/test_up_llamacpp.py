"""The main road with the real engine: llama.cpp and the built-in model."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from user_shell import Shell

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

REQUESTS, AT_ONCE = 1000, 16


@pytest.fixture
def up(shell: Shell, smollm2: Path) -> dict[str, Any]:
    """The built-in model's file, served with 16 slots of a short context."""
    words = ("--context", "1024", "--concurrency", str(AT_ONCE), "--port", "0", "--detach", "--no-bench")
    shell.ok("up", str(smollm2), *words)
    return shell.only()


def test_plan_holds_against_what_the_engine_reports(up: dict[str, Any]) -> None:
    reported = {one["quantity"]: (one["planned"], one["actual"]) for one in up["observations"]}

    assert {"weights_bytes", "kv_cache_bytes", "compute_bytes", "kv_tokens", "context_tokens"} <= set(reported)
    for quantity, (planned, actual) in reported.items():
        if planned is not None:
            assert planned == pytest.approx(actual, rel=0.03), quantity


def test_a_thousand_requests_with_clients_that_leave(up: dict[str, Any]) -> None:
    seen = asyncio.run(_crowd(up["address"], up["models"][0]))

    assert seen["answered"] + seen["left"] == REQUESTS, seen
    assert seen["left"] > REQUESTS / 5, "the test is about clients that leave"
    process = up["replicas"][0]["processes"][0]
    slots = f"http://127.0.0.1:{process['port']}/slots"
    deadline = time.monotonic() + 10
    while busy := [slot["id"] for slot in httpx.get(slots).json() if slot["is_processing"]]:
        assert time.monotonic() < deadline, f"slots still busy: {busy}"
        time.sleep(0.1)
    metrics = httpx.get(f"{up['address']}/metrics").text
    for name in ("plimsoll_requests_running", "plimsoll_requests_waiting"):
        values = [line.rsplit(" ", 1)[1] for line in metrics.splitlines() if line.startswith(name + "{")]
        assert values, name
        assert {float(value) for value in values} == {0.0}, name


def test_engine_killed_mid_stream_says_so_and_comes_back(shell: Shell, up: dict[str, Any]) -> None:
    pid = up["replicas"][0]["processes"][0]["pid"]
    threading.Timer(1.0, lambda: os.kill(pid, signal.SIGKILL)).start()
    body = {"model": up["models"][0], "prompt": "Once upon a time", "max_tokens": 900, "stream": True}
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{up['address']}/v1/completions", json={**body, "ignore_eos": True})

    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert any("error" in json.loads(event) for event in events if event != "[DONE]"), events[-2:]
    deadline = time.monotonic() + 30
    while shell.run("chat", "--max-tokens", "4", "hi").returncode:
        assert time.monotonic() < deadline, "the engine did not come back"
    assert shell.only()["replicas"][0]["processes"][0]["pid"] != pid
    assert not psutil.pid_exists(pid)


async def _crowd(address: str, model: str) -> dict[str, int]:
    """Send all requests, AT_ONCE in flight; every second client leaves at a random moment."""
    host, port = address.removeprefix("http://").split(":")
    chance = random.Random(7)
    seen = {"answered": 0, "left": 0, "wrong": 0}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        patience = chance.uniform(0, 0.6) if number % 2 else 60.0
        body = json.dumps({"model": model, "prompt": f"{number}: go", "max_tokens": 6, "stream": number % 4 < 2})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        async with gate:
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
                answer = await asyncio.wait_for(reader.read(), patience)
                whole = answer.startswith(b"HTTP/1.1 200") and b'"error"' not in answer
                seen["answered" if whole else "wrong"] += 1
            except TimeoutError:
                seen["left"] += 1
            finally:
                writer.transport.abort()

    await asyncio.gather(*(one(number) for number in range(REQUESTS)))
    return seen
