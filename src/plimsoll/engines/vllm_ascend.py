"""vllm-ascend: vLLM's plugin for Huawei's NPUs. Flags, routes and log are those of the vLLM that it is built for.

Read from 0.23.0.post1 (needs vLLM 0.23.0, torch_npu 2.10, CANN 9.1); its own settings are environment variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plimsoll.engines.devices import node_address
from plimsoll.engines.protocol import Observed, Ports, Process
from plimsoll.engines.reading import read_exposition, read_lines
from plimsoll.engines.vllm import LINES, METRICS, POOLED, ROUTES, SERVE, VERSION, serve
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Replica

NEWEST = "0.23.0.post1"


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmAscend:
    """vLLM with its Ascend plugin, which `vllm serve` picks up by itself."""

    command: tuple[str, ...] = SERVE
    version: str = NEWEST
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="vllm_ascend",
            version=self.version,
            formats=("safetensors", "pytorch"),
            quantizations=("ascend", "compressed-tensors", "fp8"),
            vendors=("ascend",),
            tasks=("chat", "completion", *POOLED),
            parallel=("tensor", "pipeline", "data", "expert"),
            memory="vllm",
            routes=(*ROUTES, "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/rerank", "/rerank", "/score"),
            health_path="/health",
            multi_node=True,
            kv_dtypes=("auto", "float16", "bfloat16"),
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """vLLM's, each node with the variables that HCCL looks for."""
        candidate = replica.candidate
        found = serve(self.command, replica, ports, image=f"quay.io/ascend/vllm-ascend:v{candidate.engine.version}")
        return tuple(replace(process, env=_environment(process, ports, candidate.nodes)) for process in found)

    def read_log(self, lines: Iterable[str]) -> Observed:
        """The lines of vLLM."""
        return read_lines(lines, LINES, version=VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from vLLM's /metrics."""
        return read_exposition(exposition, METRICS)


def _environment(process: Process, ports: Ports, nodes: int) -> Mapping[str, str]:
    # Without expandable segments the NPU's allocator runs out of memory that is free, but in pieces.
    env = {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"}
    if nodes > 1:
        env["HCCL_IF_IP"] = node_address(ports.addresses, process.node)
        if ports.interface is not None:
            env |= dict.fromkeys(("HCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"), ports.interface)
    return {**env, **process.env}
