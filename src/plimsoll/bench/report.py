"""Levels as plain text lines and as JSON with the units in the key names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plimsoll.bench.measure import Level
from plimsoll.bench.stats import Quantiles
from plimsoll.bench.summary import Summary

HEADER = (
    "concurrency", "tokens/s per request", "tokens/s total", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "failed",
)  # fmt: skip


def table_cells(level: Level) -> tuple[str, ...]:
    """One level's cells under HEADER; times are in milliseconds and say so."""
    s = level.summary
    return (
        level.label + ("" if s.valid else " !"),
        f"{s.tokens_per_s_request:.1f}",
        f"{s.tokens_per_s:.1f}",
        *(_ms(value, of) for of in (s.ttft_s, s.tpot_s) for value in (of.p50, of.p99)),
        str(s.failed),
    )


def table_lines(levels: Sequence[Level]) -> list[str]:
    """The sweep's table, right-aligned, with what makes a level invalid and what to know below it."""
    rows = [HEADER, *(table_cells(level) for level in levels)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return lines + remarks(levels)


def bars(levels: Sequence[Level], *, width: int = 40) -> list[str]:
    """Total tokens/s (requests/s where there are no tokens) of each level as a bar of characters."""
    values = [level.summary.tokens_per_s or level.summary.requests_per_s for level in levels]
    longest = max((len(level.label) for level in levels), default=0)
    most = max(values, default=0.0) or 1.0
    lines = []
    for level, value in zip(levels, values, strict=True):
        whole, eighths = divmod(round(8 * width * value / most), 8)
        bar = "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths]
        lines.append(f"{level.label.rjust(longest)} {bar} {value:.1f}")
    return lines


def remarks(levels: Sequence[Level]) -> list[str]:
    """What a reader of the table must know, each thing once: invalid levels, failures, how tokens were counted."""
    found: dict[str, list[str]] = {}
    for level in levels:
        s = level.summary
        for text in [f"not valid: {fault}" for fault in s.invalid]:
            found.setdefault(text, []).append(level.label)
        if s.errors:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(s.errors.items()))
            found.setdefault(f"{s.failed} of {s.requests} requests failed: {kinds}", []).append(level.label)
    lines = [f"{', '.join(where)}: {text}" for text, where in found.items()]
    notes = dict.fromkeys(note for level in levels for note in (*level.notes, *level.summary.notes))
    return lines + list(notes)


def level_json(level: Level) -> dict[str, Any]:
    """One level as JSON values: rates per second, times in seconds."""
    head = {"concurrency": level.concurrency, "pace": level.label, "model": level.model}
    return {**head, **summary_json(level.summary)} | {
        "repeats": [summary_json(summary) for summary in level.repeats] if len(level.repeats) > 1 else [],
        "spread_of_repeats": level.spread,
        "notes": [*level.notes, *level.summary.notes],
        "generator_cpu_share": level.run.generator.cpu_share,
        "generator_timer_lag_s": level.run.generator.timer_lag_s,
    }


def summary_json(s: Summary) -> dict[str, Any]:
    """A summary as JSON values, units in the key names."""
    return {
        "valid": s.valid,
        "invalid_because": list(s.invalid),
        "requests": s.requests,
        "failed_by_kind": dict(s.errors),
        "window_s": s.window_s,
        "wall_s": s.wall_s,
        "mean_in_flight": s.concurrency,
        "prompt_tokens": s.prompt_tokens,
        "output_tokens": s.output_tokens,
        "counted_by": s.counted_by,
        "tokens_per_s_total": s.tokens_per_s,
        "tokens_per_s_request": s.tokens_per_s_request,
        "requests_per_s": s.requests_per_s,
        "offered_requests_per_s": s.offered_per_s,
        "goodput_requests_per_s": s.goodput_per_s,
        "slo_share": s.slo_share,
        "ttft_s": _quantiles(s.ttft_s),
        "first_answer_s": _quantiles(s.first_answer_s),
        "tpot_s": _quantiles(s.tpot_s),
        "itl_s": _quantiles(s.itl_s),
        "e2e_s": _quantiles(s.e2e_s),
        "send_lag_s": _quantiles(s.lag_s),
        "notes": list(s.notes),
    }


def _quantiles(q: Quantiles) -> dict[str, float]:
    return {name: getattr(q, name) for name in ("count", "mean", "p50", "p90", "p95", "p99", "max")}


def _ms(value_s: float, of: Quantiles) -> str:
    if not of.count:
        return "-"
    return f"{value_s * 1e3:.1f} ms" if value_s < 0.1 else f"{value_s * 1e3:.0f} ms"
