"""The speed model: laws that hold whatever the numbers fitted, and every device of the catalogue answered."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_facts import engine

from plimsoll.facts.catalogue import model
from plimsoll.facts.devices import catalogue, find_device
from plimsoll.facts.words import parse_hosts
from plimsoll.plan.memory import account
from plimsoll.plan.speed import Load, predict, shipped
from plimsoll.plan.speed.step import touched
from plimsoll.plan.speed.work import work_of
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment

QWEN = model("Qwen/Qwen3-8B")
GPT_OSS = model("openai/gpt-oss-120b")


def on(word, facts=QWEN, *, name="vllm", version="0.11.0", count=1, **parallel):
    """`facts` served by an engine on `count` devices of that word."""
    host = parse_hosts(word)[0] if word.startswith("cpu") else parse_hosts("dgx-h100")[0]
    device = host.cpu if word.startswith("cpu") else find_device(word).device
    cards = () if device.vendor == "cpu" else (device,) * count
    return Candidate(
        deployment=Deployment(name="m", model=facts.id),
        model=facts,
        engine=engine(name, version=version),
        host=replace(host, devices=cards),
        devices=(device,) * count,
        parallel=Parallel(**{"tensor": count, **parallel}),
        context_tokens=4096,
        sequences=256,
    )


@pytest.mark.parametrize("word", list(catalogue()))
def test_every_device_is_answered_with_ordered_intervals(word):
    speed = predict(on(word), prompt_tokens=512, output_tokens=128, concurrency=4)
    for part in (speed.ttft_s, speed.tpot_s, speed.tokens_per_s, speed.prefill_tokens_per_s, speed.requests_per_s):
        assert 0 < part.low < part.expected < part.high < math.inf
    assert speed.source


@given(
    concurrency=st.integers(1, 512),
    prompt=st.integers(1, 30000),
    out=st.integers(1, 4000),
)
def test_more_clients_never_raise_the_pace_of_one_nor_lower_the_total(concurrency, prompt, out):
    candidate = on("h100")
    ledger = account(candidate)
    one, two = (
        predict(candidate, prompt_tokens=prompt, output_tokens=out, concurrency=count, ledger=ledger)
        for count in (concurrency, concurrency + 1)
    )
    assert two.tpot_s.expected >= one.tpot_s.expected * 0.999
    assert two.tokens_per_s.expected >= one.tokens_per_s.expected * 0.98


def test_clients_beyond_the_cache_wait_and_do_not_slow_the_others():
    candidate = on("rtx-4090", model("Qwen/Qwen3-8B-FP8"))
    ledger = account(candidate)
    within, beyond = (
        predict(candidate, prompt_tokens=3000, output_tokens=500, concurrency=count, ledger=ledger)
        for count in (4, 256)
    )
    assert within.running == 4
    assert beyond.running == pytest.approx(ledger.kv_tokens / 3250)
    assert beyond.ttft_s.expected > 20 * within.ttft_s.expected


def test_a_longer_context_costs_cache_reads():
    short, long = (predict(on("a100"), prompt_tokens=count, output_tokens=64, concurrency=1) for count in (100, 30000))
    assert long.tpot_s.expected > 1.1 * short.tpot_s.expected


def test_two_ranks_are_faster_than_one_and_slower_than_twice_as_fast():
    one, two = (predict(on("h100", count=count), concurrency=1).tpot_s.expected for count in (1, 2))
    assert one / 2 < two < one


def test_experts_are_reached_as_the_batch_grows():
    work = work_of(on("h100", GPT_OSS), account(on("h100", GPT_OSS)))
    assert touched(work, 1, 1.0) == pytest.approx(4 / 128)
    assert touched(work, 64, 1.0) == pytest.approx(1 - (1 - 4 / 128) ** 64)


def test_layers_in_ram_slow_every_token():
    facts = model("Qwen/Qwen3-8B-Q4_K_M")
    whole = on("rtx-3090", facts, name="llamacpp", version="b11549")
    whole = replace(whole, host=parse_hosts("rtx-3090")[0])
    half = replace(whole, options={"n_gpu_layers": 18})
    assert predict(half).tpot_s.expected > 2 * predict(whole).tpot_s.expected


def test_what_was_never_measured_is_said_less_surely():
    known = predict(on("h100"), concurrency=8)
    strange = predict(replace(on("h100"), engine=engine("newcomer", memory="vllm")), concurrency=8)
    assert strange.tpot_s.high / strange.tpot_s.low > known.tpot_s.high / known.tpot_s.low


def test_a_prediction_takes_less_than_a_millisecond():
    candidate = on("h100", GPT_OSS)
    ledger = account(candidate)
    predictor, load = shipped(), Load(prompt_tokens=512, output_tokens=256, concurrency=64)
    predictor.predict(candidate, load, ledger)
    best = math.inf
    for _ in range(20):
        begun = time.perf_counter()
        predictor.predict(candidate, load, ledger)
        best = min(best, time.perf_counter() - begun)
    assert best < 1e-3
