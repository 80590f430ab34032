"""The simulated engine against cases worked by hand, and against queueing theory."""

import math
import random
from array import array
from dataclasses import replace

import pytest
from plan_facts import candidate, engine, gpu, model
from simulate_costs import costs

from plimsoll.errors import PlanError
from plimsoll.plan.memory import account
from plimsoll.plan.simulate import (
    Autoscale,
    Failures,
    Fleet,
    Lengths,
    Limits,
    Outage,
    Requests,
    closed,
    drawn,
    simulate,
    smallest_fleet,
    step_costs,
    summarise,
)
from plimsoll.plan.speed import Load, shipped
from plimsoll.plan.speed.step import decode_s, prefill_s

SMALL = Lengths(prompt_tokens=8, output_tokens=4)


def asked(*rows, **more):
    """Requests out of (arrival, prompt, output)."""
    at, prompt, output = zip(*rows, strict=True)
    return Requests(
        arrivals_s=array("d", at), prompt_tokens=array("q", prompt), output_tokens=array("q", output), **more
    )


def test_a_prompt_cuts_a_span_at_the_end_of_the_step_and_shares_a_step_with_the_answer_before_it():
    fleet = Fleet(replicas=(costs(sequences=2, decode=1.0, context=0.1, prompt=0.5),))
    run = simulate(fleet, asked((0.0, 4, 3), (3.0, 2, 2)))
    # Prompt of A: 4 x 0.5 = 2. Step of A: 1 + 0.4 -> 3.4. Prompt of B with A's last token: 1 + 0.5 + 1 -> 5.9. B: 1.2.
    assert list(run.book.first_s) == pytest.approx([2.0, 5.9])
    assert list(run.book.end_s) == pytest.approx([5.9, 7.1])
    assert list(run.book.begun_s) == pytest.approx([0.0, 3.4])
    assert run.replicas[0].busy_s == pytest.approx(7.1)


def test_the_last_to_begin_gives_way_when_the_cache_is_full_and_is_computed_anew():
    server = replace(costs(sequences=2, prompt=0.0, mixed=0.0, kv_tokens=10), prefill_s=[0.0] + [1.0] * 64)
    run = simulate(Fleet(replicas=(server,)), asked((0.0, 4, 4), (0.0, 4, 4)))
    assert list(run.book.first_s) == pytest.approx([1.0, 2.0])
    assert list(run.book.end_s) == pytest.approx([4.0, 7.0])
    assert (run.replicas[0].preempted, run.replicas[0].computed_tokens, run.replicas[0].made_tokens) == (1, 13, 8)


def test_what_no_cache_could_hold_is_refused():
    run = simulate(Fleet(replicas=(costs(kv_tokens=10),)), asked((0.0, 8, 4), (0.0, 8, 2)))
    outcome = summarise(run)
    assert (outcome.refused, outcome.completed) == (1, 1)


def test_a_long_prompt_is_cut_into_chunks_and_attends_to_what_lies_before():
    server = costs(chunk=4, prompt=1.0, attention_s=0.01)
    run = simulate(Fleet(replicas=(server,)), asked((0.0, 10, 1)))
    assert run.book.first_s[0] == pytest.approx(10 + 0.01 * 10 * 10 / 2)


def test_the_decode_steps_of_a_span_sum_as_one_by_one():
    server = costs(decode=0.5, context=0.01, prompt=0.0)
    run = simulate(Fleet(replicas=(server,)), asked((0.0, 3, 101)))
    assert run.book.end_s[0] == pytest.approx(sum(0.5 + 0.01 * (3 + i) for i in range(100)))


