"""Diagnosis over logs of real failures, over single messages of the engines, and over everything else."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engines.diagnosis import explain, signatures
from plimsoll.engines.diagnosis.signatures import family_of, fill
from plimsoll.plan.rules import rules

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
LINES = [line.split("\t") for line in (LOGS / "lines.tsv").read_text(encoding="utf-8").splitlines()]


def read(path: Path) -> tuple[dict[str, str], list[str]]:
    """The header of a recorded log (`#: key: value`) and its lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = dict(line[2:].strip().split(": ", 1) for line in lines if line.startswith("#: "))
    return header, [line for line in lines if not line.startswith("#: ")]


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_recorded_failures(path: Path) -> None:
    header, lines = read(path)
    exit_code = int(header["exit"]) if "exit" in header else None
    for engine in (header["engine"], None):
        found = explain(lines, engine=engine, exit_code=exit_code)
        if header["expect"] == "unknown":
            assert not found.known, found
            assert found.cause.startswith("unknown to us")
        else:
            assert found.signature == header["expect"], found
        assert found.lines
        assert all(lines[telling.number - 1].strip().startswith(telling.text[:100]) for telling in found.lines)


@pytest.mark.parametrize(("expected", "line"), LINES, ids=[f"{number}-{row[0]}" for number, row in enumerate(LINES)])
def test_messages(expected: str, line: str) -> None:
    signature = signatures()[expected]
    assert explain([line]).signature == expected
    assert explain([line], engine=next(iter(signature.engines), "vllm")).signature == expected


def test_there_is_no_message_that_an_echo_or_a_later_error_hides() -> None:
    echo = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    for expected, line in LINES:
        signature = signatures()[expected]
        if signature.engines and "vllm" not in signature.engines:
            continue
        log = ["INFO 11-20 09:00:00 [core.py:1] Initializing", line, "Traceback (most recent call last):", echo]
        assert explain(log, engine="vllm").signature == expected


def test_signatures_are_whole() -> None:
    known = signatures()
    assert len(known) >= 300
    ids = {rule.id for rule in rules()}
    for signature in known.values():
        assert signature.rank in (0, 1, 2, 3)
        assert signature.what
        assert signature.source
        assert set(signature.rules) <= ids, signature.id
        groups = {name for pattern in signature.patterns for name in pattern.groupindex}
        for text in (signature.what, signature.cause, signature.fix):
            assert set(re.findall(r"\{(\w+)\}", text)) <= groups, signature.id


def test_the_rule_is_the_one_of_the_engine() -> None:
    line = "ValueError: Weight output_partition_size = 576 is not divisible by weight quantization block_n = 128."
    assert explain([line], engine="sglang").rule == "sglang.weight_block_not_divisible"
    assert explain([line], engine="vllm").rule == explain([line]).rule == "vllm.weight_block_not_divisible"
    assert explain([line], engine="mindie").rule is None
    oom = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB."
    assert explain([oom], engine="sglang").rule == "any.out_of_memory"


def test_engines_by_any_spelling_and_what_they_run_on() -> None:
    cache = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
    for engine in ("vllm", "vllm_ascend", "vllm-ascend", "fastchat", None, "somebody-elses"):
        assert explain([cache], engine=engine).signature == "vllm-no-cache-blocks"
    assert explain([cache], engine="sglang").signature is None
    assertion = "ggml.c:6712: GGML_ASSERT(a->ne[2] == b->ne[2]) failed"
    for engine in ("llamacpp", "llama.cpp", "llama-server", "ollama"):
        assert explain([assertion], engine=engine).signature == "llamacpp-assert"
    assert all(family_of(engine) for signature in signatures().values() for engine in signature.engines)


@pytest.mark.parametrize(
    ("arguments", "expected", "known"),
    [
        ({"exit_code": 137}, "sigkill", True),
        ({"exit_code": -9}, "sigkill", True),
        ({"exit_code": 137, "oom_killed": True}, "kernel-oom-killer", True),
        ({"signal": 4}, "illegal-instruction", True),
        ({"exit_code": 135}, "bus-error", True),
        ({"exit_code": -11}, "sigsegv", True),
        ({"exit_code": 127}, "command-not-found", True),
        ({"exit_code": 143}, None, False),
        ({"exit_code": 1}, None, False),
        ({}, None, False),
    ],
)
def test_ends_without_a_word(arguments: dict[str, int], expected: str | None, known: bool) -> None:
    found = explain(["loading the model", "still loading"], **arguments)  # type: ignore[arg-type]
    assert (found.signature, found.known) == (expected, known)
    assert explain([], **arguments).lines == ()  # type: ignore[arg-type]


