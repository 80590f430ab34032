"""Ollama's and MindIE's adapters through a fleet, against stand-ins that are as strict as those engines."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindie_stand_in
import ollama_stand_in
import pytest
from launch_kit import QUICK, running_fleet, until, view
from test_fleet import in_loop

from plimsoll.engines.mindie import MindIE
from plimsoll.engines.ollama import PARAMETERS, Ollama, modelfile
from plimsoll.engines.protocol import Engine, Ports, Process
from plimsoll.errors import LaunchError
from plimsoll.launch.owner import ReplicaView
from plimsoll.launch.state import State
from plimsoll.plan.memory import account
from plimsoll.plan.rules.examples import candidate
from plimsoll.plan.types import Replica

POLICY = replace(QUICK, health_timeout_s=2.0, probe_timeout_s=2.0)
MINDIE_SETUP = {"engine": "mindie", "vendor": "ascend", "arch": "910B4", "memory_gib": 32, "gpus": 2, "tp": 2,
                "sequences": 8, "stored_dtype": "float16"}  # fmt: skip


def stand_in(module: Any) -> tuple[str, ...]:
    # Without site-packages it starts in a third of the time.
    return (sys.executable, "-S", "-u", module.__file__)


OLLAMA = Ollama(command=stand_in(ollama_stand_in), installed=True)
MINDIE = MindIE(command=stand_in(mindie_stand_in), installed=True)


def ollama_replica(path: Path | str, store: Path, **overrides: Any) -> Replica:
    env = {"OLLAMA_MODELS": str(store), **overrides.pop("env", {})}
    made = candidate(**{"engine": "ollama", "sequences": 2, "env": env, **overrides})
    return Replica(name="served-0", candidate=made, ledger=account(made), model_path=str(path))


def mindie_replica(weights: Path, **overrides: Any) -> Replica:
    made = candidate(**MINDIE_SETUP, **overrides)
    return Replica(name="served-0", candidate=made, ledger=account(made), model_path=str(weights))


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.mkdir(mode=0o750)
    (path / "model.safetensors").touch()
    (path / "config.json").write_text('{"torch_dtype": "float16"}')
    return path


@dataclass
class Edited:
    """An adapter whose process is altered before it starts."""

    engine: Any
    edit: Callable[[Process], Process]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        return tuple(self.edit(process) for process in self.engine.processes(replica, ports))


def in_file(old: str, new: str) -> Callable[[Process], Process]:
    def edit(process: Process) -> Process:
        ((path, text),) = process.files.items()
        assert old in text
        return replace(process, files={path: text.replace(old, new)})

    return edit


def ask(at: ReplicaView, path: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://{at.host}:{at.port}{path}", data) as response:
        return str(response.read().decode())


def ask_chat(at: ReplicaView, model: str, **more: Any) -> str:
    return ask(at, "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "?"}], **more})


async def refusal(directory: Path, replica: Replica, engine: Engine) -> str:
    """What the fleet says of a replica that cannot start, and the engine's last words."""
    async with running_fleet(directory, policy=POLICY) as fleet:
        await fleet.add(replica, engine)
        with pytest.raises(LaunchError) as caught:
            await fleet.wait_ready()
        return "\n".join((str(caught.value), *caught.value.log))


@in_loop
async def test_ollama_creates_its_model_once_it_is_up_and_serves_it(tmp_path: Path, gguf: Path) -> None:
    replica = ollama_replica(gguf, tmp_path / "models", options={"num_gpu": 7, "num_batch": 64}, kv_dtype="q8_0")
    async with running_fleet(tmp_path / "state", policy=POLICY) as fleet:
        await fleet.add(replica, OLLAMA)
        await fleet.wait_ready()
        assert json.loads(ask_chat(view(fleet, "served-0"), "served"))["choices"][0]["message"]["content"] == "yes"
        assert ask_chat(view(fleet, "served-0"), "served", stream=True).endswith("data: [DONE]\n\n")
        assert json.loads(ask(view(fleet, "served-0"), "/api/tags"))["models"] == [{"name": "served:latest"}]
        # Two slots of 8192 tokens: what it is told of context holds for each slot.
        log = Path(view(fleet, "served-0").logs[0]).read_text()
        assert "llama-server -c 16384 -np 2 -ngl 7 -ctk q8_0" in log
        with State(tmp_path / "state") as state:
            assert [(row.engine_version, row.actual) for row in state.observations()] == [("0.33.0", 0.01)]
        os.kill(view(fleet, "served-0").pids[0], signal.SIGKILL)
        await until(lambda: view(fleet, "served-0").restarts == 1 and view(fleet, "served-0").phase == "ready")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask_chat(view(fleet, "served-0"), "another")


