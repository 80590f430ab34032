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

from plimsoll.bench.load import Load
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
    """One level by our generator, in this process, on the last core."""
    import uvloop

    load = Load(requests=requests, output_tokens=tokens, prompt_tokens=64)
    [level] = uvloop.run(sweep(Target(url=URL, model="paced"), [concurrency], load=load))
    s = level.summary
    late = stats()
    first_late = late["first_late_s"] or [0.0]
    # One clock for both processes: mean read minus mean send is how long requests lay unread in the server's socket.
    read_s, sent_s = late["read_s"][-len(level.run.rows) :], [row.sent_s for row in level.run.rows]
    unread_s = sum(read_s) / len(read_s) - sum(sent_s) / len(sent_s)
    return {
        "ttft_mean_ms": s.ttft_s.mean * 1e3,
        "ttft_p99_ms": s.ttft_s.p99 * 1e3,
        "itl_mean_ms": s.itl_s.mean * 1e3,
        "tpot_mean_ms": s.tpot_s.mean * 1e3,
        "server_late_mean_ms": (sum(first_late) / len(first_late) + unread_s) * 1e3,
        "requests_per_s": s.requests_per_s,
        "server_requests_per_s": rate(late["ends_s"]) if len(late["ends_s"]) > 20 else 0.0,
        "peak_streams": late["peak_streams"],
        "mean_in_flight": s.concurrency,
        "cpu_share": level.run.generator.cpu_share,
        "failed": s.failed,
        "valid": s.valid,
    }


def ours(*arguments: object) -> dict[str, float]:
    """`measure` in a fresh process on the last core."""
    argv = ["taskset", "-c", str(CORES[-1]), sys.executable, __file__, "measure", *map(str, arguments)]
    out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def accuracy() -> None:
    """The paced table."""
    print("true TTFT 100 ms, ITL 20 ms; all streams of equal length, so that they move in lockstep (the worst case)")
    print("   c  TTFT mean   p99 ms   ITL mean ms  error   server late ms  req/s  streams  CPU   verdict")
    with server(100, 20):
        for concurrency in (1, 32, 256):
            m = ours(concurrency, max(60, 4 * concurrency), 10 if concurrency == 1 else 50)
            itl_error = m["itl_mean_ms"] / 20 - 1
            good = abs(m["ttft_mean_ms"] - 100) <= 1 and m["ttft_p99_ms"] - 100 <= 5 and abs(itl_error) <= 0.005
            print(
                f"{concurrency:4d}  {m['ttft_mean_ms']:9.2f}  {m['ttft_p99_ms']:7.2f}  {m['itl_mean_ms']:12.3f}"
                f"  {itl_error:+.2%}  {m['server_late_mean_ms']:13.2f}  {m['requests_per_s']:6.1f}"
                f"  {m['peak_streams']:6.0f}  {m['cpu_share']:4.0%}  {'within' if good else 'OUTSIDE'} the goal"
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
        m = ours(concurrency, requests, tokens)
        rates["plimsoll"] = m["server_requests_per_s"]
        for name, argv in peer_commands(venvs, tokenizer, concurrency, max(requests // 4, 500), tokens, work).items():
            stats()
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1"}
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
    parser.add_argument("what", choices=("accuracy", "speed", "measure"))
    parser.add_argument("numbers", nargs="*", type=int, help="for measure: concurrency requests tokens")
    for name in ("vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", type=Path, help="its virtual environment")
    parser.add_argument("--tokenizer", type=Path, help="folder of a Hugging Face tokenizer, for the others")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=16)
    o = parser.parse_args()
    if o.what == "measure":
        print(json.dumps(measure(*o.numbers)))
    elif o.what == "accuracy":
        accuracy()
    else:
        venvs = {name: getattr(o, name) for name in ("vllm", "guidellm", "aiperf") if getattr(o, name)}
        speed(venvs, o.tokenizer, concurrency=o.concurrency, requests=o.requests, tokens=o.tokens)


if __name__ == "__main__":
    main()
