"""Holds the load generator against a server of known pacing, and beside other generators without pacing.

    python benchmarks/loadgen.py accuracy
    python benchmarks/loadgen.py speed --vllm ~/venvs/vllm --guidellm ~/venvs/guidellm --aiperf ~/venvs/aiperf

Server and generator each have a core of their own (the first two that this process may use). Goals: TTFT error at most
1 ms in the mean and 5 ms at the 99th percentile, ITL error at most 0.5 %; at least twice the best peer's requests/s.
Request rates are counted by the server, over the middle 80 % of the answers, so no tool's start-up is in them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from plimsoll.bench.client import Client
from plimsoll.bench.load import Dialect, Load, encode, request_for
from plimsoll.bench.run import Run, closed_loop
from plimsoll.bench.stats import quantiles
from plimsoll.bench.summary import summarise
from plimsoll.bench.sweep import sweep
from plimsoll.bench.target import Target

PORT = 18500
URL = f"http://127.0.0.1:{PORT}"
SERVER = Path(__file__).with_name("paced_server.py")
CORES = sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def server(ttft_ms: float, itl_ms: float) -> Iterator[None]:
    """The paced server on the first core."""
    argv = ["taskset", "-c", str(CORES[0]), sys.executable, str(SERVER), "--port", str(PORT)]
    process = subprocess.Popen([*argv, "--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms)])
    try:
        for _ in range(50):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                stats()
                break
        yield
    finally:
        process.kill()
        process.wait()


def stats() -> dict[str, Any]:
    """What the server saw since the last time it was asked."""
    with urllib.request.urlopen(f"{URL}/stats", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def rate(ends_s: list[float]) -> float:
    """Answers per second over the middle 80 %."""
    ends_s.sort()
    low, high = len(ends_s) // 10, len(ends_s) * 9 // 10
    return (high - low) / (ends_s[high] - ends_s[low])


def measure(concurrency: int, requests: int, tokens: int) -> dict[str, float]:
    """Unpaced: one level of a sweep in this process."""
    load = Load(requests=requests, output_tokens=tokens, prompt_tokens=64)
    [level] = uvloop.run(sweep(Target(url=URL, model="paced"), [concurrency], load=load))
    return {"requests_per_s": rate(stats()["ends_s"]), "cpu_share": level.run.generator.cpu_share}


def watch(concurrency: int, requests: int, tokens: int) -> dict[str, float]:
    """Paced: what the generator saw, what it should have seen, in this process."""

    async def main() -> Run:
        client = Client(Target(url=URL, model="paced"))
        load, dialect = Load(), Dialect(model="paced")
        body = encode(load, dialect, "word " * 64, output_tokens=tokens)
        work = itertools.repeat(request_for(load, body, keep_text=True))
        run = await closed_loop(client, work, concurrency=concurrency, requests=requests)
        await client.close()
        return run

    run = uvloop.run(main())
    s = summarise(run, concurrency=concurrency)
    written_s = [[float(text.split()[0]) for text in (row.text or "").split("@")[1:]] for row in run.rows]
    errors_s = quantiles(row.arrivals_s[0] - first for row, (first, _) in zip(run.rows, written_s, strict=True))
    true_itl_s = sum(last - first for first, last in written_s) / (tokens - 1) / len(written_s)
    return {
        "ttft_mean_ms": s.ttft_s.mean * 1e3,
        "ttft_p99_ms": s.ttft_s.p99 * 1e3,
        "itl_mean_ms": s.itl_s.mean * 1e3,
        "ttft_error_mean_ms": errors_s.mean * 1e3,
        "ttft_error_p99_ms": errors_s.p99 * 1e3,
        "itl_error": s.itl_s.mean / true_itl_s - 1,
        "requests_per_s": s.requests_per_s,
        "peak_streams": stats()["peak_streams"],
        "cpu_share": run.generator.cpu_share,
    }


def ours(what: str, *arguments: object) -> dict[str, float]:
    """`measure` or `watch` in a fresh process on the last core."""
    argv = ["taskset", "-c", str(CORES[-1]), sys.executable, __file__, what, *map(str, arguments)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def accuracy() -> None:
    """The paced table."""
    print(
        "TTFT 100 ms, ITL 20 ms. Error: what was seen less when the server wrote it, on one clock; what is left between"
    )
    print("the mean seen and 100 ms is the server's own lateness. Streams move in lockstep, which is the worst case.")
    print("   c  TTFT seen: mean   p99  error: mean   p99 ms  ITL seen   error   req/s  streams  CPU")
    with server(100, 20):
        for concurrency in (1, 32, 256):
            m = ours("watch", concurrency, max(150, 4 * concurrency), 5 if concurrency == 1 else 50)
            good = m["ttft_error_mean_ms"] <= 1 and m["ttft_error_p99_ms"] <= 5 and abs(m["itl_error"]) <= 0.005
            print(
                f"{concurrency:4d}  {m['ttft_mean_ms']:15.2f} {m['ttft_p99_ms']:6.2f}  {m['ttft_error_mean_ms']:11.2f}"
                f"  {m['ttft_error_p99_ms']:7.2f}  {m['itl_mean_ms']:8.3f}  {m['itl_error']:+.2%}"
                f"  {m['requests_per_s']:6.1f}  {m['peak_streams']:7.0f}  {m['cpu_share']:4.0%}"
                f"  {'within' if good else 'OUTSIDE'} the goal"
            )


def peer_commands(
    venvs: dict[str, Path], tokenizer: Path | None, concurrency: int, requests: int, tokens: int, work: Path
) -> dict[str, list[str]]:
    """The other generators' command lines, for those with a venv."""
    commands = {
        "vllm": f"vllm bench serve --backend openai-chat --base-url {URL} --endpoint /v1/chat/completions --model paced"
        f" --tokenizer {tokenizer} --dataset-name random --random-input-len 64 --random-output-len {tokens}"
        f" --num-prompts {requests} --max-concurrency {concurrency} --ready-check-timeout-sec 0",
        "guidellm": f"guidellm run --backend kind=openai_http,target={URL},model=paced"
        f" --profile kind=concurrent,streams={concurrency} --constraint kind=max_requests,count={requests}"
        f" --tokenizer kind=hf_auto,model={tokenizer} --disable-console"
        f" --data kind=synthetic_text,prompt_tokens=64,output_tokens={tokens}"
        f" --output kind=json,path={work}/guidellm.json",
        "aiperf": f"aiperf profile --model paced --url {URL} --endpoint-type chat --streaming --tokenizer {tokenizer}"
        f" --concurrency {concurrency} --request-count {requests} --synthetic-input-tokens-mean 64"
        f" --output-tokens-mean {tokens} --ui none --artifact-dir {work}/aiperf",
    }
    return {name: [f"{venvs[name]}/bin/{argv[0]}", *argv[1:]] for name in venvs if (argv := commands[name].split())}


