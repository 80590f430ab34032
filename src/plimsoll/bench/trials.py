"""Between the search and the rest: scores out of summaries, trials as JSON, results as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from pydantic import TypeAdapter, ValidationError

from plimsoll.bench.summary import Summary
from plimsoll.bench.tune import UNSET, Objective, Trial, Tuning, Value
from plimsoll.errors import BenchError


def measured_trial(summary: Summary, objective: Objective, *, seconds: float, cost_s: float) -> Trial:
    """The trial of one level; one that is not valid, or lacks what is asked for, is a failure with its reason."""
    score = score_of(summary, objective)
    if summary.invalid or score is None:
        reason = "; ".join(summary.invalid) or f"no {objective} was measured"
        return Trial(point=(), status="failed", seconds=seconds, cost_s=cost_s, reason=reason)
    return Trial(point=(), status="measured", seconds=seconds, cost_s=cost_s, score=score, figures=figures_of(summary))


def score_of(summary: Summary, objective: Objective) -> float | None:
    """Higher is better: tokens/s of all requests, minus the median time of a request, or requests/s within the SLO."""
    if objective == "throughput":
        return summary.tokens_per_s or summary.requests_per_s or None
    if objective == "latency":
        return -summary.e2e_s.p50 if summary.e2e_s.count else None
    return summary.goodput_per_s


def figures_of(summary: Summary) -> Mapping[str, float]:
    """What is kept of a trial beside its score; the Pareto set is of the first two."""
    return {
        "tokens_per_s_total": summary.tokens_per_s,
        "tokens_per_s_request": summary.tokens_per_s_request,
        "ttft_p50_s": summary.ttft_s.p50,
        "ttft_p99_s": summary.ttft_s.p99,
        "tpot_p50_s": summary.tpot_s.p50,
        "failed": float(summary.failed),
    }


@cache
def _adapter() -> TypeAdapter[Trial]:
    return TypeAdapter(Trial)


def trial_to_json(trial: Trial) -> str:
    """One trial, to be kept as soon as it is made."""
    return _adapter().dump_json(trial).decode()


def trial_from_json(text: str | bytes) -> Trial:
    """The trial of `trial_to_json`; BenchError when it is none."""
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        raise BenchError(f"not a trial: {error.errors()[0]['msg']}", hint="start the search anew") from error


def lines(tuning: Tuning) -> list[str]:
    """The result for people: best, gain, what each knob bought, Pareto set, how far the plan was off."""
    best, default = tuning.best, tuning.default
    if best is None:
        failed = [f"{trial.reason}" for trial in tuning.trials if trial.status == "failed"]
        return ["nothing could be measured", *dict.fromkeys(failed)]
    found = [f"best: {settings_of(best.point)}: {_figure(best)}"]
    if default is not None and default.score and best.score is not None:
        gain = best.score / default.score if best.score > 0 else default.score / best.score
        same = default.point == best.point
        found.append(
            "the plan's own choice is the best" if same else f"{gain:.2f} times the plan's: {_figure(default)}"
        )
    found += [
        f"{effect.knob} {effect.value} instead of {effect.against}: {effect.ratio - 1:+.0%} ({effect.pairs} pairs)"
        for effect in sorted(tuning.effects, key=lambda effect: -abs(effect.ratio - 1))
    ]
    if len(tuning.pareto) > 1:
        found.append("none of these beats another both in total and for one request:")
        found += [f"  {settings_of(trial.point)}: {_figure(trial)}" for trial in tuning.pareto]
    if tuning.prediction_bias is not None and tuning.prediction_error is not None:
        found.append(
            f"measured over planned: {tuning.prediction_bias:.2f} times; beyond that, off by "
            f"{tuning.prediction_error:.0%} in the median"
        )
    return found + _counts(tuning.trials)


def _counts(trials: Sequence[Trial]) -> list[str]:
    runs = sum(trial.status == "measured" for trial in trials)
    failed = sum(trial.status == "failed" for trial in trials)
    left = sum(trial.status == "infeasible" for trial in trials)
    return [f"{runs} runs, {failed} failed, {left} settings left out unstarted"]


def _figure(trial: Trial) -> str:
    total, single = (trial.figures.get(name, 0.0) for name in ("tokens_per_s_total", "tokens_per_s_request"))
    return f"{total:.1f} tokens/s in all, {single:.1f} for one request"


def settings_of(point: Sequence[tuple[str, Value]]) -> str:
    """A point for people: what is left to the engine is left out."""
    return ", ".join(f"{name}={value}" for name, value in point if value != UNSET) or "everything left to the engine"
