"""SGLang: `python -m sglang.launch_server` on NVIDIA, AMD, Intel and (with AMX, or slowly) CPUs.

Flags as of 0.5.23 (`srt/arg_groups/fields/`); the log lines of 0.3.6 to 0.5.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plimsoll.engines.arguments import command_flags
from plimsoll.engines.devices import node_address, on_cpu, visible_devices
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import count, gib, read_exposition, read_lines
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Vendor
from plimsoll.facts.versions import in_range
from plimsoll.plan.rules.options import Value
from plimsoll.plan.types import Candidate, Replica
from plimsoll.units import GIB

NEWEST = "0.5.23"
_MODULE = ("python3", "-m", "sglang.launch_server")
_LINES = (
    gib(r"Load weight end\..*?mem usage=([\d.]+) GB", "weights_bytes"),
    count(r"Load weight end\. elapsed=([\d.]+) s", "load_s"),
    count(r"KV Cache is allocated\..*?#tokens: ([\d,]+)", "kv_tokens"),
    gib(r"KV Cache is allocated\..*?, KV size: ([\d.]+) GB", "kv_cache_bytes"),
    gib(r"[Cc]apture cuda graph end\..*?mem usage=([\d.]+) GB", "graphs_bytes"),
    count(r"max_total_num_tokens=(\d+)", "kv_tokens"),
    count(r"max_running_requests=(\d+)", "sequences"),
    count(r"context_len=(\d+)", "context_tokens"),
)
_HALVES = re.compile(r"K size: ([\d.]+) GB, V size: ([\d.]+) GB")
_VERSION = re.compile(r"[Ss][Gg][Ll]ang(?: version|==|-)[:= ]?v?(\d[\w.]*)")
_METRICS = {
    "sglang:num_running_reqs": "running",
    "sglang:num_queue_reqs": "waiting",
    "sglang:token_usage": "kv_usage",
    "sglang:prompt_tokens_total": "prompt_tokens",
    "sglang:generation_tokens_total": "output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLang:
    """SGLang. `command` is a Python with SGLang in it and the server's module."""

    command: tuple[str, ...] = _MODULE
    version: str = NEWEST
    vendors: tuple[Vendor, ...] = ("nvidia", "amd", "intel", "cpu")
    """That this build runs on, by its torch."""
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="sglang",
            version=self.version,
            formats=("safetensors", "pytorch", "gguf"),
            quantizations=(
                "awq", "gptq", "auto-round", "fp8", "compressed-tensors", "modelopt", "mxfp4", "bitsandbytes", "quark",
                "gguf",
            ),
            vendors=self.vendors,
            tasks=("chat", "completion", "embed", "rerank", "classify"),
            parallel=("tensor", "pipeline", "data", "expert"),
            memory="sglang",
            routes=(
                "/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank",
                "/v1/classify", "/v1/score", "/v1/responses", "/v1/messages", "/metrics",
                *(("/v1/tokenize", "/v1/detokenize") if in_range(self.version, ">=0.5.6") else ()),
            ),
            health_path="/health",
            multi_node=True,
            kv_dtypes=("auto", "bfloat16", "bf16", "fp8_e5m2", "fp8_e4m3", "mxfp8", "nvfp4", "fp4_mx_block16"),
            installed=self.installed,
        )  # fmt: skip

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One server on each node; the first answers."""
        return tuple(self._server(replica, ports, node) for node in range(replica.candidate.nodes))

    def _server(self, replica: Replica, ports: Ports, node: int) -> Process:
        candidate = replica.candidate
        planned = {"model_path": replica.model_path, **_planned(candidate, ports)}
        if candidate.nodes > 1:
            port = ports.extra[0] if ports.extra else 20000
            planned["dist_init_addr"] = f"{node_address(ports.addresses, 0)}:{port}"
            planned |= {"nnodes": candidate.nodes, "node_rank": node}
        embeds = candidate.model.task == "embed"
        probe = _PROBES.get(candidate.model.task, ("/v1/completions", {"prompt": "ready?", "max_tokens": 1}))
        ready = Ready(
            health_path="/health",
            probe_path=probe[0],
            probe_body={"model": _served(candidate), **probe[1]},
            timeout_s=1200.0,
        )
        return Process(
            name="server" if node == 0 else f"server-{node}",
            argv=(*self.command, *command_flags({**planned, "is_embedding": embeds}, candidate)),
            env={**_environment(candidate, ports, node), **candidate.deployment.env},
            node=node,
            port=ports.serve if node == 0 else None,
            ready=ready if node == 0 else Ready(),
            # It takes no colon, which names a LoRA adapter there.
            served_name=_served(candidate) if ":" in candidate.deployment.name else None,
            image=f"lmsysorg/sglang:v{candidate.engine.version}" if not on_cpu(candidate) else "",
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """Weights, pool, tokens, graphs."""
        told = list(lines)
        observed = read_lines(told, _LINES, version=_VERSION)
        halves = [GIB * (float(found[1]) + float(found[2])) for line in told if (found := _HALVES.search(line))]
        if not halves:
            return observed
        return replace(observed, quantities={**observed.quantities, "kv_cache_bytes": max(halves)})

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from SGLang's /metrics."""
        return read_exposition(exposition, _METRICS)