def speed(venvs: dict[str, Path], tokenizer: Path | None, *, concurrency: int, requests: int, tokens: int) -> None:
    """The unpaced table."""
    print(f"no pacing, {concurrency} streams, {tokens} tokens in as many chunks; requests/s as the server counted them")
    rates = {}
    with server(0, 0), tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        rates["plimsoll"] = ours("measure", concurrency, requests, tokens)["requests_per_s"]
        for name, argv in peer_commands(venvs, tokenizer, concurrency, max(requests // 4, 500), tokens, work).items():
            stats()
            # AIPerf takes a tokenizer's folder for a repository's name when told to stay offline.
            offline = {} if name == "aiperf" else {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
            environment = os.environ | offline | {"NO_COLOR": "1"}
            pinned = ["taskset", "-c", str(CORES[-1]), *argv]
            done = subprocess.run(pinned, env=environment, cwd=work, capture_output=True, text=True)
            ends_s = stats()["ends_s"]
            if done.returncode or len(ends_s) < 100:
                print(f"{name}: did not run: {(done.stderr or done.stdout).strip()[-1500:]}")
                continue
            rates[name] = rate(ends_s)
    for name, found in rates.items():
        print(f"{name:10s} {found:8.0f} requests/s")
    peers = [found for name, found in rates.items() if name != "plimsoll"]
    if peers:
        print(f"plimsoll against the best of them: {rates['plimsoll'] / max(peers):.2f} times")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("accuracy", "speed", "measure", "watch"))
    parser.add_argument("numbers", nargs="*", type=int, help="for measure and watch: concurrency requests tokens")
    for name in ("vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", type=Path, help="its virtual environment")
    parser.add_argument("--tokenizer", type=Path, help="folder of a Hugging Face tokenizer, for the others")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=16)
    o = parser.parse_args()
    if o.what in ("measure", "watch"):
        print(json.dumps((measure if o.what == "measure" else watch)(*o.numbers)))
    elif o.what == "accuracy":
        accuracy()
    else:
        venvs = {name: getattr(o, name) for name in ("vllm", "guidellm", "aiperf") if getattr(o, name)}
        speed(venvs, o.tokenizer, concurrency=o.concurrency, requests=o.requests, tokens=o.tokens)


if __name__ == "__main__":
    main()
