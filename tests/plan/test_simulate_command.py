"""Trace files as they are published, and `plimsoll simulate` from flags to figures."""

import json

import pytest
from typer.testing import CliRunner

from plimsoll.app.simulating import read_trace
from plimsoll.cli.main import app
from plimsoll.errors import PlanError, SpecError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:04.4799600,110,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 5000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
"""
SERVE = ("simulate", "Qwen/Qwen3-8B", "--on", "h100")


@pytest.fixture
def trace(tmp_path):
    def write(text, name="trace"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def said(*flags):
    result = CliRunner().invoke(app, [*SERVE, *flags])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def figures(*flags):
    return json.loads(said(*flags, "--json"))


def test_azures_csv_is_read_with_seven_digits_of_a_second(trace):
    requests = read_trace(trace(AZURE), speed=2.0)
    assert list(requests.arrivals_s) == pytest.approx([0.0, 0.026, 0.25])
    assert list(requests.prompt_tokens) == [4808, 3180, 110]
    assert list(requests.output_tokens) == [10, 8, 1]


def test_azures_csv_of_2024_is_read(trace):
    assert list(read_trace(trace(AZURE_2024)).arrivals_s) == pytest.approx([0.0, 1.007405])


def test_mooncakes_jsonl_is_read_with_its_blocks(trace):
    requests = read_trace(trace(MOONCAKE))
    assert list(requests.arrivals_s) == [0.0, 2.0]
    assert requests.blocks == [(0, 1, 2), (0, 14)]
    assert requests.block_tokens == 512


def test_a_part_of_a_trace_can_be_taken(trace):
    assert len(read_trace(trace(AZURE), requests=2)) == 2
    assert len(read_trace(trace(AZURE), seconds=0.1)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no trace that is known"),
        ("time,tokens\n1,2\n", "no trace that is known"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "cannot be read"),
        (AZURE + "2023-11-16 18:17:00.0,1,1\n", "run backwards"),
        ('{"timestamp": 1}\n', "cannot be read"),
        ('{"timestamp": 1\n', "cannot be read"),
    ],
)
def test_what_is_no_trace_is_said(trace, text, message):
    with pytest.raises(SpecError, match=message):
        read_trace(trace(text))


def test_a_fleet_is_simulated_from_flags():
    outcome = figures("--rate", "20", "--replicas", "4", "--requests", "500", "--slo", "ttft=1s", "--price", "2")
    assert outcome["completed"] == 500
    assert outcome["offered_per_s"] == pytest.approx(20, rel=0.2)
    assert 0 < outcome["ttft_s"]["p50"] <= outcome["ttft_s"]["p95"] <= outcome["ttft_s"]["p99"] < 1
    assert outcome["cost"] == pytest.approx(2 * outcome["device_hours"])


def test_the_smallest_fleet_is_found_and_the_seed_decides():
    flags = ("--rate", "100", "--requests", "2000", "--replicas", "auto", "--slo", "ttft=1s,tpot=50ms", "--seed", "3")
    outcome = figures(*flags)
    assert outcome["holds"]
    assert outcome["tried"][str(outcome["replicas"])] >= 0.95
    assert outcome["tried"][str(outcome["replicas"] - 1)] < 0.95
    assert figures(*flags) == outcome


def test_a_trace_is_replayed_and_its_shared_beginnings_are_found(trace):
    outcome = figures("--trace", str(trace(MOONCAKE, "m.jsonl")), "--context", "16384")
    assert outcome["prefix_hits"] == pytest.approx(512 / (6758 + 7322))


def test_failures_and_autoscaling_are_simulated():
    flags = ("--rate", "30", "--requests", "3000", "--mtbf", "1m", "--down", "20s")
    assert figures(*flags, "--replicas", "4")["failures"] > 0
    scaled = figures(*flags, "--autoscale", "1:8", "--scale-at", "8", "--start-time", "10s")
    assert 1 < scaled["replicas"] <= 8


def test_the_table_names_what_was_simulated():
    table = said("--clients", "8", "--requests", "64", "--slo", "ttft=1ms")
    for words in ("1 x Qwen3-8B", "8 clients", "TTFT", "does not hold", "preemptions"):
        assert words in table


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ((), SpecError, "what is asked"),
        (("--rate", "5", "--clients", "2"), SpecError, "what is asked"),
        (("--rate", "0"), SpecError, "above zero"),
        (("--rate", "5", "--replicas", "many"), SpecError, "number of replicas"),
        (("--rate", "5", "--replicas", "auto"), SpecError, "large enough"),
        (("--clients", "5", "--replicas", "auto", "--slo", "ttft=1s"), SpecError, "requests that arrive"),
        (("--rate", "5", "--slo", "speed=1"), SpecError, "not a limit"),
        (("--rate", "5", "--slo", "ttft=soon"), SpecError, "soon"),
        (("--rate", "5", "--autoscale", "4"), SpecError, "not a range"),
        (("--rate", "5", "--autoscale", "1:4", "--replicas", "auto"), SpecError, "exclude"),
        (("--rate", "5", "--mtbf", "0"), SpecError, "mtbf"),
        (("--trace", "nowhere.csv"), SpecError, "nowhere.csv"),
        (("--rate", "5", "--requests", "9", "--replicas", "auto", "--slo", "e2e=1us"), PlanError, "not even"),
    ],
)
def test_what_cannot_be_simulated_is_said(flags, error, message):
    with pytest.raises(error, match=message):
        said(*flags)
