"""Transfers and conversions beside what people use today; ratios in one run, one after the other, medians.

    python -m benchmarks.weights download --hub-python VENV/bin/python [--delay-ms 20 --loss-percent 1]
    python -m benchmarks.weights convert --torch-python VENV/bin/python [--gib 5]

`download` needs aria2c and curl on the PATH and a Python with huggingface_hub; with --delay-ms also root and a C
compiler (slow_line.c between two network namespaces, so that no other traffic is slowed). The server's congestion
control is cubic, the kernel's default, unless --congestion names another. `convert` needs a Python with torch and
safetensors; --cold drops the page cache before each run and needs root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
COMMIT = "c" * 40
MODEL = "bench/model"
PORT = 8765


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    download = commands.add_parser("download")
    download.add_argument("--hub-python", required=True)
    download.add_argument("--delay-ms", type=float, default=0.0)
    download.add_argument("--loss-percent", type=float, default=0.0)
    download.add_argument("--congestion", default="cubic")
    download.add_argument("--mib", type=int, default=512, help="of each of the two large files")
    download.add_argument("--runs", type=int, default=5)
    convert = commands.add_parser("convert")
    convert.add_argument("--torch-python", required=True)
    convert.add_argument("--gib", type=float, default=5.0)
    convert.add_argument("--runs", type=int, default=3)
    convert.add_argument("--cold", action="store_true")
    serve = commands.add_parser("serve", help="the hub of the benchmark (started by download)")
    serve.add_argument("folder", type=Path)
    serve.add_argument("host")
    serve.add_argument("congestion")
    options = parser.parse_args()
    {"download": run_download, "convert": run_convert, "serve": run_serve}[options.command](options)


def measure(command: list[str], *, environ: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MiB of a command that must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **(environ or {})}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed ({process.returncode})")
    return took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def report(title: str, rows: dict[str, list[tuple[float, float, float]]], base: str, total_bytes: int) -> None:
    """A table with the median of each and its ratio to `base`."""
    print(
        f"\n{title}; {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )
    print("\n| what | s | MB/s | CPU s | peak MiB | time to that of " + base + " |\n|---|---|---|---|---|---|")
    reference = statistics.median(took for took, _, _ in rows[base])
    for name, runs in rows.items():
        took, cpu, peak = (statistics.median(column) for column in zip(*runs, strict=True))
        spread = f"{min(run[0] for run in runs):.2f} to {max(run[0] for run in runs):.2f}"
        print(
            f"| {name} | {took:.2f} ({spread}) | {total_bytes / took / 1e6:.0f} | {cpu:.2f} | {peak:.0f} |"
            f" {took / reference:.2f} |"
        )


def run_download(options: argparse.Namespace) -> None:
    """Each tool in turn fetches the same model from the same hub into an empty folder."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as root:
        folder = Path(root)
        files = {f"model-0000{n}-of-00002.safetensors": options.mib * MIB for n in (1, 2)}
        files |= {f"extra_{number}.json": 20_000 for number in range(10)}
        digests = {}
        for name, size in files.items():
            piece = os.urandom(min(size, MIB))
            with (folder / name).open("wb") as file:
                for _ in range(max(1, size // MIB)):
                    file.write(piece)
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        (folder / "digests.json").write_text(json.dumps(digests))
        total = sum((folder / name).stat().st_size for name in files)
        with network(options.delay_ms, options.loss_percent) as (host, inside):
            server = subprocess.Popen([sys.executable, __file__, "serve", str(folder), host, options.congestion])
            try:
                url = f"http://{host}:{PORT}"
                wait_for(url, inside)
                out = folder / "out"
                candidates = {
                    "Plimsoll": plimsoll_fetch(url, out),
                    "huggingface_hub": hub_fetch(options.hub_python, url, out),
                    "aria2c -x 8": aria_fetch(url, out, digests),
                    "curl": curl_fetch(url, out, digests),
                }
                rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
                for _ in range(options.runs):
                    for name, (command, environ) in candidates.items():
                        shutil.rmtree(out, ignore_errors=True)
                        out.mkdir()
                        rows[name].append(measure([*inside, *command], environ=environ))
            finally:
                server.terminate()
                server.wait()
        line = f"a line of {options.delay_ms:g} ms, {options.loss_percent:g} % loss" if options.delay_ms else "loopback"
        report(f"Download of {total / 1e6:.0f} MB over {line}", rows, "huggingface_hub", total)


@contextmanager
def network(delay_ms: float, loss_percent: float) -> Iterator[tuple[str, list[str]]]:
    """The server's address and what to put before a client's command."""
    if not delay_ms and not loss_percent:
        yield "127.0.0.1", []
        return

    def run(*command: str) -> None:
        subprocess.run(command, check=True)

    inside = ["ip", "netns", "exec", "plimsoll-bench"]
    with tempfile.TemporaryDirectory() as folder:
        line = f"{folder}/slow_line"
        run("cc", "-O2", str(Path(__file__).with_name("slow_line.c")), "-o", line)
        run("ip", "netns", "add", "plimsoll-bench")
        try:
            with subprocess.Popen(
                [line, "pbA", "pbB", str(delay_ms), str(loss_percent)], stdout=subprocess.PIPE
            ) as process:
                if process.stdout is None or process.stdout.readline() != b"ready\n":
                    raise SystemExit("slow_line does not start")
                run("ip", "link", "set", "pbB", "netns", "plimsoll-bench")
                run("ip", "addr", "add", "10.231.0.1", "peer", "10.231.0.2", "dev", "pbA")
                run("ip", "link", "set", "pbA", "up")
                run(*inside, "ip", "addr", "add", "10.231.0.2", "peer", "10.231.0.1", "dev", "pbB")
                run(*inside, "ip", "link", "set", "pbB", "up")
                try:
                    yield "10.231.0.1", inside
                finally:
                    process.terminate()
        finally:
            run("ip", "netns", "del", "plimsoll-bench")


def wait_for(url: str, inside: list[str]) -> None:
    """Until the hub answers."""
    for _ in range(100):
        if subprocess.run([*inside, "curl", "-sf", "-o", "/dev/null", f"{url}/ready"], check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise SystemExit("the benchmark's hub does not answer")


Candidate = tuple[list[str], dict[str, str]]


def plimsoll_fetch(url: str, out: Path) -> Candidate:
    """Ours; every file is checked against its SHA-256."""
    code = (
        "from pathlib import Path; from plimsoll.weights.fetch import Request, fetch;"
        f"fetch(Request(ref={MODEL!r}), store=Path({str(out)!r}))"
    )
    return [sys.executable, "-c", code], {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(out / "none")}


def hub_fetch(python: str, url: str, out: Path) -> Candidate:
    """huggingface_hub without its Xet protocol, which the hub here does not speak; it checks sizes only."""
    code = f"from huggingface_hub import snapshot_download\nsnapshot_download({MODEL!r}, cache_dir={str(out)!r})"
    off = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return [python, "-c", code], {"HF_ENDPOINT": url, "HF_HUB_DISABLE_UPDATE_CHECK": "1", **off}


def aria_fetch(url: str, out: Path, digests: dict[str, str]) -> Candidate:
    """aria2, told the checksums."""
    listing = out.parent / "aria.txt"
    listing.write_text(
        "".join(
            f"{url}/{MODEL}/resolve/{COMMIT}/{name}\n  checksum=sha-256={digest}\n" for name, digest in digests.items()
        )
    )
    options = ["-x", "8", "-s", "8", "-k", "1M", "-j", "4", "--file-allocation=none", "-q"]
    return ["aria2c", "-d", str(out), "-i", str(listing), *options], {}


def curl_fetch(url: str, out: Path, digests: dict[str, str]) -> Candidate:
    """curl, one file after the other, nothing checked."""
    urls = [f"{url}/{MODEL}/resolve/{COMMIT}/{name}" for name in digests]
    return ["curl", "-sfL", "--output-dir", str(out), *(part for one in urls for part in ("-O", one))], {}


def run_serve(options: argparse.Namespace) -> None:
    """A hub that sends files from the kernel (sendfile), so that it is never what is measured."""
    from aiohttp import web

    digests: dict[str, str] = json.loads((options.folder / "digests.json").read_text())
    sizes = {name: (options.folder / name).stat().st_size for name in digests}

    async def info(_: web.Request) -> web.Response:
        siblings = [
            {"rfilename": name, "size": size, "blobId": "0" * 40,
             "lfs": {"sha256": digests[name], "size": size, "pointerSize": 1}}
            for name, size in sizes.items()
        ]  # fmt: skip
        return web.json_response({"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings, "private": False})

    async def tree(_: web.Request) -> web.Response:
        return web.json_response(
            [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40,
                 "lfs": {"oid": digests[name], "size": size, "pointerSize": 1}}
                for name, size in sizes.items()
            ]
        )  # fmt: skip

    async def resolve(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        headers = {
            "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digests[name]}"', "X-Linked-Size": str(sizes[name]),
            "Location": f"http://{options.host}:{PORT + 1}/cdn/{name}",
        }  # fmt: skip
        return web.Response(status=302, headers=headers)

    async def cdn(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        return web.FileResponse(options.folder / name, chunk_size=4 * MIB)

    async def ready(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes(
        [
            web.get("/ready", ready),
            web.get(f"/api/models/{MODEL}", info),
            web.get(f"/api/models/{MODEL}/revision/{{revision}}", info),
            web.get(f"/api/models/{MODEL}/tree/{{revision}}", tree),
            web.get(f"/{MODEL}/resolve/{{revision}}/{{name}}", resolve),
            web.get("/cdn/{name}", cdn),
        ]
    )
    sockets = [socket.create_server((options.host, port)) for port in (PORT, PORT + 1)]
    for listener in sockets:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode())
    web.run_app(app, sock=sockets, print=None, access_log=None)


def run_convert(options: argparse.Namespace) -> None:
    """Each tool in turn makes a new file of the same checkpoint; cp only copies it."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/tmp")) as root:
        model, out = Path(root) / "model", Path(root) / "out"
        model.mkdir()
        count = max(1, round(options.gib * 1024 / 32))
        make = (
            "import torch; torch.save({f'model.layers.{i}.weight': torch.randn(4096, 4096).bfloat16()"
            f" for i in range({count})}}, '{model}/pytorch_model.bin')"
        )
        subprocess.run([options.torch_python, "-c", make], check=True)
        (model / "config.json").write_text("{}")
        total = (model / "pytorch_model.bin").stat().st_size
        code = (
            "from pathlib import Path; from plimsoll.weights.convert.from_pickle import pickle_to_safetensors;"
            f"pickle_to_safetensors(Path({str(model)!r}), Path({str(out)!r}))"
        )
        usual = f"""import torch, safetensors.torch, os
os.mkdir({str(out)!r})
state = torch.load("{model}/pytorch_model.bin", map_location="cpu", weights_only=True)
safetensors.torch.save_file(state, "{out}/model.safetensors", metadata={{"format": "pt"}})"""
        candidates: dict[str, Callable[[], list[str]]] = {
            "cp": lambda: ["cp", "-r", str(model), str(out)],
            "Plimsoll": lambda: [sys.executable, "-c", code],
            "torch.load + save_file": lambda: [options.torch_python, "-c", usual],
        }
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in candidates}
        for _ in range(options.runs):
            for name, command in candidates.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                if options.cold:
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                rows[name].append(measure(command()))
        cache = "cold" if options.cold else "warm"
        report(f".bin of {total / 1e9:.1f} GB to safetensors, page cache {cache}", rows, "cp", total)


if __name__ == "__main__":
    main()
