"""SGLang's, Ollama's and transformers' laws against what they logged."""

from __future__ import annotations

import pytest
from plan_facts import candidate, engine, gpu, host, model

from plimsoll.errors import PlanError
from plimsoll.facts import catalogue
from plimsoll.plan.memory import account
from plimsoll.plan.memory.common import value_bytes
from plimsoll.plan.memory.ollama import graph_bytes
from plimsoll.plan.memory.sglang import default_fraction
from plimsoll.units import GIB, MIB


def sglang(facts, total_gib, *, version="0.4.6", tp=1, **asked):
    on = tuple(gpu("card", memory=round(total_gib * GIB), index=i) for i in range(tp))
    return account(
        candidate(facts, on=on, tp=tp, engine_facts=engine("sglang", version=version), context_tokens=2048, **asked)
    )


def test_sglang_pool_is_what_loading_leaves_less_the_reserve():
    # 14.70 GiB before loading, 0.98 taken by it, a fraction of 0.15: 1.22 GiB and 107,319 tokens were logged.
    ledger = sglang(catalogue.model("Qwen/Qwen2.5-0.5B-Instruct"), 14.70 + 0.6, memory_share=0.15)
    assert ledger.kv_tokens == pytest.approx(107319, rel=0.04)


def test_sglang_splits_the_rest_between_states_and_tokens():
    ledger = sglang(catalogue.model("Qwen/Qwen3-Next-80B-A3B-Instruct"), 139.8, tp=2, memory_share=0.85)
    device = ledger.devices[0]
    assert device.of("state") / device.of("kv_cache") == pytest.approx(0.9, rel=0.01)


def test_sglang_default_fraction():
    h100, l4 = gpu("H100", memory=80 * GIB), gpu("L4", memory=round(22.5 * GIB))
    assert [default_fraction("0.4.0", h100, tensor=t) for t in (1, 8)] == [0.88, 0.82]
    # 512 + 2048 x 1.5 + 24 x 2 + 128 MiB of 23040; the larger card keeps 10 GiB.
    assert default_fraction("0.5.9", l4, tensor=1) == pytest.approx(1 - (512 + 3072 + 48 + 128) / 23040, abs=0.001)
    assert default_fraction("0.5.9", h100, tensor=1) == pytest.approx(1 - 12288 * 1.0 / 81920 - 512 / 81920, abs=0.02)


@pytest.mark.parametrize(
    ("name", "context", "full", "mib"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8192, True, 560.0),
        ("google/gemma-3-12b-it", 8192, True, 519.5),
        ("deepseek-ai/DeepSeek-R1", 2048, True, 654.0),
        ("deepseek-ai/DeepSeek-R1", 2048, False, 1019.5),
    ],
)
def test_ollama_graph_is_as_estimated_by_it(name, context, full, mib):
    assert graph_bytes(catalogue.model(name), context=context, full=full) / MIB == pytest.approx(mib, rel=0.01)


def test_ollama_counts_its_context_once_a_slot():
    facts = model(layers=32, context=8192)
    machine = host(ram=64 * GIB, devices=(gpu(),))

    def cache(slots):
        asked = candidate(facts, host=machine, on=machine.devices, engine_facts=engine("ollama", version="0.5.7"),
                          context_tokens=2048, sequences=slots)  # fmt: skip
        return sum(device.of("kv_cache") for device in account(asked).devices)

    assert cache(4) == 4 * cache(1) == 32 * 2 * 8 * 128 * 2 * 8192


def test_transformers_grows_with_sequences():
    facts = model(layers=32, format="safetensors")
    one, four = (
        account(candidate(facts, on=(gpu(),), engine_facts=engine("transformers", version="5.23"), sequences=n))
        for n in (1, 4)
    )
    assert four.devices[0].of("kv_cache") == 4 * one.devices[0].of("kv_cache")
    assert one.devices[0].of("weights") == facts.weight_bytes


def test_an_option_that_is_no_number_is_said():
    facts = model(layers=4)
    with pytest.raises(PlanError, match="n_gpu_layers is 'many'"):
        account(candidate(facts, on=(gpu(),), options={"n_gpu_layers": "many"}))


def test_value_sizes_and_unknown_ones():
    assert [value_bytes(name) for name in ("q8_0", "q4_0", "fp8_e4m3", "bf16")] == [34 / 32, 18 / 32, 1.0, 2.0]
    assert value_bytes("auto", model_dtype="float32") == 4.0
    with pytest.raises(PlanError, match="not a KV cache dtype"):
        value_bytes("q3_7")
