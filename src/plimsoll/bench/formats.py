"""Other tools' files: the JSON of `vllm bench serve --save-result` and AIPerf's CSV, written and read.

Layouts as vLLM 0.32 and AIPerf 0.13 write them.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from array import array
from collections.abc import Sequence
from typing import Any

import orjson

from plimsoll.bench.measure import Level
from plimsoll.bench.pace import Arrivals, Closed, Pace
from plimsoll.bench.records import NOBODY, Record, RecordedLevel, make_record, unpack_run
from plimsoll.bench.row import Row
from plimsoll.bench.run import Run
from plimsoll.bench.stats import EMPTY, Quantiles, quantile
from plimsoll.bench.summary import Summary, summarise
from plimsoll.errors import BenchError

_AIPERF_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_AIPERF_HEADER = ("Metric", "avg", "min", "max", "sum", *(f"p{p}" for p in _AIPERF_PERCENTILES), "std")


def to_vllm(record: Record, level: RecordedLevel) -> dict[str, Any]:
    """One level as vLLM's result with --save-detailed: milliseconds in the statistics, seconds in the lists."""
    rows, good, run = _rows(level)
    s = level.summary
    duration_s = s.wall_s
    arrivals = level.pace if isinstance(level.pace, Arrivals) else None
    found: dict[str, Any] = {
        "date": time.strftime("%Y%m%d-%H%M%S", time.gmtime(record.created_s)),
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": record.name or None,
        "model_id": level.model,
        "tokenizer_id": level.model,
        "num_prompts": len(rows),
        "request_rate": arrivals.rate_per_s if arrivals else "inf",
        "burstiness": arrivals.burstiness if arrivals and arrivals.pattern == "bursty" else 1.0,
        "max_concurrency": level.pace.concurrency if isinstance(level.pace, Closed) else None,
        "duration": duration_s,
        "completed": len(good),
        "failed": len(rows) - len(good),
        "total_input_tokens": s.prompt_tokens,
        "total_output_tokens": s.output_tokens,
        "request_throughput": len(good) / duration_s,
        "request_goodput": s.goodput_per_s,
        "output_throughput": s.output_tokens / duration_s,
        "total_token_throughput": (s.prompt_tokens + s.output_tokens) / duration_s,
        "max_concurrent_requests": run.generator.peak_in_flight,
        "input_lens": [row.prompt_tokens or 0 for row in rows],
        "output_lens": [row.output_tokens for row in rows],
        "ttfts": [row.ttft_s or 0.0 for row in rows],
        "itls": [[gap for gap, _ in row.gaps()] for row in rows],
        "latencies": [row.e2e_s for row in rows],
        "start_times": [row.intended_s for row in rows],
        "errors": [row.error or "" for row in rows],
    }
    for name, values in (
        ("ttft", [row.ttft_s for row in good if row.ttft_s is not None]),
        ("tpot", [row.tpot_s for row in good if row.tpot_s is not None]),
        ("itl", [gap for row in good for gap, _ in row.gaps()]),
        ("e2el", [row.e2e_s for row in good]),
    ):
        ordered = sorted(values) or [0.0]
        found[f"mean_{name}_ms"] = statistics.fmean(ordered) * 1e3
        found[f"median_{name}_ms"] = quantile(ordered, 0.5) * 1e3
        found[f"std_{name}_ms"] = statistics.pstdev(ordered) * 1e3
        found[f"p99_{name}_ms"] = quantile(ordered, 0.99) * 1e3
    return found


def from_vllm(text: str | bytes) -> Record:
    """A record of vLLM's result; with --save-detailed its requests too. BenchError when it is not one.

    vLLM takes an empty role chunk for the first token and times the finish chunk as a gap; imported figures keep that.
    """
    try:
        found = dict(orjson.loads(text))
        pace = _vllm_pace(found)
        model, completed = str(found["model_id"]), int(found["completed"])
        summary = _vllm_summary(found, pace)
        rows = _vllm_rows(found)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BenchError(f"not a result of vllm bench serve: {error!r}", hint="it is its --save-result file") from error
    if rows:
        start_s = min(row.intended_s for row in rows)
        run = Run(rows=rows, window_s=(start_s, max(row.end_s for row in rows)), generator=NOBODY)
        known = summarise(run)
        level = Level(pace=pace, summary=known, run=run, model=model, repeats=(known,))
        return make_record([level], load=None, address="", tool="vllm bench serve", name=str(found.get("label") or ""))
    level_only = RecordedLevel(pace=pace, model=model, summary=summary, notes=(f"{completed} requests, figures only",))
    return Record(created_s=_vllm_date(found), tool="vllm bench serve", levels=(level_only,))


