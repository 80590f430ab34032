"""The search, over made-up landscapes: what it finds, what it skips, and that a kill loses nothing."""

import asyncio
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace

import made
import pytest

from plimsoll.bench.summary import Slo
from plimsoll.bench.trials import lines, measured_trial, score_of, trial_from_json, trial_to_json
from plimsoll.bench.tune import Knob, Search, Trial, Tuning, conclude, tune
from plimsoll.errors import BenchError

KNOBS = (
    Knob(name="threads", values=(2, 1, 4)),
    Knob(name="slots", values=(4, 1, 16, 64)),
    Knob(name="ubatch", values=(512, 128, 256)),
    Knob(name="weights", values=("Q4_1", "Q4_0"), lossy=True),
)


def speed(settings: Mapping[str, object]) -> float:
    """Best: 1 thread, 16 slots, ubatch 256; Q4_0 is 1.5 times as fast."""
    value = {1: 1.3, 2: 1.0, 4: 0.4}[settings["threads"]]
    value *= {1: 0.5, 4: 1.0, 16: 1.6, 64: 1.4}[settings["slots"]]
    value *= {128: 0.8, 512: 1.0, 256: 1.1}[settings["ubatch"]]
    return 100 * value * (1.5 if settings["weights"] == "Q4_0" else 1.0)


class Machine:
    """Stands in for launching: counts what it is asked."""

    def __init__(self, *, cost_s: float = 10.0, die_after: int | None = None) -> None:
        self.runs: list[tuple[dict, float]] = []
        self.cost_s, self.die_after = cost_s, die_after

    async def measure(self, settings: Mapping[str, object], seconds: float) -> Trial:
        if self.die_after is not None and len(self.runs) >= self.die_after:
            raise KeyboardInterrupt
        self.runs.append((dict(settings), seconds))
        if settings["slots"] == 64 and settings["ubatch"] == 512:
            return Trial(point=(), status="failed", reason="out of memory", cost_s=2.0)
        wobble = 1 + 0.2 * math.sin(zlib.crc32(repr(settings).encode())) / seconds
        score = speed(settings) * wobble
        return Trial(
            point=(),
            status="measured",
            score=score,
            cost_s=self.cost_s,
            figures={"tokens_per_s_total": score, "tokens_per_s_request": score / settings["slots"]},
        )


def search(machine: Machine, *, done=(), kept=None, predict=speed, infeasible=lambda _: None, **options) -> Tuning:
    return asyncio.run(
        tune(
            KNOBS,
            measure=machine.measure,
            infeasible=infeasible,
            predict=predict,
            search=Search(**{"budget_s": 100_000.0} | options),
            done=done,
            on_trial=kept.append if kept is not None else lambda _: None,
        )
    )


@pytest.mark.parametrize("predict", [speed, lambda _: None, lambda s: 1 / speed(s)], ids=["good", "none", "wrong"])
def test_the_best_is_found_whatever_the_prior(predict) -> None:
    found = search(Machine(), predict=predict)
    assert dict(found.best.point) == {"threads": 1, "slots": 16, "ubatch": 256, "weights": "Q4_1"}
    assert found.best.score / found.default.score == pytest.approx(1.3 * 1.6 * 1.1, rel=0.1)


def test_what_changes_the_answers_needs_leave() -> None:
    machine = Machine()
    search(machine)
    assert {settings["weights"] for settings, _ in machine.runs} == {"Q4_1"}
    found = search(Machine(), lossy=True)
    assert dict(found.best.point)["weights"] == "Q4_0"


def test_what_cannot_run_is_never_started_and_says_why() -> None:
    machine = Machine()
    found = search(machine, infeasible=lambda s: "ledger: 2 GiB too much" if s["slots"] == 16 else None)
    assert all(settings["slots"] != 16 for settings, _ in machine.runs)
    assert {t.reason for t in found.trials if t.status == "infeasible"} >= {"ledger: 2 GiB too much"}
    assert dict(found.best.point)["slots"] == 64
    with pytest.raises(BenchError, match="no setting can run: too big"):
        search(Machine(), infeasible=lambda _: "too big")


def test_failures_are_kept_and_not_tried_longer() -> None:
    found = search(Machine())
    failed = [trial for trial in found.trials if trial.status == "failed"]
    assert failed
    assert all(trial.reason == "out of memory" for trial in failed)
    assert len({trial.point for trial in failed}) == len(failed)