_PROBES: Mapping[str, tuple[str, dict[str, object]]] = {
    "embed": ("/v1/embeddings", {"input": "ready?"}),
    "rerank": ("/v1/rerank", {"query": "ready?", "documents": ["ready"]}),
    "classify": ("/v1/classify", {"input": "ready?"}),
}


def _served(candidate: Candidate) -> str:
    return candidate.deployment.name.replace(":", "-")


def _planned(candidate: Candidate, ports: Ports) -> dict[str, Value | None]:
    """The plan's settings under SGLang's names; None: left to SGLang."""
    deployment, parallel = candidate.deployment, candidate.parallel
    own = candidate.model.quantization is not None
    planned: dict[str, Value | None] = {
        "served_model_name": _served(candidate),
        "host": ports.host,
        "port": ports.serve,
        "tp_size": parallel.tensor if parallel.tensor > 1 else None,
        "pp_size": parallel.pipeline if parallel.pipeline > 1 else None,
        "dp_size": parallel.data if parallel.data > 1 else None,
        "ep_size": parallel.expert if parallel.expert > 1 else None,
        "context_length": candidate.context_tokens,
        "max_running_requests": candidate.sequences,
        "chunked_prefill_size": candidate.batched_tokens,
        "mem_fraction_static": candidate.memory_share,
        "dtype": candidate.dtype if candidate.dtype != "auto" else None,
        "kv_cache_dtype": candidate.kv_dtype if candidate.kv_dtype != "auto" else None,
        "quantization": None if own else deployment.quantization,
        "disable_cuda_graph": candidate.eager or on_cpu(candidate),
        "trust_remote_code": deployment.trust_remote_code,
        "enable_metrics": True,
    }
    if deployment.draft_model is not None:
        planned |= {
            "speculative_algorithm": "STANDALONE",
            "speculative_draft_model_path": deployment.draft_model,
            "speculative_num_steps": 3,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": 4,
        }
    if on_cpu(candidate):
        planned["device"] = "cpu"
        if not any(name.startswith("amx") for name in candidate.host.cpu.features):
            # Its own CPU kernels are for AMX; these run anywhere.
            planned |= {"attention_backend": "torch_native", "sampling_backend": "pytorch", "grammar_backend": "none"}
            planned |= {"disable_overlap_schedule": True, "disable_radix_cache": True}
    return planned


def _environment(candidate: Candidate, ports: Ports, node: int) -> dict[str, str]:
    env = visible_devices(candidate, node)
    if on_cpu(candidate):
        env["SGLANG_USE_CPU_ENGINE"] = "1"
    if candidate.nodes > 1:
        env["SGLANG_HOST_IP"] = node_address(ports.addresses, node)
        if ports.interface is not None:
            env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), ports.interface)
    return env