def to_aiperf(level: RecordedLevel) -> str:
    """One level as AIPerf's CSV: a table of distributions, an empty line, a table of single values."""
    rows, good, _ = _rows(level)
    s = level.summary
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_AIPERF_HEADER)
    per_user = [1 / row.tpot_s for row in good if row.tpot_s]
    for name, values in (
        ("Input Sequence Length (tokens)", [float(row.prompt_tokens) for row in good if row.prompt_tokens is not None]),
        ("Inter Token Latency (ms)", [row.tpot_s * 1e3 for row in good if row.tpot_s is not None]),
        ("Output Sequence Length (tokens)", [float(row.output_tokens) for row in good]),
        ("Output Token Throughput Per User (tokens/sec/user)", per_user),
        ("Request Latency (ms)", [row.e2e_s * 1e3 for row in good]),
        ("Time to First Token (ms)", [row.ttft_s * 1e3 for row in good if row.ttft_s is not None]),
    ):
        if values:
            writer.writerow([name, *(f"{value:.2f}" for value in _aiperf_row(values))])
    writer.writerow([])
    writer.writerow(["Metric", "Value"])
    for name, value in (
        ("Benchmark Duration (sec)", s.wall_s),
        ("Error Request Count", float(len(rows) - len(good))),
        ("Output Token Throughput (tokens/sec)", s.output_tokens / s.wall_s),
        ("Request Count", float(len(good))),
        ("Request Throughput (requests/sec)", len(good) / s.wall_s),
    ):
        writer.writerow([name, f"{value:.2f}"])
    return out.getvalue()


def from_aiperf(text: str, *, concurrency: int | None = None, model: str = "") -> Record:
    """A record of AIPerf's CSV, figures only; BenchError when it is none.

    The file names no concurrency: unless given, it is the request rate times the mean latency (Little's law), rounded.
    """
    distributions: dict[str, dict[str, float]] = {}
    single: dict[str, float] = {}
    header: list[str] = []
    try:
        for line in csv.reader(io.StringIO(text)):
            if not line or line[0] in ("Metric", "Endpoint"):
                header = line
            elif header[:2] == ["Metric", "Value"]:
                single[line[0]] = float(line[1])
            elif header[:2] == ["Metric", "avg"]:
                distributions[line[0]] = {k: float(v) for k, v in zip(header[1:], line[1:], strict=True) if v}
        count = int(single["Request Count"])
        e2e = _aiperf_quantiles(distributions["Request Latency (ms)"], count)
    except (ValueError, KeyError, IndexError) as error:
        raise BenchError(f"not AIPerf's CSV: {error!r}", hint="it is its profile_export_aiperf.csv") from error
    requests_per_s = single.get("Request Throughput (requests/sec)", 0.0)
    in_flight = max(1, round(requests_per_s * e2e.mean)) if concurrency is None else concurrency
    lengths = distributions.get("Output Sequence Length (tokens)", {})
    prompts = distributions.get("Input Sequence Length (tokens)", {})
    summary = _figures(
        requests=count,
        failed=int(single.get("Error Request Count", 0)),
        wall_s=single.get("Benchmark Duration (sec)", 0.0),
        concurrency=float(in_flight),
        prompt_tokens=int(prompts.get("avg", 0) * count),
        output_tokens=int(lengths.get("avg", 0) * count),
        tokens_per_s=single.get("Output Token Throughput (tokens/sec)", 0.0),
        requests_per_s=requests_per_s,
        ttft_s=_aiperf_quantiles(distributions.get("Time to First Token (ms)", {}), count),
        tpot_s=_aiperf_quantiles(distributions.get("Inter Token Latency (ms)", {}), count),
        e2e_s=e2e,
    )
    level = RecordedLevel(pace=Closed(concurrency=in_flight), model=model, summary=summary)
    return Record(created_s=time.time(), tool="aiperf", levels=(level,))


def _rows(level: RecordedLevel) -> tuple[list[Row], list[Row], Run]:
    """(measured rows, those that succeeded, their run); BenchError where only figures were kept."""
    if not level.runs:
        raise BenchError("this record holds figures without requests", hint="export the file that it was imported from")
    run = unpack_run(level.runs[level.middle])
    rows = sorted((row for row in run.rows if row.phase == "measured"), key=lambda row: row.intended_s)
    return rows, [row for row in rows if row.ok], run


