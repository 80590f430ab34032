"""Pictures of a record, by matplotlib: speed against concurrency, latency against throughput, CDFs, timeline."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plimsoll.bench.pace import Arrivals, Closed, label
from plimsoll.bench.records import Record, RecordedLevel, unpack_run
from plimsoll.bench.row import Row
from plimsoll.errors import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8c8c8c"
"""From the Okabe-Ito palette, which colour-blind readers can tell apart."""
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def draw(record: Record) -> dict[str, Figure]:
    """Every picture that the record has the data for, by name. BenchError when matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as _Figure  # noqa: F401 - told apart from a broken installation
    except ImportError as error:
        raise BenchError("pictures need matplotlib", hint="pip install 'plimsoll-llm[report]'") from error
    closed = sorted((level for level in record.levels if isinstance(level.pace, Closed)), key=_concurrency)
    with_rows = [level for level in record.levels if level.runs]
    found: dict[str, Figure] = {}
    with mpl.rc_context(_STYLE):
        if closed:
            found["speed"] = _speed(closed, predictions(record))
        if len(record.levels) > 1:
            found["latency"] = _latency(record.levels)
        if with_rows:
            found["cdf"] = _cdfs(with_rows)
            found["timeline"] = _timeline(with_rows[-1])
    return found


def save(figure: Figure, path: str) -> None:
    """Write a picture; the ending says the format (.png, .svg, .pdf)."""
    figure.savefig(path, dpi=150, bbox_inches="tight")


def svg(figure: Figure) -> str:
    """The picture as one <svg> element, to stand in a page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def predictions(record: Record) -> tuple[tuple[int, float, float, float], ...]:
    """(concurrency, low, expected, high) tokens per second of all requests, out of the plan; () without one."""
    speeds: list[Mapping[str, Any]] = []
    for replica in (record.plan or {}).get("replicas", ()):
        speeds += replica.get("speeds", ())
    totals = [(int(s["concurrency"]), s["tokens_per_s"]) for s in speeds]
    return tuple(sorted((c, float(t["low"]), float(t["expected"]), float(t["high"])) for c, t in totals))


def _concurrency(level: RecordedLevel) -> int:
    return level.pace.concurrency if isinstance(level.pace, Closed) else 0


def _asked(level: RecordedLevel) -> float:
    """How much load it was: what orders the points of a curve, which may bend back."""
    return level.pace.rate_per_s if isinstance(level.pace, Arrivals) else float(_concurrency(level))


def _scale(most_s: float) -> tuple[float, str]:
    """(factor, unit) in which times up to `most_s` read well."""
    return (1.0, "s") if most_s >= 2.0 else (1e3, "ms")


def _figure(width: float, height: float, columns: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    return figure, ([axes] if columns == 1 else list(axes))


def _speed(levels: Sequence[RecordedLevel], predicted: Sequence[tuple[int, float, float, float]]) -> Figure:
    figure, (total, single) = _figure(8.0, 3.2, 2)
    xs = [_concurrency(level) for level in levels]
    band = [p for p in predicted if xs[0] <= p[0] <= xs[-1]]
    for axes, share, measured, spreads, title in (
        (
            total,
            lambda _: 1,
            [level.summary.tokens_per_s for level in levels],
            [[s.tokens_per_s for s in level.repeats] for level in levels],
            "All requests together",
        ),
        (
            single,
            lambda c: c,
            [level.summary.tokens_per_s_request for level in levels],
            [[s.tokens_per_s_request for s in level.repeats] for level in levels],
            "One request",
        ),
    ):
        if band:
            at = [p[0] for p in band]
            low, mid, high = ([p[i] / share(p[0]) for p in band] for i in (1, 2, 3))
            axes.fill_between(at, low, high, color=GREY, alpha=0.25, linewidth=0, label="planned, 80 % interval")
            axes.plot(at, mid, color=GREY, linewidth=1.2, linestyle="--", label="planned")
        axes.plot(xs, measured, color=BLUE, marker="o", markersize=4, linewidth=1.6, label="measured")
        for x, spread in zip(xs, spreads, strict=True):
            if len(spread) > 1:
                axes.plot([x, x], [min(spread), max(spread)], color=BLUE, linewidth=3, alpha=0.4)
        _invalid(axes, levels, xs, measured)
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [str(x) for x in xs])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("requests at once")
    total.set_ylabel("output tokens/s")
    total.legend(loc="best", fontsize=8)
    return figure


def _invalid(axes: Axes, levels: Sequence[RecordedLevel], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Ring what may not be believed."""
    bad = [(x, y) for level, x, y in zip(levels, xs, ys, strict=True) if level.summary.invalid]
    if bad:
        points = [list(values) for values in zip(*bad, strict=True)]
        axes.plot(*points, "o", markersize=10, markerfacecolor="none", markeredgecolor=ORANGE, label="not valid")