@in_loop
async def test_ollama_pulls_what_is_no_path(tmp_path: Path) -> None:
    async with running_fleet(tmp_path, policy=POLICY) as fleet:
        await fleet.add(ollama_replica("stand-in-tiny", tmp_path / "models"), OLLAMA)
        await fleet.wait_ready()
        assert "pulling manifest" in Path(view(fleet, "served-0").logs[0]).read_text()


@pytest.mark.parametrize(
    ("path", "edit", "options", "words"),
    [
        ("no-such-model", None, {}, "pull no-such-model ended with .*Error: pull model manifest: file does not exist"),
        (None, ("num_ctx", "num_cxt"), {}, "exit code 1; its log ends: Error: unknown parameter 'num_cxt'"),
        (None, None, {"ollama_kv_cache_type": "q4_0", "ollama_flash_attention": 0},
         "/api/generate answers 500.*quantized V cache requires flash_attn to be enabled"),
        (None, None, {"ollama_num_paralel": 2}, "stand-in: unknown variable OLLAMA_NUM_PARALEL"),
    ],
    ids=["pull", "parameter", "cache", "variable"],
)  # fmt: skip
@in_loop
async def test_ollama_refuses_in_its_own_words(
    tmp_path: Path, gguf: Path, path: str | None, edit: tuple[str, str] | None, options: dict, words: str
) -> None:
    engine = OLLAMA if edit is None else Edited(OLLAMA, in_file(*edit))
    said = await refusal(tmp_path / "state", ollama_replica(path or gguf, tmp_path / "m", options=options), engine)
    assert re.search(words, said), said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PARAMETER num_ctx 1", "no FROM line"),
        ("FROM a\nFORM b", r"\(line 2\): command must be one of"),
        ("FROM a\nPARAMETER use_mmap perhaps", "invalid bool value"),
        ("FROM a\nPARAMETER top_p high", "invalid float value"),
        ("FROM a\nPARAMETER num_batch many", "invalid int value"),
    ],
)
def test_the_modelfile_is_read_strictly(text: str, words: str) -> None:
    with pytest.raises(ollama_stand_in.ModelfileError, match=words):
        ollama_stand_in.parse_modelfile(text)


def test_every_parameter_that_the_adapter_passes_on_is_one_of_ollamas(gguf: Path, tmp_path: Path) -> None:
    values = {name: True if name == "use_mmap" else 1 for name in PARAMETERS}
    text = modelfile(ollama_replica(gguf, tmp_path, options={**values, "num_gpu": 3}))
    found = ollama_stand_in.parse_modelfile(text)
    assert found["parameters"].keys() == PARAMETERS | {"num_ctx", "num_gpu"}
    assert found["from"] == str(gguf)


@in_loop
async def test_mindie_is_ready_when_its_management_port_says_so(tmp_path: Path, weights: Path) -> None:
    async with running_fleet(tmp_path / "state", policy=POLICY) as fleet:
        await fleet.add(mindie_replica(weights, name="Qwen/Qwen1.5:chat"), MINDIE)
        await fleet.wait_ready()
        ready = view(fleet, "served-0")
        assert (ready.model, ready.served_name) == ("Qwen/Qwen1.5:chat", "Qwen-Qwen1.5-chat")
        assert json.loads(ask_chat(ready, "Qwen-Qwen1.5-chat"))["choices"][0]["message"]["content"] == "yes"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask(ready, "/v2/health/ready")
        with State(tmp_path / "state") as state:
            assert [(row.quantity, row.actual) for row in state.observations()] == [("kv_blocks", 640)]
        os.kill(ready.pids[0], signal.SIGKILL)
        await until(lambda: view(fleet, "served-0").restarts == 1 and view(fleet, "served-0").phase == "ready")


