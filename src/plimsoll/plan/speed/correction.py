"""What measured runs teach: the few physical rates that they move, for the same machine, engine and model.

Not a table of what was seen: a run at one and at four clients scales bandwidth, arithmetic and overheads, and the model
carries that to other numbers of clients and other lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from plimsoll.plan.ledger import Ledger
from plimsoll.plan.memory import account
from plimsoll.plan.speed.load import Load, Timing
from plimsoll.plan.speed.predictor import Predictor
from plimsoll.plan.types import Candidate

FREE: Mapping[str, tuple[str, ...]] = {
    "bandwidth": ("bandwidth",),
    "compute": ("compute",),
    "overhead": ("layer_s", "step_s"),
    "sequence": ("sequence_s",),
    "cache": ("cache",),
    "start": ("start_s",),
}
"""What a run may move, each name a group of coefficients that move together."""
_SPREAD = {"bandwidth": 0.5, "compute": 0.7, "overhead": 0.7, "sequence": 0.7, "cache": 0.3, "start": 1.0}
"""How far, as a logarithm, they are believed to lie off before a run is seen."""
_NOISE = 0.04
"""Spread (as a logarithm) of one measured level from run to run."""
_LEAST = 0.1
"""An interval is never narrower than this, as a logarithm: other days, other prompts."""
_GROWTH = 0.03
"""Widening for each doubling of load or length away from what was measured."""
_STEP = 1e-3
_ROUNDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of a bench record: the load that was sent and what came back, as means over its requests.

    Seconds and output tokens per second; None for what was not measured.
    """

    load: Load
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A bench record as far as the speed model reads it."""

    candidate: Candidate
    levels: tuple[Level, ...]
    ledger: Ledger | None = None
    source: str = ""


def corrected(predictor: Predictor, run: MeasuredRun) -> Predictor:
    """`predictor` with its rates scaled so that it says what `run` measured, where few rates can; priors keep the rest.

    For the machine, engine and model of `run` alone. A run without measured levels changes nothing.
    """
    truths = [(level, kind, value) for level in run.levels for kind, value in _measured(level)]
    if not truths:
        return predictor
    ledger = run.ledger or account(run.candidate)
    logs = dict.fromkeys(FREE, 0.0)
    for _ in range(_ROUNDS):
        errors = _errors(predictor, run.candidate, ledger, truths, logs)
        slopes = []
        for name in FREE:
            moved = _errors(predictor, run.candidate, ledger, truths, {**logs, name: logs[name] + _STEP})
            slopes.append([(after - before) / _STEP for after, before in zip(moved, errors, strict=True)])
        step = _gauss_newton(slopes, errors, logs)
        logs = {name: logs[name] + max(-0.5, min(0.5, move)) for name, move in zip(FREE, step, strict=True)}
        if max(abs(move) for move in step) < 1e-3:
            break
    left = _errors(predictor, run.candidate, ledger, truths, logs)
    spread = math.sqrt(sum(error**2 for error in left) / len(left))
    return replace(
        _scaled(predictor, logs),
        residual=max(_LEAST, 1.28 * spread),
        reach=tuple(level.load for level in run.levels),
        growth=_GROWTH,
        evidence=f"{predictor.table.source}; corrected by {run.source or 'a measured run'} ({len(run.levels)} levels)",
    )


def _measured(level: Level) -> list[tuple[str, float]]:
    found = {"ttft_s": level.ttft_s, "tpot_s": level.tpot_s, "tokens_per_s": level.tokens_per_s}
    return [(name, value) for name, value in found.items() if value is not None and value > 0]


def _scaled(predictor: Predictor, logs: Mapping[str, float]) -> Predictor:
    scale = dict(predictor.scale)
    for name, value in logs.items():
        for coefficient in FREE[name]:
            scale[coefficient] = scale.get(coefficient, 1.0) * math.exp(value)
    return replace(predictor, scale=scale)


def _errors(
    predictor: Predictor,
    candidate: Candidate,
    ledger: Ledger,
    truths: Sequence[tuple[Level, str, float]],
    logs: Mapping[str, float],
) -> list[float]:
    moved = _scaled(predictor, logs)
    timings: dict[Load, Timing] = {}
    for level, _, _ in truths:
        if level.load not in timings:
            timings[level.load] = moved.timing(candidate, level.load, ledger)
    return [math.log(getattr(timings[level.load], kind) / value) for level, kind, value in truths]


def _gauss_newton(slopes: list[list[float]], errors: list[float], logs: Mapping[str, float]) -> list[float]:
    """The step that least squares with priors takes: (J'J / noise^2 + 1 / spread^2) step = -gradient."""
    names = list(logs)
    matrix = [[sum(a * b for a, b in zip(one, two, strict=True)) / _NOISE**2 for two in slopes] for one in slopes]
    vector = [-sum(a * b for a, b in zip(one, errors, strict=True)) / _NOISE**2 for one in slopes]
    for index, name in enumerate(names):
        matrix[index][index] += 1.0 / _SPREAD[name] ** 2
        vector[index] -= logs[name] / _SPREAD[name] ** 2
    return _solve(matrix, vector)


def _solve(matrix: list[list[float]], vector: list[float]) -> list[float]:
    """Gauss's elimination with pivots; the priors keep the matrix regular."""
    rows = [[*row, value] for row, value in zip(matrix, vector, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(column + 1, size):
            factor = rows[row][column] / rows[column][column]
            rows[row] = [a - factor * b for a, b in zip(rows[row], rows[column], strict=True)]
    result = [0.0] * size
    for row in reversed(range(size)):
        known = sum(rows[row][column] * result[column] for column in range(row + 1, size))
        result[row] = (rows[row][size] - known) / rows[row][row]
    return result
