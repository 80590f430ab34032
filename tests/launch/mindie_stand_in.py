"""A stand-in for MindIE's server, not MindIE: config.json is read as the real one's validators do, in their words.

From MindIE-LLM's `src/config_manager/{param_checker,server_config,backend_config,model_deploy_config,schedule_config,
config_manager_impl}.cpp` (2026): compulsory fields and their types, ranges, what must agree with what, the file's mode,
the weights' directory; health on the management port, metrics on a third; nothing but the last word on stdout unless
MINDIE_LOG_TO_STDOUT is set. Where the real one ignores fields that it
does not know, this one refuses them, and says that it is the stand-in that does.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stand_in_http import Json, RefusedError, Route, Server, answer_to, only, serve

_U32, _I32 = range(1 << 32), range(-(1 << 31), 1 << 31)
# Field to its type; those with a mark of interrogation may be missing.
SERVER = {
    "ipAddress": "string", "managementIpAddress?": "string", "port": "int32_t", "managementPort?": "int32_t",
    "maxLinkNum": "uint32_t", "httpsEnabled": "bool", "fullTextEnabled?": "bool", "npuUsageThreshold?": "uint32_t",
    "inferMode": "string", "allowAllZeroIpListening": "bool", "openAiSupport?": "string", "metricsPort": "int32_t",
    "tokenTimeout": "int32_t", "e2eTimeout": "int32_t", "maxRequestLength?": "uint32_t", "distDPServerEnabled": "bool",
    "interCommTLSEnabled?": "bool", "interCommPort?": "int32_t",
}  # fmt: skip
BACKEND = {
    "backendName": "string", "tokenizerProcessNumber": "uint32_t", "multiNodesInferEnabled": "bool",
    "multiNodesInferPort?": "int32_t", "interNodeTLSEnabled": "bool", "modelInstanceNumber": "uint32_t",
    "npuDeviceIds": "array", "ScheduleConfig": "object", "ModelDeployConfig": "object", "kvPoolConfig?": "object",
}  # fmt: skip
DEPLOY = {
    "maxSeqLen": "uint32_t", "maxInputTokenLen": "uint32_t", "truncation?": "bool", "maxLoras?": "uint32_t",
    "maxLoraRank?": "uint32_t", "ModelConfig": "array", "LoraModules?": "array", "speculationGamma?": "uint32_t",
}  # fmt: skip
MODEL = {
    "cpuMemSize": "uint32_t", "modelWeightPath": "string", "modelName": "string", "npuMemSize": "int32_t",
    "worldSize": "uint32_t", "backendType": "string", "modelInstanceType?": "string", "trustRemoteCode": "bool",
    "plugin_params?": "any", "tp?": "uint32_t", "dp?": "uint32_t", "sp?": "uint32_t", "cp?": "uint32_t",
    "moe_tp?": "uint32_t", "moe_ep?": "uint32_t", "async_scheduler_wait_time?": "uint32_t",
}  # fmt: skip
SCHEDULE = {
    "templateName": "string", "templateType": "string", "cacheBlockSize": "uint32_t", "decodePolicyType": "uint32_t",
    "decodeTimeMsPerReq": "uint32_t", "maxBatchSize": "uint32_t", "maxPreemptCount": "uint32_t",
    "maxPrefillTokens": "uint32_t", "maxIterTimes": "uint32_t", "maxPrefillBatchSize": "uint32_t",
    "maxQueueDelayMicroseconds": "uint32_t", "prefillPolicyType": "uint32_t", "prefillTimeMsPerReq": "uint32_t",
    "supportSelectBatch": "bool", "stageSelectPolicy?": "uint32_t", "dynamicBatchSizeEnable?": "bool",
    "enablePrefixCache?": "bool", "enableSplit?": "bool", "policyType?": "uint32_t", "splitType?": "bool",
    "splitStartType?": "bool", "splitChunkTokens?": "uint32_t", "splitStartBatchSize?": "uint32_t",
    "prefillExpectedTime?": "uint32_t", "decodeExpectedTime?": "uint32_t", "bufferResponseEnabled?": "bool",
    "maxFirstTokenWaitTime?": "uint32_t", "maxBeamWidth?": "uint32_t",
}  # fmt: skip
RANGES: dict[str, tuple[int, int]] = {
    "serverConfig.port": (1024, 65535), "serverConfig.managementPort": (1024, 65535),
    "serverConfig.metricsPort": (1024, 65535), "serverConfig.interCommPort": (1024, 65535),
    "serverConfig.maxLinkNum": (1, 4096), "serverConfig.tokenTimeout": (1, 3600),
    "serverConfig.e2eTimeout": (1, 65535), "serverConfig.maxRequestLength": (1, 100),
    "backendConfig.modelInstanceNumber": (1, 10), "backendConfig.tokenizerProcessNumber": (1, 32),
    "backendConfig.multiNodesInferPort": (1024, 65535),
    "scheduleParam.cacheBlockSize": (1, 128), "scheduleParam.decodePolicyType": (0, 3),
    "scheduleParam.decodeTimeMsPerReq": (0, 1000), "scheduleParam.maxBatchSize": (1, 819200),
    "scheduleParam.maxPrefillTokens": (1, 4194304), "scheduleParam.maxQueueDelayMicroseconds": (500, 1000000),
    "scheduleParam.maxFirstTokenWaitTime": (0, 3600000), "scheduleParam.prefillPolicyType": (0, 3),
    "scheduleParam.prefillTimeMsPerReq": (0, 1000), "scheduleParam.stageSelectPolicy": (0, 2),
    "scheduleParam.prefillExpectedTime": (1, 10000), "scheduleParam.decodeExpectedTime": (1, 10000),
    "scheduleParam.maxBeamWidth": (1, 8192),
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,254}[A-Za-z0-9])?")


class ConfigError(Exception):
    """Why the server does not start, in its words."""


def check_config(config: Json) -> Json:
    """The one model's part of a whole config.json; ConfigError for what the real validators refuse."""
    for part in ("ServerConfig", "BackendConfig"):
        if part not in config:
            raise ConfigError(f"Failed to initialize {part} from JSON.")
    server, backend = config["ServerConfig"], config["BackendConfig"]
    _fields(server, SERVER)
    _fields(backend, BACKEND)
    deploy, schedule = backend["ModelDeployConfig"], backend["ScheduleConfig"]
    _fields(deploy, DEPLOY)
    _fields(schedule, SCHEDULE)
    _demand(
        schedule["templateType"] != "Standard" or len(deploy["ModelConfig"]) == 1,
        "There should be one modelParam for Standard templateType.",
    )
    model: Json = deploy["ModelConfig"][0]
    _fields(model, MODEL)
    _ranges("serverConfig", server)
    _ranges("backendConfig", backend)
    _ranges("scheduleParam", schedule)
    _check_server(server, backend)
    _check_devices(backend, model)
    _check_schedule(schedule)
    _check_model(model, deploy, schedule)
    return model


