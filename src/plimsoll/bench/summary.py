"""What the rows of one level come to, and whether the level may be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from plimsoll.bench.row import Row, TokenBasis
from plimsoll.bench.run import Run
from plimsoll.bench.stats import Quantiles, quantiles, weighted_quantiles

LAG_P99_LIMIT_S = 0.010
CONCURRENCY_SHARE = 0.95
CPU_SHARE_LIMIT = 0.90
KEEPS_UP_SHARE = 0.90
TIMER_LAG_LIMIT_S = 0.010
TIMER_LAG_SHARE = 0.05
"""Of the median time to first token: on a machine that the engine fills, late timers are no error worth the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Figures over the measured, successful requests; failed ones are counted by kind and averaged into nothing."""

    requests: int
    """Measured ones, failed ones included."""
    errors: Mapping[str, int]
    said: Mapping[str, str] = field(default_factory=dict)
    """The first failure's own words, by kind."""
    window_s: float
    """Length of the steady state; rates are of what arrived in it."""
    wall_s: float
    """First measured send to last measured end."""
    concurrency: float
    """Mean number in flight in the window."""
    prompt_tokens: int
    output_tokens: int
    counted_by: TokenBasis
    tokens_per_s: float
    """Output tokens of all requests together, in the window."""
    tokens_per_s_request: float
    """Output tokens of one request over its whole time, queue and prefill included: the mean over requests."""
    requests_per_s: float
    offered_per_s: float
    """Requests that were sent in the window, per second: in an open loop, the rate as it really was."""
    ttft_s: Quantiles
    first_answer_s: Quantiles
    """To the first text that is not reasoning."""
    tpot_s: Quantiles
    itl_s: Quantiles
    """Per token, over all requests."""
    e2e_s: Quantiles
    lag_s: Quantiles
    """Actual minus intended send."""
    goodput_per_s: float | None = None
    """Requests per second that met the service level; None when there is none."""
    slo_share: float | None = None
    """Of all measured requests, how many met it."""
    invalid: tuple[str, ...] = ()
    """Why the level may not be believed; empty: valid."""
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the load was what was asked for."""
        return not self.invalid

    @property
    def failed(self) -> int:
        """Measured requests that did not get their whole answer."""
        return sum(self.errors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The service level that a request must meet to count as goodput; None: not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met(self, row: Row) -> bool:
        """Whether this request kept all of it; a failed one did not."""
        return row.ok and all(
            limit is None or (value is not None and value <= limit)
            for limit, value in (
                (self.ttft_s, row.ttft_s),
                # One token has no time per token: there is nothing to miss.
                (self.tpot_s, row.tpot_s if row.tpot_s is not None else 0.0),
                (self.e2e_s, row.e2e_s),
            )
        )


def summarise(run: Run, *, concurrency: int | None = None, slo: Slo | None = None) -> Summary:
    """Summary of one run; `concurrency` is what was asked for in a closed loop, None in an open one."""
    start_s, end_s = run.window_s
    window_s = max(end_s - start_s, 1e-9)
    measured = [row for row in run.rows if row.phase == "measured"]
    good = [row for row in measured if row.ok]
    in_flight = sum(_overlap(row.sent_s, row.end_s, start_s, end_s) for row in run.rows) / window_s
    ended = [row for row in run.rows if row.ok and start_s < row.end_s <= end_s]
    lag_s = quantiles(row.lag_s for row in measured)
    offered = sum(1 for row in measured if start_s <= row.intended_s <= end_s) / window_s
    return Summary(
        requests=len(measured),
        errors=dict(Counter(row.error for row in measured if row.error is not None)),
        said={row.error: row.detail for row in reversed(measured) if row.error is not None},
        window_s=window_s,
        wall_s=max((row.end_s for row in measured), default=0.0) - min((row.sent_s for row in measured), default=0.0),
        concurrency=in_flight,
        prompt_tokens=sum(row.prompt_tokens or 0 for row in good),
        output_tokens=sum(row.output_tokens for row in good),
        counted_by=_basis(good),
        tokens_per_s=sum(_tokens_in(row, start_s, end_s) for row in run.rows) / window_s,
        tokens_per_s_request=_mean([row.output_tokens / row.e2e_s for row in good if row.e2e_s > 0]),
        requests_per_s=len(ended) / window_s,
        offered_per_s=offered,
        ttft_s=quantiles(row.ttft_s for row in good if row.ttft_s is not None),
        first_answer_s=quantiles(row.first_answer_s - row.intended_s for row in good if row.first_answer_s is not None),
        tpot_s=quantiles(row.tpot_s for row in good if row.tpot_s is not None),
        itl_s=weighted_quantiles(gap for row in good for gap in row.gaps()),
        e2e_s=quantiles(row.e2e_s for row in good),
        lag_s=lag_s,
        goodput_per_s=None if slo is None else sum(1 for row in ended if slo.met(row)) / window_s,
        slo_share=None if slo is None or not measured else sum(slo.met(row) for row in measured) / len(measured),
        invalid=tuple(_faults(run, good, lag_s, in_flight, concurrency)),
        notes=tuple(_notes(run, good))
        + (_backlog(good, offered, len(ended) / window_s) if concurrency is None else ()),
    )


def _faults(run: Run, good: Sequence[Row], lag_s: Quantiles, in_flight: float, asked: int | None) -> Iterable[str]:
    if not good:
        yield "no request succeeded"
        return
    if asked is not None and in_flight < CONCURRENCY_SHARE * asked:
        yield f"{in_flight:.1f} requests were in flight, {asked} were asked for"
    if lag_s.p99 > LAG_P99_LIMIT_S:
        yield f"sends were late: 99th percentile {lag_s.p99 * 1e3:.1f} ms after they were due"
    waits_s = quantiles(row.e2e_s if row.ttft_s is None else row.ttft_s for row in good).p50
    if run.generator.timer_lag_s > max(TIMER_LAG_LIMIT_S, TIMER_LAG_SHARE * waits_s):
        yield (
            f"the load generator is the limit: its timers ran {run.generator.timer_lag_s * 1e3:.1f} ms late "
            f"(99th percentile); give it a core of its own or more processes"
        )
    elif asked is not None and run.generator.cpu_share > CPU_SHARE_LIMIT:
        # In an open loop the last millisecond before each arrival is waited out awake: CPU time, but no load.
        yield (
            f"the load generator is the limit: it used {run.generator.cpu_share:.0%} of a core; give it more processes"
        )


def _notes(run: Run, good: Sequence[Row]) -> Iterable[str]:
    if any(row.counted_by == "chunks" for row in good):
        yield "output tokens are chunks counted as one token each: the server gave no usage"
    if any(row.chunk_basis == "characters" for row in good):
        yield "some chunks hold several tokens; how many is worked out from their characters"
    resent = sum(row.resent for row in run.rows)
    if resent:
        yield f"{resent} requests were sent again: the server had closed their kept-alive connection"
    open_ended = sum(1 for row in good if row.arrivals_s and not row.done_seen)
    if open_ended:
        yield f"{open_ended} streams ended without [DONE]"
    cached, prompt = sum(row.cached_tokens or 0 for row in good), sum(row.prompt_tokens or 0 for row in good)
    if prompt and cached > 0.5 * prompt:  # below that it is likely the chat template's own system prompt
        yield f"{cached / prompt:.0%} of the prompt tokens came from the prefix cache"


def _backlog(good: Sequence[Row], offered: float, ended: float) -> tuple[str, ...]:
    """Whether the queue grew: fewer answers than arrivals, and the last third waits half as long again as the first."""
    third = len(good) // 3
    waits_s = [row.e2e_s for row in sorted(good, key=lambda row: row.intended_s)]
    grew = third > 0 and quantiles(waits_s[-third:]).p50 > 1.5 * quantiles(waits_s[:third]).p50
    if not grew or ended >= KEEPS_UP_SHARE * offered:
        return ()
    return (
        f"the server did not keep up: {offered:.1f} requests/s came, {ended:.1f} were answered; "
        f"its queue, and every latency here, grows with the length of the run",
    )


def _basis(rows: Sequence[Row]) -> TokenBasis:
    bases: set[TokenBasis] = {row.counted_by for row in rows}
    order: tuple[TokenBasis, ...] = ("chunks", "tokenizer", "usage")
    return next((basis for basis in order if basis in bases), "none")


def _overlap(start_s: float, end_s: float, from_s: float, to_s: float) -> float:
    return max(0.0, min(end_s, to_s) - max(start_s, from_s))


def _tokens_in(row: Row, start_s: float, end_s: float) -> float:
    """Output tokens that arrived in the window; an unstreamed answer's are spread evenly over its time."""
    if not row.ok:
        return 0.0
    if not row.arrivals_s:
        length_s = row.end_s - row.sent_s
        return row.output_tokens * _overlap(row.sent_s, row.end_s, start_s, end_s) / length_s if length_s > 0 else 0.0
    streamed = sum(row.arrival_tokens)
    if start_s <= row.arrivals_s[0] and row.end_s <= end_s:
        return float(row.output_tokens)
    inside = sum(n for t, n in zip(row.arrivals_s, row.arrival_tokens, strict=True) if start_s <= t <= end_s)
    # A last token without text is in the count and not in the stream.
    return inside * row.output_tokens / streamed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
