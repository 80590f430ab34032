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
"""Of answers made of tokens, without a service level and without repeats."""


UNSTEADY_SPREAD = 0.2
"""Of the repeats' throughput, over their middle: beyond it a figure says little."""


def columns(level: Level) -> dict[str, str]:
    """One level's cells by the name of their column; times say their unit. Levels of one measurement have the same."""
    s = level.summary
    cells = {"concurrency" if level.concurrency is not None else "arrivals": level.label + ("" if s.valid else " !")}
    if s.output_tokens or s.ttft_s.count:
        cells |= {
            "tokens/s per request": f"{s.tokens_per_s_request:.1f}",
            "tokens/s total": f"{s.tokens_per_s:.1f}",
            "TTFT p50": _ms(s.ttft_s.p50, s.ttft_s),
            "TTFT p99": _ms(s.ttft_s.p99, s.ttft_s),
            "TPOT p50": _ms(s.tpot_s.p50, s.tpot_s),
            "TPOT p99": _ms(s.tpot_s.p99, s.tpot_s),
        }
    else:
        cells |= {
            "requests/s": f"{s.requests_per_s:.1f}",
            "prompt tokens/s": f"{s.prompt_tokens / s.wall_s:.0f}" if s.prompt_tokens and s.wall_s else "-",
            "e2e p50": _ms(s.e2e_s.p50, s.e2e_s),
            "e2e p99": _ms(s.e2e_s.p99, s.e2e_s),
        }
    if s.goodput_per_s is not None and s.slo_share is not None:
        cells |= {"goodput/s": f"{s.goodput_per_s:.2f}", "SLO met": f"{s.slo_share:.0%}"}
    if level.spread is not None:
        cells["spread"] = f"{level.spread:.1%}"
    return cells | {"failed": str(s.failed)}


def table_cells(level: Level) -> tuple[str, ...]:
    """One level's cells, in the order of `columns`."""
    return tuple(columns(level).values())


def table_lines(levels: Sequence[Level]) -> list[str]:
    """The table, right-aligned, with what makes a level invalid and what to know below it."""
    rows = [tuple(columns(levels[0])), *(table_cells(level) for level in levels)] if levels else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
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
        if level.spread is not None and level.spread > UNSTEADY_SPREAD:
            text = "the repeats differ much: the machine was not quiet, or too few requests were sent"
            found.setdefault(text, []).append(level.label)
        if s.errors:
            kinds = ", ".join(f"{count} {kind}{_said(s, kind)}" for kind, count in sorted(s.errors.items()))
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
        "machine": machine_json(level),
    }


def machine_json(level: Level) -> dict[str, float | None]:
    """What this machine did meanwhile; None: not sampled, or not told. It is the server's only where both are one."""
    samples = level.samples
    watts = [sample.power_w for sample in samples if sample.power_w is not None]
    rate = level.summary.tokens_per_s
    power_w = sum(watts) / len(watts) if watts else None
    return {
        "cpu_share_mean": _mean([sample.cpu_share for sample in samples]),
        "gpu_share_mean": _mean([share for sample in samples for share in sample.gpu_share]),
        "ram_used_bytes_max": max((sample.ram_used_bytes for sample in samples), default=None),
        "processes_bytes_max": max((s.processes_bytes for s in samples if s.processes_bytes is not None), default=None),
        "gpu_used_bytes_max": max((used for sample in samples for used in sample.gpu_used_bytes), default=None),
        "power_w_mean": power_w,
        "joule_per_output_token": power_w / rate if power_w is not None and rate else None,
    }


def _said(s: Summary, kind: str) -> str:
    words = s.said.get(kind, "")
    return f" ({words})" if words else ""


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def summary_json(s: Summary) -> dict[str, Any]:
    """A summary as JSON values, units in the key names."""
    return {
        "valid": s.valid,
        "invalid_because": list(s.invalid),
        "requests": s.requests,
        "failed_by_kind": dict(s.errors),
        "first_failure_said": dict(s.said),
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
