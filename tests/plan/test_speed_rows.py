"""Rows of measured speeds read as cases: layouts, units and what a row leaves open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.speed_rows import Case, layout, read_report, read_silicon

REPORT = {
    "id": "x", "engine": "vLLM", "engine_version": "v0.11.0", "model": "Qwen/Qwen3-8B", "weight_format": "BF16",
    "hardware": "NVIDIA A100 80GB", "devices_count": "1", "nodes": "1", "interconnect": "", "tp": "", "pp": "",
    "input_len": "512", "output_len": "128", "concurrency": "4", "request_rate": "", "metric": "tpot_ms", "value": "20",
    "other_flags": "", "source": "somebody@abc", "regime": "batch_single",
}  # fmt: skip
SILICON = {
    "id": "y", "engine": "vllm", "engine_version": "0.18.0", "model": "openai/gpt-oss-120b", "system": "h200_sxm",
    "precision": "fp4", "gemm_quant": "nvfp4", "moe_quant": "nvfp4", "input_len": "1024", "output_len": "1024",
    "concurrency": "8", "tp": "4", "pp": "1", "attention_dp": "1", "moe_tp": "4", "moe_ep": "1", "ttft_ms": "50",
    "tpot_ms": "4",
}  # fmt: skip


def test_a_report_becomes_a_case_in_seconds():
    case = read_report(REPORT)
    assert isinstance(case, Case)
    assert (case.quantity, case.measured) == ("tpot", 0.02)
    assert case.candidate.devices[0].name == "NVIDIA A100-SXM4-80GB"
    assert case.load.concurrency == 4


@pytest.mark.parametrize(
    ("hardware", "name", "host_bandwidth"),
    [
        ("NVIDIA RTX 4090 24GB", "NVIDIA GeForce RTX 4090", None),
        ("Apple M1 8-core 16GB", "Apple M1", None),
        ("EPYC 9654 (DDR5-4800 12ch) + RTX 4090", "NVIDIA GeForce RTX 4090", 460.8e9),
    ],
)
def test_hardware_as_people_write_it(hardware, name, host_bandwidth):
    case = read_report({**REPORT, "hardware": hardware})
    assert isinstance(case, Case)
    assert case.candidate.devices[0].name == name
    assert host_bandwidth is None or case.candidate.host.cpu.bandwidth == pytest.approx(host_bandwidth)


def test_a_row_of_silicon_is_two_cases():
    cases = read_silicon(SILICON)
    assert [(case.quantity, case.measured) for case in cases] == [("tpot", 0.004), ("ttft", 0.05)]
    assert len(cases[0].candidate.devices) == 4


@pytest.mark.parametrize(
    ("columns", "world", "tensor", "data", "expert"),
    [
        ({"tp": "8", "moe_tp": "8"}, 8, 8, 1, 1),
        ({"tp": "4", "moe_tp": "1", "moe_ep": "4"}, 4, 4, 1, 4),
        ({"tp": "16", "moe_tp": "4", "moe_ep": "4"}, 4, 4, 1, 4),
        ({"tp": "4", "attention_dp": "4", "moe_tp": "1", "moe_ep": "16"}, 4, 1, 4, 4),
    ],
)
def test_expert_parallelism_is_counted_once(columns, world, tensor, data, expert):
    parallel = layout({**SILICON, "moe_tp": "1", **columns})
    assert (parallel.world, parallel.tensor, parallel.data, parallel.expert) == (world, tensor, data, expert)


def test_an_unknown_model_is_refused_with_a_reason():
    assert "catalogue" in str(read_report({**REPORT, "model": "nobody/knows-7B-this"}))