@in_loop
async def test_mindie_refuses_a_field_in_its_own_words(tmp_path: Path, weights: Path) -> None:
    replica = mindie_replica(weights, options={"maxPreemptCount": 2})
    said = await refusal(tmp_path / "state", replica, MINDIE)
    assert "The value of modelParam.cpuMemSize can not be 0 when maxPreemptCount is not 0." in said


@pytest.mark.parametrize(
    ("part", "field", "value", "words"),
    [
        ("ServerConfig", "port", 80, r"serverConfig.port \[80\] is outside"),
        ("ServerConfig", "port", 1120, "cannot be equal to multiNodesInferPort"),
        ("ServerConfig", "httpsEnabled", True, "tlsCaFile size"),
        ("ServerConfig", "ipAddress", "0.0.0.0", "allowAllZeroIpListening"),
        ("ServerConfig", "metricsPort", None, "missing compulsory field: metricsPort"),
        ("BackendConfig", "npuDeviceIds", [[0]], "does not equal to worldSize"),
        ("BackendConfig", "npuDeviceIds", [[1, 1]], "does not allow repetitive element"),
        ("BackendConfig", "backendName", "MindIE", "pattern of backendName"),
        ("ModelDeployConfig", "truncation", 0, "The type of param truncation should be bool, but got number"),
        ("ModelDeployConfig", "maxSeqLen", -1, "The value of param maxSeqLen for uint32_t is invalid"),
        ("ModelConfig", "npuMemSize", 0, "'npuMemSize'"),
        ("ModelConfig", "backendType", "vllm", "Backend type only supports atb, ms, torch"),
        ("ModelConfig", "modelName", "a/b", "The value of modelName must meet"),
        ("ModelConfig", "trustRemoteCode", None, "missing compulsory field: trustRemoteCode"),
        ("ScheduleConfig", "maxPrefillTokens", 5, "should not be less than maxInputTokenLen"),
        ("ScheduleConfig", "templateName", "Standard_llama", "must be Standard_LLM, but is Standard_llama"),
        ("ScheduleConfig", "cacheBlockSize", 256, "scheduleParam.cacheBlockSize"),
        ("ScheduleConfig", "maxPrefillBatchSize", 9, "scheduleParam.maxPrefillBatchSize"),
        ("ScheduleConfig", "maxIterTime", 9, "stand-in: unknown field: maxIterTime"),
    ],
)
def test_mindies_fields_are_checked_one_by_one(weights: Path, part: str, field: str, value: object, words: str) -> None:
    ports = Ports(serve=8100, extra=(8101, 8102), directory="/nowhere")
    (process,) = MINDIE.processes(mindie_replica(weights), ports)
    config = json.loads(process.files["/nowhere/config.json"])
    backend = config["BackendConfig"]
    deploy = backend["ModelDeployConfig"]
    parts = {**config, **backend, "ModelDeployConfig": deploy, "ModelConfig": deploy["ModelConfig"][0]}
    mindie_stand_in.check_config(config)
    if value is None:
        del parts[part][field]
    else:
        parts[part][field] = value
    with pytest.raises(mindie_stand_in.ConfigError, match=words):
        mindie_stand_in.check_config(config)


def test_mindie_reads_no_file_that_others_may_read(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0o644)
    with pytest.raises(mindie_stand_in.ConfigError, match="config\\.json failed"):
        mindie_stand_in.read_config(path, {})
    path.chmod(0o640)
    assert mindie_stand_in.read_config(path, {}) == {}
    weights.chmod(0o755)
    with pytest.raises(mindie_stand_in.ConfigError, match="modelWeightPath"):
        mindie_stand_in.check_weights(weights)
