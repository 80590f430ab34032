"""Plimsoll's gateway beside other routers: same upstream, same load, one run after the other on the same machine.

    python benchmarks/gateway.py --vllm-router VENV --sglang-router VENV --litellm VENV --out gateway.json

The upstream and the load generator are one small C program (gateway_load.c, built with cc), so that the gateway is what
is measured: it gets the first core to itself, the two others share the second. CPU is the gateway's own, read from
the kernel over the measured time, with its children. Every gateway gets the same requests on as many connections.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

HERE = pathlib.Path(__file__).parent
KEY = "sk-benchmark-1f0c7d0a9b3e4c52"
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Load:
    """One pattern of requests."""

    name: str
    connections: int
    body: dict[str, object]
    rate: float = 0.0


def _chat(content: str, **fields: object) -> dict[str, object]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], "max_tokens": 64, **fields}


LOADS = (
    Load("short requests", 32, _chat("What is the Plimsoll line?")),
    Load("57 KB prompts", 32, _chat("word foo bar ! " * 3800)),
    Load("64 streams", 64, _chat("What is the Plimsoll line?", stream=True)),
    Load("100 requests/s", 8, _chat("What is the Plimsoll line?"), rate=100.0),
)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_core(core: int) -> dict[str, object]:
    """Popen arguments that pin a process to a core, where there is a second one."""
    count = os.cpu_count() or 1
    return {"preexec_fn": lambda: os.sched_setaffinity(0, {core % count})}


@contextlib.contextmanager
def running(
    argv: list[str], port: int, log: pathlib.Path, core: int, env: dict[str, str] | None = None
) -> Iterator[int]:
    """A server, from the moment when it answers /v1/models or /health until the block ends; yields its pid."""
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **(env or {})}, **on_core(core))  # type: ignore[call-overload]
    try:
        for _ in range(600):
            try:
                probe = urllib.request.Request(
                    f"http://127.0.0.1:{port}{PATH}", data=json.dumps(_chat("ready?")).encode(),
                    headers={"authorization": f"Bearer {KEY}", "content-type": "application/json"},
                )  # fmt: skip
                with urllib.request.urlopen(probe, timeout=5) as got:
                    if got.status == 200:
                        break
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit(f"{argv[0]} ended: {log.read_text()[-2000:]}")
        else:
            raise SystemExit(f"{argv[0]} does not answer: {log.read_text()[-2000:]}")
        yield process.pid
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def rss_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    root = psutil.Process(pid)
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 2**20


def measure(
    program: str, port: int, load: Load, seconds: float, pid: int | None, scratch: pathlib.Path
) -> dict[str, float]:
    """One load on one address."""
    body = scratch / "body.json"
    body.write_text(json.dumps(load.body, separators=(",", ":")))

    def once(for_s: float) -> dict[str, float]:
        argv = [program, "load", str(port), PATH, str(body), str(load.connections), str(for_s), str(load.rate), KEY]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, **on_core(1))  # type: ignore[call-overload]
        return dict(json.loads(done.stdout))

    once(min(1.0, seconds))
    before = cpu_s(pid) if pid else 0.0
    got = once(seconds)
    if pid:
        used = cpu_s(pid) - before
        got["cpu_s_per_1k_requests"] = 1000 * used / max(got["requests"], 1)
        if got["events"]:
            got["cpu_s_per_1k_chunks"] = 1000 * used / got["events"]
        got["rss_mib"] = rss_mib(pid)
    got["per_s"] = got["requests"] / got["seconds"]
    got["chunks_per_s"] = got["events"] / got["seconds"]
    return got


def gateways(options: argparse.Namespace, upstream: int, scratch: pathlib.Path) -> Iterator[tuple[str, list[str], int]]:
    """Name, command and port of every gateway that is there."""
    port = free_port()
    yield "plimsoll", [sys.executable, __file__, "--serve", str(port), str(upstream)], port
    url = f"http://127.0.0.1:{upstream}"
    if options.vllm_router:
        port = free_port()
        argv = [f"{options.vllm_router}/bin/vllm-router", "--host", "127.0.0.1", "--port", str(port)]
        yield "vllm-router", [*argv, "--worker-urls", url, "--prometheus-port", str(free_port())], port
    if options.sglang_router:
        port = free_port()
        argv = [f"{options.sglang_router}/bin/sglang-router", "launch", "--host", "127.0.0.1", "--port", str(port)]
        yield "sglang-router", [*argv, "--worker-urls", url, "--prometheus-port", str(free_port())], port
    if options.litellm:
        port = free_port()
        config = scratch / "litellm.yaml"
        config.write_text(
            "model_list:\n  - model_name: fake\n    litellm_params:\n"
            f"      model: openai/fake\n      api_base: {url}/v1\n      api_key: none\n"
        )
        argv = [f"{options.litellm}/bin/litellm", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        yield "LiteLLM", argv, port


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": platform.python_version(), "cpu": _cpu_model(), "cores": str(os.cpu_count())}
    for package, venv in (
        ("vllm-router", options.vllm_router), ("sglang-router", options.sglang_router), ("litellm", options.litellm)
    ):  # fmt: skip
        if venv:
            code = f"import importlib.metadata as m; print(m.version('{package}'))"
            got = subprocess.run([f"{venv}/bin/python", "-c", code], capture_output=True, text=True, check=True)
            found[package] = got.stdout.strip()
    return found


def _cpu_model() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-router", metavar="VENV")
    parser.add_argument("--sglang-router", metavar="VENV")
    parser.add_argument("--litellm", metavar="VENV")
    parser.add_argument("--seconds", type=float, default=5.0, help="per load and gateway")
    parser.add_argument("--chunks", type=int, default=200, help="events of a stream, one every 10 ms")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--serve", nargs="+", type=int, metavar="PORT", help="be the gateway: its port, then engines'")
    parser.add_argument("--open", action="store_true", help="with --serve: ask for no key")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], options.serve[1:], keys=() if options.open else (KEY,))
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        program = str(scratch / "gateway_load")
        subprocess.run(["cc", "-O2", "-o", program, str(HERE / "gateway_load.c")], check=True)
        upstream = free_port()
        results: dict[str, dict[str, dict[str, float]]] = {}
        argv = [program, "serve", str(upstream), str(options.chunks), "10000"]
        with running(argv, upstream, scratch / "upstream.log", 1):
            results["direct"] = {
                load.name: measure(program, upstream, load, options.seconds, None, scratch) for load in LOADS
            }
            for name, command, port in gateways(options, upstream, scratch):
                with running(
                    command, port, scratch / f"{name}.log", 0, {"HOME": folder, "LITELLM_MASTER_KEY": KEY}
                ) as pid:
                    results[name] = {
                        load.name: measure(program, port, load, options.seconds, pid, scratch) for load in LOADS
                    }
                show(name, results)
        found = {"versions": versions(options), "load_average": os.getloadavg(), "results": results}
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["versions"]), "load average at the end", found["load_average"])


def show(name: str, results: dict[str, dict[str, dict[str, float]]]) -> None:
    """One gateway's lines, with the ratio to direct."""
    for load in LOADS:
        got, direct = results[name][load.name], results["direct"][load.name]
        line = f"{name:14} {load.name:15} {got['per_s']:9.0f} req/s ({got['per_s'] / direct['per_s']:.3f} of direct)"
        line += f"  cpu {got['cpu_s_per_1k_requests']:.4f} s/1k req"
        if "cpu_s_per_1k_chunks" in got:
            line += f"  {got['chunks_per_s']:.0f} chunks/s, cpu {got['cpu_s_per_1k_chunks']:.4f} s/1k"
        added50, added99 = got["p50_ms"] - direct["p50_ms"], got["p99_ms"] - direct["p99_ms"]
        line += (
            f"  added p50 {added50:.2f} p99 {added99:.2f} ms  rss {got['rss_mib']:.0f} MiB  errors {got['errors']:.0f}"
        )
        print(line, flush=True)


