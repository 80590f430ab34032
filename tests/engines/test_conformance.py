"""What every engine must do behind the gateway: the same scenarios for all, through `plimsoll up`.

The fake engine and llama.cpp run everywhere; OpenVINO GenAI where it is found. vLLM, SGLang and transformers serve run
where PLIMSOLL_TEST_VLLM (PLIMSOLL_TEST_SGLANG, ...) names an environment that `plimsoll engines install` made. An
engine of another kind is one more row of ENGINES.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from user_shell import Shell

from plimsoll.app.settings import Settings
from plimsoll.app.target import DEFAULT_MODEL, DEFAULT_SHA256
from plimsoll.discover.engines import engines
from plimsoll.weights.convert.from_gguf import gguf_to_safetensors
from plimsoll.weights.fetch import Request, fetch

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

CONTEXT, AT_ONCE = 512, 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """An engine, and what of it is known to be otherwise."""

    engine: str
    format: str = "gguf"
    start_s: float = 120
    limits_context: bool = True
    says_done: bool = True
    """Whether its streams end with [DONE]."""
    takes_ignore_eos: bool = True
    more: str = ""
    """Further lines of the spec."""


ENGINES = (
    Row(engine="fake", more='extra_args: ["--ttft", "0.02", "--tpot", "0.02"]'),
    Row(engine="llamacpp"),
    Row(engine="openvino"),
    Row(engine="vllm", format="safetensors", start_s=900, more="memory_share: 0.1"),
    Row(engine="sglang", format="safetensors", start_s=900, more="memory_share: 0.1"),
    Row(
        engine="transformers",
        format="safetensors",
        start_s=600,
        limits_context=False,
        says_done=False,
        takes_ignore_eos=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """One engine, up."""

    row: Row
    shell: Shell
    client: httpx.Client

    def process(self) -> dict[str, Any]:
        process: dict[str, Any] = self.shell.only()["replicas"][0]["processes"][0]
        return process

    def long_stream(self) -> dict[str, Any]:
        body = {"model": "it", "prompt": "Once", "max_tokens": CONTEXT - 32, "stream": True}
        return body | ({"ignore_eos": True} if self.row.takes_ignore_eos else {})

    def chat(self, **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        return self.client.post("/v1/chat/completions", json={"model": "it", "messages": messages, **BRIEF, **more})

    def complete(self, **more: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "it", "prompt": "One two three", **BRIEF, **more})


BRIEF = {"max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The built-in model's file in the user's own store, and the same as safetensors."""
    source = fetch(Request(ref=DEFAULT_MODEL, sha256=DEFAULT_SHA256), store=Settings.resolve(os.environ).store_dir)

    def in_format(name: str) -> Path:
        target = tmp_path_factory.getbasetemp() / "smollm2-safetensors"
        if name == "safetensors" and not target.exists():
            gguf_to_safetensors(source, target)
        return target if name == "safetensors" else source

    return in_format


@pytest.fixture(scope="module", params=ENGINES, ids=lambda row: row.engine)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, weights: Callable[[str], Path]
) -> Iterator[Served]:
    row: Row = request.param
    home = tmp_path_factory.mktemp(row.engine)
    shell = Shell(home)
    if environment := os.environ.get(f"PLIMSOLL_TEST_{row.engine.upper()}"):
        (home / "engines").mkdir()
        (home / "engines" / Path(environment).name).symlink_to(environment)
    elif not engines()[row.engine].facts.installed or row.engine not in ("fake", "llamacpp", "openvino"):
        pytest.skip(f"{row.engine} is not installed here")
    spec = home / "it.yaml"
    spec.write_text(
        f"models:\n  - name: it\n    model: {weights(row.format)}\n    engine: {row.engine}\n"
        f"    concurrency: {AT_ONCE}\n    context: {CONTEXT}\n    {row.more}\ngateway:\n  port: 0\n"
    )
    try:
        shell.ok("up", str(spec), "--detach", "--no-bench", timeout_s=row.start_s)
        with httpx.Client(base_url=shell.only()["address"], timeout=120, trust_env=False) as client:
            yield Served(row=row, shell=shell, client=client)
    finally:
        pids = [one["pid"] for one in shell.only()["replicas"][0]["processes"]] if shell.json("ps") else []
        shell.run("down", "--all")
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "nothing stays behind"


def events_of(served: Served, text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert (data[-1] == "[DONE]") == served.row.says_done
    return [json.loads(one) for one in data if one != "[DONE]"]


def test_chat_whole(served: Served) -> None:
    answer = served.chat().json()

    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    assert choice["finish_reason"] in ("stop", "length")
    assert 0 < answer["usage"]["completion_tokens"] <= 8


def test_chat_streamed(served: Served) -> None:
    answer = served.chat(stream=True)

    assert answer.headers["content-type"].startswith("text/event-stream")
    choices = [one["choices"][0] for one in events_of(served, answer.text) if one.get("choices")]
    assert "".join(one["delta"].get("content") or "" for one in choices).strip()
    assert [one["finish_reason"] for one in choices if one.get("finish_reason")] in (["stop"], ["length"])


def test_completion_is_the_same_whole_and_streamed(served: Served) -> None:
    whole = served.complete()
    assert whole.status_code == 200, whole.text
    streamed = events_of(served, served.complete(stream=True).text)

    text = "".join(one["choices"][0]["text"] for one in streamed if one.get("choices"))
    assert text == whole.json()["choices"][0]["text"]
    assert text.strip()


def test_a_wrong_model_is_not_found(served: Served) -> None:
    answer = served.client.post("/v1/completions", json={"model": "nobody", "prompt": "a", "max_tokens": 1})

    assert answer.status_code == 404
    assert "nobody" in answer.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_and_the_next_is_served(served: Served) -> None:
    if not served.row.limits_context:
        pytest.skip(f"{served.row.engine} has no limit of context")
    answer = served.complete(prompt="word " * (3 * CONTEXT))

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert served.complete().status_code == 200


def test_clients_that_leave_free_their_places(served: Served) -> None:
    for _ in range(2 * AT_ONCE):
        body = served.long_stream()
        with served.client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_raw(1))
    adapter = engines()[served.row.engine]
    deadline = time.monotonic() + 10
    while True:
        answer = httpx.get(f"http://127.0.0.1:{served.process()['port']}/metrics", trust_env=False)
        running = adapter.metrics(answer.text).get("running", 0) if answer.status_code == 200 else 0
        if not running:
            break
        assert time.monotonic() < deadline, f"{running} still run for clients that left"
        time.sleep(0.1)
    assert served.complete().status_code == 200


def test_killed_it_says_so_and_comes_back(served: Served) -> None:
    before = served.process()["pid"]
    body = served.long_stream()
    with served.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("data: "))
        os.kill(before, signal.SIGKILL)
        rest = [line.removeprefix("data: ") for line in (first, *lines) if line.startswith("data: ")]

    assert any("error" in json.loads(one) for one in rest if one != "[DONE]"), rest[-2:]
    deadline = time.monotonic() + served.row.start_s
    while (answer := served.complete()).status_code != 200:
        assert answer.status_code in (502, 503), answer.text
        assert "error" in answer.json()
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.5)
    assert served.process()["pid"] != before
    assert not psutil.pid_exists(before)
