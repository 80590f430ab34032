from __future__ import annotations

import copy
import random
import subprocess
import sys
import time
from typing import Any

import pytest

from plimsoll.errors import FactError
from plimsoll.facts import catalogue
from plimsoll.facts.config import facts_from_config
from plimsoll.facts.ggml_types import BY_NAME
from plimsoll.facts.rotary import rotary_cache_bytes
from plimsoll.facts.sharding import weights_per_rank
from plimsoll.units import GIB

# Parameters as the makers' own weight files count them (safetensors totals shown on the model pages).
COUNTED = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": 10_670_220_835,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 81_324_862_720,
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": 108_641_793_536,
    "Qwen/Qwen2-Audio-7B-Instruct": 8_397_094_912,
    "openbmb/MiniCPM-V-2_6": 8_099_175_152,
    "microsoft/Phi-3.5-vision-instruct": 4_146_621_440,
    "OpenGVLab/InternVL3-8B": 7_944_373_760,
    "zai-org/GLM-4.5-Air": 110_468_824_832,
    "zai-org/GLM-4.5": 358_337_791_296,
    "zai-org/chatglm3-6b": 6_243_584_000,
    "baichuan-inc/Baichuan2-7B-Chat": 7_505_973_248,
    "internlm/internlm2_5-7b-chat": 7_737_708_544,
    "CohereLabs/c4ai-command-r-plus": 103_810_674_688,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-27b-it": 27_432_406_640,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2.5": 235_741_434_880,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "ai21labs/AI21-Jamba-1.5-Mini": 51_570_323_328,
    "BAAI/bge-m3": 567_754_752,
    "BAAI/bge-reranker-v2-m3": 567_755_777,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
}


@pytest.mark.parametrize(("id", "params"), COUNTED.items())
def test_shapes_add_up_to_the_parameters_that_the_makers_count(id: str, params: int) -> None:
    assert catalogue.model(id).params == params


def test_every_entry_can_be_built_and_has_its_facts() -> None:
    names = catalogue.names()
    assert len(names) >= 120
    for entry in catalogue._entries():
        model = catalogue.model(entry["id"])
        assert model.weight_bytes > 0
        assert model.attention
        assert model.layers > 0
        assert "catalogue:" in model.source


