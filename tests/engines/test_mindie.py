"""MindIE's adapter: a config.json that its validators would take, as their sources state them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engine_kit import PORTS, check_golden, replica

from plimsoll.engines.mindie import MindIE
from plimsoll.engines.protocol import Ports
from plimsoll.errors import PlanError

MINDIE = MindIE(installed=True)
QWEN = {"vendor": "ascend", "arch": "910B4", "memory_gib": 32, "gpus": 8, "tp": 8, "context_tokens": 8192,
        "sequences": 200, "stored_dtype": "float16"}  # fmt: skip
# Compulsory fields and their types: src/config_manager/{server,backend,model_deploy,schedule}_config.cpp of 8b4871a.
COMPULSORY: dict[str, dict[str, type]] = {
    "ServerConfig": {
        "ipAddress": str, "port": int, "maxLinkNum": int, "httpsEnabled": bool, "inferMode": str,
        "allowAllZeroIpListening": bool, "metricsPort": int, "tokenTimeout": int, "e2eTimeout": int,
    },
    "BackendConfig": {
        "backendName": str, "tokenizerProcessNumber": int, "modelInstanceNumber": int, "npuDeviceIds": list,
        "ScheduleConfig": dict,
    },
    "ModelDeployConfig": {"maxSeqLen": int, "maxInputTokenLen": int},
    "ModelConfig": {
        "cpuMemSize": int, "modelWeightPath": str, "modelName": str, "npuMemSize": int, "worldSize": int,
        "backendType": str, "trustRemoteCode": bool,
    },
    "ScheduleConfig": {
        "templateName": str, "templateType": str, "cacheBlockSize": int, "decodePolicyType": int,
        "decodeTimeMsPerReq": int, "maxBatchSize": int, "maxPreemptCount": int, "maxPrefillTokens": int,
        "maxIterTimes": int, "maxPrefillBatchSize": int, "maxQueueDelayMicroseconds": int, "prefillPolicyType": int,
        "prefillTimeMsPerReq": int, "supportSelectBatch": bool,
    },
}  # fmt: skip


def config(ports: Ports = PORTS, **setup: Any) -> dict[str, Any]:
    (process,) = MINDIE.processes(replica(MINDIE, **{**QWEN, **setup}), ports)
    parsed: dict[str, Any] = json.loads(process.files[process.env["MIES_CONFIG_JSON_PATH"]])
    return parsed


def parts(whole: dict[str, Any]) -> dict[str, dict[str, Any]]:
    backend = whole["BackendConfig"]
    return {"ServerConfig": whole["ServerConfig"], "BackendConfig": backend,
            "ModelDeployConfig": backend["ModelDeployConfig"], "ScheduleConfig": backend["ScheduleConfig"],
            "ModelConfig": backend["ModelDeployConfig"]["ModelConfig"][0]}  # fmt: skip


def test_golden() -> None:
    check_golden("mindie_qwen", MINDIE.processes(replica(MINDIE, **QWEN), PORTS))


@pytest.mark.parametrize("setup", [{}, {"sequences": 1, "gpus": 1, "tp": 1, "heads": 1}, {"context_tokens": 131072}])
def test_the_validators_are_content(setup: dict) -> None:
    found = parts(config(**setup))
    for part, fields in COMPULSORY.items():
        assert {name: type(found[part][name]) for name in fields} == fields
    server, model = found["ServerConfig"], found["ModelConfig"]
    deploy, schedule = found["ModelDeployConfig"], found["ScheduleConfig"]
    assert schedule["maxPrefillTokens"] >= deploy["maxInputTokenLen"]
    assert deploy["maxInputTokenLen"] < deploy["maxSeqLen"] and schedule["maxIterTimes"] < deploy["maxSeqLen"]
    assert 1 <= schedule["maxPrefillBatchSize"] <= schedule["maxBatchSize"]
    assert [len(ids) for ids in found["BackendConfig"]["npuDeviceIds"]] == [model["worldSize"]]
    assert len({server["port"], server["managementPort"], server["metricsPort"]}) == 3
    assert schedule["templateName"] == "Standard_LLM" and not server["httpsEnabled"]


def test_the_field_notes_settings_lie_where_they_belong() -> None:
    found = parts(config(options={"npuMemSize": 8, "cpuMemSize": 5, "maxIterTimes": 8000, "maxPrefillTokens": 8192}))
    assert (found["ModelConfig"]["npuMemSize"], found["ModelConfig"]["cpuMemSize"]) == (8, 5)
    assert found["ScheduleConfig"]["maxIterTimes"] == 8000
    assert "npuMemSize" not in found["ScheduleConfig"]


def test_a_name_that_it_would_refuse_is_changed_and_said() -> None:
    (process,) = MINDIE.processes(replica(MINDIE, **QWEN, name="Qwen/Qwen1.5-7B:chat"), PORTS)
    assert process.served_name == "Qwen-Qwen1.5-7B-chat"
    assert process.ready.health_port == 8101


def test_all_addresses_only_where_it_is_allowed() -> None:
    assert config(Ports(host="0.0.0.0", serve=1025))["ServerConfig"]["allowAllZeroIpListening"]


def test_several_nodes_are_refused_with_what_is_missing() -> None:
    with pytest.raises(PlanError, match="rank table"):
        MINDIE.processes(replica(MINDIE, **{**QWEN, "gpus": 16, "tp": 16, "nodes": 2}), PORTS)


def test_log_and_metrics() -> None:
    lines = ["[llm_engine] freeNpuBlock=100, totalNpuBlock=1280, freeCpuBlock=0, totalCpuBlock=0"]
    assert MINDIE.read_log(lines).quantities == {"kv_blocks": 1280}
    assert MINDIE.metrics('npu_cache_usage_perc{model_name="q"} 0.5\n') == {"kv_usage": 0.5}
