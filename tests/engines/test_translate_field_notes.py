"""Every command of the field notes goes in as it stands; out comes a spec for today, or the refusal it needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plimsoll.engines.translate import translate
from plimsoll.errors import SpecError
from plimsoll.facts.catalogue import model
from plimsoll.facts.devices import find_device
from plimsoll.facts.hardware import Host
from plimsoll.facts.model import ModelFacts
from plimsoll.plan.rules import check, check_all
from plimsoll.plan.rules.examples import candidate
from plimsoll.plan.rules.stated import as_stated
from plimsoll.plan.types import Candidate

SPEC_DECODE = (
    "vllm serve Qwen2.5-72B-Instruct-AWQ --served-model-name Qwen2.5-A6000NVLink --host 0.0.0.0 --port 58001 "
    "--api-key testAK --task generate --download-dir ~/models/llm/ --max-model-len 10240 --tensor-parallel-size 2 "
    "--pipeline-parallel-size 1 --enable-prefix-caching --gpu-memory-utilization 0.7 "
    "--speculative-model Qwen2.5-7B-Instruct-AWQ --num-speculative-tokens 5 "
    "--speculative-draft-tensor-parallel-size 2 --compilation-config 3"
)
CHAT = (
    "vllm serve Qwen2.5-72B-Instruct-AWQ --served-model-name Qwen2.5-A6000NVLink --host 0.0.0.0 --port 58001 "
    "--api-key testAK --task generate --download-dir ~/models/llm/ --max-model-len 10240 --tensor-parallel-size 2 "
    "--pipeline-parallel-size 1 --enable-prefix-caching --enable-chunked-prefill --gpu-memory-utilization 0.7 "
    "--compilation-config 3"
)
EMBED = (
    "vllm serve bce-embedding-base_v1 --served-model-name bce-embedding-base_v1-A6000NVLink --host 0.0.0.0 "
    "--port 58002 --api-key testAK --task embedding --download-dir ~/models/embedding/ --max-model-len 512 "
    "--tensor-parallel-size 2 --pipeline-parallel-size 1 --enable-prefix-caching --gpu-memory-utilization 0.1"
)
RERANK = (
    "vllm serve bge-reranker-v2-m3 --served-model-name bge-reranker-v2-m3-A6000NVLink --host 0.0.0.0 --port 58003 "
    "--api-key testAK --download-dir ~/models/llm/ --tensor-parallel-size 2 --pipeline-parallel-size 1 "
    "--enable-prefix-caching --gpu-memory-utilization 0.1 --trust-remote-code --compilation-config 3"
)
V100 = (
    "python -m vllm.entrypoints.openai.api_server --model /root/qwen/{model} --served-model-name {name} "
    "--trust-remote-code --max-model-len {context} --max_num_seqs {sequences} --dtype {dtype} --port 13003 "
    "--gpu-memory-utilization {share} --tensor-parallel-size 2"
)
V100_72B = V100.format(
    model="Qwen-72B-Chat-Int4", name="qwen2:72b-int4", context=7000, sequences=10, dtype="half", share=0.96
) + " --quantization gptq"  # fmt: skip
V100_14B = V100.format(model="Qwen-14B", name="qwen2:14b", context=2048, sequences=50, dtype="half", share=0.8)
V100_7B = V100.format(model="Qwen-7B", name="qwen2:7b", context=12000, sequences=50, dtype="half", share=0.96)
V100_7B_FLOAT = V100.format(model="Qwen-7B", name="qwen2:7b", context=12000, sequences=50, dtype="float", share=1)
LLAMA_PYTHON = "python -m llama_cpp.server --host 0.0.0.0 --port 13003 --model ./Gemma-2-9B-it-Q5_K_M.gguf --n_ctx 2048"
UNIT = """\
[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Restart=always
RestartSec=3
Environment="OLLAMA_HOST=0.0.0.0:13003"
Environment="OLLAMA_NUM_PARALLEL=30" # requests at once
Environment="OLLAMA_MAX_LOADED_MODELS=6"
"""
FASTCHAT = """\
python3.10 -m fastchat.serve.controller
python3.10 -m fastchat.serve.vllm_worker --model-path /root/qwen/Qwen-7B --trust-remote-code --dtype half \\
    --tensor-parallel-size 2 --gpu-memory-utilization 0.8
python -m fastchat.serve.gradio_web_server --port 8000
"""
SGLANG = """\
docker run --gpus all --shm-size 32g --network=host --ipc=host --env "GLOO_SOCKET_IFNAME=bond0" \\
    -v /share:/share lmsysorg/sglang:latest \\
    python3 -m sglang.launch_server --model-path /share/deepseek/DeepSeek-R1 --tp 32 \\
    --dist-init-addr 10.10.10.1:20000 --nnodes 4 --node-rank 0 --trust-remote-code
"""
RPC = (
    "bin/llama-cli -m DeepSeek-R1-Q4_K_M-merged.gguf -p '...' -n 15 "
    "--rpc 10.10.10.2:50052,10.10.10.3:50052,10.10.10.10:50052 -ngl 30"
)
GGUF_VLLM = (
    "vllm serve DeepSeek-R1-Q4_K_M-merged.gguf --tokenizer /share/deepseek/DeepSeek-R1 "
    "--tensor-parallel-size 8 --pipeline-parallel-size 4 --trust-remote-code"
)
AWQ_VLLM = (
    "vllm serve /share/deepseek/DeepSeek-R1_671B_awq/ --tokenizer /share/deepseek/DeepSeek-R1 "
    "--tensor-parallel-size 8 --pipeline-parallel-size 4 --trust-remote-code --dtype float16 "
    "--gpu_memory_utilization 0.90 --max_model_len 4096 --quantization awq_marlin --kv-cache-dtype fp8 --max_num_seqs 1"
)
MINDIE = """\
{"ServerConfig": {"port": 1025, "managementPort": 1026},
 "BackendConfig": {"npuDeviceIds": [[0, 1, 2, 3, 4, 5, 6, 7]],
  "ModelDeployConfig": {"maxSeqLen": 8192, "ModelConfig": [{"modelName": "qwen",
    "modelWeightPath": "/models/Qwen1.5-7B-Chat", "worldSize": 8, "cpuMemSize": 5, "npuMemSize": 8,
    "backendType": "atb"}]},
  "ScheduleConfig": {"maxIterTimes": 8000, "maxPrefillBatchSize": 50, "maxPrefillTokens": 8192, "maxBatchSize": 200,
    "cacheBlockSize": 128}}}
"""


def hosts(device: str, count: int, nodes: int = 1) -> tuple[Host, ...]:
    plain = candidate().host
    cards = tuple(replace(find_device(device).device, index=index) for index in range(count))
    return tuple(replace(plain, name=f"h{node}", devices=cards) for node in range(nodes))


def stated(text: str, facts: ModelFacts, machines: tuple[Host, ...], *, version: str = "") -> Candidate:
    translation = translate(text)
    [deployment] = translation.spec().models
    engine = candidate(engine=deployment.engine, **({"version": version} if version else {})).engine
    return replace(as_stated(deployment, facts, machines, engine), nodes=translation.nodes)


def found(case: Candidate, severity: str) -> set[str]:
    return {finding.rule for finding in check(case) if finding.severity == severity}


def facts_of(name: str) -> ModelFacts:
    return model(name)


A6000, R3090, V100S = hosts("RTX A6000", 2), hosts("RTX 3090", 8, 4), hosts("V100", 2)
# Published with the feed-forward width padded from 29568 to 29696, so that it divides into groups on up to 8 cards.
QWEN_72B_AWQ = replace(model("Qwen/Qwen2.5-72B-Instruct-AWQ"), intermediate_size=29696)

DEPLOYMENTS: list[tuple[str, dict[str, Any]]] = [
    (SPEC_DECODE, {"engine": "vllm", "name": "Qwen2.5-A6000NVLink", "context": 10240, "memory_share": 0.7,
                   "draft_model": "Qwen2.5-7B-Instruct-AWQ", "task": None}),
    (CHAT, {"engine": "vllm", "context": 10240, "extra_args": ()}),
    (EMBED, {"engine": "vllm", "task": "embed", "context": 512, "memory_share": 0.1, "extra_args": ()}),
    (RERANK, {"engine": "vllm", "task": "rerank", "trust_remote_code": True, "extra_args": ()}),
    (V100_72B, {"engine": "vllm", "context": 7000, "concurrency": 10, "dtype": "float16", "quantization": "gptq"}),
    (V100_14B, {"context": 2048, "concurrency": 50, "memory_share": 0.8}),
    (V100_7B, {"context": 12000, "name": "qwen2:7b"}),
    (V100_7B_FLOAT, {"dtype": "float32", "memory_share": 1.0}),
    (LLAMA_PYTHON, {"engine": "llamacpp", "context": 2048, "model": "./Gemma-2-9B-it-Q5_K_M.gguf"}),
    (FASTCHAT, {"engine": "vllm", "model": "/root/qwen/Qwen-7B", "dtype": "float16", "memory_share": 0.8}),
    (SGLANG, {"engine": "sglang", "model": "/share/deepseek/DeepSeek-R1", "env": {"GLOO_SOCKET_IFNAME": "bond0"}}),
    (RPC, {"engine": "llamacpp", "model": "DeepSeek-R1-Q4_K_M-merged.gguf"}),
    (GGUF_VLLM, {"engine": "vllm", "extra_args": ("--tokenizer", "/share/deepseek/DeepSeek-R1")}),
    (AWQ_VLLM, {"context": 4096, "concurrency": 1, "kv_cache_dtype": "fp8", "quantization": "awq_marlin"}),
    (MINDIE, {"engine": "mindie", "name": "qwen", "context": 8192, "concurrency": 200, "devices": tuple(range(8))}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), DEPLOYMENTS)
def test_a_command_becomes_a_deployment_of_today(text: str, expected: dict[str, Any]) -> None:
    [deployment] = translate(text).spec().models
    assert {key: getattr(deployment, key) for key in expected} == expected


def test_an_ollama_unit_needs_a_model_and_keeps_its_settings() -> None:
    with pytest.raises(SpecError, match="names no model"):
        translate(UNIT).spec()
    translation = translate(UNIT, model="deepseek-r1:671b-q4_K_M")
    [deployment] = translation.spec().models
    assert (deployment.engine, deployment.concurrency) == ("ollama", 30)
    assert deployment.env == {"OLLAMA_MAX_LOADED_MODELS": "6"}
    assert (translation.gateway.port, translation.gateway.host) == (13003, "127.0.0.1")


def test_flags_renamed_since_2024_are_reported() -> None:
    fates = {note.what: note.fate for note in translate(SPEC_DECODE).notes}
    assert fates == {
        "--task generate": "renamed",
        "--speculative-model": "renamed",
        "--num-speculative-tokens": "renamed",
        "--speculative-draft-tensor-parallel-size": "renamed",
        "--compilation-config 3": "default",
        "--enable-prefix-caching": "default",
        "--download-dir": "moved",
    }


def test_three_services_share_two_cards() -> None:
    translation = translate("\n".join((CHAT, EMBED, RERANK)))
    assert [model.name.partition("-A6000")[0] for model in translation.deployments] == [
        "Qwen2.5", "bce-embedding-base_v1", "bge-reranker-v2-m3",
    ]  # fmt: skip
    assert (translation.gateway.port, translation.gateway.api_keys) == (58001, ("testAK",))
    engine = candidate().engine
    together = [as_stated(each, QWEN_72B_AWQ, A6000, engine) for each in translation.deployments]
    assert not [finding for finding in check_all(together) if finding.severity == "error"]


def test_awq_on_a6000_has_warnings_but_no_error() -> None:
    case = stated(CHAT, QWEN_72B_AWQ, A6000)
    assert found(case, "error") == set()
    assert "vllm.awq_slow_on_vllm" in found(replace(case, sequences=256), "warning")


def test_a_share_of_1_is_warned_of() -> None:
    case = stated(V100_7B_FLOAT, model("Qwen/Qwen2-7B-Instruct"), V100S, version="0.5.3.post1")
    assert "vllm.memory_share_of_1_leaves_no_room_for_cuda_graphs" in found(case, "warning")
    assert found(case, "error") == set()


@pytest.mark.parametrize("text", [V100_14B, V100_7B])
def test_v100_is_refused_by_the_vllm_of_today_only(text: str) -> None:
    facts = model("Qwen/Qwen2-7B-Instruct")
    assert found(stated(text, facts, V100S, version="0.5.3.post1"), "error") == set()
    assert "vllm.no_kernel_image" in found(stated(text, facts, V100S), "error")


def test_deepseek_r1_in_fp8_on_32_cards_is_refused_for_its_blocks() -> None:
    case = stated(SGLANG, model("deepseek-ai/DeepSeek-R1"), R3090)
    assert (case.parallel.tensor, case.nodes, len(case.devices)) == (32, 4, 32)
    [finding] = [finding for finding in check(case) if finding.rule == "sglang.weight_block_not_divisible"]
    assert "18432 / 32 = 576" in finding.what
    assert dict(finding.mend)["parallel.tensor"] == 16
    assert "sglang.fp8_without_hardware" in found(case, "warning")


def test_ollama_runs_on_one_machine() -> None:
    translation = translate("ollama run deepseek-r1:671b-q4_K_M")
    [deployment] = translation.spec().models
    facts = model("deepseek-r1:671b-q4_K_M")
    case = as_stated(deployment, facts, R3090, candidate(engine="ollama").engine)
    assert "ollama.engine_is_single_node" in found(replace(case, nodes=4), "error")
    assert found(replace(case, nodes=1), "error") == set()


def test_one_rpc_server_used_one_card_then() -> None:
    facts = model("deepseek-r1:671b-q4_K_M")
    then = stated(RPC, facts, R3090[:1], version="b4700")
    assert "llamacpp.one_rpc_server_uses_one_device" in found(then, "warning")
    assert found(then, "error") == set()


@pytest.mark.parametrize(("servers", "refused"), [(24, True), (14, False)])
def test_rpc_servers_count_as_backends(servers: int, refused: bool) -> None:
    facts = model("deepseek-r1:671b-q4_K_M")
    listed = ",".join(f"10.10.10.{2 + index // 8}:{50052 + index % 8}" for index in range(servers))
    case = stated(f"llama-cli -m R1.gguf --rpc {listed}", facts, hosts("RTX 3090", 1), version="b4700")
    assert ("llamacpp.too_many_backends" in found(case, "error")) is refused


def test_a_deepseek_gguf_is_refused_by_vllm() -> None:
    facts = model("deepseek-r1:671b-q4_K_M")
    assert "vllm.gguf_architecture_unsupported" in found(stated(GGUF_VLLM, facts, R3090, version="0.7.2"), "error")
    assert "vllm.gguf_is_a_plugin" in found(stated(GGUF_VLLM, facts, R3090), "error")


def test_the_last_recipe_ran_then_and_needs_another_cache_today() -> None:
    facts = model("deepseek-ai/DeepSeek-R1-AWQ")
    assert found(stated(AWQ_VLLM, facts, R3090, version="0.7.2"), "error") == set()
    assert found(stated(AWQ_VLLM, facts, R3090), "error") == {"vllm.fp8_kv_latent_attention"}


def test_a_build_for_cuda_11_does_not_match_the_driver() -> None:
    case = stated("vllm serve gemma-2-9b-it", model("google/gemma-2-9b-it"), A6000, version="0.6.1.post1+cu118")
    assert found(case, "error") >= {
        "vllm.engine_build_does_not_match_driver_cuda",
        "vllm.softcap_without_flash_attention",
    }


def test_mindie_as_it_ran() -> None:
    facts = replace(model("Qwen/Qwen1.5-7B-Chat"), dtype="float16")
    machines = hosts("Ascend 910B4", 8)
    assert found(stated(MINDIE, facts, machines), "error") == set()
    wrong = MINDIE.replace('"maxIterTimes": 8000', '"maxIterTimes": 9000')
    assert "mindie.max_iter_times" in found(stated(wrong, facts, machines), "warning")
    pickled = stated(MINDIE, replace(facts, format="pytorch"), machines)
    assert "mindie.weights_not_safetensors" in found(pickled, "error")
    assert "any.device_in_two_containers" in {
        finding.rule for finding in check_all([pickled, replace(pickled, deployment=pickled.deployment)])
    }


@pytest.mark.parametrize(
    ("architecture", "rule"),
    [("Starcoder2ForCausalLM", "mindie.model_not_listed"), ("ChatGLMModel", "mindie.tokenizer_package")],
)
def test_models_that_did_not_work_on_mindie(architecture: str, rule: str) -> None:
    facts = replace(model("Qwen/Qwen1.5-7B-Chat"), dtype="float16", architecture=architecture)
    assert rule in found(stated(MINDIE, facts, hosts("Ascend 910B4", 8)), "warning")