@pytest.mark.parametrize(
    ("name", "id", "method"),
    [
        ("Qwen/Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-72B-Instruct-AWQ", "awq"),
        ("qwen2.5-72b-instruct-awq", "Qwen/Qwen2.5-72B-Instruct-AWQ", "awq"),
        ("/models/llm/Qwen2.5-7B-Instruct-AWQ/", "Qwen/Qwen2.5-7B-Instruct-AWQ", "awq"),
        ("/root/qwen/Qwen-72B-Chat-Int4", "Qwen/Qwen-72B-Chat-Int4", "gptq"),
        ("/root/qwen/Qwen-14B", "Qwen/Qwen-14B", None),
        ("qwen2-7b", "Qwen/Qwen2-7B", None),
        ("gemma-2-9b-it", "google/gemma-2-9b-it", None),
        ("bce-embedding-base_v1", "maidalun1020/bce-embedding-base_v1", None),
        ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", None),
        ("gte-Qwen2-1.5B-instruct", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", None),
        ("DeepSeek-R1", "deepseek-ai/DeepSeek-R1", "fp8"),
        ("DeepSeek-R1_671B_awq", "DeepSeek-R1_671B_awq", "awq"),
        ("deepseek-r1:671b-q4_K_M", "deepseek-r1:671b-q4_K_M", "gguf"),
        ("llama3.1:8b", "llama3.1:8b", "gguf"),
        ("gemma2-9b", "google/gemma-2-9b-it", None),
        ("~/.cache/huggingface/hub/models--Qwen--QwQ-32B/snapshots/976055f", "Qwen/QwQ-32B", None),
        ("DeepSeek-R1-UD-IQ2_XXS", "DeepSeek-R1-UD-IQ2_XXS", "gguf"),
        ("./Gemma-2-9B-it-Q5_K_M.gguf", "./Gemma-2-9B-it-Q5_K_M.gguf", "gguf"),
        ("Qwen_Qwen3.5-9B-Q4_K_M.gguf", "Qwen_Qwen3.5-9B-Q4_K_M.gguf", "gguf"),
        ("Qwen1.5-7B-Chat", "Qwen/Qwen1.5-7B-Chat", None),
        ("starcoder2-15b", "bigcode/starcoder2-15b", None),
        ("CodeGeeX2-6B", "CodeGeeX2-6B", None),
        ("deepseek-coder-6.7b-instruct", "deepseek-ai/deepseek-coder-6.7b-instruct", None),
        ("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ],
)
def test_names_as_people_write_them(name: str, id: str, method: str | None) -> None:
    model = catalogue.model(name)
    assert model.id == id
    assert (model.quantization.method if model.quantization else None) == method


@pytest.mark.parametrize(
    ("name", "mix"),
    [("qwen2.5:7b", "Q4_K_M"), ("llama3:8b", "Q4_0"), ("gpt-oss:20b", "MXFP4"), ("bge-m3:latest", "F16"),
     ("unsloth/DeepSeek-R1-GGUF", "Q4_K_M"), ("ggml-org/gpt-oss-20b-GGUF", "MXFP4"), ("gpustack/bge-m3-GGUF", "F16"),
     ("qwen2.5:7b-instruct-q8_0", "Q8_0")],
)  # fmt: skip
def test_gguf_names_without_a_type_are_of_the_usual_one(name: str, mix: str) -> None:
    quantization = catalogue.model(name).quantization
    assert quantization is not None
    assert quantization.name == mix


def test_how_the_weights_are_stored_can_be_said_beside_the_name() -> None:
    assert catalogue.model("DeepSeek R1 0528", form="gguf-Q4_K_M").format == "gguf"
    assert catalogue.model("deepseek-ai/DeepSeek-R1", form="fp8").weight_bytes < 650 * GIB
    plain = catalogue.model("deepseek-ai/DeepSeek-R1", form="bf16")
    assert weights_per_rank(plain)[0] == pytest.approx(2 * 671_026_419_200, rel=1e-4)
    assert weights_per_rank(plain, mtp=True)[0] > weights_per_rank(plain)[0]
    assert catalogue.model("Qwen2.5-72B-Instruct", form="awq-int4").quantization is not None


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(FactError) as caught:
        catalogue.model("Qwen/Qwen2.5-72B-Instrukt")
    assert "Qwen/Qwen2.5-72B-Instruct" in (caught.value.hint or "")
    assert "Qwen/Qwen2.5-72B-Instruct-AWQ" in catalogue.offers("qwen2.5-72b-instruct")


@pytest.mark.parametrize(
    ("name", "file_gib"),
    [  # sizes of the files that llama.cpp reports when it loads them
        ("Qwen3-235B-A22B-Q8_0", 232.769), ("Qwen3-235B-A22B-Q4_K_M", 132.386), ("Qwen3-235B-A22B-Q6_K", 179.754),
        ("gemma-3-27b-it-Q4_K_M", 15.404), ("DeepSeek-R1-Q4_K_M", 376.65),
    ],
)  # fmt: skip
def test_gguf_files_of_known_models_have_the_size_that_llama_cpp_reports(name: str, file_gib: float) -> None:
    assert catalogue.model(name).weight_bytes / GIB == pytest.approx(file_gib, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "tensor", "gib"),
    [  # "model weights take ... GiB" / "Loading model weights took ... GB" in vLLM's logs
        ("meta-llama/Llama-3.1-8B-Instruct", 1, 14.9888), ("meta-llama/Meta-Llama-3-8B", 1, 14.9595),
        ("meta-llama/Meta-Llama-3-8B", 2, 7.48), ("google/gemma-2-9b-it", 1, 17.2179),
        ("unsloth/Llama-3.2-3B-Instruct", 1, 6.016), ("unsloth/phi-4-bnb-4bit", 1, 8.49),
        ("kaitchup/Phi-4-AutoRound-GPTQ-4bit", 1, 8.5107), ("Qwen/Qwen2.5-VL-72B-Instruct", 4, 34.43),
    ],
)  # fmt: skip
def test_weights_with_their_rotary_table_are_what_vllm_reports(name: str, tensor: int, gib: float) -> None:
    model = catalogue.model(name)
    found = max(weights_per_rank(model, tensor=tensor)) + rotary_cache_bytes(model)
    assert found / GIB == pytest.approx(gib, rel=0.005)


def test_gguf_blocks_fit_the_rows_they_cut() -> None:
    for name in ("Qwen2.5-0.5B-Instruct-Q4_K_M", "gpt-oss-20b-MXFP4", "DeepSeek-R1-IQ1_S", "llama-2-7b-Q2_K"):
        for part in catalogue.model(name).tensors:
            assert part.bytes >= part.params * BY_NAME[part.dtype].bits / 8 - 1


def test_qwens_padded_quantized_checkpoints() -> None:
    """Its shards on the hub sum to 41.57 GB as rounded there; unpadded they would be 41.46."""
    padded = catalogue.model("Qwen/Qwen2.5-72B-Instruct-AWQ")
    assert padded.intermediate_size == 29696
    assert padded.weight_bytes == pytest.approx(41.57e9, rel=0.001)
    assert catalogue.model("Qwen/Qwen2.5-72B-Instruct", form="gptq-int4").intermediate_size == 29696
    assert catalogue.model("Qwen/Qwen2.5-72B-Instruct").intermediate_size == 29568
    assert catalogue.model("Qwen2.5-72B-Instruct-Q4_K_M").intermediate_size == 29568


def test_damaged_configs_end_in_facts_or_a_fact_error() -> None:
    chance = random.Random(11)
    junk: list[Any] = [None, -1, 0, 1e30, "x", [], {}, [1, 2], True, 1 << 40, {"a": 1}, ["q", None], 3.5, float("nan")]
    entries = [entry for entry in catalogue._entries() if len(str(entry["config"])) < 6000]
    for _ in range(2500):
        config = copy.deepcopy(chance.choice(entries)["config"])
        inner = [value for value in config.values() if isinstance(value, dict) and value]
        place = chance.choice([config, *inner])
        place[chance.choice(list(place))] = chance.choice(junk)
        try:
            assert facts_from_config(config, id="m", source="test").weight_bytes >= 0
        except FactError as error:
            assert error.message


def test_one_lookup_in_a_fresh_process_is_quick() -> None:
    code = "import time; from plimsoll.facts import catalogue; a=time.process_time(); " \
           "catalogue.model('Qwen/Qwen2.5-72B-Instruct-AWQ'); print(time.process_time()-a)"  # fmt: skip
    best = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    assert best < 0.05
    begin = time.process_time()
    catalogue.model("Qwen/Qwen2.5-32B-Instruct-GPTQ-Int8")
    assert time.process_time() - begin < 0.05
