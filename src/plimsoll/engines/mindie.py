"""MindIE on Huawei's NPUs: one config.json, then the daemon. No flag, no key, no second chance: a wrong field ends it.

Fields, types and which of them must be there: `src/config_manager/*.cpp` of MindIE-LLM 8b4871a (2026-04-23); the file
is found by MIES_CONFIG_JSON_PATH. Health is answered on the management port, metrics on a third.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from plimsoll.engines.devices import node_devices
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import count, read_exposition, read_lines
from plimsoll.errors import PlanError
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Candidate, Replica

NEWEST = "8b4871a (2026-04-23)"
_LINES = (
    count(r"totalNpuBlock=(\d+)", "kv_blocks"),
    count(r"npuBlockNum[\"': =]+(\d+)", "kv_blocks"),
)
_VERSION = re.compile(r"MindIE(?:-LLM)?[ _-]?(?:version|Version)[: ]+(\d\S*)")
_METRICS = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "npu_cache_usage_perc": "kv_usage",
    "prompt_tokens_total": "prompt_tokens",
    "generation_tokens_total": "output_tokens",
}
_BAD = re.compile(r"[^A-Za-z0-9_.-]+")
_SERVER = frozenset(
    {"maxLinkNum", "tokenTimeout", "e2eTimeout", "fullTextEnabled", "openAiSupport", "maxRequestLength"}
)
_BACKEND = frozenset({"tokenizerProcessNumber", "modelInstanceNumber"})
_DEPLOY = frozenset({"maxSeqLen", "maxInputTokenLen", "truncation", "maxLoras", "maxLoraRank", "LoraModules"})
_MODEL = frozenset({
    "cpuMemSize", "npuMemSize", "backendType", "plugin_params", "trustRemoteCode", "tp", "dp", "sp", "cp", "moe_tp",
    "moe_ep", "async_scheduler_wait_time",
})  # fmt: skip
"""Options by the part of the file that they belong to; all others belong to the schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MindIE:
    """MindIE-LLM's server. `command` is its daemon (`mindieservice_daemon` before 2026)."""

    command: tuple[str, ...] = ("mindie_llm_server",)
    version: str = NEWEST
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="mindie",
            version=self.version,
            formats=("safetensors",),
            quantizations=("w8a8", "w8a16", "w4a8", "w4a16", "w8a8sc"),
            vendors=("ascend",),
            tasks=("chat", "completion"),
            parallel=("tensor",),
            memory="mindie",
            routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/generate", "/generate_stream", "/infer"),
            health_path="/v2/health/ready",
            kv_dtypes=("auto", "float16", "bfloat16", "c8"),
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """The daemon and its file; PlanError for several nodes."""
        candidate = replica.candidate
        if candidate.nodes > 1:
            raise PlanError(
                "MindIE over several nodes wants a rank table with the address of every NPU",
                hint="read the addresses with `hccn_tool -i N -ip -g` on each node, or use vllm_ascend",
                source="MindIE-LLM 8b4871a: src/config_manager/ranktable_config.cpp:37",
            )
        path = f"{ports.directory or '.'}/config.json"
        management, metrics = (*ports.extra, ports.serve + 1, ports.serve + 2)[:2]
        config = config_of(replica, ports, management=management, metrics=metrics)
        name = config["BackendConfig"]["ModelDeployConfig"]["ModelConfig"][0]["modelName"]
        share = 0.8 if candidate.memory_share is None else candidate.memory_share
        return (
            Process(
                name="server",
                argv=self.command,
                env={
                    "MIES_CONFIG_JSON_PATH": path,
                    "MIES_SERVICE_MONITOR_MODE": "1",
                    "NPU_MEMORY_FRACTION": f"{share:g}",
                    # Its own files below ~/mindie/log are where it would say why it ends.
                    "MINDIE_LOG_TO_STDOUT": "1",
                    **candidate.deployment.env,
                },
                files={path: json.dumps(config, indent=2) + "\n"},
                port=ports.serve,
                ready=Ready(
                    health_path="/v2/health/ready",
                    health_port=management,
                    probe_path="/v1/chat/completions",
                    probe_body={
                        "model": name,
                        "messages": [{"role": "user", "content": "ready?"}],
                        "max_tokens": 1,
                    },
                    timeout_s=1800.0,
                ),
                served_name=name if name != candidate.deployment.name else None,
                image="mindie",
            ),
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """Blocks of the cache; it tells nothing of weights."""
        return read_lines(lines, _LINES, version=_VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from the metrics port."""
        return read_exposition(exposition, _METRICS)


def config_of(replica: Replica, ports: Ports, *, management: int, metrics: int) -> dict[str, Any]:
    """The whole config.json, every compulsory field in it and no certificate asked for."""
    candidate = replica.candidate
    context, cards = candidate.context_tokens, [device.index for device in node_devices(candidate)]
    prefill = max(candidate.batched_tokens or 8192, context - 1)
    schedule: dict[str, Any] = {
        "templateType": "Standard",
        "templateName": "Standard_LLM",
        "cacheBlockSize": 128,
        "maxPrefillBatchSize": min(50, candidate.sequences),
        "maxPrefillTokens": prefill,
        "prefillTimeMsPerReq": 150,
        "prefillPolicyType": 0,
        "decodeTimeMsPerReq": 50,
        "decodePolicyType": 0,
        "maxBatchSize": candidate.sequences,
        "maxIterTimes": context - 1,
        "maxPreemptCount": 0,
        "supportSelectBatch": False,
        "maxQueueDelayMicroseconds": 5000,
        "maxFirstTokenWaitTime": 2500,
    }
    model: dict[str, Any] = {
        "modelInstanceType": "Standard",
        "modelName": _served(candidate),
        "modelWeightPath": replica.model_path,
        "worldSize": len(cards),
        "cpuMemSize": 0,
        "npuMemSize": -1,
        "backendType": "atb",
        "trustRemoteCode": candidate.deployment.trust_remote_code,
    }
    deploy: dict[str, Any] = {"maxSeqLen": context, "maxInputTokenLen": context - 1, "truncation": False}
    backend: dict[str, Any] = {
        "backendName": "mindieservice_llm_engine",
        "modelInstanceNumber": 1,
        "npuDeviceIds": [cards],
        "tokenizerProcessNumber": 8,
        "multiNodesInferEnabled": False,
        "interNodeTLSEnabled": False,
    }
    server: dict[str, Any] = {
        "ipAddress": ports.host,
        "managementIpAddress": ports.host,
        "port": ports.serve,
        "managementPort": management,
        "metricsPort": metrics,
        "allowAllZeroIpListening": ports.host == "0.0.0.0",  # noqa: S104 - only where a container's form asks for it
        "maxLinkNum": min(4096, max(1000, candidate.sequences)),
        "httpsEnabled": False,
        "fullTextEnabled": False,
        "inferMode": "standard",
        "interCommTLSEnabled": False,
        "openAiSupport": "vllm",
        "tokenTimeout": 600,
        "e2eTimeout": 600,
        "distDPServerEnabled": False,
    }
    parts = ((_SERVER, server), (_BACKEND, backend), (_DEPLOY, deploy), (_MODEL, model))
    for name, value in candidate.options.items():
        next((part for names, part in parts if name in names), schedule)[name] = value
    return {
        "Version": "1.0.0",
        "ServerConfig": server,
        "BackendConfig": {
            **backend,
            "ModelDeployConfig": {**deploy, "ModelConfig": [model]},
            "ScheduleConfig": schedule,
        },
        "LogConfig": {"dynamicLogLevel": "", "dynamicLogLevelValidHours": 2, "dynamicLogLevelValidTime": ""},
    }


def _served(candidate: Candidate) -> str:
    """`modelName` as its validator wants it: letters, digits, `_.-`, a letter or digit at both ends."""
    return _BAD.sub("-", candidate.deployment.name).strip("-._")
