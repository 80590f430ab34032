"""Fitting of the speed model's coefficients: logarithms, least squares with priors, errors in heavy tails damped.

Every coefficient is a root times a factor for each level of the case (kind of device, engine, format ...). A factor's
prior is 1 with a spread; few cases leave it there, many move it: that is the shrinkage. Nothing is random.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from benchmarks.speed_rows import Case
from numpy.typing import NDArray

from plimsoll.plan.speed.coefficients import NAMES, Coefficients, Table
from plimsoll.plan.speed.keys import keys_of
from plimsoll.plan.speed.predictor import time_machine
from plimsoll.plan.speed.step import Machine, Place
from plimsoll.plan.speed.work import Work, peak_flops, work_of

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Where a coefficient's root is sought (value, spread as a logarithm), and how far levels may move it."""

    value: float
    spread: float
    levels: Mapping[str, float] = field(default_factory=dict)


_EFFICIENCY = {"kind": 0.3, "engine": 0.15, "format": 0.1, "engine-kind": 0.15, "engine-format": 0.1}
PRIORS: Mapping[str, Prior] = {
    "bandwidth": Prior(value=0.7, spread=0.2, levels={**_EFFICIENCY, "era": 0.1, "chip": 0.1}),
    "experts": Prior(value=0.7, spread=0.3, levels={"engine": 0.15, "format": 0.1, "engine-format": 0.1, "kind": 0.2,
                                                     "engine-arch": 0.2, "era": 0.15}),
    "spread": Prior(value=0.7, spread=0.3),
    "cache": Prior(value=0.6, spread=0.3, levels={"engine": 0.2, "kind": 0.2, "arch": 0.2, "era": 0.2}),
    "compute": Prior(value=0.5, spread=0.3, levels={**_EFFICIENCY, "kind-format": 0.1, "chip": 0.15}),
    "expert_compute": Prior(value=0.5, spread=0.3, levels={"engine": 0.1, "format": 0.1, "kind": 0.15}),
    "attention": Prior(value=0.4, spread=0.4, levels={"kind": 0.2, "engine": 0.2}),
    "power": Prior(value=2.0, spread=0.3),
    "layer_s": Prior(value=30e-6, spread=0.7, levels={"engine": 0.8, "kind": 0.4, "chip": 0.2, "arch": 0.15, "era": 0.3,
                                                      "engine-kind": 0.2, "engine-arch": 0.25, "format": 0.07}),
    "step_s": Prior(value=1e-3, spread=0.7, levels={"engine": 0.4, "kind": 0.3, "era": 0.3}),
    "sequence_s": Prior(value=10e-6, spread=0.7, levels={"engine": 0.7, "kind": 0.3, "era": 0.7}),
    "allreduce_s": Prior(value=10e-6, spread=0.5, levels={"link": 0.4, "engine": 0.2}),
    "link": Prior(value=0.6, spread=0.4, levels={"link": 0.3, "engine": 0.2}),
    "network_s": Prior(value=50e-6, spread=1.0, levels={"engine": 0.5}),
    "rpc_s": Prior(value=50e-3, spread=1.0),
    "start_s": Prior(value=20e-3, spread=0.7, levels={"engine": 0.5, "kind": 0.3}),
    "prompt_s": Prior(value=2e-6, spread=1.0, levels={"engine": 0.4}),
    "mixed": Prior(value=1.0, spread=0.2, levels={"engine": 0.15}),
    "wave": Prior(value=1.0, spread=0.5, levels={"engine": 0.3}),
    "wait": Prior(value=2.0, spread=0.7, levels={"engine": 0.3}),
    "drain": Prior(value=0.8, spread=0.5),
}  # fmt: skip
"""Where the search begins and how far it may go; physics and usual values, no result of a fit."""

