"""What people measured, against the ledger: verdicts and figures of field notes."""

from __future__ import annotations

import pytest
from plan_facts import candidate, engine, gpu, host

from plimsoll.facts import catalogue
from plimsoll.plan.memory import account
from plimsoll.plan.memory.ollama import fitting_layers
from plimsoll.plan.nearest import nearest_fits
from plimsoll.plan.settle import Settled
from plimsoll.units import GIB

RTX3090 = round(23.56 * GIB)


def cards(count, **more):
    return tuple(gpu(index=i, **more) for i in range(count))


def test_gemma_2_9b_on_one_a6000():
    facts = catalogue.model("google/gemma-2-9b-it")
    ledger = account(
        candidate(facts, on=cards(1), engine_facts=engine("vllm", version="0.6.3"), context_tokens=4096, sequences=256)
    )
    device = ledger.devices[0]
    assert device.of("weights") / GIB == pytest.approx(17.2179, rel=0.001)
    assert device.of("activations") / GIB == pytest.approx(19.57 - 17.2179, rel=0.02)
    assert ledger.kv_blocks == pytest.approx(4463, rel=0.005)
    assert ledger.max_concurrency == pytest.approx(17.43, rel=0.005)


def test_gemma_2_9b_on_two_with_a_neighbour():
    facts = catalogue.model("google/gemma-2-9b-it")
    # 14.58 GiB "non-torch" on the second card, of which 0.50 are its own as on the first.
    on = (gpu(), gpu(index=1, held=round(14.08 * GIB)))
    ledger = account(
        candidate(facts, on=on, engine_facts=engine("vllm", version="0.6.3"), tp=2, context_tokens=4096, sequences=256)
    )
    assert ledger.devices[0].of("weights") / GIB == pytest.approx(8.6535, rel=0.01)
    assert ledger.max_concurrency == pytest.approx(26.19, rel=0.01)


def test_deepseek_r1_in_bf16_does_not_fit_on_768_gb():
    facts = catalogue.model("deepseek-ai/DeepSeek-R1-BF16")
    ledger = account(
        candidate(facts, on=cards(32, name="RTX 3090", memory=RTX3090), tp=32, nodes=4, context_tokens=4096,
                  engine_facts=engine("sglang", version="0.4.3"))
    )  # fmt: skip
    assert not ledger.fits and not ledger.tight
    assert sum(device.of("weights") for device in ledger.devices) > 1.2e12


@pytest.mark.parametrize(("share", "fits"), [(0.90, True), (0.93, False)])
def test_deepseek_r1_awq_on_32_cards_of_24_gb(share, fits):
    facts = catalogue.model("cognitivecomputations/DeepSeek-R1-AWQ")
    ledger = account(
        candidate(facts, on=cards(32, name="RTX 3090", memory=RTX3090), tp=8, pp=4, nodes=4, context_tokens=4096,
                  sequences=1, kv_dtype="fp8", dtype="float16", memory_share=share,
                  engine_facts=engine("vllm", version="0.7.2"))
    )  # fmt: skip
    assert ledger.fits is fits
    assert ledger.tight  # It hangs on what the communicators take: the notes' writer found the limit by trying.


@pytest.mark.parametrize(("count", "layers"), [(8, 16), (4, 8)])
def test_deepseek_r1_in_ollama(count, layers):
    facts = catalogue.model("deepseek-r1:671b-q4_K_M")
    machine = host(ram=377 * GIB, devices=cards(count, name="RTX 3090", memory=RTX3090))

    # Four slots of 2,048 tokens are Ollama's own defaults of the time.
    def ask(**options):
        return candidate(
            facts, host=machine, on=machine.devices, engine_facts=engine("ollama", version="0.5.7"),
            context_tokens=2048, sequences=4, options=options,
        )  # fmt: skip

    automatic = account(ask())
    assert not automatic.fits
    assert fitting_layers(ask(), machine.devices) == layers
    assert account(ask(num_gpu=layers)).fits
    assert any(f"num_gpu {layers}" in said for said in nearest_fits(Settled(candidate=ask(), ledger=automatic)))


def test_three_services_in_nine_tenths_of_two_a6000():
    shares = (0.7, 0.1, 0.1)
    on = cards(2)
    llm = account(
        candidate(catalogue.model("Qwen/Qwen2.5-72B-Instruct-AWQ"), on=on, tp=2, context_tokens=10240, sequences=256,
                  memory_share=shares[0], engine_facts=engine("vllm", version="0.6.4.post1"))
    )  # fmt: skip
    assert llm.fits and sum(shares) == pytest.approx(0.9)
    for name, length in (("BAAI/bge-reranker-v2-m3", 512), ("maidalun1020/bce-embedding-base_v1", 512)):
        small = account(
            candidate(catalogue.model(name), on=on, tp=2, context_tokens=length, sequences=256, memory_share=0.1,
                      batched_tokens=8192, engine_facts=engine("vllm", version="0.6.4.post1"))
        )  # fmt: skip
        assert small.fits


def test_qwen1_5_7b_in_mindie_with_8_gib_of_cache():
    facts = catalogue.model("Qwen/Qwen1.5-7B-Chat")
    on = cards(8, name="Ascend 910B4", memory=32 * GIB, vendor="ascend", arch="910B4")
    ledger = account(
        candidate(facts, on=on, tp=8, context_tokens=8192, sequences=200, batched_tokens=8192,
                  engine_facts=engine("mindie", version="1.0"), options={"npuMemSize": 8})
    )  # fmt: skip
    assert ledger.fits and ledger.devices[0].of("kv_cache") == 8 * GIB
    # One card's eighth of 32 layers x 32 heads x 128 x K and V in 2 bytes.
    assert ledger.kv_blocks == 8 * GIB // (128 * 32 * 4 * 128 * 2 * 2)
