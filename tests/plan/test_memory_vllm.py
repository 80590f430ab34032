"""vLLM's law against logged runs, version by version."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_facts import candidate, engine, gpu, model

from plimsoll.facts import catalogue
from plimsoll.plan.memory import account
from plimsoll.plan.memory.vllm_cache import Paging, pages
from plimsoll.plan.memory.vllm_profile import accounting_version, default_batched_tokens, default_sequences
from plimsoll.units import GIB


def run(name, version, total_gib, *, tp=1, arch="8.6", card="card", **asked):
    on = tuple(gpu(card, memory=round(total_gib * GIB), index=i, arch=arch) for i in range(tp))
    facts = catalogue.model(name) if isinstance(name, str) else name
    asked = {"sequences": 256, "context_tokens": 4096} | asked
    return account(candidate(facts, on=on, engine_facts=engine("vllm", version=version), tp=tp, **asked))


@pytest.mark.parametrize(
    ("name", "version", "total", "asked", "kv_gib", "concurrency"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "0.6.4", 23.58, {"context_tokens": 20000}, 3.81, 1.56),
        ("meta-llama/Llama-3.1-8B-Instruct", "0.6.4", 23.58, {"context_tokens": 29000}, 2.89, 0.82),
        ("Qwen/Qwen2.5-0.5B", "0.6.6", 14.56, {"context_tokens": 32768}, 10.63, 28.35),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "0.8.5", 21.48,
         {"tp": 4, "context_tokens": 65536, "memory_share": 0.93, "batched_tokens": 8192}, 14.49, 6.44),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "0.10.2", 44.42,
         {"tp": 8, "context_tokens": 32768, "batched_tokens": 2048}, 10.65, 7.27),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "0.11.0", 139.81,
         {"tp": 2, "context_tokens": 262144, "sequences": 1024, "card": "NVIDIA H200"}, 44.59, 14.77),
    ],
)  # fmt: skip
def test_cache_and_concurrency_are_as_logged(name, version, total, asked, kv_gib, concurrency):
    ledger = run(name, version, total, **asked)
    device = ledger.devices[0]
    room = device.limit_bytes - sum(e.bytes for e in device.entries if e.inside and e.name != "kv_cache")
    assert room / GIB == pytest.approx(kv_gib, rel=0.035)
    assert ledger.max_concurrency == pytest.approx(concurrency, rel=0.035)
    assert ledger.fits is (concurrency >= 1)


def test_tokens_of_hybrid_models_are_told_by_group_then_by_concurrency():
    old = run(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "0.11.0", 139.81, tp=2, context_tokens=262144, sequences=1024, card="H200"
    )
    new = run(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "0.21.0", 139.81, tp=2, context_tokens=262144, sequences=1024, card="H200"
    )
    assert old.kv_tokens == pytest.approx(973760, rel=0.01)
    assert new.kv_tokens == int(new.max_concurrency * 262144) > 3 * old.kv_tokens


def test_sliding_layers_hold_their_window_only():
    facts = model(layers=60, sliding=50, window=1024, heads=32, kv_heads=16, format="safetensors")
    paging = Paging(
        version="0.11.0", block_tokens=16, value_bytes=2.0, kv_dtype="auto", tensor=1, pipeline=1, context=131072,
        batched_tokens=2048, prefix_caching=True,
    )  # fmt: skip
    pool = pages(facts, paging)
    assert pool.groups == 6 and pool.request_blocks == 131072 // 16 + 5 * ((1023 + 2048) // 16 + 2)


def test_cuda_graphs_come_off_the_share_since_0_21():
    facts = model(layers=32, format="safetensors")
    before, since = (run(facts, version, 79.2, memory_share=0.9) for version in ("0.20.0", "0.21.0"))
    outside, inside = (
        next(entry for entry in ledger.devices[0].entries if entry.name == "graphs") for ledger in (before, since)
    )
    assert not outside.inside and inside.inside
    assert before.kv_tokens > since.kv_tokens


def test_v1_falls_back_to_v0_where_it_could_not_run():
    facts = model(layers=4, format="safetensors")

    def version(arch, **asked):
        on = (gpu(arch=arch),)
        return accounting_version(candidate(facts, on=on, engine_facts=engine("vllm", version="0.8.5"), **asked))

    assert version("8.6") == "0.8.5"
    assert version("7.5") == version("8.6", dtype="float32") == version("8.6", kv_dtype="fp8") == "0.7.3"


def test_defaults_by_device():
    facts, small, large = model(), gpu(), gpu("NVIDIA H100 80GB HBM3", memory=80 * GIB)
    a100 = gpu("NVIDIA A100-SXM4-80GB", memory=79 * GIB)
    assert [default_sequences("0.11.0", device) for device in (small, large, a100)] == [256, 1024, 256]
    batched = [default_batched_tokens("0.11.0", d, model=facts, context=4096) for d in (small, large)]
    assert batched == [2048, 8192]
    v0 = [default_batched_tokens(v, small, model=facts, context=c) for v, c in
          (("0.6.4", 20000), ("0.6.4", 35000), ("0.7.3", 35000))]  # fmt: skip
    assert v0 == [20000, 512, 2048]


def test_a_neighbour_that_leaves_less_than_the_share_stops_it():
    facts = model(layers=32, format="safetensors")
    held = gpu(held=20 * GIB)
    ledger = account(candidate(facts, on=(held,), engine_facts=engine("vllm", version="0.11.0"), sequences=16))
    assert not ledger.fits and any("refuses to start" in note for note in ledger.notes)


def test_an_encoder_needs_no_cache():
    facts = model(layers=24, hidden=1024, wide=4096, heads=16, head_dim=64, encoder=True, task="embed",
                  format="safetensors")  # fmt: skip
    ledger = run(facts, "0.11.0", 24, context_tokens=512)
    assert ledger.fits and ledger.kv_tokens == 0 and ledger.devices[0].of("kv_cache") == 0


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["0.5.4", "0.6.4", "0.7.3", "0.8.5", "0.11.0", "0.20.0", "0.33.0"]),
    st.integers(20, 140),
    st.integers(1, 60),
    st.sampled_from([1, 2, 4]),
    st.integers(512, 131072),
)
def test_more_memory_never_unfits_nor_shrinks_the_cache(version, gib, more, tp, context):
    facts = model(layers=32, format="safetensors")
    # The batch is stated: left open, vLLM itself takes a larger one from 70 GiB on, and so less cache.
    small = run(facts, version, gib, tp=tp, context_tokens=context, batched_tokens=4096)
    large = run(facts, version, gib + more, tp=tp, context_tokens=context, batched_tokens=4096)
    assert large.fits >= small.fits and large.kv_tokens >= small.kv_tokens
    for device in large.devices:
        assert device.used_bytes == sum(entry.bytes for entry in device.entries)
