"""tune: real trials of the fake engine, whose pace is set by its flags; and which settings are worth a trial."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from user_shell import FakeSpec, Shell

from plimsoll.app.settings import Settings
from plimsoll.app.target import Overrides, spec_of
from plimsoll.app.tuning import TuneRequest, find_knobs, open_journal, out_of_place, tune_deployment
from plimsoll.bench.tune import Knob, Search, Trial, Value, conclude, tune
from plimsoll.cli.tune_commands import search_within
from plimsoll.errors import BenchError, SpecError
from plimsoll.plan.types import Candidate

PACES = (0.001, "slow")
"""Ten times as fast as the spec's, and one that the engine refuses."""


@pytest.fixture
def handlers() -> Iterator[None]:
    """Starting a service sets signal handlers; here they must not stay."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_killed_search_goes_on_and_finds_the_best(shell: Shell, fake_spec: FakeSpec, tmp_path: Path) -> None:
    spec = fake_spec("--load-seconds", "0", "--ttft", "0.01", "--tpot", "0.01")
    settings = Settings.resolve({"PLIMSOLL_HOME": str(shell.home)})
    request = TuneRequest(
        target=spec,
        objective="throughput",
        knobs={"concurrency": (4,), "extra_args.tpot": PACES},
        search=Search(first_s=0.2, rungs=1),
        output_tokens=8,
    )
    made: list[Trial] = []

    def die(trial: Trial) -> None:
        made.append(trial)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_deployment(request, settings, on_trial=die)
    (journal,) = (shell.home / "state" / "tune").glob("*/trials.jsonl")
    with journal.open("a") as file:
        file.write('{"point": [["extra_args.t')  # what a kill in mid-write leaves
    tuned = tune_deployment(request, settings, on_trial=made.append)

    assert [dict(trial.point)["extra_args.tpot"] for trial in made] == [0.01, *PACES], "none is run twice"
    assert [trial.status for trial in made] == ["measured", "measured", "failed"]
    assert "exit" in made[-1].reason
    assert tuned.spec
    assert tuned.spec.models[0].extra_args[-2:] == ("--tpot", "0.001")
    assert tuned.spec.gateway == spec_of(spec, Overrides()).gateway
    (effect,) = tuned.tuning.effects
    assert effect.ratio > 1.5
    assert shell.here("ps", "--json")[1] == "[]\n", "trials are no deployments of the user's"

    # With its time used up, the command only says what was found.
    out = tmp_path / "best.yaml"
    words = ("--knob", "concurrency=4", "--knob", "extra_args.tpot=0.001,slow", "--output-tokens", "8")
    code, said, _ = shell.here("tune", spec, *words, "--budget", "10ms", "--out", str(out), "--json")
    document = json.loads(said)
    assert (code, len(document["trials"])) == (0, 3)
    assert spec_of(str(out), Overrides()) == tuned.spec


@pytest.fixture
def base(fake_spec: FakeSpec, shell: Shell) -> Candidate:
    from plimsoll.app.planning import make_plan

    plan = make_plan(spec_of(fake_spec(), Overrides()), Settings.resolve({"PLIMSOLL_HOME": str(shell.home)}))
    return plan.replicas[0].candidate


def test_knobs_begin_with_what_is_and_keep_to_the_engine(base: Candidate) -> None:
    llamacpp = replace(base, engine=replace(base.engine, name="llamacpp"), options={"threads": 2})
    llamacpp = replace(llamacpp, host=replace(base.host, cores=8))

    knobs = {knob.name: knob for knob in find_knobs(llamacpp, (), clients=16, lossy=True, more={"env.A": (1,)})}

    assert knobs["extra_args.threads"].values == (2, 7, 4, 8)
    assert knobs["concurrency"].values == (4, 16, 8)
    assert knobs["kv_cache_dtype"].lossy
    assert list(knobs)[-1] == "env.A"
    assert "engine" not in knobs
    plain = find_knobs(base, ("llamacpp",), clients=4, lossy=False, more={})
    assert [knob.name for knob in plain][-2:] == ["concurrency", "engine"]
    assert "kv_cache_dtype" not in {knob.name for knob in plain}


def test_a_knob_of_one_engine_is_not_turned_for_another(base: Candidate) -> None:
    knobs = find_knobs(base, ("openvino",), clients=8, lossy=False, more={"env.A": (1,)})
    present = {knob.name: knob.values[0] for knob in knobs}

    assert (
        out_of_place({**present, "extra_args.num_threads": 1}, knobs) == "extra_args.num_threads is not tried with fake"
    )
    assert out_of_place({**present, "extra_args.num_threads": 1, "engine": "openvino"}, knobs) is None
    assert out_of_place({**present, "concurrency": 8, "env.A": 1}, knobs) is None


def test_a_setting_that_does_not_exist_is_refused(base: Candidate) -> None:
    with pytest.raises(SpecError, match="threds"):
        find_knobs(base, (), clients=1, lossy=False, more={"threds": (1,)})


def test_goodput_needs_a_service_level(shell: Shell, fake_spec: FakeSpec) -> None:
    code, _, said = shell.here("tune", fake_spec(), "--for", "goodput")

    assert code == 2
    assert "--slo" in said


def test_only_one_search_for_the_same_at_a_time(tmp_path: Path) -> None:
    with open_journal(tmp_path, anew=False), pytest.raises(BenchError), open_journal(tmp_path, anew=False):
        pass


@pytest.mark.parametrize(("budget_s", "width", "first_s"), [(120.0, 12, 2.0), (1200.0, 18, 5.0), (5.0, 4, 2.0)])
def test_a_longer_budget_looks_wider_and_longer(budget_s: float, width: int, first_s: float) -> None:
    search = search_within(budget_s, lossy=False)

    assert (search.width, search.first_s) == (width, first_s)


def test_an_effect_is_told_from_a_short_pair_when_only_one_of_it_ran_longer() -> None:
    scores = {("a", 2.0): 10.0, ("b", 2.0): 20.0, ("b", 6.0): 22.0}
    trials = [
        Trial(point=(("k", value),), status="measured", seconds=seconds, score=score)
        for (value, seconds), score in scores.items()
    ]

    (effect,) = conclude(trials, [Knob(name="k", values=("a", "b"))]).effects

    assert (effect.ratio, effect.pairs) == (pytest.approx(2.0), 1)


def test_a_short_search_tries_each_value_alone_the_last_knobs_first() -> None:
    knobs = [Knob(name=name, values=(0, 1)) for name in ("a", "b", "c")]
    seen: list[tuple[Value, ...]] = []

    async def measure(point: Mapping[str, Value], seconds: float) -> Trial:
        seen.append(tuple(point.values()))
        return Trial(point=(), status="measured", seconds=seconds, score=1.0, cost_s=1.0)

    search = Search(budget_s=4, width=4)
    asyncio.run(tune(knobs, measure=measure, infeasible=lambda _: None, predict=lambda _: None, search=search))

    assert seen == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
