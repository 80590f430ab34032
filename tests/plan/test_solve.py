"""Solving for machines with accelerators: placement, shares, ranking, and what fits when nothing does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_facts import A6000_BYTES, candidate, engine, gpu, host, model

from plimsoll.plan.memory import account
from plimsoll.plan.nearest import nearest_fits
from plimsoll.plan.settle import Settled, settle
from plimsoll.plan.solve import solve
from plimsoll.plan.types import Finding, Range, Speed
from plimsoll.spec.deployment import Deployment, Spec
from plimsoll.units import GIB

VLLM = engine("vllm", version="0.21.0", vendors=("nvidia",))
LLAMACPP = engine()
BIG = model(layers=80, hidden=8192, wide=29568, heads=64, vocab=152064, format="safetensors", value=1, context=32768)
LLM = model(layers=80, hidden=8192, wide=29568, heads=64, vocab=152064, format="safetensors", value=0.55, context=32768)
EIGHT = model(layers=32, format="safetensors", context=131072)
EMBED = model(
    layers=24, hidden=1024, wide=4096, heads=16, kv_heads=16, head_dim=64, vocab=250002, format="safetensors",
    task="embed", context=514, encoder=True,
)  # fmt: skip


def spec(*names, **settings):
    return Spec(models=tuple(Deployment(name=name, model=name, **settings) for name in names))


def a6000s(count, **more):
    return host(ram=256 * GIB, devices=tuple(gpu(index=i, **more) for i in range(count)))


def test_the_fewest_cards_that_hold_what_is_usual():
    plan = solve(spec("m"), {"m": EIGHT}, [a6000s(4)], [VLLM])
    chosen = plan.replicas[0].candidate
    assert plan.fits and len(chosen.devices) == 1 and chosen.context_tokens == 32768


def test_a_model_too_large_for_one_card_is_cut():
    plan = solve(spec("m"), {"m": BIG}, [a6000s(4)], [VLLM])
    assert plan.fits and plan.replicas[0].candidate.parallel.tensor == 2
    assert any("more devices than are needed" in rejected.why for rejected in plan.rejected)


def test_hosts_alike_are_joined_by_pipeline():
    cards = tuple(gpu("RTX 3090", memory=round(23.58 * GIB), index=i) for i in range(8))
    hosts = [host(name=f"h{i}", ram=377 * GIB, devices=cards) for i in range(4)]
    big = model(layers=64, hidden=8192, wide=24576, heads=64, vocab=129280, format="safetensors", value=6)
    plan = solve(spec("m", context=4096, concurrency=1), {"m": big}, hosts,
                 [engine("vllm", version="0.21.0", vendors=("nvidia",), multi_node=True)])  # fmt: skip
    chosen = plan.replicas[0].candidate
    assert plan.fits and chosen.nodes > 1
    assert (chosen.parallel.tensor, chosen.parallel.pipeline) == (8, chosen.nodes)


def test_llamacpp_goes_over_hosts_card_by_card():
    cards = tuple(gpu("RTX 3090", memory=round(23.58 * GIB), index=i) for i in range(8))
    hosts = [host(name=f"h{i}", ram=16 * GIB, devices=cards) for i in range(4)]
    facts = model(layers=60, hidden=8192, wide=28672, heads=64, vocab=128256, value=4, context=8192)
    plan = solve(spec("m", context=4096, concurrency=1), {"m": facts}, hosts, [engine(multi_node=True)])
    chosen = plan.replicas[0].candidate
    assert plan.fits and chosen.nodes > 1 and len(chosen.devices) <= 15


def test_three_models_share_two_cards_in_tenths():
    plan = solve(
        spec("llm", "embedding", "reranker"), {"llm": LLM, "embedding": EMBED, "reranker": EMBED}, [a6000s(2)], [VLLM]
    )
    assert plan.fits
    assert [replica.candidate.memory_share for replica in plan.replicas] == [0.7, 0.1, 0.1]
    for replica in plan.replicas:
        for device in replica.ledger.devices:
            assert device.used_bytes <= device.total_bytes
    assert any(device.of("other_processes") for device in plan.replicas[0].ledger.devices)


def test_what_cards_cannot_hold_stays_in_ram():
    facts = model(layers=80, hidden=8192, wide=28672, heads=64, vocab=128256, value=0.6, context=8192)
    plan = solve(spec("m", context=4096), {"m": facts}, [a6000s(1, memory=24 * GIB)], [LLAMACPP])
    chosen = plan.replicas[0]
    assert plan.fits and 20 < chosen.candidate.options["n_gpu_layers"] < 60
    assert [device.of("weights") > 5 * GIB for device in chosen.ledger.devices] == [True, True]


def test_layers_go_over_cards_of_different_size():
    cards = (gpu(memory=24 * GIB, index=0), gpu("RTX 3060", memory=12 * GIB, index=1))
    facts = model(layers=48, hidden=5120, wide=13824, heads=40, value=2, context=8192)
    plan = solve(spec("m", context=4096), {"m": facts}, [host(ram=64 * GIB, devices=cards)], [LLAMACPP])
    assert plan.fits and len(plan.replicas[0].candidate.devices) == 2


def test_the_users_own_flags_are_kept():
    flags = (
        "--max-model-len",
        "10240",
        "--gpu-memory-utilization=0.7",
        "--max-num-seqs",
        "8",
        "--kv-cache-dtype",
        "fp8",
    )
    chosen = solve(spec("m", extra_args=flags), {"m": EIGHT}, [a6000s(1)], [VLLM]).replicas[0].candidate
    assert (chosen.context_tokens, chosen.memory_share, chosen.sequences, chosen.kv_dtype) == (10240, 0.7, 8, "fp8")


def test_rules_and_speed_decide():
    def rules(candidate, *, ledger=None):
        if candidate.parallel.tensor == 1:
            return (Finding(rule="r", severity="error", what="no", cause="c", fix="f", source="s"),)
        return ()

    def predict(candidate):
        rate = 100.0 * len(candidate.devices)
        return Speed(
            concurrency=1, ttft_s=Range(low=1, expected=1, high=1), tpot_s=Range(low=1, expected=1, high=1),
            tokens_per_s=Range(low=rate, expected=rate, high=rate), basis="derived", source="test",
        )  # fmt: skip

    plan = solve(spec("m"), {"m": EIGHT}, [a6000s(4)], [VLLM], rules=rules, predict=predict, goal="throughput")
    assert plan.replicas[0].candidate.parallel.tensor == 4
    assert plan.replicas[0].speeds[0].tokens_per_s.expected == 400
    assert any(rejected.why == "no" for rejected in plan.rejected)


def test_another_quantization_is_taken_where_the_first_fits_nowhere():
    smaller = model(layers=80, hidden=8192, wide=29568, heads=64, vocab=152064, format="safetensors", value=0.5,
                    id="test/smaller", context=32768)  # fmt: skip
    plan = solve(spec("m"), {"m": BIG}, [a6000s(1)], [VLLM], alternatives={"m": [smaller]})
    assert plan.fits and plan.replicas[0].candidate.model.id == "test/smaller"
    assert any("fits nowhere here" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("facts", "count", "context", "said"),
    [
        (EIGHT, 1, 131072 * 3, "a context of"),
        (BIG, 1, 4096, "2 x RTX A6000 would do"),
    ],
)
def test_what_does_not_fit_comes_with_what_does(facts, count, context, said):
    plan = solve(spec("m", context=context), {"m": facts}, [a6000s(count)], [VLLM])
    assert not plan.fits
    assert any(said in note for note in plan.notes), plan.notes


def test_nearest_names_smaller_weights_and_cache():
    failed = settle(_candidate(BIG, cards=1, context=8192))
    assert not failed.fits
    smaller = model(layers=80, hidden=8192, wide=29568, heads=64, vocab=152064, format="safetensors", value=0.5)
    assert any("would fit" in sentence for sentence in nearest_fits(failed, [smaller]))


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 90), st.integers(0, 40), st.sampled_from([2048, 8192, 32768]))
def test_more_memory_never_unfits(gib, more, context):
    small = Settled(candidate=(c := _candidate(EIGHT, gib=gib, context=context)), ledger=account(c))
    large = Settled(candidate=(c := _candidate(EIGHT, gib=gib + more, context=context)), ledger=account(c))
    assert large.fits >= small.fits
    for ledger in (small.ledger, large.ledger):
        for device in ledger.devices:
            assert sum(entry.bytes for entry in device.entries) == device.used_bytes


def _candidate(facts, *, cards=1, gib=None, context=4096):
    memory = A6000_BYTES if gib is None else gib * GIB
    on = tuple(gpu(memory=memory, index=i) for i in range(cards))
    return candidate(facts, on=on, engine_facts=VLLM, tp=cards, context_tokens=context, sequences=16)
