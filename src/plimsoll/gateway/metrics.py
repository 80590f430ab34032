"""Counters and histograms in Prometheus's text form; recording is a few list operations."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from plimsoll.gateway.settings import Record

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)


class Histogram:
    """Counts by upper bound, in seconds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value_s: float) -> None:
        """Count one value."""
        self._counts[bisect.bisect_left(self._bounds, value_s)] += 1
        self._sum += value_s

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """`name_bucket`, `name_sum` and `name_count`, cumulative."""
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


class _Series:
    """What is kept per model and upstream."""

    __slots__ = ("duration", "first_byte", "output_tokens", "per_token", "prompt_tokens", "queued")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.first_byte = Histogram(_SECONDS)
        self.per_token = Histogram(_TOKEN_SECONDS)
        self.duration = Histogram(_SECONDS)
        self.queued = Histogram(_SECONDS)


class Metrics:
    """All that /metrics shows of finished requests."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str, int], int] = {}
        self._series: dict[tuple[str, str], _Series] = {}

    def note(self, record: Record) -> None:
        """Count one finished request."""
        name = (record.model, record.upstream, record.route, record.status)
        self._requests[name] = self._requests.get(name, 0) + 1
        if not record.upstream:
            return
        pair = (record.model, record.upstream)
        series = self._series.get(pair)
        if series is None:
            series = self._series[pair] = _Series()
        series.prompt_tokens += record.prompt_tokens
        series.output_tokens += record.output_tokens
        series.queued.add(record.queued_s)
        series.duration.add(record.duration_s)
        if record.stream and record.first_byte_s:
            series.first_byte.add(record.first_byte_s)
            if record.output_tokens > 1:
                series.per_token.add((record.duration_s - record.first_byte_s) / (record.output_tokens - 1))

    def render(self, gauges: Iterable[tuple[str, str, str, float]]) -> str:
        """The exposition; `gauges` are (name, help, labels, value), those of one name side by side."""
        out: list[str] = []
        seen = ""
        for name, text, labels, value in gauges:
            if name != seen:
                out += (f"# HELP {name} {text}", f"# TYPE {name} gauge")
                seen = name
            out.append(f"{name}{{{labels}}} {value:g}")
        out += _header("plimsoll_requests_total", "counter", "Finished requests; status 499: the client left first.")
        for (model, upstream, route, status), count in self._requests.items():
            labels = f'{_labels(model, upstream)},route="{route}",status="{status}"'
            out.append(f"plimsoll_requests_total{{{labels}}} {count}")
        out += _header("plimsoll_tokens_total", "counter", "Tokens as the engines reported them.")
        for (model, upstream), series in self._series.items():
            labels = _labels(model, upstream)
            out.append(f'plimsoll_tokens_total{{{labels},kind="prompt"}} {series.prompt_tokens}')
            out.append(f'plimsoll_tokens_total{{{labels},kind="output"}} {series.output_tokens}')
        for name, text, attribute in (
            ("plimsoll_ttft_seconds", "From a streamed request's arrival to its first text.", "first_byte"),
            ("plimsoll_tpot_seconds", "Mean time per further output token of a stream.", "per_token"),
            ("plimsoll_request_seconds", "From arrival to the end of the answer.", "duration"),
            ("plimsoll_queue_seconds", "From arrival to being sent to a replica.", "queued"),
        ):
            out += _header(name, "histogram", text)
            for (model, upstream), series in self._series.items():
                out += getattr(series, attribute).lines(name, _labels(model, upstream))
        return "\n".join(out) + "\n"


def _header(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _labels(model: str, upstream: str) -> str:
    return f'model="{escape(model)}",upstream="{escape(upstream)}"'


def escape(label: str) -> str:
    """A label value as Prometheus wants it."""
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
