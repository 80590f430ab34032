"""SGLang's adapter: what it renders, and what it reads in logs of which version."""

from __future__ import annotations

import pytest
from engine_kit import A72, FOUR_NODES, argv_of, check_golden, replica

from plimsoll.engines.protocol import Quantity
from plimsoll.engines.sglang import SGLang
from plimsoll.facts.incompatible import flag_name, gone_flags
from plimsoll.units import GIB

SGLANG = SGLang(installed=True)


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("chat", {**A72, "tp": 2, "context_tokens": 10240, "sequences": 16, "memory_share": 0.8}),
        ("draft", {"draft_model": "/models/draft", "kv_dtype": "fp8_e4m3", "ep": 2, "tp": 2, "experts": 8}),
        ("four_nodes", {"tp": 32, "nodes": 4, "gpu_names": ("NVIDIA GeForce RTX 3090",) * 32, "heads": 128,
                        "trust_remote_code": True, "arch": "8.6"}),
        ("cpu", {"vendor": "cpu", "sequences": 4}),
        ("embed", {"task": "embed", "name": "bge:m3"}),
    ],
)  # fmt: skip
def test_golden(name: str, setup: dict) -> None:
    check_golden(f"sglang_{name}", SGLANG.processes(replica(SGLANG, **setup), FOUR_NODES))


def test_no_flag_that_is_gone() -> None:
    for setup in ({"draft_model": "d"}, {"vendor": "cpu"}, {"tp": 2, "eager": True, "batched_tokens": 4096}):
        assert not {flag_name(word) for word in argv_of(SGLANG, **setup)} & set(gone_flags("sglang"))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["[TP0] Load weight end. type=KimiK25ForConditionalGeneration, avail mem=209.98 GB, mem usage=73.58 GB",
             "KV Cache is allocated. #tokens: 2454421, KV size: 160.63 GB", "Memory pool end. avail mem=45.25 GB"],
            {"weights_bytes": 73.58 * GIB, "kv_tokens": 2454421, "kv_cache_bytes": 160.63 * GIB},
        ),
        (
            ["Load weight end. avail mem=19.08 GB, mem usage=3.76 GB",
             "Mamba Cache is allocated. max_mamba_cache_size: 82, conv_state size: 0.13GB, ssm_state size: 7.29GB",
             "KV Cache is allocated. #tokens: 580364, K size: 4.15 GB, V size: 4.15 GB"],
            {"weights_bytes": 3.76 * GIB, "kv_tokens": 580364, "kv_cache_bytes": 8.3 * GIB},
        ),
        (
            ["Load weight end. elapsed=12.34 s, type=LlamaForCausalLM, avail mem=60.00 GB, mem usage=15.02 GB.",
             "KV Cache is allocated. dtype: torch.bfloat16, #tokens: 100, K size: 1.00 GB, V size: 1.00 GB",
             "Capture cuda graph end. Time elapsed: 56.90 s. mem usage=6.22 GB. avail mem=5.61 GB.",
             "max_total_num_tokens=100, chunked_prefill_size=8192, max_prefill_tokens=16384, max_running_requests=48, "
             "context_len=32768, available_gpu_mem=5.00 GB"],
            {"load_s": 12.34, "weights_bytes": 15.02 * GIB, "kv_tokens": 100, "kv_cache_bytes": 2 * GIB,
             "graphs_bytes": 6.22 * GIB, "sequences": 48, "context_tokens": 32768},
        ),
    ],
)  # fmt: skip
def test_log(lines: list[str], expected: dict[Quantity, float]) -> None:
    assert SGLANG.read_log(lines).quantities == pytest.approx(expected)


def test_metrics() -> None:
    text = 'sglang:num_running_reqs{model_name="x"} 2.0\nsglang:token_usage{model_name="x"} 0.28\n'
    assert SGLANG.metrics(text) == {"running": 2, "kv_usage": 0.28}
