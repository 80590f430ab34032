"""Records kept, compared, written for other tools and read from them."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import made
import pytest

from plimsoll.bench.compare import caveats, compare, lines
from plimsoll.bench.formats import from_aiperf, from_vllm, to_aiperf, to_vllm
from plimsoll.bench.pace import Arrivals, Closed, Replay
from plimsoll.bench.records import Record, from_json, make_record, to_json, unpack, unpack_run
from plimsoll.bench.summary import summarise
from plimsoll.errors import BenchError

FILES = Path(__file__).parent / "files"


def test_a_record_reads_back_as_it_was_and_has_a_name_of_its_content() -> None:
    record = made.record(1, 2, engine="vllm", command=("vllm", "serve"), hardware={"cpu": "x"}, plan={"replicas": []})
    again = from_json(to_json(record))
    assert again == record
    assert again.id == record.id
    assert len(record.id) == 12
    assert replace(record, name="other").id != record.id


@pytest.mark.parametrize("pace", [Closed(concurrency=3), Arrivals(rate_per_s=2.0), Replay(speed=3.0), Replay()])
def test_every_pace_reads_back(pace) -> None:
    record = made.record(1)
    record = replace(record, levels=(replace(record.levels[0], pace=pace),))
    assert from_json(to_json(record)).levels[0].pace == pace


def test_rows_keep_their_microseconds_and_give_the_same_summary() -> None:
    run = made.run(3)
    record = make_record([made.level(run)], load=None, address="")
    again = unpack_run(record.levels[0].runs[0])
    assert len(again.rows) == len(run.rows)
    for row, kept in zip(run.rows, again.rows, strict=True):
        assert kept.ttft_s == pytest.approx(row.ttft_s, abs=2e-6)
        assert kept.e2e_s == pytest.approx(row.e2e_s, abs=2e-6)
        assert list(kept.arrival_tokens) == list(row.arrival_tokens)
    one, two = summarise(run, concurrency=4), summarise(again, concurrency=4)
    assert two.tokens_per_s == pytest.approx(one.tokens_per_s, rel=1e-4)
    assert two.itl_s.p99 == pytest.approx(one.itl_s.p99, rel=1e-3)


def test_packed_rows_are_small() -> None:
    text = to_json(made.record(1))
    assert len(text) < 40_000  # 80 requests of 20 stamps each: 1,600 stamps


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a record"), ("{}", "created_s"), ('{"format": 99}', "format 99"), ("[]", "not a record")],
)
def test_what_is_no_record(text: str, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        from_json(text)


def test_damaged_rows_are_one_error() -> None:
    with pytest.raises(BenchError, match="damaged"):
        unpack("abc")


def by_metric(a: Record, b: Record) -> dict[str, object]:
    return {found.metric: found for found in compare(a, b)}


def test_the_same_thing_measured_twice_shows_no_difference() -> None:
    found = compare(made.record(1, 2, 3), made.record(4, 5, 6))
    assert {difference.metric for difference in found} >= {"tokens/s", "TTFT mean", "TTFT p99", "TPOT mean", "e2e mean"}
    verdicts = [difference.verdict for difference in found]
    assert verdicts.count("no difference seen") >= len(verdicts) - 1


def test_a_slower_server_is_seen_as_worse_with_its_interval() -> None:
    found = by_metric(made.record(1, 2, 3), made.record(4, 5, 6, tpot_s=0.012))
    for metric in ("tokens/s", "TPOT mean", "e2e mean"):
        assert found[metric].verdict == "worse"
    tpot = found["TPOT mean"]
    assert tpot.ratio == pytest.approx(1.2, rel=0.02)
    assert tpot.ratio_low < 1.2 < tpot.ratio_high
    assert "+20" in next(line for line in lines([tpot]) if "worse" in line)
    assert tpot.worse_by(0.1)
    assert not tpot.worse_by(0.5)
    assert not found["TTFT mean"].seen
    total = made.level(made.run(1, tpot_s=0.014), concurrency=4).summary.tokens_per_s
    assert found["tokens/s"].a == pytest.approx(total, rel=0.1)
    assert by_metric(made.record(4, tpot_s=0.012), made.record(1))["tokens/s"].verdict == "better"


def test_what_the_intervals_leave_out_is_said() -> None:
    one, three = made.record(1), made.record(1, 2, 3)
    assert any("one run each" in text for text in caveats(one, three))
    assert caveats(three, three) == ()
    assert any("machine" in text for text in caveats(three, replace(three, hardware={"cpu": "other"})))


def test_records_without_a_pace_in_common_cannot_be_compared() -> None:
    with pytest.raises(BenchError, match="share no pace"):
        compare(made.record(1, levels=(2,)), made.record(1, levels=(4,)))


def test_vllms_layout_out_and_in() -> None:
    record = made.record(1)
    out = to_vllm(record, record.levels[0])
    real = json.loads((FILES / "vllm_0.32.json").read_text())
    assert set(out) - set(real) <= {
        "latencies",
        "request_goodput",
        *(f"{s}_e2el_ms" for s in ("mean", "median", "std", "p99")),
    }
    again = from_vllm(json.dumps(out))
    assert again.levels[0].pace == record.levels[0].pace
    a, b = record.levels[0].summary, again.levels[0].summary
    assert b.ttft_s.p99 == pytest.approx(a.ttft_s.p99, rel=1e-3)
    assert b.output_tokens == a.output_tokens
    assert {d.metric for d in compare(record, again)} >= {"TTFT mean"}


def test_a_real_vllm_result_is_read() -> None:
    text = (FILES / "vllm_0.32.json").read_text()
    [level] = from_vllm(text).levels
    assert level.pace == Closed(concurrency=4)
    assert level.summary.requests == 6
    assert level.summary.ttft_s.mean == pytest.approx(0.0066, abs=0.001)
    figures = {k: v for k, v in json.loads(text).items() if not isinstance(v, list)}
    [level] = from_vllm(json.dumps(figures)).levels
    assert level.runs == ()
    assert level.summary.ttft_s.p99 == pytest.approx(0.009446, abs=1e-5)
    assert level.summary.tokens_per_s == pytest.approx(479.7, abs=0.1)


def test_aiperfs_layout_out_and_in() -> None:
    level = made.record(1).levels[0]
    out = to_aiperf(level)
    real = list(csv.reader(io.StringIO((FILES / "aiperf_0.13.csv").read_text())))
    names = {row[0] for row in real if row}
    mine = list(csv.reader(io.StringIO(out)))
    assert mine[0] == real[0]
    assert {row[0] for row in mine if row} - names == {"Error Request Count"}  # theirs leaves it out when it is zero
    [again] = from_aiperf(out, concurrency=4).levels
    assert again.summary.ttft_s.p99 == pytest.approx(level.summary.ttft_s.p99, abs=1e-4)
    assert again.summary.requests == level.summary.requests


def test_a_real_aiperf_csv_is_read() -> None:
    [level] = from_aiperf((FILES / "aiperf_0.13.csv").read_text(), model="paced").levels
    assert level.pace == Closed(concurrency=4)  # as it was run
    assert level.summary.requests == 40
    assert level.summary.ttft_s.mean == pytest.approx(0.05408)
    assert level.summary.requests_per_s == pytest.approx(27.95)


@pytest.mark.parametrize("read", [from_vllm, from_aiperf])
@pytest.mark.parametrize("text", ["", "{}", "Metric,Value\nx,y\n", "null"])
def test_what_is_no_result_of_theirs(read, text: str) -> None:
    with pytest.raises(BenchError, match="not"):
        read(text)


def test_figures_without_requests_cannot_be_exported() -> None:
    record = from_aiperf((FILES / "aiperf_0.13.csv").read_text())
    with pytest.raises(BenchError, match="without requests"):
        to_vllm(record, record.levels[0])