def test_short_runs_are_many_and_long_ones_few() -> None:
    machine = Machine()
    search(machine, rungs=3, factor=3, first_s=5.0, width=9)
    lengths = [seconds for _, seconds in machine.runs]
    assert 9 <= lengths.count(5.0) <= 13
    assert lengths.count(15.0) <= 5
    assert lengths.count(45.0) <= 13  # two finalists, the default, and neighbours of the best
    assert sorted(set(lengths)) == [5.0, 15.0, 45.0]


def test_the_budget_ends_it() -> None:
    machine = Machine(cost_s=10.0)
    found = search(machine, budget_s=60.0)
    assert len(machine.runs) <= 8
    assert found.best is not None


@pytest.mark.parametrize("die_after", [0, 1, 5, 14, 20])
def test_a_killed_search_goes_on_where_it_stopped(die_after: int) -> None:
    whole = Machine()
    expected = search(whole)
    kept: list[Trial] = []
    killed = Machine(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        search(killed, kept=kept)
    rest = Machine()
    found = search(rest, done=kept)
    assert killed.runs + rest.runs == whole.runs
    assert found.best == expected.best
    assert [t for t in found.trials if t.status == "measured"] == [t for t in expected.trials if t.status == "measured"]


def test_what_each_knob_bought_and_how_far_the_plan_was_off() -> None:
    found = search(Machine(), predict=lambda s: speed(s) / 2, width=36)
    effects = {(effect.knob, effect.value): effect for effect in found.effects}
    assert effects["threads", 1].ratio == pytest.approx(1.3, rel=0.1)
    assert effects["threads", 1].against == 2
    assert found.prediction_bias == pytest.approx(2.0, rel=0.1)
    assert found.prediction_error < 0.1


def test_effects_of_times_are_turned_round() -> None:
    slow = Trial(point=(("threads", 2),), status="measured", seconds=5.0, score=-2.0)
    fast = Trial(point=(("threads", 1),), status="measured", seconds=5.0, score=-1.0)
    found = conclude([slow, fast], [Knob(name="threads", values=(2, 1))])
    assert found.best is fast
    assert found.effects[0].ratio == pytest.approx(2.0)


@pytest.mark.parametrize("value", [True, 1, 1.5, "1", None, "q8_0"])
def test_trials_are_kept_and_read_back(value) -> None:
    trial = Trial(point=(("a", value), ("b", 2)), status="measured", score=1.0, figures={"x": 2.0}, predicted=3.0)
    again = trial_from_json(trial_to_json(trial))
    assert again == trial
    assert type(again.point[0][1]) is type(value)
    with pytest.raises(BenchError, match="not a trial"):
        trial_from_json('{"status": "gone"}')


def test_the_result_says_what_was_gained() -> None:
    text = "\n".join(lines(search(Machine(), width=36, predict=lambda s: speed(s) / 2)))
    assert "best: threads=1, slots=16, ubatch=256" in text
    assert re.search(r"2\.[23]\d times the plan's", text)
    assert re.search(r"threads 1 instead of 2: \+(2[89]|3[012])%", text)
    assert "measured over planned: 2.0" in text
    assert "36 settings left out unstarted" in text
    none = conclude([Trial(point=(), status="failed", reason="out of memory")], KNOBS)
    assert lines(none) == ["nothing could be measured", "out of memory"]


def test_trials_of_levels() -> None:
    summary = made.level(made.run(1), slo=Slo(ttft_s=1.0)).summary
    scores = {name: score_of(summary, name) for name in ("throughput", "latency", "goodput")}
    assert scores == {
        "throughput": summary.tokens_per_s,
        "latency": -summary.e2e_s.p50,
        "goodput": summary.goodput_per_s,
    }
    good = measured_trial(summary, "throughput", seconds=5.0, cost_s=9.0)
    assert (good.status, good.score) == ("measured", summary.tokens_per_s)
    bad = measured_trial(replace(summary, invalid=("sends were late",)), "throughput", seconds=5.0, cost_s=9.0)
    assert (bad.status, bad.reason) == ("failed", "sends were late")


def test_the_pareto_set_has_nothing_that_another_beats_in_both() -> None:
    found = search(Machine(), width=36)
    both = [(t.figures["tokens_per_s_total"], t.figures["tokens_per_s_request"]) for t in found.pareto]
    assert len(both) > 1
    assert [single for _, single in sorted(both)] == sorted((single for _, single in both), reverse=True)
    assert found.best in found.pareto