def test_blocks_seen_before_are_not_computed_again_and_are_forgotten_when_the_cache_is_needed():
    rows = ((0.0, 20, 1), (10.0, 20, 1), (20.0, 20, 1))
    blocks = [(1, 2), (1, 2), (1, 3)]
    run = simulate(Fleet(replicas=(costs(),)), asked(*rows, blocks=blocks, block_tokens=8))
    assert run.replicas[0].hit_tokens == 16 + 8
    tight = simulate(Fleet(replicas=(costs(kv_tokens=24),)), asked(*rows, blocks=blocks, block_tokens=16))
    assert tight.replicas[0].hit_tokens == 2 * 16, "only one block is left room"
    none = simulate(Fleet(replicas=(costs(shares_prefixes=False),)), asked(*rows, blocks=blocks, block_tokens=8))
    assert none.replicas[0].hit_tokens == 0


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_sequence_at_a_time_waits_as_in_an_m_m_1_queue(load):
    rng = random.Random(3)
    count = 60_000
    at, arrivals = 0.0, array("d")
    for _ in range(count):
        at += rng.expovariate(load)
        arrivals.append(at)
    # Answers of exponential length in steps of a thousandth: a service time of one second on average.
    output = array("q", (1 + round(1000 * rng.expovariate(1.0)) for _ in range(count)))
    requests = Requests(arrivals_s=arrivals, prompt_tokens=array("q", [1]) * count, output_tokens=output)
    run = simulate(Fleet(replicas=(costs(sequences=1, decode=1e-3, prompt=0.0),)), requests)
    outcome = summarise(run)
    assert outcome.e2e_s.mean == pytest.approx(1 / (1 - load), rel=0.06)
    assert outcome.queue_s.mean == pytest.approx(load / (1 - load), rel=0.08)
    assert outcome.utilisation == pytest.approx(load, rel=0.03)


def test_an_outage_breaks_answers_and_sends_prompts_elsewhere():
    fleet = Fleet(
        replicas=(costs(decode=1.0, prompt=1.0),) * 2, policy="round-robin",
        outages=(Outage(at_s=10.5, replica=0, down_s=100.0),),
    )  # fmt: skip
    # Replica 0: the first is answering at 10.5, the third (queued behind a step) has no token yet.
    run = simulate(fleet, asked((0.0, 8, 30), (0.0, 8, 4), (10.2, 8, 4)))
    outcome = summarise(run)
    assert (outcome.broken, outcome.completed, outcome.failures) == (1, 2, 1)
    assert run.book.first_s[2] == pytest.approx(11.0 + 8.0 + 0.0, abs=1.0)


def test_what_comes_while_nobody_is_there_waits_for_the_first_to_return():
    fleet = Fleet(replicas=(costs(),), outages=(Outage(at_s=1.0, replica=0, down_s=9.0),))
    run = simulate(fleet, asked((5.0, 8, 1)))
    assert run.book.first_s[0] == pytest.approx(10.0 + 2.0)


def test_failures_by_chance_come_as_often_as_stated():
    fleet = Fleet(replicas=(costs(decode=0.01, prompt=0.001),) * 10, failures=Failures(mean_s=200.0, down_s=50.0))
    run = simulate(fleet, drawn(rate_per_s=2.0, requests=8000, lengths=SMALL, seed=1))
    # 10 replicas x 4000 s / (200 + 50) s
    assert run.failures == pytest.approx(160, rel=0.25)


def test_the_autoscaler_follows_the_load_up_and_down_and_saves_what_it_does_not_pay():
    server = costs(decode=0.1, prompt=0.01)
    scale = Autoscale(least=1, most=20, target=4.0, start_s=30.0, interval_s=10.0, patience_s=60.0)
    calm = [(10.0 * i, 8, 4) for i in range(100)]
    rush = [(1000.0 + i / 20, 8, 40) for i in range(8000)]
    after = [(1400.0 + 10.0 * i, 8, 4) for i in range(100)]
    run = simulate(Fleet(replicas=(server,) * 20, autoscale=scale), asked(*calm, *rush, *after))
    outcome = summarise(run, price_per_device_hour=3600.0)
    assert outcome.completed == 8200
    assert 5 < outcome.replicas <= 20
    assert outcome.cost == pytest.approx(sum(run.paid_s))
    assert sum(run.paid_s) < 0.5 * 20 * outcome.duration_s


