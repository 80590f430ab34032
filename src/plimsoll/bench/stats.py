"""Quantiles of samples, weighted where a sample stands for several tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """How a quantity is spread over `count` samples; all NaN-free, all zero when there are none."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


EMPTY = Quantiles(count=0, mean=0.0, p50=0.0, p90=0.0, p95=0.0, p99=0.0, max=0.0)


def quantiles(samples: Iterable[float]) -> Quantiles:
    """Quantiles by linear interpolation between order statistics."""
    ordered = sorted(samples)
    if not ordered:
        return EMPTY
    p50, p90, p95, p99 = (quantile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99))
    mean = sum(ordered) / len(ordered)
    return Quantiles(count=len(ordered), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=ordered[-1])


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the sorted, non-empty samples lie, interpolated linearly."""
    place = share * (len(ordered) - 1)
    below = int(place)
    if below + 1 == len(ordered):
        return ordered[below]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (place - below)


def weighted_quantiles(samples: Iterable[tuple[float, float]]) -> Quantiles:
    """Quantiles of (value, weight) samples: the value at which the weights reach the share."""
    ordered = sorted(sample for sample in samples if sample[1] > 0)
    if not ordered:
        return EMPTY
    whole = sum(weight for _, weight in ordered)
    mean = sum(value * weight for value, weight in ordered) / whole
    reached, found, shares = 0.0, [], [0.5, 0.9, 0.95, 0.99]
    for value, weight in ordered:
        reached += weight
        while shares and reached >= shares[0] * whole * (1 - 1e-12):
            found.append(value)
            shares.pop(0)
    p50, p90, p95, p99 = found
    return Quantiles(count=len(ordered), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=ordered[-1][0])