def _vllm_pace(found: dict[str, Any]) -> Pace:
    rate = found.get("request_rate", "inf")
    if found.get("max_concurrency"):
        return Closed(concurrency=int(found["max_concurrency"]))
    if rate == "inf":
        return Closed(concurrency=int(found["num_prompts"]))
    return Arrivals(rate_per_s=float(rate))


def _vllm_rows(found: dict[str, Any]) -> tuple[Row, ...]:
    rows = []
    for i, ttft_s in enumerate(found.get("ttfts") or ()):
        start_s = found["start_times"][i] if found.get("start_times") else 0.0
        stamps = array("d", [start_s + ttft_s])
        for gap in found["itls"][i]:
            stamps.append(stamps[-1] + gap)
        latency_s = found["latencies"][i] if found.get("latencies") else stamps[-1] - start_s
        rows.append(
            Row(
                intended_s=start_s,
                sent_s=start_s,
                end_s=start_s + latency_s,
                arrivals_s=stamps,
                arrival_tokens=array("d", [1.0] * len(stamps)),
                prompt_tokens=found["input_lens"][i],
                output_tokens=found["output_lens"][i],
                counted_by="usage",
                status=200,
                error=found["errors"][i][:80] or None,
                done_seen=True,
            )
        )
    return tuple(rows)


def _vllm_summary(found: dict[str, Any], pace: Pace) -> Summary:
    completed = int(found["completed"])

    def spread(name: str) -> Quantiles:
        known = {word: found.get(f"{word}_{name}_ms") for word in ("mean", "median", "p90", "p95", "p99")}
        if known["mean"] is None:
            return EMPTY
        return _quantiles(completed, known["mean"], known["median"], known["p90"], known["p95"], known["p99"], None)

    return _figures(
        requests=completed,
        failed=int(found.get("failed") or 0),
        wall_s=float(found["duration"]),
        concurrency=float(pace.concurrency) if isinstance(pace, Closed) else 0.0,
        prompt_tokens=int(found["total_input_tokens"]),
        output_tokens=int(found["total_output_tokens"]),
        tokens_per_s=float(found["output_throughput"]),
        requests_per_s=float(found["request_throughput"]),
        ttft_s=spread("ttft"),
        tpot_s=spread("tpot"),
        e2e_s=spread("e2el"),
    )


def _vllm_date(found: dict[str, Any]) -> float:
    try:
        return time.mktime(time.strptime(str(found.get("date")), "%Y%m%d-%H%M%S"))
    except ValueError:
        return time.time()


def _figures(
    *,
    requests: int,
    failed: int,
    wall_s: float,
    concurrency: float,
    prompt_tokens: int,
    output_tokens: int,
    tokens_per_s: float,
    requests_per_s: float,
    ttft_s: Quantiles,
    tpot_s: Quantiles,
    e2e_s: Quantiles,
) -> Summary:
    """A summary of what another tool printed."""
    return Summary(
        requests=requests + failed,
        errors={"failed": failed} if failed else {},
        window_s=wall_s,
        wall_s=wall_s,
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        counted_by="usage",
        tokens_per_s=tokens_per_s,
        tokens_per_s_request=output_tokens / requests / e2e_s.mean if requests and e2e_s.mean else 0.0,
        requests_per_s=requests_per_s,
        offered_per_s=requests_per_s,
        ttft_s=ttft_s,
        first_answer_s=EMPTY,
        tpot_s=tpot_s,
        itl_s=EMPTY,
        e2e_s=e2e_s,
        lag_s=EMPTY,
        notes=("figures of another tool, as it printed them",),
    )


def _aiperf_row(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    percentiles = (quantile(ordered, p / 100) for p in _AIPERF_PERCENTILES)
    mean, whole = statistics.fmean(ordered), sum(ordered)
    return [mean, ordered[0], ordered[-1], whole, *percentiles, statistics.pstdev(ordered)]


def _aiperf_quantiles(row: dict[str, float], count: int) -> Quantiles:
    if not row:
        return EMPTY
    return _quantiles(count, row["avg"], row.get("p50"), row.get("p90"), row.get("p95"), row.get("p99"), row.get("max"))


def _quantiles(count: int, mean: float, *shares_ms: float | None) -> Quantiles:
    """Milliseconds as seconds; a percentile that the file does not hold is that of the next lower one it does."""
    known: list[float] = []
    for value in shares_ms:
        known.append((value / 1e3) if value is not None else (known[-1] if known else mean / 1e3))
    p50, p90, p95, p99, most = known
    return Quantiles(count=count, mean=mean / 1e3, p50=p50, p90=p90, p95=p95, p99=p99, max=most)