def test_a_closed_loop_keeps_its_clients_busy():
    server = costs(decode=1.0, prompt=0.0, start_s=0.5)
    run = simulate(Fleet(replicas=(server,)), closed(clients=3, requests=9, lengths=SMALL, seed=1))
    book = run.book
    assert list(book.arrival_s[:3]) == [0.0] * 3
    assert sorted(book.arrival_s[3:]) == pytest.approx(sorted(book.end_s)[:6]), "an answer, then the next request"


def test_latencies_and_goodput_of_a_run_without_a_queue():
    server = costs(decode=0.1, prompt=0.05)
    run = simulate(Fleet(replicas=(server,) * 2), asked((0.0, 8, 5), (10.0, 16, 5)))
    outcome = summarise(run, limits=Limits(ttft_s=0.5, tpot_s=0.1 + 1e-9), price_per_device_hour=2.0)
    assert outcome.ttft_s.p50 == pytest.approx(0.6)
    assert outcome.tpot_s.p99 == pytest.approx(0.1)
    assert (outcome.kept, outcome.goodput_per_s, outcome.holds) == (0.5, pytest.approx(1 / 10.0), False)
    assert outcome.device_hours == pytest.approx(2 * 11.2 / 3600)
    assert outcome.cost_per_million_tokens == pytest.approx(outcome.device_hours * 2.0 / 10 * 1e6)


def test_the_smallest_fleet_holds_and_one_fewer_does_not():
    server = costs(decode=0.1, prompt=0.05)
    requests = drawn(rate_per_s=30.0, requests=3000, lengths=SMALL, seed=2)

    def outcome_of(count):
        return summarise(simulate(Fleet(replicas=(server,) * count), requests), limits=Limits(ttft_s=1.0))

    sizes = {smallest_fleet(outcome_of, start=start)[0].replicas for start in (1, 7, 64)}
    assert len(sizes) == 1
    size = sizes.pop()
    assert size > 1
    assert outcome_of(size).holds
    assert not outcome_of(size - 1).holds


def test_a_level_that_no_fleet_keeps_is_an_error():
    requests = drawn(rate_per_s=1.0, requests=20, lengths=SMALL, seed=2)
    with pytest.raises(PlanError, match="not even 8"):
        smallest_fleet(
            lambda n: summarise(simulate(Fleet(replicas=(costs(),) * n), requests), limits=Limits(ttft_s=1e-6)), most=8
        )


def test_a_fleet_without_replicas_is_an_error():
    with pytest.raises(PlanError, match="at least one"):
        simulate(Fleet(replicas=()), asked((0.0, 1, 1)))


def test_costs_of_a_candidate_are_those_of_the_speed_model():
    server = candidate(
        model(layers=32, format="safetensors"), on=(gpu(),), engine_facts=engine("vllm", version="0.11.0"),
        sequences=64, context_tokens=4096, memory_share=0.9,
    )  # fmt: skip
    ledger = account(server)
    machine = shipped().machine(server, ledger)
    table = step_costs(server, ledger, typical_tokens=2000)
    assert table.decode_s[16] + table.context_s[16] * 16 * 2000 == pytest.approx(decode_s(machine, 16, 2000))
    alone = table.prefill_s[1000] + table.attention_s * 1000 * 1000 / 2
    assert alone == pytest.approx(prefill_s(machine, 1000, chunk=8192), rel=1e-6)
    # One client at a time: the closed form and the simulation are the same sum.
    lengths = Lengths(prompt_tokens=512, output_tokens=128)
    run = simulate(Fleet(replicas=(table,)), closed(clients=1, requests=3, lengths=lengths, seed=0))
    timing = shipped().timing(server, Load(prompt_tokens=512, output_tokens=128, concurrency=1), ledger)
    outcome = summarise(run)
    assert outcome.ttft_s.p50 == pytest.approx(timing.ttft_s, rel=0.01)
    assert outcome.tpot_s.p50 == pytest.approx(timing.tpot_s, rel=0.01)
    assert not math.isnan(outcome.e2e_s.p99)
