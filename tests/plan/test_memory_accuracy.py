"""Rows as people write them: devices, versions, flags and names out of free text; errors counted right."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import accuracy_memory
from benchmarks.accuracy_score import Pair, confusion, summarise
from benchmarks.memory_models import find
from benchmarks.memory_rows import read_case

from plimsoll.units import GIB

HEAD = (
    "id,engine,engine_version,model_id,weight_format,gpu,gpus_count,tp,pp,max_model_len,gpu_memory_utilization,"
    "kv_cache_dtype,block_size,max_num_seqs,enforce_eager,other_flags,weights_gib_per_gpu,non_torch_gib,"
    "activation_peak_gib,kv_cache_gib_per_gpu,kv_blocks,kv_tokens,max_concurrency_x,cudagraph_gib,total_gpu_gib,"
    "outcome,error_text,source,quote"
)


def row(**values):
    return dict.fromkeys(HEAD.split(","), "") | {"id": "R1", "engine": "vllm"} | values


@pytest.mark.parametrize(
    ("gpu", "more", "count", "gib"),
    [
        ("RTX A6000", {"gpus_count": "2"}, 2, 47.5),
        ("2x RTX 3090", {}, 2, 23.6),
        ("RTX 5090 + 2x RTX 4090", {}, 3, 31.4),
        ("RTX 4070 (8GB)", {"total_gpu_gib": "7.65"}, 1, 7.65),
        ("12 GB CUDA (12281 MiB)", {}, 1, 11.99),
        ("Ascend (61.27 GiB)", {}, 1, 61.27),
        ("", {"total_gpu_gib": "79.15", "tp": "4"}, 4, 79.15),
    ],
)
def test_devices_in_words(gpu, more, count, gib):
    case = read_case(row(gpu=gpu, engine="llama.cpp", **more))
    assert case.device_known and len(case.devices) == count
    assert case.devices[0].memory_bytes / GIB == pytest.approx(gib, rel=0.01)


def test_a_device_that_is_not_stated_is_not_guessed():
    assert not read_case(row(gpu="XPU")).device_known


@pytest.mark.parametrize(
    ("text", "flags", "version"),
    [
        ("0.6.4.post1/V1 dev", "", "0.6.4"),
        ("0.8.x", "", "0.8.3"),
        ("V0 (0.8.x)", "", "0.7.3"),
        ("0.8.x", "LoRA; V0", "0.7.3"),
        ("0.29.1rc1.dev339", "", "0.29.1"),
        ("", "", "0.6.4"),
    ],
)
def test_versions_in_words(text, flags, version):
    assert read_case(row(engine_version=text, other_flags=flags)).engine.version == version


def test_flags_in_words():
    case = read_case(
        row(other_flags="--max-num-batched-tokens=40000 --cpu-offload-gb=30; enable_lora; capture sizes [1,2,4,8]")
    )
    assert case.batched_tokens == 40000
    assert case.options == {"cpu_offload_gb": 30, "enable_lora": True, "capture_sizes": 4}
    llama = read_case(
        row(engine="ik_llama.cpp", other_flags="offload=62/62; n_ubatch=512 n_batch=2048 flash_attn=1 mla=3 amb=512;"
            " file_size=10.5 GiB; weights_mib={'CUDA0': 1.0}")
    )  # fmt: skip
    assert llama.options == {
        "ubatch_size": 512, "batch_size": 2048, "mla": 3, "amb": 512, "flash_attn": "1", "n_gpu_layers": 62,
    }  # fmt: skip
    assert llama.layers_hint == 61 and llama.file_bytes == 10.5 * GIB
    slots = read_case(row(engine="llama.cpp", other_flags="-ngl 99 -np 2 -kvu -fa on"))
    assert slots.sequences == 2 and slots.options["kv_unified"] is True
    fixed = read_case(row(engine="ollama", other_flags="fix: PARAMETER num_gpu 16 (8 GPUs) / 8 (4 GPUs)"))
    assert "num_gpu" not in fixed.options and fixed.engine.memory == "ollama"


@pytest.mark.parametrize(
    ("name", "weight_format", "layers", "gguf", "id", "gib"),
    [
        ("unsloth_DeepSeek R1 BF16", "gguf-Q8_0", None, True, "deepseek-r1", 660),
        ("Qwen3-235B-A22B (general.name=Models)", "gguf-Q6_K", None, True, "qwen3-235b-a22b", 180),
        ("LLaMA v2", "gguf-Q8_0", 32, True, "llama-2-7b", 6.67),
        ("DeepSeek-R1_671B_awq (local)", "awq-int4", None, False, "deepseek-r1", 352),
        ("Qwen/Qwen2.5-72B-Instruct", "awq-int4", None, False, "qwen2.5-72b", 38.7),
        ("Phi-4 (/opt/tiger/test0/Phi-4)", "bnb-4bit", None, False, "phi-4", 8.4),
        ("Qwen3 MoE class (fused_moe E=128,N=192 at TP4)", "bf16", None, False, "qwen3-30b-a3b", 56.9),
    ],
)
def test_models_in_words(name, weight_format, layers, gguf, id, gib):
    facts = find(name, weight_format, layers, gguf=gguf)
    assert id in facts.id.lower()
    assert facts.weight_bytes / GIB == pytest.approx(gib, rel=0.06)


def test_what_is_not_named_is_refused_with_the_reason():
    assert find("", "bf16", None) == "the model is not named"
    assert "not in the catalogue" in find("Nobody/Knows-This-3B", "bf16", None)
    assert "not in the catalogue" in find("LLaMA v2", "gguf-Q8_0", 79, gguf=True)


def test_a_file_is_judged_row_by_row(capsys, tmp_path):
    rows = [
        row(id="A", engine_version="0.6.4", model_id="meta-llama/Llama-3.1-8B-Instruct", weight_format="bf16",
            gpu="RTX 3090", gpus_count="1", tp="1", max_model_len="29000", gpu_memory_utilization="0.9",
            weights_gib_per_gpu="14.9888", kv_tokens="23648", total_gpu_gib="23.58", outcome="error",
            error_text="max seq len is larger"),
        row(id="B", model_id="who/knows-9z"),
        row(id="C", engine="abacus"),
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, HEAD.split(","))
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "rows.csv"
    path.write_text(text.getvalue())
    assert accuracy_memory.main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "rows 3, predicted 1" in said and "'abacus' is not one that is planned for" in said
    outcome = accuracy_memory.judge(rows)[0]
    assert outcome.verdict == ("error", "error")
    assert all(abs(pair.error) < 0.01 for pair in outcome.pairs)


def test_errors_are_summed_up():
    pairs = [Pair(row=str(n), engine="e", quantity="q", measured=100.0, predicted=100.0 + n) for n in range(1, 11)]
    engine = next(summary for summary in summarise(pairs) if summary.engine == "e")
    assert (engine.rows, engine.worst[0].row) == (10, "10")
    assert engine.median == pytest.approx(0.055) and engine.p90 == pytest.approx(0.09)
    assert confusion([("ok", "ok"), ("ok", "oom"), ("oom", "oom")]) == {"ok": {"ok": 1, "oom": 1}, "oom": {"oom": 1}}