def _demand(holds: bool, words: str) -> None:
    if not holds:
        raise ConfigError(words)


def _fields(given: Json, specs: Mapping[str, str]) -> None:
    known = {name.removesuffix("?"): (kind, name.endswith("?")) for name, kind in specs.items()}
    for name, (kind, optional) in known.items():
        if name not in given:
            _demand(optional, f"missing compulsory field: {name}")
            continue
        value = given[name]
        types: dict[str, type] = {"any": object, "string": str, "bool": bool, "array": list, "object": dict}
        if kind in types:
            got = "number" if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__
            _demand(isinstance(value, types[kind]), f"The type of param {name} should be {kind}, but got {got}")
        else:
            whole = isinstance(value, int) and not isinstance(value, bool)
            _demand(whole, f"The type of param {name} should be {kind}, but got {type(value).__name__}")
            fits = value in (_U32 if kind == "uint32_t" else _I32)
            _demand(fits, f"The value of param {name} for {kind} is invalid.")
    unknown = sorted(set(given) - set(known))
    _demand(not unknown, f"stand-in: unknown field: {', '.join(unknown)}")


def _ranges(part: str, given: Json) -> None:
    for name, value in given.items():
        low, high = RANGES.get(f"{part}.{name}", (None, None))
        if low is not None and high is not None:
            _demand(low <= value <= high, f"{part}.{name} [{value}] is outside the expected range: [{low}, {high}]")


