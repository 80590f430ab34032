"""Plimsoll's gateway under steady load while a replica is killed again and again.

    python benchmarks/gateway_soak.py --seconds 600 --every 20

Three fake engines (gateway_load.c), one of them killed with SIGKILL every so often and started again two seconds later.
Every request must be answered, or fail with a clear error: an error body, or an error event at the end of its stream.
Anything else (a cut connection, a stream that just ends, no answer) is counted as silent and fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import psutil

from gateway import HERE, free_port

CHUNKS, GAP_US = 50, 10_000


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stream: bool) -> str:
    """One request on an open connection, and how it ended."""
    body = json.dumps({"model": "fake", "messages": [], "stream": stream}, separators=(",", ":")).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    if b"content-length" in head:
        answer = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
    else:
        answer = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    if b"connection: close" in head or (stream and b'"error"' in answer):
        writer.close()
    if status != 200:
        return f"{status} with its reason" if json.loads(answer)["error"]["message"] else "silent"
    if not stream:
        return "answered"
    if answer.endswith(b"data: [DONE]\n\n"):
        return "streamed to its end"
    return "stream with an error event" if b'data: {"error"' in answer else "silent"


async def user(port: int, until_s: float, ends: collections.Counter[str], pause_s: float) -> None:
    """One client: asks, waits a little, asks again."""
    reader = writer = None
    while time.monotonic() < until_s:
        if writer is None or writer.is_closing():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(30):
                ends[await ask(reader, writer, stream=random.random() < 0.5)] += 1
        except (OSError, EOFError, TimeoutError) as error:
            ends[f"silent: {type(error).__name__}"] += 1
            writer.close()
        await asyncio.sleep(pause_s * random.random())
    if writer is not None:
        writer.close()


async def kill_and_restart(start: list[list[str]], running: list[subprocess.Popen[bytes]], every_s: float) -> None:
    """A replica dies every `every_s` seconds, and is back two seconds later."""
    turn = 0
    while True:
        await asyncio.sleep(every_s)
        running[turn].kill()
        running[turn].wait()
        await asyncio.sleep(2)
        running[turn] = subprocess.Popen(start[turn])
        turn = (turn + 1) % len(start)


async def soak(options: argparse.Namespace, program: str) -> bool:
    """Run it, print what was counted, and say whether nothing was silent."""
    ports = [free_port() for _ in range(3)]
    start = [[program, "serve", str(port), str(CHUNKS), str(GAP_US)] for port in ports]
    running = [subprocess.Popen(argv) for argv in start]
    port = free_port()
    front = subprocess.Popen(
        [sys.executable, str(HERE / "gateway.py"), "--serve", str(port), *map(str, ports), "--open"]
    )
    ends: collections.Counter[str] = collections.Counter()
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            await asyncio.sleep(0.1)
        killer = asyncio.ensure_future(kill_and_restart(start, running, options.every))
        process = psutil.Process(front.pid)
        began = process.memory_info().rss
        until_s = time.monotonic() + options.seconds
        await asyncio.gather(*(user(port, until_s, ends, options.pause) for _ in range(options.users)))
        killer.cancel()
        rss = process.memory_info().rss
    finally:
        for each in (front, *running):
            each.kill()
            each.wait()
    total = sum(ends.values())
    for end, count in ends.most_common():
        print(f"{count:9d}  {100 * count / total:7.3f} %  {end}")
    kills = int(options.seconds / (options.every + 2))
    print(f"{total} requests, {kills} kills, rss {began / 2**20:.0f} -> {rss / 2**20:.0f} MiB")
    return not any(end.startswith("silent") for end in ends)


def main() -> None:
    """Exit code 1 when anything ended silently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between kills")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.05, help="longest pause of a user between requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = str(pathlib.Path(folder) / "gateway_load")
        subprocess.run(["cc", "-O2", "-o", program, str(HERE / "gateway_load.c")], check=True)
        sys.exit(0 if asyncio.run(soak(options, program)) else 1)


if __name__ == "__main__":
    main()
