"""Errors of predictions against measurements, by engine and quantity."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One quantity of one row: what was measured and what was predicted before looking."""

    row: str
    engine: str
    quantity: str
    measured: float
    predicted: float
    source: str = ""

    @property
    def error(self) -> float:
        """Signed, as a part of what was measured."""
        return (self.predicted - self.measured) / abs(self.measured) if self.measured else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All pairs of one engine and quantity."""

    engine: str
    quantity: str
    rows: int
    median: float
    p90: float
    bias: float
    worst: tuple[Pair, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values; errors as fractions."""
        return {
            "engine": self.engine, "quantity": self.quantity, "rows": self.rows, "median_ape": self.median,
            "p90_ape": self.p90, "bias": self.bias,
            "worst": [
                {"row": pair.row, "measured": pair.measured, "predicted": pair.predicted, "error": pair.error}
                for pair in self.worst
            ],
        }  # fmt: skip


def summarise(pairs: Iterable[Pair], *, worst: int = 5) -> list[Summary]:
    """One summary for each engine and quantity, and for each quantity over all engines."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.engine, pair.quantity), []).append(pair)
        groups.setdefault(("all", pair.quantity), []).append(pair)
    return [_summary(engine, quantity, group, worst) for (engine, quantity), group in sorted(groups.items())]


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-part * len(ordered) // 1) - 1))]


def confusion(verdicts: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """(measured, predicted) verdicts counted: rows measured, columns predicted."""
    table: dict[str, Counter[str]] = {}
    for measured, predicted in verdicts:
        table.setdefault(measured, Counter())[predicted] += 1
    return {measured: dict(sorted(counts.items())) for measured, counts in sorted(table.items())}


def _summary(engine: str, quantity: str, pairs: list[Pair], worst: int) -> Summary:
    errors = [abs(pair.error) for pair in pairs]
    return Summary(
        engine=engine,
        quantity=quantity,
        rows=len(pairs),
        median=statistics.median(errors),
        p90=percentile(errors, 0.9),
        bias=statistics.median([pair.error for pair in pairs]),
        worst=tuple(sorted(pairs, key=lambda pair: -abs(pair.error))[:worst]),
    )