def _check_server(server: Json, backend: Json) -> None:
    _demand(server["inferMode"] in ("standard", "dmi"), "The inferMode should be standard or dmi")
    for name in ("ipAddress", "managementIpAddress"):
        allowed = server.get(name) != "0.0.0.0" or server["allowAllZeroIpListening"]
        _demand(allowed, f"{name} 0.0.0.0 is not allowed: allowAllZeroIpListening is false")
    _demand(not server["httpsEnabled"], "ERR: serverConfig_.tlsCaFile size must in [1, 3] .")
    _demand(
        server["port"] != backend.get("multiNodesInferPort", 1120),
        "Endpoint port cannot be equal to multiNodesInferPort.",
    )


def _check_devices(backend: Json, model: Json) -> None:
    ids = backend["npuDeviceIds"]
    _demand(re.fullmatch("[a-z]+(_[a-z]+)*", backend["backendName"]) is not None,
            "The pattern of backendName is invalid.")  # fmt: skip
    _demand(len(ids) == backend["modelInstanceNumber"],
            "The size of npuDeviceIds does not equal to modelInstanceNumber")  # fmt: skip
    _demand(all(len(one) == model["worldSize"] for one in ids),
            "The size of npuDeviceIds (subset) does not equal to worldSize")  # fmt: skip
    _demand(all(len(set(one)) == len(one) for one in ids), "npuDeviceID does not allow repetitive element")
    _demand(not backend["interNodeTLSEnabled"], "Failed to init tls cfg")


def _check_schedule(schedule: Json) -> None:
    batch, name, kind = schedule["maxBatchSize"], schedule["templateName"], schedule["templateType"]
    _demand(schedule["maxPreemptCount"] <= batch, "The maxPreemptCount cannot be set greater than maxBatchsize")
    prefill = schedule["maxPrefillBatchSize"]
    _demand(prefill <= batch,
            f"scheduleParam.maxPrefillBatchSize [{prefill}] is outside the expected range: [1, {batch}]")  # fmt: skip
    _demand(schedule.get("policyType", 0) in (0, 4, 5, 6, 7), "The scheduleParam.policyType is outside the range")
    _demand(kind in ("Standard", "Mix"), f"The templateType must be Standard or Mix, but is {kind}")
    _demand(name == "Standard_LLM", f"The templateName must be Standard_LLM, but is {name}")
    _demand(schedule.get("maxBeamWidth", 1) <= batch, "The maxBeamWidth cannot be set greater than maxBatchSize")
    _demand(schedule["maxIterTimes"] != 0, "The value of ScheduleParam.maxIterTimes can not be 0.")


def _check_model(model: Json, deploy: Json, schedule: Json) -> None:
    longest = deploy["maxInputTokenLen"]
    _demand(_NAME.fullmatch(model["modelName"]) is not None,
            "The value of modelName must meet the following rules: The string length is [1, 256] and consists of "
            "a match of the type [a-zA-Z0-9_.-]. The first and last characters must be characters or "
            "digits.")  # fmt: skip
    _demand(deploy["maxSeqLen"] != 0, "The value of modelParam.maxSeqLen can not be 0.")
    _demand(1 <= longest <= 4194304, "The value of modelParam.maxInputTokenLen should be in [1, 4194304].")
    _demand(model["worldSize"] != 0, "The value of modelParam.worldSize can not be 0.")
    _demand(model["backendType"] in ("atb", "ms", "torch"), "Backend type only supports atb, ms, torch.")
    memory = model["npuMemSize"]
    _demand(memory == -1 or memory > 0, f"The value of 'npuMemSize' in ModelDeployConfig in config.json is {memory} it "
            "should be within (0, 4294967295] or -1")  # fmt: skip
    _demand(not schedule["maxPreemptCount"] or model["cpuMemSize"] > 0,
            "The value of modelParam.cpuMemSize can not be 0 when maxPreemptCount is not 0.")  # fmt: skip
    _demand(schedule["maxPrefillTokens"] >= longest or schedule["templateType"] == "Mix",
            "The value of maxPrefillTokens should not be less than maxInputTokenLen.")  # fmt: skip
    for kind in ("dp", "sp", "cp"):
        _demand(model.get(kind, 1) >= 1, f"{kind} cannot be smaller than 1.")


