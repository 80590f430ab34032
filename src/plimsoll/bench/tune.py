"""Search for the best settings: the plan proposes, real runs decide. Pure search; launching is passed in.

Successive halving: many points are measured briefly, the better part of them longer, and so on; then the neighbours of
the best one, until the time is used up. What cannot run is left out before anything starts. The order follows from the
points and the results alone, so a search that was killed goes on where it stopped when its trials are handed back in.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from plimsoll.errors import BenchError

Value = str | int | float | bool | None
Point = tuple[tuple[str, Value], ...]
"""One choice for every knob, in the knobs' order."""
UNSET = "auto"
"""A knob's value that leaves the setting to the engine."""
Status = Literal["measured", "failed", "infeasible"]
Objective = Literal["throughput", "latency", "goodput"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting and the values that it may take; the first is what the plan would choose."""

    name: str
    values: tuple[Value, ...]
    lossy: bool = False
    """Whether it changes the model's answers (weight format, KV type): only moved with the user's leave."""

    def __post_init__(self) -> None:
        if not self.values:
            raise BenchError(f"the knob {self.name} has no value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One point, run once for `seconds` (0: it was not)."""

    point: Point
    status: Status
    rung: int = 0
    seconds: float = 0.0
    """Of load; what the trial took in all is `cost_s`."""
    cost_s: float = 0.0
    score: float | None = None
    """Higher is better: tokens/s, requests/s within the service level, or minus seconds."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What else was measured: tokens_per_s_total, tokens_per_s_request, ttft_p50_s ..."""
    predicted: float | None = None
    reason: str = ""
    """Why it failed, or why it was never started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one value of a knob did against another, over trials that differ in nothing else."""

    knob: str
    value: Value
    against: Value
    ratio: float
    """Geometric mean of the scores' ratio."""
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """All trials in order, and what follows from them."""

    trials: tuple[Trial, ...]
    best: Trial | None
    default: Trial | None
    """The plan's own choice at the longest run that it got."""
    pareto: tuple[Trial, ...]
    """Trials that no other beats both in tokens/s in all and in tokens/s of one request."""
    effects: tuple[Effect, ...]
    prediction_bias: float | None
    """Geometric mean of measured over predicted; multiply predictions by it."""
    prediction_error: float | None
    """Median of how far the predictions were off, after that; 0.1 is 10 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How long and how wide to look."""

    budget_s: float = 1200.0
    first_s: float = 5.0
    """Load per point in the first rung."""
    factor: int = 3
    """Each rung keeps one in so many points, and runs them so many times as long."""
    rungs: int = 3
    width: int = 18
    """Points in the first rung, at most."""
    lossy: bool = False
    """Whether the user allows what changes the model's answers."""


Measure = Callable[[Mapping[str, Value], float], Awaitable[Trial]]
"""Launch the settings, load them for so many seconds, stop them; `point`, `rung` and `predicted` are filled in."""


async def tune(
    knobs: Sequence[Knob],
    *,
    measure: Measure,
    infeasible: Callable[[Mapping[str, Value]], str | None],
    predict: Callable[[Mapping[str, Value]], float | None],
    search: Search,
    done: Iterable[Trial] = (),
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Tuning:
    """Search the knobs' product; `done` are the trials of an earlier, interrupted search, in their order.

    `infeasible` gives the reason why a point cannot run (ledger, rules) and `predict` the score that the plan expects;
    both must be quick. `on_trial` is called for each new trial, to keep it. BenchError when no point can run.
    """
    state = _State(knobs=tuple(knobs), measure=measure, predict=predict, search=search, on_trial=on_trial)
    state.resume(done)
    points = state.feasible(infeasible)
    if not points:
        reasons = sorted({trial.reason for trial in state.trials if trial.status == "infeasible"})
        raise BenchError(f"no setting can run: {'; '.join(reasons[:3])}", hint="look at `plimsoll plan` first")
    rung_points = _first_rung(points, state.expected, knobs, search.width)
    for rung in range(search.rungs):
        seconds = search.first_s * search.factor**rung
        ranked = await state.run(rung_points, rung, seconds)
        if state.spent or not ranked:
            break
        kept = max(2, math.ceil(len(ranked) / search.factor))
        default = points[0]
        rung_points = [trial.point for trial in ranked[:kept]]
        # The plan's own choice goes all the way: without it no gain could be told.
        if default not in rung_points and any(trial.point == default for trial in ranked):
            rung_points.append(default)
    await state.refine(points, search.first_s * search.factor ** (search.rungs - 1))
    return conclude(state.trials, knobs)


def conclude(trials: Sequence[Trial], knobs: Sequence[Knob]) -> Tuning:
    """What follows from the trials; each point counts with its longest run."""
    longest: dict[Point, Trial] = {}
    for trial in trials:
        known = longest.get(trial.point)
        if trial.status == "measured" and (known is None or trial.seconds >= known.seconds):
            longest[trial.point] = trial
    most_s = max((trial.seconds for trial in longest.values()), default=0.0)
    # Short runs flatter: only points that got the full length may win.
    finalists = [trial for trial in longest.values() if trial.seconds == most_s]
    best = max(finalists, key=_score, default=None)
    ratios = [t.score / t.predicted for t in longest.values() if t.score and t.predicted and t.score * t.predicted > 0]
    bias = _geometric(ratios) if ratios else None
    return Tuning(
        trials=tuple(trials),
        best=best,
        default=longest.get(tuple((knob.name, knob.values[0]) for knob in knobs)),
        pareto=tuple(_pareto(list(longest.values()))),
        effects=tuple(_effects([trial for trial in trials if trial.status == "measured"], knobs)),
        prediction_bias=bias,
        prediction_error=statistics.median(abs(ratio / bias - 1) for ratio in ratios) if bias else None,
    )


class _State:
    """Trials so far, and what is left of the budget."""

    def __init__(
        self,
        *,
        knobs: tuple[Knob, ...],
        measure: Measure,
        predict: Callable[[Mapping[str, Value]], float | None],
        search: Search,
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.knobs = knobs
        self.measure = measure
        self.predict = predict
        self.search = search
        self.on_trial = on_trial
        self.trials: list[Trial] = []
        self.known: dict[tuple[Point, float], Trial] = {}
        self.expected: dict[Point, float | None] = {}

    @property
    def spent(self) -> bool:
        return sum(trial.cost_s for trial in self.trials) >= self.search.budget_s

    def resume(self, done: Iterable[Trial]) -> None:
        for trial in done:
            self.trials.append(trial)
            self.known[trial.point, trial.seconds] = trial

    def feasible(self, infeasible: Callable[[Mapping[str, Value]], str | None]) -> list[Point]:
        """All points that can run, the plan's own first; the others are noted with their reason."""
        found = []
        for point in _product(self.knobs):
            reason = self._leave(point) or infeasible(dict(point))
            if reason is None:
                self.expected[point] = self.predict(dict(point))
                found.append(point)
            elif (point, 0.0) not in self.known:
                self._note(Trial(point=point, status="infeasible", reason=reason))
        return found

    def _leave(self, point: Point) -> str | None:
        if self.search.lossy:
            return None
        moved = [k.name for k, (_, value) in zip(self.knobs, point, strict=True) if k.lossy and value != k.values[0]]
        return f"{', '.join(moved)} would change the model's answers: not allowed" if moved else None

    async def run(self, points: Iterable[Point], rung: int, seconds: float) -> list[Trial]:
        """Measure points for `seconds` each, as long as the budget lasts; the successful ones, best first."""
        found = [trial for point in points if (trial := await self.one(point, rung, seconds)) is not None]
        return sorted((trial for trial in found if trial.status == "measured"), key=_score, reverse=True)

    async def one(self, point: Point, rung: int, seconds: float) -> Trial | None:
        """One trial, from memory if it was run before; None when the budget is used up."""
        known = self.known.get((point, seconds))
        if known is not None:
            return known
        if self.spent:
            return None
        got = await self.measure(dict(point), seconds)
        trial = Trial(
            point=point,
            status=got.status,
            rung=rung,
            seconds=seconds,
            cost_s=got.cost_s,
            score=got.score,
            figures=got.figures,
            predicted=self.expected.get(point),
            reason=got.reason,
        )
        self._note(trial)
        return trial

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.known[trial.point, trial.seconds] = trial
        self.on_trial(trial)

    async def refine(self, points: Sequence[Point], seconds: float) -> None:
        """Try the best point's neighbours (one knob moved), go to a better one, until none is better or time is up."""
        failed = {trial.point for trial in self.trials if trial.status == "failed"}
        while not self.spent:
            best = conclude(self.trials, self.knobs).best
            if best is None or best.seconds < seconds:
                return
            near = [p for p in points if _distance(p, best.point) == 1 and (p, seconds) not in self.known]
            near = [p for p in near if p not in failed]
            near.sort(key=lambda point: -(self.expected.get(point) or 0.0))
            for point in near:
                trial = await self.one(point, self.search.rungs, seconds)
                if trial is None or (trial.status == "measured" and _score(trial) > _score(best)):
                    break
            else:
                return


def _product(knobs: Sequence[Knob]) -> Iterator[Point]:
    for values in itertools.product(*(knob.values for knob in knobs)):
        yield tuple((knob.name, value) for knob, value in zip(knobs, values, strict=True))


def _first_rung(
    points: Sequence[Point], expected: Mapping[Point, float | None], knobs: Sequence[Knob], width: int
) -> list[Point]:
    """The plan's own point, the most promising one, one for every other value, then the next most promising.

    A value is tried with as little else changed as can be, so that its effect can be told; the last knobs come first.
    """
    known = [value for value in expected.values() if value is not None]
    middle = statistics.median(known) if known else 0.0
    ranked = sorted(points, key=lambda point: -_or(expected[point], middle))
    chosen = list(dict.fromkeys([points[0], ranked[0]]))
    for place, knob in reversed(list(enumerate(knobs))):
        for value in knob.values:
            if not any(point[place][1] == value for point in chosen):
                having = [point for point in ranked if point[place][1] == value]
                chosen += sorted(having, key=lambda point: _distance(point, points[0]))[:1]
    return list(dict.fromkeys([*chosen, *ranked]))[: max(width, len(chosen))]


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _score(trial: Trial) -> float:
    return -math.inf if trial.score is None else trial.score


def _distance(a: Point, b: Point) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def _pareto(trials: Sequence[Trial]) -> Iterator[Trial]:
    def both(trial: Trial) -> tuple[float, float]:
        return trial.figures.get("tokens_per_s_total", 0.0), trial.figures.get("tokens_per_s_request", 0.0)

    for trial in trials:
        total, single = both(trial)
        others = (both(other) for other in trials if other is not trial)
        if not any(t >= total and s >= single and (t, s) != (total, single) for t, s in others):
            yield trial


def _effects(trials: Sequence[Trial], knobs: Sequence[Knob]) -> Iterator[Effect]:
    """Every value against the plan's own, over pairs of trials of the same length that differ only in it."""
    by_run = {(trial.point, trial.seconds): trial for trial in trials}
    for place, knob in enumerate(knobs):
        for value in knob.values[1:]:
            ratios = []
            for (point, seconds), trial in by_run.items():
                if point[place][1] != value:
                    continue
                base = by_run.get(((*point[:place], (knob.name, knob.values[0]), *point[place + 1 :]), seconds))
                if base is not None and trial.score and base.score and trial.score * base.score > 0:
                    # Of scores that are minus seconds, the smaller ratio is the better: turned round.
                    ratios.append(trial.score / base.score if trial.score > 0 else base.score / trial.score)
            if ratios:
                yield Effect(
                    knob=knob.name, value=value, against=knob.values[0], ratio=_geometric(ratios), pairs=len(ratios)
                )


def _geometric(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
