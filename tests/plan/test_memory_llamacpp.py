"""llama.cpp's law against what b11549 printed for models of known shape (headers over sparse files, CPU)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_facts import candidate, gpu, host, model, moe_of

from plimsoll.plan.memory import account
from plimsoll.plan.memory.llamacpp import build_number
from plimsoll.units import GIB, MIB


def shape(**values):
    return values


SMOLLM2 = shape(layers=30, hidden=576, wide=1536, heads=9, kv_heads=3, head_dim=64, vocab=49152, tied=True)
SHAPES = {
    "smollm2": SMOLLM2,
    "small": shape(hidden=1024, wide=2048, heads=16, kv_heads=4, head_dim=64, vocab=32000),
    "llama2-7b": shape(hidden=4096, wide=11008, heads=32, kv_heads=32, head_dim=128, vocab=32000),
    "llama3-8b": shape(hidden=4096, wide=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256),
    "qwen2-7b": shape(hidden=3584, wide=18944, heads=28, kv_heads=4, head_dim=128, vocab=152064),
    "qwen3-0.6b": shape(hidden=1024, wide=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936),
    "qwen3-14b": shape(hidden=5120, wide=17408, heads=40, kv_heads=8, head_dim=128, vocab=151936),
    "wide-heads": shape(hidden=1024, wide=1536, heads=64, kv_heads=16, head_dim=128, vocab=32000),
    "qwen3-30b-a3b": shape(hidden=2048, wide=6144, heads=32, kv_heads=4, vocab=151936, moe=moe_of(128, 8, 768)),
    "qwen3-235b-a22b": shape(hidden=4096, wide=12288, heads=64, kv_heads=4, vocab=151936, moe=moe_of(128, 8, 1536)),
    "moe-4": shape(hidden=2048, wide=6144, heads=16, kv_heads=4, head_dim=64, vocab=32000, moe=moe_of(16, 4, 768)),
    "moe-wide": shape(hidden=1024, wide=6144, heads=16, kv_heads=4, head_dim=64, vocab=32000, moe=moe_of(16, 8, 2048)),
    "moe-few": shape(hidden=4096, wide=6144, heads=16, kv_heads=4, head_dim=64, vocab=32000, moe=moe_of(16, 2, 1024)),
    "deepseek2": shape(hidden=7168, wide=18432, heads=128, kv_heads=1, head_dim=576, mla=576, vocab=129280,
                      moe=moe_of(256, 8, 2048)),
    "gemma3-12b": shape(layers=6, hidden=3840, wide=15360, heads=16, kv_heads=8, head_dim=256, vocab=262208, tied=True,
                       sliding=5, window=1024),
}  # fmt: skip

# (shape, context per slot, slots, options, KV MiB, compute MiB) as logged.
LOGGED = [
    ("smollm2", 512, 1, {}, 11.25, 15.14),
    ("smollm2", 2048, 4, {}, 180.0, 16.64),
    ("smollm2", 8192, 4, {}, 720.0, 22.64),
    ("smollm2", 5000, 3, {}, 5120 * 3 * 0.02197265625, None),
    ("smollm2", 2048, 4, {"kv_unified": True}, 180.0, 22.64),
    ("smollm2", 2048, 4, {"ubatch_size": 128}, 180.0, 4.16),
    ("smollm2", 2048, 4, {"ubatch_size": 4096, "batch_size": 4096}, 180.0, 133.14),
    ("smollm2", 256, 128, {}, 720.0, 29.89),
    ("smollm2", 2048, 4, {"flash_attn": "off"}, 180.0, 47.51),
    ("smollm2", 8192, 4, {"flash_attn": "off"}, 720.0, 167.51),
    ("smollm2", 2048, 4, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 95.62, 16.67),
    ("smollm2", 2048, 4, {"cache_type_k": "q4_0", "cache_type_v": "q4_0"}, 50.62, 16.67),
    ("small", 1024, 1, {}, 2.0, 19.02),
    ("small", 8192, 1, {"flash_attn": "off"}, 16.0, 285.01),
    ("llama2-7b", 8192, 1, {"ubatch_size": 2048}, 256.0, 450.07),
    ("llama2-7b", 1024, 1, {"flash_attn": "off"}, 32.0, 130.01),
    ("llama3-8b", 8192, 1, {}, 64.0, 132.02),
    ("llama3-8b", 8192, 1, {"flash_attn": "off"}, 64.0, 580.01),
    ("qwen2-7b", 8192, 1, {}, 32.0, 154.02),
    ("qwen2-7b", 8192, 1, {"flash_attn": "off"}, 32.0, 508.01),
    ("qwen3-0.6b", 8192, 1, {}, 64.0, 36.02),
    ("qwen3-0.6b", 8192, 1, {"flash_attn": "off"}, 64.0, 294.01),
    ("qwen3-0.6b", 256, 64, {}, 128.0, 47.36),
    ("qwen3-14b", 1024, 1, {}, 8.0, 153.02),
    ("wide-heads", 1024, 1, {}, None, 43.02),
    ("qwen3-30b-a3b", 8192, 1, {}, 32.0, 96.02),
    ("qwen3-30b-a3b", 8192, 1, {"flash_attn": "off"}, 32.0, 566.01),
    ("qwen3-235b-a22b", 8192, 1, {"ubatch_size": 2048}, 32.0, 736.07),
    ("moe-4", 1024, 1, {}, None, 55.02),
    ("moe-wide", 1024, 1, {}, None, 107.02),
    ("moe-few", 1024, 1, {}, None, 57.02),
    ("deepseek2", 8192, 1, {}, 18.0, 414.01),
    ("deepseek2", 8192, 1, {"flash_attn": "off"}, 18.0, 2470.01),
    ("gemma3-12b", 8192, 1, {}, 64.0 + 60.0, 137.03),
    ("gemma3-12b", 8192, 4, {}, 256.0 + 240.0, 137.03),
    ("gemma3-12b", 32768, 1, {"swa_full": True}, 256.0 + 1280.0, 191.53),
]


@pytest.mark.parametrize(("name", "context", "slots", "options", "kv", "compute"), LOGGED)
def test_buffers_are_those_that_llamacpp_logs(name, context, slots, options, kv, compute):
    ledger = account(
        candidate(model(**SHAPES[name]), context_tokens=context, sequences=slots, options=options)
    ).devices[0]
    if kv is not None:
        assert ledger.of("kv_cache") / MIB == pytest.approx(kv, rel=0.001)
    if compute is not None:
        assert ledger.of("compute") / MIB == pytest.approx(compute, rel=0.03)


def test_embeddings_reserve_logits_for_every_token():
    ledger = account(
        candidate(model(**SMOLLM2), context_tokens=2048, sequences=4, options={"embeddings": True})
    ).devices[0]
    assert ledger.of("compute") / MIB == pytest.approx(104.77, rel=0.07)


def test_layers_go_to_devices_by_free_memory_and_the_rest_stays_in_ram():
    facts = model(layers=32)
    ledgers = account(
        candidate(facts, on=(gpu(memory=24 * GIB), gpu(memory=24 * GIB, held=12 * GIB, index=1)), context_tokens=4096)
    ).devices
    per_layer = ledgers[0].of("kv_cache") / 22
    assert [round(ledger.of("kv_cache") / per_layer) for ledger in ledgers] == [22, 10, 0]
    assert sum(ledger.of("weights") for ledger in ledgers) == facts.weight_bytes
    partly = account(candidate(facts, on=(gpu(),), context_tokens=4096, options={"n_gpu_layers": 8})).devices
    assert partly[0].of("weights") < partly[1].of("weights")


def test_build_numbers():
    assert [build_number(v) for v in ("b4567", "2026.10.11549", "5200 (abcdef12)", "")] == [4567, 11549, 5200, 10**6]


@given(st.integers(1, 64), st.integers(256, 65536), st.integers(0, 8))
def test_more_memory_never_unfits_and_sums_are_exact(slots, context, more):
    facts = model(**SMOLLM2)
    small = account(candidate(facts, host=host(ram=8 * GIB), context_tokens=context, sequences=slots))
    large = account(candidate(facts, host=host(ram=(8 + more) * GIB), context_tokens=context, sequences=slots))
    assert large.fits >= small.fits
    assert large.margin_bytes == small.margin_bytes + more * GIB
    for ledger in small.devices:
        assert ledger.total_bytes - sum(entry.bytes for entry in ledger.entries) == ledger.free_bytes
