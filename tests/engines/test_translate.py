"""Scripts, containers, units, Modelfiles and removed flags, one by one."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.engines.translate import translate
from plimsoll.engines.translate.words import commands
from plimsoll.errors import SpecError
from plimsoll.facts.incompatible import gone_flags
from plimsoll.spec.deployment import Deployment

SCRIPT = """\
#!/bin/bash
# serve two models
export HF_ENDPOINT=https://hf-mirror.com
model_path=/data/Qwen2.5-7B-Instruct
cd /opt && source venv/bin/activate
CUDA_VISIBLE_DEVICES=0,1 nohup vllm serve $model_path --port 8001 \\
    --tensor-parallel-size 2 --max-model-len 8k > a.log 2>&1 &
CUDA_VISIBLE_DEVICES=2 nohup python -m vllm.entrypoints.openai.api_server --model ${model_path} --port 8002 &
"""
COMPOSE = """\
services:
  chat:
    image: vllm/vllm-openai:v0.11.0
    command: --model /models/Qwen3-8B --max-model-len 32768 --swap-space 4
    volumes: ["/data/models:/models"]
    ports: ["9000:8000"]
    environment: {HF_TOKEN: x}
    ipc: host
    deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ["1"], capabilities: [gpu]}]}}}
  embed:
    image: ghcr.io/ggml-org/llama.cpp:server-cuda
    command: ["-m", "/models/bge.gguf", "--embeddings", "-c", "8192", "-np", "4", "--port", "8080"]