def check_weights(path: Path) -> None:
    """The directory as the real one wants it: not more open than 750, safetensors, half precision; ConfigError."""
    _demand(path.is_dir(), f"path permission check failed for modelWeightPath: {path} is no directory")
    _demand(not path.stat().st_mode & 0o777 & ~0o750, "path permission check failed for modelWeightPath")
    _demand(any(path.glob("*.safetensors")), f"No local weights found in {path} with extension .safetensors; "
            "Only safetensors format is supported. Please refer to model's README for more details.")  # fmt: skip
    dtype = json.loads((path / "config.json").read_text()).get("torch_dtype")
    _demand(dtype in ("float16", "bfloat16"), "`torch_dtype` is only supported for type `float16` and `bfloat16`, "
            "loaded from config.json -> torch_dtype.")  # fmt: skip


def read_config(path: Path, env: Mapping[str, str]) -> Json:
    """The file; ConfigError when it is not there, is no JSON, or may be read by more than owner and group."""
    _demand(path.is_file(), "ConfigManager: Invalid config path.")
    checked = env.get("MINDIE_CHECK_INPUTFILES_PERMISSION") != "0"
    _demand(not checked or not path.stat().st_mode & 0o777 & ~0o640, f"Check_path: {path.name} failed")
    try:
        read: Json = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"JSON error in ConfigManager: {error}") from None
    return read


def routes_of(model: str) -> tuple[dict[str, Route], dict[str, Route], dict[str, Route]]:
    """Of the API's port, the management port and the metrics port."""

    def generate(body: Json, kind: str, prompt: str) -> Json | list[Json]:
        only(body, ("model", prompt, "stream", "max_tokens", "temperature", "seed", "stop", "top_p"), "field")
        if body.get("model") != model:
            raise RefusedError(
                404, {"error": {"message": f"stand-in: no model {body.get('model')}", "type": "not_found"}}
            )
        return answer_to(body, model, kind)

    api: dict[str, Route] = {
        "GET /v1/models": lambda body: {"object": "list", "data": [{"id": model}]},
        "POST /v1/chat/completions": lambda body: generate(body, "chat.completion", "messages"),
        "POST /v1/completions": lambda body: generate(body, "text_completion", "prompt"),
    }
    health = ("/v2/health/ready", "/v2/health/live", "/health", "/v1/status", "/v2/status")
    management: dict[str, Route] = {f"GET {path}": lambda body: {} for path in health}
    metrics: dict[str, Route] = {"GET /metrics": lambda body: {"text": 'npu_cache_usage_perc{model_name="m"} 0.0\n'}}
    return api, management, metrics


def main(env: Mapping[str, str]) -> Any:
    """Serve what the file says, or say why not."""
    try:
        config = read_config(Path(env.get("MIES_CONFIG_JSON_PATH", "conf/config.json")), env)
        model = check_config(config)
        check_weights(Path(model["modelWeightPath"]))
    except ConfigError as error:
        if env.get("MINDIE_LOG_TO_STDOUT") == "1":
            print(f"[ERROR] {error}")
        return sys.exit("ERR: Failed to init endpoint! Please check the service log or console output.")
    server = config["ServerConfig"]
    ports = (server["port"], server.get("managementPort", server["port"]), server["metricsPort"])
    try:
        servers = [
            Server((server["ipAddress"], port), routes)
            for port, routes in zip(ports, routes_of(model["modelName"]), strict=True)
        ]
    except OSError as error:
        return sys.exit(f"Socket bind failed: {error.strerror}")
    print("[llm_engine] freeNpuBlock=640, totalNpuBlock=640, freeCpuBlock=0, totalCpuBlock=0")
    print("Daemon start success!", flush=True)
    return serve(servers)


if __name__ == "__main__":
    main(os.environ)