def serve(port: int, engines: list[int], *, keys: tuple[str, ...]) -> None:
    """Plimsoll's gateway in this process: keys with limits, usage on disk, an access log, metrics."""
    import uvloop

    from plimsoll.gateway.access_log import AccessLog
    from plimsoll.gateway.accounts import Accounts
    from plimsoll.gateway.keys import ApiKey, KeyRing, digest
    from plimsoll.gateway.server import Gateway
    from plimsoll.gateway.store import Store
    from plimsoll.gateway.table import RouteTable, Upstream

    async def forever() -> None:
        folder = pathlib.Path(tempfile.mkdtemp())
        accounts = Accounts(Store(folder / "gateway.db"))
        front = Gateway(observe=accounts.note)
        front.observers.append(AccessLog(folder / "access.jsonl").note)
        await accounts.start(front)
        if keys:
            limits = {"requests_per_min": 10**9, "tokens_per_min": 10**12, "concurrency": 10**6}
            known = [ApiKey(name="bench", digest=digest(key.encode()), **limits) for key in keys]
            front.use_keys(KeyRing(known, now_s=asyncio.get_running_loop().time(), unix_s=time.time()))
        await front.start("127.0.0.1", port)
        replicas = [Upstream(name=f"fake-{at}", host="127.0.0.1", port=at, concurrency=4096) for at in engines]
        front.update(RouteTable(models={"fake": tuple(replicas)}))
        await asyncio.Event().wait()

    uvloop.run(forever())


if __name__ == "__main__":
    main()
