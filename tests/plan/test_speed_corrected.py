"""One run teaches: rates corrected by few measured levels, held against the levels that they had not seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_facts import engine

from plimsoll.facts.catalogue import model
from plimsoll.facts.devices import find_device
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.memory import account
from plimsoll.plan.speed import Level, Load, MeasuredRun, corrected, missed, predict, predict_for, shipped
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment, Slo

# vLLM 0.5.3 with Qwen2-7B at half precision on two V100: tokens per second of each request by how many there were.
# Written down in a public note of 2024; prompts and answers of unstated, short lengths.
V100 = {1: 57.710082, 2: 53.048234, 4: 52.176094, 8: 47.757523, 16: 40.726868, 25: 33.369917, 36: 26.689447}


def v100():
    card = find_device("v100-32g").device
    facts = model("Qwen/Qwen2-7B-Instruct")
    return Candidate(
        deployment=Deployment(name="m", model=facts.id, concurrency=8),
        model=facts,
        engine=engine("vllm", version="0.5.3"),
        host=replace(parse_hosts("cpu")[0], devices=(card, card)),
        devices=(card, card),
        parallel=Parallel(tensor=2),
        context_tokens=12000,
        sequences=50,
        dtype="float16",
    )


def load(count):
    return Load(prompt_tokens=128, output_tokens=256, concurrency=count)


def run(candidate, seen):
    return MeasuredRun(
        candidate=candidate, levels=tuple(Level(load=load(count), tpot_s=1 / V100[count]) for count in seen)
    )


def test_two_levels_of_a_real_run_bring_the_others_nearer():
    candidate = v100()
    ledger = account(candidate)
    taught = corrected(shipped(), run(candidate, (1, 16)))

    def errors(predictor):
        return [
            abs(predictor.timing(candidate, load(count), ledger).tpot_s * V100[count] - 1)
            for count in (2, 4, 8, 25, 36)
        ]

    before, after = errors(shipped()), errors(taught)
    assert sum(after) < sum(before) / 2
    assert max(after) < 0.25


def test_what_was_measured_is_said_afterwards_and_more_surely():
    candidate = v100()
    taught = corrected(shipped(), run(candidate, (1, 4)))
    speed = taught.predict(candidate, load(4))
    assert speed.tpot_s.expected == pytest.approx(1 / V100[4], rel=0.05)
    assert speed.tpot_s.high / speed.tpot_s.low < 1.35
    assert "corrected" in speed.source
    far = taught.predict(candidate, load(36))
    assert far.tpot_s.high / far.tpot_s.low > speed.tpot_s.high / speed.tpot_s.low


def test_a_model_run_teaches_the_rates_that_made_it():
    candidate = v100()
    slow = replace(shipped(), scale={"bandwidth": 0.6, "layer_s": 1.5, "step_s": 1.5})
    levels = []
    for count in (1, 4):
        timing = slow.timing(candidate, load(count))
        levels.append(Level(load=load(count), ttft_s=timing.ttft_s, tpot_s=timing.tpot_s))
    taught = corrected(shipped(), MeasuredRun(candidate=candidate, levels=tuple(levels)))
    for count in (8, 16, 32):
        expected = slow.timing(candidate, load(count)).tpot_s
        assert taught.timing(candidate, load(count)).tpot_s == pytest.approx(expected, rel=0.1)


def test_a_run_without_measurements_changes_nothing():
    predictor = shipped()
    assert corrected(predictor, MeasuredRun(candidate=v100(), levels=(Level(load=load(1)),))) is predictor


def test_a_plan_gets_speeds_at_what_was_asked_and_for_one():
    speeds = predict_for(v100())
    assert [speed.concurrency for speed in speeds] == [8, 1]


def test_limits_are_held_against_the_upper_end():
    speed = predict(v100(), concurrency=4)
    assert missed(speed, Slo()) == ()
    assert missed(speed, Slo(tpot=speed.tpot_s.high * 1.01)) == ()
    assert "time per token" in missed(speed, Slo(tpot=speed.tpot_s.expected))[0]