_STEP = 1e-3
_TAIL = 0.25
"""Errors (as logarithms) beyond about this are taken for something that the row does not tell."""
_QUANTITY_WEIGHT = {"ttft": 0.5, "prefill": 0.7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A case with its work laid out."""

    case: Case
    work: Work
    peaks: tuple[float, ...]
    keys: tuple[Mapping[str, str], ...]
    weight: float


def prepare(cases: Sequence[Case]) -> list[Prepared]:
    """Cases ready to be fitted. Repeats count once, by their median; large groups for less than their size."""
    repeats: dict[tuple[object, ...], list[Case]] = {}
    for case in cases:
        repeats.setdefault(run_of(case), []).append(case)
    kept = [sorted(alike, key=lambda case: case.measured)[len(alike) // 2] for alike in repeats.values()]
    sizes = Counter(_series(case) for case in kept)
    prepared = []
    for case in kept:
        work = work_of(case.candidate, case.ledger)
        prepared.append(
            Prepared(
                case=case,
                work=work,
                peaks=tuple(peak_flops(part.device, case.candidate.model) for part in work.segments),
                keys=tuple(keys_of(case.candidate, part.device) for part in work.segments),
                weight=_QUANTITY_WEIGHT.get(case.quantity, 1.0) / sizes[_series(case)] ** 0.25,
            )
        )
    return prepared


def run_of(case: Case) -> tuple[object, ...]:
    """What two repeats of one run have in common. DeepSeek's V3 and R1 are one architecture, and the silicon table
    repeats its rows under both names."""
    candidate = case.candidate
    if case.regime != "datacenter":
        return (case.id, case.quantity)
    layout, model = candidate.parallel, candidate.model
    shape = (model.architecture, model.layers, model.weight_bytes)
    world = (layout.tensor * layout.data, layout.expert > 1)
    return (shape, candidate.devices[0].name, candidate.engine, world, case.load, case.quantity)


def _series(case: Case) -> tuple[object, ...]:
    candidate = case.candidate
    return (candidate.model.id, candidate.engine.name, candidate.devices[0].name, len(candidate.devices), case.quantity)


class Layout:
    """Which number of the vector is which root or factor."""

    def __init__(self, prepared: Sequence[Prepared]) -> None:
        """Factors for the words that occur."""
        self.names: list[tuple[str, str, str]] = [(name, "", "") for name in NAMES]
        words: dict[str, set[str]] = {}
        for item in prepared:
            for keys in item.keys:
                for level, word in keys.items():
                    if word:
                        words.setdefault(level, set()).add(word)
        for name in NAMES:
            for level in PRIORS[name].levels:
                self.names += [(name, level, word) for word in sorted(words.get(level, ()))]
        self.index = {key: number for number, key in enumerate(self.names)}
        self.mean = np.array([math.log(PRIORS[n].value) if not level else 0.0 for n, level, _ in self.names])
        self.spread = np.array([PRIORS[n].levels[level] if level else PRIORS[n].spread for n, level, _ in self.names])

    def columns(self, keys: Mapping[str, str]) -> list[list[int]]:
        """For each coefficient, the entries of the vector that it is the sum of."""
        return [
            [self.index[name, "", ""]]
            + [
                self.index[name, level, keys[level]]
                for level in PRIORS[name].levels
                if keys.get(level) and (name, level, keys[level]) in self.index
            ]
            for name in NAMES
        ]


def fit(prepared: Sequence[Prepared], *, start: Mapping[tuple[str, str, str], float] | None = None,
        rounds: int = 12) -> dict[tuple[str, str, str], float]:  # fmt: skip
    """The vector, by name, that explains the cases best under the priors (Levenberg and Marquardt)."""
    layout = Layout(prepared)
    theta = layout.mean.copy()
    if start:
        theta = np.array([start.get(key, mean) for key, mean in zip(layout.names, layout.mean, strict=True)])
    columns = [[layout.columns(keys) for keys in item.keys] for item in prepared]
    damping = 1.0
    residual = _residuals(prepared, columns, theta)
    cost = _cost(residual, prepared, layout, theta)
    for _ in range(rounds):
        jacobian = _jacobian(prepared, columns, theta, residual)
        weight = np.array([item.weight for item in prepared]) / (1.0 + (residual / _TAIL) ** 2)
        normal = jacobian.T @ (jacobian * weight[:, None]) / _NOISE**2
        gradient = jacobian.T @ (weight * residual) / _NOISE**2 + (theta - layout.mean) / layout.spread**2
        normal[np.diag_indices_from(normal)] += 1.0 / layout.spread**2
        improved = False
        for _ in range(5):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)) * 0.1, -gradient)
            trial = theta + np.clip(step, -0.7, 0.7)
            new = _residuals(prepared, columns, trial)
            new_cost = _cost(new, prepared, layout, trial)
            if new_cost < cost:
                improved = cost - new_cost > 1e-4 * cost
                theta, residual, cost, damping = trial, new, new_cost, damping / 4
                break
            damping *= 4
        if not improved:
            break
    return dict(zip(layout.names, theta.tolist(), strict=True))


_NOISE = 0.15
"""Spread (as a logarithm) of one case around a perfect model: sets cases against priors."""


def _cost(residual: Vector, prepared: Sequence[Prepared], layout: Layout, theta: Vector) -> float:
    weight = np.array([item.weight for item in prepared])
    data = weight * _TAIL**2 * np.log1p((residual / _TAIL) ** 2)
    return float(data.sum() / _NOISE**2 + (((theta - layout.mean) / layout.spread) ** 2).sum())


def _residuals(prepared: Sequence[Prepared], columns: list[list[list[list[int]]]], theta: Vector) -> Vector:
    values = theta.tolist()
    return np.array([_residual(item, _logs(own, values)) for item, own in zip(prepared, columns, strict=True)])


def _logs(columns: list[list[list[int]]], theta: list[float]) -> list[list[float]]:
    return [[sum(theta[index] for index in entry) for entry in place] for place in columns]


def _residual(item: Prepared, logs: list[list[float]]) -> float:
    places = tuple(
        Place(segment=segment, peak=peak, rates=Coefficients(**dict(zip(NAMES, map(math.exp, values), strict=True))))
        for segment, peak, values in zip(item.work.segments, item.peaks, logs, strict=True)
    )
    case = item.case
    machine = Machine(work=item.work, places=places, network_bandwidth=case.candidate.host.network_bandwidth)
    return math.log(case.value(time_machine(machine, case.candidate, case.load, case.ledger)) / case.measured)


def _jacobian(
    prepared: Sequence[Prepared], columns: list[list[list[list[int]]]], theta: Vector, residual: Vector
) -> Vector:
    values = theta.tolist()
    jacobian = np.zeros((len(prepared), len(theta)))
    for row, (item, own) in enumerate(zip(prepared, columns, strict=True)):
        logs = _logs(own, values)
        silent = _silent(item)
        for place, entries in enumerate(own):
            for number, entry in enumerate(entries):
                if NAMES[number] in silent:
                    continue
                logs[place][number] += _STEP
                slope = (_residual(item, logs) - residual[row]) / _STEP
                logs[place][number] -= _STEP
                if slope:
                    jacobian[row, entry] += slope
    return jacobian


def _silent(item: Prepared) -> frozenset[str]:
    """Coefficients that a case cannot depend on: a shortcut, nothing more."""
    names: list[str] = []
    if not item.work.experts:
        names += ["experts", "spread", "expert_compute"]
    if item.work.ranks < 2 and item.work.stages < 2 and len(item.work.segments) < 2:
        names += ["allreduce_s", "link", "network_s", "rpc_s"]
    if item.case.load.concurrency == 1:
        names += ["mixed", "wave", "wait"]
    return frozenset(names)


def as_table(values: Mapping[tuple[str, str, str], float], prepared: Sequence[Prepared], source: str) -> Table:
    """The fitted vector as the table that `predict` reads; factors of less than half a per cent are left out."""
    roots = {name: math.exp(values[name, "", ""]) for name in NAMES}
    factors: dict[str, dict[str, dict[str, float]]] = {}
    for (name, level, word), value in values.items():
        if level and abs(value) > 0.005:
            factors.setdefault(name, {}).setdefault(level, {})[word] = math.exp(value)
    counts: dict[str, Counter[str]] = {}
    for item in prepared:
        for level, word in {pair for keys in item.keys for pair in keys.items() if pair[1]}:
            counts.setdefault(level, Counter())[word] += 1
    return Table(roots=roots, factors=factors, cases=counts, errors={}, source=source)