"""
MODELFILE = '''\
FROM ./qwen3-8b.gguf
PARAMETER num_ctx 16384
PARAMETER num_gpu 20
PARAMETER temperature 0.6
PARAMETER mirostat 2
PARAMETER stop "<|im_end|>"
TEMPLATE """{{ .System }}
FROM here"""
SYSTEM You are helpful.
'''


def one(text: str) -> Deployment:
    [deployment] = translate(text).spec().models
    return deployment


def fates(text: str) -> dict[str, str]:
    return {note.what: note.fate for note in translate(text).notes}


def test_a_script_with_two_services() -> None:
    translation = translate(SCRIPT)
    first, second = translation.deployments
    assert (first.model, first.devices, first.parallel.tensor, first.context) == (
        "/data/Qwen2.5-7B-Instruct", (0, 1), 2, 8192,
    )  # fmt: skip
    assert (second.name, second.devices) == ("Qwen2.5-7B-Instruct-2", (2,))
    assert first.env == {"HF_ENDPOINT": "https://hf-mirror.com"}
    assert translation.gateway.port == 8001


def test_a_compose_file() -> None:
    translation = translate(COMPOSE)
    chat, embed = translation.deployments
    assert (chat.engine, chat.model, chat.context, chat.devices) == ("vllm", "/data/models/Qwen3-8B", 32768, (1,))
    assert chat.env == {"HF_TOKEN": "x"}
    assert (embed.engine, embed.task, embed.concurrency, embed.context) == ("llamacpp", "embed", 4, 2048)
    assert translation.gateway.port == 9000
    assert fates(COMPOSE)["--swap-space"] == "removed"


def test_docker_run_with_flags_only() -> None:
    text = "docker run --gpus '\"device=0,3\"' -p 80:8000 -v ~/m:/m vllm/vllm-openai --model /m/a -tp 2"
    deployment = one(text)
    assert (deployment.model, deployment.devices, deployment.parallel.tensor) == ("~/m/a", (0, 3), 2)
    assert translate(text).gateway.port == 80
    assert fates(text)["docker run"] == "changed"


def test_a_modelfile() -> None:
    deployment = one(MODELFILE)
    assert (deployment.engine, deployment.model, deployment.context) == ("ollama", "./qwen3-8b.gguf", 16384)
    assert deployment.extra_args == ("num_gpu=20",)
    assert fates(MODELFILE) == {
        "PARAMETER temperature": "moved",
        "PARAMETER mirostat": "void",
        "PARAMETER stop": "moved",
        "TEMPLATE": "default",
        "SYSTEM": "moved",
    }


def test_mindie_of_the_first_releases() -> None:
    deploy = {"maxSeqLen": 2560, "ModelParam": [{"modelName": "a", "modelWeightPath": "/a"}]}
    serve = {"port": 1025, "httpsEnabled": False, "tlsCaPath": "ca/", "interNodeTLSEnabled": True, "maxLinkNum": 1000}
    flow = {"TemplateParam": {"templateName": "Standard_llama"}}
    text = json.dumps({"OtherParam": {"ServeParam": serve}, "WorkFlowParam": flow, "ModelDeployParam": deploy})
    assert (one(text).engine, one(text).model, one(text).context) == ("mindie", "/a", 2560)
    assert one(text).extra_args == ("httpsEnabled=false", "maxLinkNum=1000")
    assert set(fates(text).values()) == {"renamed"}


ARGUMENTS: list[tuple[str, tuple[str, ...]]] = [
    ("vllm serve m --guided-decoding-backend xgrammar", ("--structured-outputs-config.backend", "xgrammar")),
    ("vllm serve m --worker-use-ray", ("--distributed-executor-backend", "ray")),
    ("vllm serve m --rope-theta 1000000", ("--hf-overrides", '{"rope_parameters": {"rope_theta": 1000000}}')),
    ("vllm serve m --disable-prefix-caching", ("--no-enable-prefix-caching",)),
    ("vllm serve m --speculative-model [ngram] --num-speculative-tokens 4 --ngram-prompt-lookup-max 3",
     ("--speculative-config", '{"num_speculative_tokens": 4, "prompt_lookup_max": 3, "method": "ngram"}')),
    ("vllm serve m --use-v2-block-manager --num-scheduler-steps 8 --device cuda --enable-reasoning", ()),
    ("vllm serve m --lora-modules a=/a b=/b", ("--lora-modules", "a=/a", "b=/b")),
    ("vllm serve m --tool-call-parser hermes", ("--tool-call-parser", "hermes")),
    ("python -m sglang.launch_server --model m --enable-deepep-moe", ("--moe-a2a-backend", "deepep")),
    ("python -m sglang.launch_server --model m --cuda-graph-max-bs 64", ("--cuda-graph-max-bs-decode", "64")),
    ("llama-server -m m.gguf --draft-max 8 -ctk q8_0 -ctv q8_0", ("--spec-draft-n-max", "8")),
    ("transformers serve m --continuous-batching", ("--continuous-batching",)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "extra_args"), ARGUMENTS)
def test_old_flags_become_new_ones(text: str, extra_args: tuple[str, ...]) -> None:
    assert one(text).extra_args == extra_args


KEYS: list[tuple[str, dict[str, Any]]] = [
    ("vllm serve m --enable-expert-parallel -tp 4 -dp 2", {"parallel.expert": 8, "parallel.data": 2}),
    ("vllm serve m --runner pooling --convert classify", {"task": "classify"}),
    ("vllm serve m --task score", {"task": "rerank"}),
    ("vllm serve m --dtype half", {"dtype": "float16"}),
    ("sglang serve --model-path m --tp 8 --ep 4 --mem-fraction-static 0.8 --is-embedding",
     {"parallel.tensor": 8, "parallel.expert": 4, "memory_share": 0.8, "task": "embed"}),
    ("llama-server -m m.gguf -c 32768 -np 4 -a chat", {"context": 8192, "concurrency": 4, "name": "chat"}),
    ("OLLAMA_NUM_PARALLEL=4 ollama run qwen3:8b", {"engine": "ollama", "model": "qwen3:8b", "concurrency": 4}),
    ("sudo -E env X=1 vllm serve m --max-model-len 4096", {"context": 4096}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "keys"), KEYS)
def test_flags_become_keys_of_the_spec(text: str, keys: dict[str, Any]) -> None:
    deployment = one(text).model_dump()
    for path, value in keys.items():
        head, _, rest = path.partition(".")
        assert (deployment[head][rest] if rest else deployment[head]) == value


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_removed_flag_is_noted_and_not_handed_on(engine: str) -> None:
    start = "vllm serve m" if engine == "vllm" else "python -m sglang.launch_server --model-path m"
    for row in gone_flags(engine).values():
        translation = translate(f"{start} {row['flag']} 1")
        assert translation.notes, row["flag"]
        assert row["flag"] not in translation.spec().models[0].extra_args


def test_addresses_without_a_key_stay_on_loopback() -> None:
    open_, closed = "vllm serve m --host 0.0.0.0", "vllm serve m --host 0.0.0.0 --api-key k"
    assert (translate(open_).gateway.host, translate(closed).gateway.host) == ("127.0.0.1", "0.0.0.0")
    assert fates(open_)["host 0.0.0.0"] == "changed"


@pytest.mark.parametrize("text", ["echo hello", "", "{ not json", "services:\n  a: {image: nginx}"])
def test_what_is_no_launch_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        translate(text).spec()


def test_shell_words() -> None:
    [command] = commands('A=1 B="x y" nohup prog --flag "$C" ${D:-d} # comment\n')
    assert command.words == ("prog", "--flag", "$C", "d")
    assert command.env == {"A": "1", "B": "x y"}


STARTS = [
    "vllm serve m", "python -m sglang.launch_server --model m", "llama-server -m m", "ollama run m", "FROM m",
    "transformers serve m", "docker run vllm/vllm-openai --model m", "[Service]\nExecStart=ollama run",
    "services:\n  a:", "{", "",
]  # fmt: skip
PIECES = [
    "--dtype", "int8", "--gpu-memory-utilization", "1.5", "--max-model-len", "auto", "-1", "-tp", "0", "--port", "é",
    "99999", "--api-key", "--speculative-config", "{", "[1]", "&&", "'", "$X", "#", "--task", "--rope-scaling", "3",
    "-np", "--host", "\n", "\\", "CUDA_VISIBLE_DEVICES=0,x", "--served-model-name", "/", "PARAMETER", "num_ctx", "=",
]  # fmt: skip


@settings(max_examples=600)
@given(start=st.sampled_from(STARTS), words=st.lists(st.sampled_from(PIECES), max_size=10))
def test_whatever_is_given_is_translated_or_refused(start: str, words: list[str]) -> None:
    with contextlib.suppress(SpecError):
        translate(" ".join((start, *words))).spec()