def _latency(levels: Sequence[RecordedLevel]) -> Figure:
    figure, (pareto, first) = _figure(8.0, 3.2, 2)
    ordered = sorted(levels, key=_asked)
    tokens = any(level.summary.tokens_per_s for level in ordered)
    xs = [level.summary.tokens_per_s if tokens else level.summary.requests_per_s for level in ordered]
    if tokens:
        ys = [level.summary.tokens_per_s_request for level in ordered]
        pareto.plot(xs, ys, color=BLUE, marker="o", markersize=4)
        pareto.set_title("Speed for one against speed for all")
        pareto.set_ylabel("tokens/s of one request")
    else:
        ys = [level.summary.e2e_s.p50 for level in ordered]
        pareto.plot(xs, ys, color=BLUE, marker="o", markersize=4)
        pareto.set_title("Time of a request")
        pareto.set_ylabel("e2e p50, s")
    _name(pareto, ordered, xs, ys)
    times = [level.summary.ttft_s if tokens else level.summary.e2e_s for level in ordered]
    highest = max(max(time.p50, time.p99) for time in times)
    factor, unit = _scale(highest)
    for share, colour, below in (("p50", BLUE, -9), ("p99", ORANGE, 2)):
        of = [getattr(time, share) * factor for time in times]
        first.plot(xs, of, color=colour, marker="o", markersize=4)
        first.annotate(share, (xs[-1], of[-1]), textcoords="offset points", xytext=(6, below), fontsize=8, color=colour)
    first.set_title("Time to the first token" if tokens else "Time of a request")
    first.set_ylabel(unit)
    for axes, most in ((pareto, max(ys)), (first, highest * factor)):
        axes.set_xlabel("output tokens/s, all requests together" if tokens else "requests/s")
        axes.set_ylim(0, most * 1.15 or 1.0)
        axes.set_xlim(0, max(xs) * 1.15 or 1.0)
    return figure


def _name(axes: Axes, levels: Sequence[RecordedLevel], xs: Sequence[float], ys: Sequence[float]) -> None:
    for level, x, y in zip(levels, xs, ys, strict=True):
        text = f"c={label(level.pace)}" if isinstance(level.pace, Closed) else label(level.pace)
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8, color="#404040")


def _cdfs(levels: Sequence[RecordedLevel]) -> Figure:
    figure, panels = _figure(9.0, 3.0, 3)
    colours = _shades(len(levels))
    times: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
        ("Time to first token", lambda row: row.ttft_s),
        ("Time per output token", lambda row: row.tpot_s),
        ("Whole request", lambda row: row.e2e_s),
    )
    for axes, (title, value) in zip(panels, times, strict=True):
        samples = [sorted(v for row in _good(level) if (v := value(row)) is not None) for level in levels]
        most_s = max((found[-1] for found in samples if found), default=0.0)
        factor, unit = _scale(most_s)
        for level, colour, found in zip(levels, colours, samples, strict=True):
            if found:
                at = [v * factor for v in (found[0], *found)]
                shares = [i / len(found) for i in range(len(found) + 1)]
                axes.step(at, shares, where="post", color=colour, label=label(level.pace))
        axes.set_title(title)
        axes.set_xlabel(unit)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, most_s * factor * 1.05 or 1.0)
    panels[0].set_ylabel("share of requests")
    lines = panels[-1].get_lines()
    names = [str(line.get_label()) for line in lines]
    figure.legend(lines, names, title="at once", fontsize=8, title_fontsize=8, loc="outside right center")
    return figure


def _timeline(level: RecordedLevel) -> Figure:
    has_load = bool(level.samples)
    figure, panels = _figure(8.0, 2.8, 2 if has_load else 1)
    run = unpack_run(level.runs[level.middle])
    rows = [row for row in run.rows if row.ok]
    end_s = max((row.end_s for row in run.rows), default=0.0)
    bin_s = max(end_s / 60, 1e-3)
    counts = [0.0] * (int(end_s / bin_s) + 1)
    for row in rows:
        for stamp, tokens in zip(row.arrivals_s, row.arrival_tokens, strict=True):
            if stamp >= 0:
                counts[int(stamp / bin_s)] += tokens
    at = [i * bin_s for i in range(len(counts))]
    panels[0].step(at, [n / bin_s for n in counts], where="post", color=BLUE, linewidth=1.2)
    panels[0].axvspan(0, run.window_s[1], color=GREEN, alpha=0.08, linewidth=0)
    panels[0].set_title(f"Output tokens/s over time, {label(level.pace)} at once")
    panels[0].set_xlabel("s (shaded: steady state)")
    panels[0].set_ylim(bottom=0)
    if has_load:
        load = panels[1]
        at = [sample.at_s for sample in level.samples]
        load.plot(at, [sample.cpu_share * 100 for sample in level.samples], color=BLUE, label="CPU, all cores")
        if any(sample.gpu_share for sample in level.samples):
            busiest = [max(sample.gpu_share, default=0.0) * 100 for sample in level.samples]
            load.plot(at, busiest, color=ORANGE, label="GPU, the busiest")
        load.set_title("Load of this machine")
        load.set_ylabel("%")
        load.set_ylim(0, 105)
        load.set_xlabel("s")
        load.legend(loc="lower right", fontsize=8)
    return figure


def _good(level: RecordedLevel) -> list[Row]:
    return [row for row in unpack_run(level.runs[level.middle]).rows if row.ok and row.phase == "measured"]


def _shades(count: int) -> list[tuple[float, float, float, float]]:
    """From dark to light, for levels in order."""
    from matplotlib import colormaps

    shades = colormaps["viridis"].resampled(max(count + 1, 2))  # the lightest one is left out: it does not print
    return [shades(i) for i in range(count)]
