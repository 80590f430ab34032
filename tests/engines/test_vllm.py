"""vLLM's adapter: what it renders for which version, and what it reads in logs of which version."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_kit import A72, FOUR_NODES, PORTS, argv_of, check_golden, replica

from plimsoll.engines.vllm import Vllm
from plimsoll.engines.vllm_ascend import VllmAscend
from plimsoll.facts.incompatible import flag_name, gone_flags
from plimsoll.facts.versions import in_range
from plimsoll.units import GIB

VLLM = Vllm(installed=True)
GONE = gone_flags("vllm")
POOLED = {"heads": 12, "kv_heads": 12, "hidden_size": 768, "encoder": True, "max_context_tokens": 512,
          "context_tokens": 512, "architecture": "BertModel"}  # fmt: skip
R1 = {"tp": 8, "pp": 4, "nodes": 4, "gpu_names": ("NVIDIA GeForce RTX 3090",) * 32, "arch": "8.6", "memory_gib": 24,
      "quantization": "awq", "stored": "awq", "context_tokens": 4096, "sequences": 1, "memory_share": 0.9, "mla": True,
      "dtype": "float16", "trust_remote_code": True, "weight_gib": 370, "heads": 128}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("chat", {**A72, "tp": 2, "context_tokens": 10240, "sequences": 16, "memory_share": 0.7, "stored": "awq"}),
        ("subset", {"tp": 2, "gpus": 2, "draft_model": "/models/draft", "kv_dtype": "fp8", "eager": True}),
        ("experts", {"tp": 8, "ep": 8, "experts": 256}),
        ("cpu", {"vendor": "cpu", "sequences": 16, "memory_gib": 24, "memory_share": 0.9, "ram_bytes": 24 * GIB}),
        ("embed", {**POOLED, "task": "embed", "memory_share": 0.1}),
        ("rerank", {"task": "rerank", "architecture": "Qwen3ForCausalLM"}),
        ("four_nodes", R1),
        ("four_nodes_ray", {**R1, "version": "0.6.4.post1"}),
        ("user", {"extra_args": ("-tp", "2", "--enable-prefix-caching"), "env": {"VLLM_LOGGING_LEVEL": "DEBUG"},
                  "options": {"tensor_parallel_size": 2, "enable_prefix_caching": True, "block_size": 32,
                              "enable_chunked_prefill": False, "draft_weights_bytes": 7}}),
    ],
)  # fmt: skip
def test_golden(name: str, setup: dict) -> None:
    check_golden(f"vllm_{name}", VLLM.processes(replica(VLLM, **setup), FOUR_NODES))


def test_devices_of_a_host_that_are_not_used_are_hidden() -> None:
    made = replica(VLLM, gpus=4, tp=2)
    one = replace(made.candidate, devices=(made.candidate.devices[3], made.candidate.devices[1]))
    (process,) = VLLM.processes(replace(made, candidate=one), PORTS)
    assert process.env == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "3,1"}


@pytest.mark.parametrize(
    ("version", "setup", "there"),
    [
        ("0.5.4", {}, ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/it")),
        ("0.6.3", {"task": "embed"}, ("vllm", "serve", "/models/it")),
        ("0.6.4.post1", {"task": "embed"}, ("--task", "embedding")),
        ("0.9.2", {"task": "embed"}, ("--task", "embed")),
        ("0.9.2", {"task": "rerank"}, ("--task", "score")),
        ("0.10.0", {"task": "embed"}, ("--task", "embed")),
        ("0.10.1", {"task": "embed", "architecture": "BertModel"}, ("--runner", "pooling")),
        ("0.33.0", {"task": "embed", "architecture": "LlamaForCausalLM"}, ("--convert", "embed")),
        ("0.8.2", {"draft_model": "d"}, ("--speculative-model", "d", "--num-speculative-tokens", "5")),
        ("0.8.3", {"draft_model": "d"}, ("--speculative-config", '{"model": "d", "num_speculative_tokens": 5}')),
    ],
)
def test_flags_by_version(version: str, setup: dict, there: tuple[str, ...]) -> None:
    argv = argv_of(VLLM, version=version, **setup)
    assert any(argv[start : start + len(there)] == there for start in range(len(argv))), argv


def test_cache_of_a_cpu_is_what_the_plan_says() -> None:
    setup = {"vendor": "cpu", "memory_gib": 24, "ram_bytes": 24 * GIB, "memory_share": 0.9}
    made = replica(VLLM, **setup)
    (new,) = VLLM.processes(made, PORTS)
    assert new.argv[new.argv.index("--kv-cache-memory-bytes") + 1] == str(made.ledger.devices[0].of("kv_cache"))
    (old,) = VLLM.processes(replica(VLLM, version="0.11.0", **setup), PORTS)
    assert old.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    (own,) = VLLM.processes(replica(VLLM, env={"VLLM_CPU_KVCACHE_SPACE": "2"}, **setup), PORTS)
    assert "--kv-cache-memory-bytes" not in own.argv


@pytest.mark.parametrize("version", ["0.5.4", "0.6.4.post1", "0.7.3", "0.8.5", "0.11.0", "0.18.0", "0.33.0"])
def test_no_flag_that_the_version_no_longer_has(version: str) -> None:
    for setup in ({}, {"task": "embed"}, {"draft_model": "d"}, {"tp": 2, "pp": 2}, {"eager": True, "kv_dtype": "fp8"}):
        for process in VLLM.processes(replica(VLLM, version=version, **setup), PORTS):
            flags = {flag_name(word) for word in process.argv if word.startswith("--")}
            assert not {flag for flag in flags & set(GONE) if not in_range(version, f"<{GONE[flag]['gone']}")}


def test_ascend_renders_vllm_with_its_own_environment() -> None:
    ascend = VllmAscend(installed=True)
    setup = {"vendor": "ascend", "tp": 8, "pp": 2, "nodes": 2, "arch": "910B4", "memory_gib": 32}
    check_golden("vllm_ascend_two_nodes", ascend.processes(replica(ascend, **setup), FOUR_NODES))


LOGS = {
    "0.5.4": (
        "INFO 08-20 10:00:01 api_server.py:339] vLLM API server version 0.5.4",
        "INFO 08-20 10:00:20 model_runner.py:732] Loading model weights took 14.9888 GB",
        "INFO 08-20 10:00:25 gpu_executor.py:102] # GPU blocks: 5691, # CPU blocks: 2048",
        "INFO 08-20 10:00:50 model_runner.py:1225] Graph capturing finished in 19 secs.",
    ),
    "0.7.3": (
        "INFO 02-21 05:12:48 llm_engine.py:234] Initializing a V0 LLM engine (v0.7.3) with config: model='x'",
        "model weights take 5.60GiB; non_torch_memory takes 0.03GiB; PyTorch activation peak memory takes 0.74GiB; "
        "the rest of the memory reserved for KV Cache is 2.39GiB.",
        "INFO 02-21 05:13:00 executor_base.py:111] # cuda blocks: 1224, # CPU blocks: 4681",
        "INFO 02-21 05:13:00 executor_base.py:116] Maximum concurrency for 1024 tokens per request: 19.12x",
        "INFO 02-21 05:13:30 model_runner.py:1562] Graph capturing finished in 12 secs, took 0.59 GiB",
    ),
    "0.11.2": (
        "(APIServer pid=1) INFO 11-20 [api_server.py:1772] vLLM API server version 0.11.2",
        "INFO 11-20 [gpu_model_runner.py:3259] Model loading took 1.4721 GiB and 3.207 seconds",
        "INFO 11-20 [gpu_worker.py:298] Available KV cache memory: 17.20 GiB",
        "INFO 11-20 [kv_cache_utils.py:1229] GPU KV cache size: 563,744 tokens",
        "INFO 11-20 [kv_cache_utils.py:1234] Maximum concurrency for 2,048 tokens per request: 275.27x",
        "INFO 11-20 [gpu_model_runner.py:4244] Graph capturing finished in 14 secs, took 1.15 GiB",
    ),
    "0.33.0": (
        "INFO [core.py:101] Initializing a V1 LLM engine (v0.33.0) with config: model='x'",
        "INFO [model_runner.py:429] Model loading took 15.01 GiB memory and 4.100000 seconds",
        "INFO [gpu_worker.py:773] Available KV cache memory: 53.29 GiB",
        "INFO [kv_cache_utils.py:1148] GPU KV cache size: 436,560 tokens, Maximum concurrency for 131,072 tokens per "
        "request: 3.33x",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "gib", "counts"),
    [
        ("0.5.4", {"weights_bytes": 14.9888}, {"kv_blocks": 5691}),
        (
            "0.7.3",
            {"weights_bytes": 5.6, "non_torch_bytes": 0.03, "activations_bytes": 0.74, "kv_cache_bytes": 2.39,
             "graphs_bytes": 0.59},
            {"kv_blocks": 1224, "context_tokens": 1024, "max_concurrency": 19.12},
        ),
        (
            "0.11.2",
            {"weights_bytes": 1.4721, "kv_cache_bytes": 17.2, "graphs_bytes": 1.15},
            {"kv_tokens": 563744, "context_tokens": 2048, "max_concurrency": 275.27, "load_s": 3.207},
        ),
        (
            "0.33.0",
            {"weights_bytes": 15.01, "kv_cache_bytes": 53.29},
            {"kv_tokens": 436560, "context_tokens": 131072, "max_concurrency": 3.33, "load_s": 4.1},
        ),
    ],
)  # fmt: skip
def test_log_of(version: str, gib: dict[str, float], counts: dict[str, float]) -> None:
    observed = VLLM.read_log(["noise", *LOGS[version], "more noise"])
    expected = {name: value * GIB for name, value in gib.items()} | counts
    assert observed.version == version
    assert observed.quantities == pytest.approx(expected)
    assert "noise" not in observed.lines


def test_ranks_are_told_apart_by_the_poorest_cache_and_the_largest_weights() -> None:
    ranks = ["Model loading took 7.0 GiB", "Model loading took 9.0 GiB", "# GPU blocks: 20, #", "# GPU blocks: 10, #"]
    assert VLLM.read_log(ranks).quantities == {"weights_bytes": 9 * GIB, "kv_blocks": 10}


def test_metrics_are_summed_over_engines() -> None:
    text = (
        "# HELP vllm:num_requests_running x\n"
        'vllm:num_requests_running{engine="0",model_name="a b"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n'
        'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n'
        'vllm:prompt_tokens_total{engine="0"} 1.5e+06\nvllm:other 9\nvllm:generation_tokens_total NaN\n'
    )
    assert VLLM.metrics(text) == {"running": 7, "kv_usage": 0.5, "prompt_tokens": 1.5e6}
