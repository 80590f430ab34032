"""The fake engine: it paces, refuses and fails exactly as it was told, and says that it is fake."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from plimsoll.engines.fake import Fake
from plimsoll.engines.protocol import Engine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


@contextmanager
def fake(*flags: str, load: float = 0.0) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "plimsoll.engines.serve_fake", "--port", str(port), "--model", "tiny"]
    process = subprocess.Popen([*command, "--load-seconds", str(load), *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        while "listening" not in (line := process.stdout.readline()):
            assert line, "it ended before it listened"
        yield port
    finally:
        process.kill()
        process.communicate()


def call(port: int, path: str, body: object = None, method: str = "POST") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with fake("--ttft", "0.05", "--tpot", "0.01", "--slots", "2", "--context-tokens", "64") as port:
        yield port


def test_every_answer_says_that_it_is_fake(port: int) -> None:
    for path, body in [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "fake-tiny", "prompt": "a", "max_tokens": 2}),
        ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"]}),
    ]:
        status, data = call(port, path, body)
        assert (status, json.loads(data)["model"]) == (200, "fake-tiny")
    assert json.loads(call(port, "/v1/models", method="GET")[1])["data"][0]["id"] == "fake-tiny"
    assert call(port, "/health", method="GET")[0] == 200


@pytest.mark.parametrize(
    ("extra", "tokens", "finish"),
    [
        ({}, 18, "stop"),
        ({"max_tokens": 5}, 5, "length"),
        ({"max_tokens": 30}, 18, "stop"),
        ({"max_tokens": 30, "ignore_eos": True}, 30, "length"),
    ],
)
def test_length_of_an_answer(port: int, extra: dict[str, object], tokens: int, finish: str) -> None:
    answer = json.loads(call(port, "/v1/chat/completions", {**CHAT, **extra})[1])
    assert answer["choices"][0]["finish_reason"] == finish
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": tokens, "total_tokens": 4 + tokens}


def test_a_stream_carries_the_same_words_and_the_usage(port: int) -> None:
    body = {**CHAT, "max_tokens": 7, "stream": True, "stream_options": {"include_usage": True}}
    events = call(port, "/v1/chat/completions", body)[1].decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    values = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert values[-1]["usage"]["completion_tokens"] == 7
    assert values[-1]["choices"] == []
    text = "".join(value["choices"][0]["delta"].get("content", "") for value in values[:-1])
    whole = json.loads(call(port, "/v1/chat/completions", {**CHAT, "max_tokens": 7})[1])
    assert text == whole["choices"][0]["message"]["content"]
    assert {value["object"] for value in values} == {"chat.completion.chunk"}


def test_tokens_leave_on_deadlines_that_do_not_drift(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    began = time.monotonic()
    connection.request("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "a", "stream": True}))
    answer = connection.getresponse()
    times = []
    while line := answer.readline():
        if line.startswith(b"data: {"):
            times.append(time.monotonic() - began)
    connection.close()
    late = [seen - (0.05 + 0.01 * token) for token, seen in enumerate(times[:18])]
    assert min(late) > 0, "no token may come early"
    # The median is a busy machine's best witness: drift would move it by 17 timer errors.
    assert sorted(late)[9] < 0.03


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", [1], 400, "JSON object"),
        ("/v1/chat/completions", {"messages": []}, 400, "'model'"),
        ("/v1/chat/completions", {"model": "other", "messages": []}, 404, "does not exist"),
        ("/v1/chat/completions", {"model": "tiny", "messages": []}, 400, "non-empty"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"content": "x"}]}, 400, "role"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": "5"}, 400, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": True}, 400, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400, "at least 1"),
        ("/v1/chat/completions", {**CHAT, "temperature": 3}, 400, "temperature"),
        ("/v1/chat/completions", {**CHAT, "stream": 1}, 400, "stream"),
        ("/v1/completions", {"model": "tiny"}, 400, "'prompt' is missing"),
        ("/v1/completions", {"model": "tiny", "prompt": "a " * 64}, 400, "maximum context length is 64"),
        ("/v1/embeddings", {"model": "tiny", "input": []}, 400, "'input'"),
        ("/v1/embeddings", {"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "base64"),
        ("/v1/nothing", {}, 404, "no route"),
    ],
)
def test_wrong_input_is_refused_as_openai_words_it(port: int, path: str, body: object, status: int, words: str) -> None:
    got, data = call(port, path, body)
    assert got == status
    assert words in json.loads(data)["error"]["message"]


def test_embeddings_in_base64_are_the_same_vectors(port: int) -> None:
    ask = {"model": "tiny", "input": "sea"}
    floats = json.loads(call(port, "/v1/embeddings", ask)[1])["data"][0]["embedding"]
    packed = json.loads(call(port, "/v1/embeddings", {**ask, "encoding_format": "base64"})[1])["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(floats, rel=1e-6)


def test_a_client_that_leaves_frees_its_slot() -> None:
    with fake("--ttft", "30", "--slots", "1") as port:
        leaver = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        leaver.request("POST", "/v1/chat/completions", json.dumps(CHAT))
        engine = Fake(command=())
        seen = []
        for _ in range(100):
            seen.append(engine.metrics(call(port, "/metrics", method="GET")[1].decode())["running"])
            if seen[-1] == 1:
                leaver.close()
            elif 1 in seen:
                break
            time.sleep(0.02)
        assert seen[-1] == 0
        assert 1 in seen


def test_slots_are_served_in_order_of_arrival() -> None:
    with fake("--ttft", "0.2", "--tpot", "0", "--slots", "1") as port:
        began = time.monotonic()
        times: list[float] = []

        def ask() -> None:
            call(port, "/v1/chat/completions", CHAT)
            times.append(time.monotonic() - began)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert times == sorted(times)
        assert times[0] < 0.4
        assert times[2] >= 0.6


def test_it_fails_as_it_was_told() -> None:
    with fake("--ttft", "0", "--fail-after-requests", "1") as port:
        assert call(port, "/v1/chat/completions", CHAT)[0] == 200
        assert call(port, "/v1/chat/completions", CHAT)[0] == 500
    with fake("--ttft", "0", "--tpot", "0", "--crash-mid-stream", "3") as port:
        with pytest.raises(http.client.IncompleteRead) as left:
            call(port, "/v1/chat/completions", {**CHAT, "stream": True})
        assert left.value.partial.count(b"data: ") == 3
    with fake("--ttft", "0", "--hang-after", "0") as port:
        with pytest.raises(TimeoutError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.2)
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(CHAT))
                connection.getresponse()
            finally:
                connection.close()
        assert call(port, "/health", method="GET")[0] == 200


def test_a_failed_start_leaves_its_last_words() -> None:
    command = [sys.executable, "-m", "plimsoll.engines.serve_fake", "--port", "1", "--model", "m"]
    done = subprocess.run([*command, "--load-seconds", "0", "--fail-at-start", "no tensors"], capture_output=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == b"fake-engine error: no tensors"


def test_the_adapter_reads_what_the_engine_reports() -> None:
    engine: Engine = Fake(command=())
    lines = ["fake-engine version=1.0 model=x", "fake-engine report weights_bytes=10 kv_tokens=32 load_s=0.5", "junk"]
    observed = engine.read_log(lines)
    assert observed.version == "1.0"
    assert observed.quantities == {"weights_bytes": 10, "kv_tokens": 32, "load_s": 0.5}
    assert observed.lines == tuple(lines[:2])
    assert engine.facts.fake