def test_an_error_that_says_why_counts_more_than_the_signal() -> None:
    log = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.16 GiB."]
    assert explain(log, exit_code=-6).signature == "cuda-out-of-memory"
    assert explain(log, exit_code=137).signature == "cuda-out-of-memory"


def test_an_unknown_exception_is_not_explained_by_its_echo() -> None:
    log = [
        "(EngineCore pid=7) ERROR 11-20 09:00:00 [core.py:7] EngineCore failed to start.",
        '(EngineCore pid=7) ERROR 11-20 09:00:00 [core.py:7]   File "/venv/x.py", line 3, in f',
        "(EngineCore pid=7) ERROR 11-20 09:00:00 [core.py:7] FrobnicationError: the frobnicator is full",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    found = explain(log, engine="vllm", exit_code=1)
    assert (found.known, found.signature, found.lines[0].number) == (False, None, 3)
    assert "frobnicator is full" in found.what
    assert found.rule is None


def test_warnings_explain_nothing_where_there_are_errors() -> None:
    log = [
        "WARNING 11-20 09:00:00 [x.py:1] Failed to import vllm._C: libcuda.so.1: cannot open shared object file",
        "[W1120 09:00:01.1 socket.cpp:759] The client socket has failed to connect to [node]:29500 (errno: 97).",
        "KeyError: 'frobnicator'",
    ]
    found = explain(log, engine="vllm")
    assert (found.known, found.lines[0].number) == (False, 3)


def test_what_was_before_the_server_was_up_is_over() -> None:
    log = [
        "ERROR 11-20 09:00:00 [x.py:1] ConnectionRefusedError: [Errno 111] Connection refused",
        "INFO:     Application startup complete.",
        "ERROR 11-20 10:00:00 [core.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ]
    assert explain(log).signature == "cuda-out-of-memory"


def test_a_worker_that_vanished_is_told_from_one_that_said_why() -> None:
    up = "INFO:     Application startup complete."
    echo = "ERROR 11-20 10:00:00 [async_llm.py:9] EngineDeadError: EngineCore encountered an issue."
    assert explain([up, echo], engine="vllm").signature == "worker-vanished"
    assert not explain([echo], engine="vllm").known
    said = ["ERROR 11-20 09:59:59 [core.py:1] ZeroDivisionError: division by zero", echo]
    assert not explain([up, *said], engine="vllm").known


def test_logs_in_other_wrappings() -> None:
    message = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    wrapped = [
        json.dumps({"log": f"{message}\n", "stream": "stderr"}),
        f"\x1b[31mollama  | {message}\x1b[0m",
        f"Feb 21 01:41:02 host vllm[42]: {message}",
        f"10%|#   \r100%|####\r{message}\r\n",
        f"(RayWorkerWrapper pid=67451, ip=10.1.0.7) ERROR 06-25 15:28:30 worker_base.py:148] {message}",
    ]
    for line in wrapped:
        assert explain([line]).signature == "no-kernel-image", line


def test_line_numbers_of_a_long_log() -> None:
    log = ["INFO 11-20 09:00:00 [loggers.py:1] throughput: 12.3 tokens/s, running: 1 reqs"] * 40_000
    log[33_333] = "ERROR 11-20 09:00:00 [core.py:9] OSError: [Errno 28] No space left on device"
    found = explain(log, engine="vllm")
    assert (found.signature, found.lines[0].number) == ("disk-full", 33_334)


def test_texts_leave_out_what_the_log_did_not_say() -> None:
    assert fill("a file is missing: {path}", {"path": None}) == "a file is missing"
    assert fill("the model ({type}) is new", {"type": "x9"}) == "the model (x9) is new"
    assert fill("{reason}", {}) == "the message itself says it"


FRAGMENTS = [line for _, line in LINES] + ["Traceback (most recent call last):", "Killed", "\x00\x1b[", '{"log":']


@given(st.lists(st.one_of(st.text(max_size=80), st.sampled_from(FRAGMENTS)), max_size=12), st.integers(-20, 260))
def test_any_log_is_explained_or_admitted(lines: list[str], exit_code: int) -> None:
    found = explain(lines, exit_code=exit_code)
    assert found.what
    assert found.cause
    assert found.fix
    assert found.known == (found.signature is not None and signatures()[found.signature].rank > 0)
    assert all(1 <= telling.number <= len(lines) for telling in found.lines)


@pytest.mark.parametrize(
    "line", ["a" * 5000, "a." * 2500, '"' * 5000, " " * 4999 + "x", "Error " * 800, "hccl " * 1000]
)
def test_hostile_lines_take_no_longer_than_others(line: str) -> None:
    started = time.perf_counter()
    explain([line] * 50)
    assert time.perf_counter() - started < 2
