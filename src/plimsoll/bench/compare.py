"""Two records side by side, with bootstrap intervals: what changed, and what only seems to have."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from plimsoll.bench.pace import Closed, label
from plimsoll.bench.records import Record, RecordedLevel, unpack_run
from plimsoll.bench.row import Row
from plimsoll.bench.stats import quantile
from plimsoll.errors import BenchError
from plimsoll.units import format_seconds

_RESAMPLES = 1000
_RESAMPLES_SORTED = 200
"""For percentiles, which need every value of every resample in order."""
_BLOCKS = 40
_LOW, _HIGH = 0.025, 0.975
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure that is compared: the sum of the first `parts` over the sum of the second, over all rows."""

    name: str
    unit: str
    higher_is_better: bool
    parts: Callable[[Row], tuple[float, float] | None]


def _mean_of(value: Callable[[Row], float | None]) -> Callable[[Row], tuple[float, float] | None]:
    def parts(row: Row) -> tuple[float, float] | None:
        found = value(row)
        return None if found is None else (found, 1.0)

    return parts


_METRICS = (
    # Of one worker; in a closed loop the total is the concurrency times this (Little's law).
    Metric(name="tokens/s", unit="1/s", higher_is_better=True, parts=lambda row: (row.output_tokens, row.e2e_s)),
    Metric(name="requests/s", unit="1/s", higher_is_better=True, parts=lambda row: (1.0, row.e2e_s)),
    Metric(name="TTFT mean", unit="s", higher_is_better=False, parts=_mean_of(lambda row: row.ttft_s)),
    Metric(name="TPOT mean", unit="s", higher_is_better=False, parts=_mean_of(lambda row: row.tpot_s)),
    Metric(name="e2e mean", unit="s", higher_is_better=False, parts=_mean_of(lambda row: row.e2e_s)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric at one pace: both values, and B over A with its 95 % interval."""

    pace: str
    metric: str
    unit: str
    higher_is_better: bool
    a: float
    b: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def seen(self) -> bool:
        """Whether the interval leaves out "no change"."""
        return not self.ratio_low <= 1.0 <= self.ratio_high

    @property
    def verdict(self) -> str:
        """better, worse, or no difference seen."""
        if not self.seen:
            return "no difference seen"
        return "better" if (self.ratio > 1.0) == self.higher_is_better else "worse"

    def worse_by(self, share: float) -> bool:
        """Whether B is worse by more than `share`, and the interval leaves out "no change"."""
        loss = 1.0 - self.ratio if self.higher_is_better else self.ratio - 1.0
        return self.seen and loss > share


def compare(a: Record, b: Record, *, seed: int = 0) -> tuple[Difference, ...]:
    """Every metric at every pace that both records measured; BenchError when they have none with rows in common.

    The intervals are of a block bootstrap: runs are drawn, and within a run blocks of requests that follow each other,
    since neighbours in time share the machine's mood. With one run each, what differs from run to run is not in them:
    `caveats` says so.
    """
    pairs = [(x, y) for x in a.levels for y in b.levels if x.pace == y.pace and _measured(x) and _measured(y)]
    if not pairs:
        raise BenchError(
            "the two records share no pace that both have rows of",
            hint="measure both at the same concurrency; imported figures without rows cannot be compared",
        )
    rng = random.Random(seed)  # noqa: S311
    return tuple(found for x, y in pairs for found in _compare_level(x, y, rng))


def lines(differences: Sequence[Difference]) -> list[str]:
    """One line for each: pace, metric, both values, B over A with its interval, verdict."""
    return [
        f"{d.pace:>6}  {d.metric:<10}  {_value(d.a, d.unit):>10}  {_value(d.b, d.unit):>10}  "
        f"{d.ratio - 1:+7.1%} ({d.ratio_low - 1:+.1%} to {d.ratio_high - 1:+.1%})  {d.verdict}"
        for d in differences
    ]


def _value(value: float, unit: str) -> str:
    return format_seconds(value) if unit == "s" else f"{value:.1f}/s"


def caveats(a: Record, b: Record) -> tuple[str, ...]:
    """What the intervals do not hold, and what else differs between the two."""
    found = []
    if any(len(level.runs) < 2 for record in (a, b) for level in record.levels):
        found.append("one run each: what differs from run to run is not in the intervals (measure with --repeats 3)")
    for what, x, y in (
        ("the load", _load(a), _load(b)),
        ("the machine", a.hardware, b.hardware),
        ("the measuring tool", a.tool, b.tool),
    ):
        if x != y:
            found.append(f"{what} is not the same in both")
    if any(level.summary.invalid for record in (a, b) for level in record.levels):
        found.append("levels marked as not valid are among them")
    return tuple(found)


def _load(record: Record) -> tuple[object, ...] | None:
    load = record.load
    if load is None:
        return None
    return (load.route, load.prompt_tokens, load.output_tokens, load.spread, load.prefix_tokens, load.turns, load.data)


def _measured(level: RecordedLevel) -> bool:
    return bool(level.runs)


Blocks = list[list[list[Row]]]
"""Runs of blocks of rows."""


def _compare_level(a: RecordedLevel, b: RecordedLevel, rng: random.Random) -> list[Difference]:
    runs_a, runs_b = _blocks_of(a), _blocks_of(b)
    if not runs_a or not runs_b:
        return []
    closed = isinstance(a.pace, Closed)
    scale = a.pace.concurrency if isinstance(a.pace, Closed) else 1
    found = []
    for metric in _METRICS:
        # In an open loop the rate is what was asked for, not what the server can do.
        if metric.higher_is_better and not closed:
            continue
        sums_a, sums_b = _sums(runs_a, metric), _sums(runs_b, metric)
        values = _mean(_all(sums_a)), _mean(_all(sums_b))
        if not values[0] or not values[1]:
            continue
        ratios = [_mean(_draw(sums_b, rng)) / max(_mean(_draw(sums_a, rng)), 1e-12) for _ in range(_RESAMPLES)]
        found.append(_difference(a, metric, values, ratios, scale if metric.higher_is_better else 1))
    firsts_a, firsts_b = _firsts(runs_a), _firsts(runs_b)
    if _all(firsts_a) and _all(firsts_b):
        values = _p99(_all(firsts_a)), _p99(_all(firsts_b))
        ratios = [_p99(_draw(firsts_b, rng)) / _p99(_draw(firsts_a, rng)) for _ in range(_RESAMPLES_SORTED)]
        p99 = Metric(name="TTFT p99", unit="s", higher_is_better=False, parts=_mean_of(lambda row: row.ttft_s))
        found.append(_difference(a, p99, values, ratios, 1))
    return found


def _difference(
    level: RecordedLevel, metric: Metric, values: tuple[float, float], ratios: list[float], scale: int
) -> Difference:
    ratios.sort()
    return Difference(
        pace=label(level.pace),
        metric=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        a=values[0] * scale,
        b=values[1] * scale,
        ratio=values[1] / values[0],
        ratio_low=quantile(ratios, _LOW),
        ratio_high=quantile(ratios, _HIGH),
    )


def _blocks_of(level: RecordedLevel) -> Blocks:
    """Per run, its measured and successful rows in order of time, cut into blocks."""
    runs = []
    for recorded in level.runs:
        rows = [row for row in unpack_run(recorded).rows if row.ok and row.phase == "measured"]
        rows.sort(key=lambda row: row.intended_s)
        size = max(1, len(rows) // _BLOCKS)
        if rows:
            runs.append([rows[i : i + size] for i in range(0, len(rows), size)])
    return runs


def _sums(runs: Blocks, metric: Metric) -> list[list[list[tuple[float, float]]]]:
    """Each block as one pair of sums, so that a resample touches blocks and not rows."""
    return [[[_total([p for row in block if (p := metric.parts(row)) is not None])] for block in run] for run in runs]


def _total(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)


def _firsts(runs: Blocks) -> list[list[list[float]]]:
    return [[[row.ttft_s for row in block if row.ttft_s is not None] for block in run] for run in runs]


def _mean(pairs: list[tuple[float, float]]) -> float:
    above, below = _total(pairs)
    return above / below if below else 0.0


def _p99(values: list[float]) -> float:
    return quantile(sorted(values), 0.99)


def _draw(runs: list[list[list[T]]], rng: random.Random) -> list[T]:
    return [
        value for run in rng.choices(runs, k=len(runs)) for block in rng.choices(run, k=len(run)) for value in block
    ]


def _all(runs: list[list[list[T]]]) -> list[T]:
    return [value for run in runs for block in run for value in block]
