"""vLLM: `vllm serve` on NVIDIA, AMD, Intel and CPUs, one host or several, as the parsers of 0.5 to 0.33 take it.

Read from the parsers of 0.6.3, 0.8.5, 0.11.0, 0.18.0 and 0.33.0 (`engine/arg_utils.py`, `entrypoints/.../cli_args.py`)
and from the log lines of 53 releases.
"""

from __future__ import annotations

import json
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

NEWEST = "0.33.0"
SERVE = ("vllm", "serve")
_MODULE = ("python3", "-m", "vllm.entrypoints.openai.api_server")
POOLED = ("embed", "rerank", "classify")
_QUANTIZATIONS = (
    "awq", "gptq", "auto-round", "fp8", "fbgemm_fp8", "compressed-tensors", "modelopt", "modelopt_fp4", "mxfp4",
    "quark",
)  # fmt: skip
LINES = (
    gib(r"[Ll]oading model weights took ([\d.]+) GB", "weights_bytes"),
    gib(r"[Mm]odel loading took ([\d.]+) Gi?B", "weights_bytes"),
    count(r"[Mm]odel loading took [\d.]+ Gi?B(?: memory)? and ([\d.]+) seconds", "load_s"),
    gib(r"model weights take ([\d.]+) ?GiB", "weights_bytes"),
    gib(r"non_torch_memory(?: takes |=)(-?[\d.]+) ?GiB", "non_torch_bytes"),
    gib(r"activation peak memory takes ([\d.]+) ?GiB", "activations_bytes"),
    gib(r"reserved for KV Cache is (-?[\d.]+) ?GiB", "kv_cache_bytes"),
    gib(r"kv_cache_size=(-?[\d.]+) ?GiB", "kv_cache_bytes"),
    gib(r"(?:Explicitly|Auto) set \(([\d.]+)/[\d.]+\) GiB for KV cache", "kv_cache_bytes"),
    gib(r"Available KV cache memory: (-?[\d.]+) GiB", "kv_cache_bytes"),
    gib(
        r"Actual usage is ([\d.]+) GiB for weight, ([\d.]+) GiB for peak activation, ([\d.]+) GiB for non-torch "
        r"memory, and ([\d.]+) GiB for CUDAGraph memory",
        "weights_bytes", "activations_bytes", "non_torch_bytes", "graphs_bytes",
    ),
    count(r"# (?:GPU|CUDA|cuda) blocks: (\d+)", "kv_blocks"),
    count(r"KV cache size: ([\d,]+) tokens", "kv_tokens"),
    count(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x", "context_tokens", "max_concurrency"),
    gib(r"[Gg]raph capturing.*?took ([\d.]+) GiB", "graphs_bytes"),
)  # fmt: skip
VERSION = re.compile(r"vLLM (?:API )?server version (\d[\w.+]*)|LLM engine \(v(\d[\w.+]*)\)")
METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
    "vllm:gpu_cache_usage_perc": "kv_usage",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "output_tokens",
}
ROUTES = ("/v1/models", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/metrics")
_CPU_BYTES = ">=0.32"
"""Versions whose CPU backend takes the cache's size in bytes; 0.18 took whole GiB from its environment only."""
_POOLED_ROUTES = (
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/score",
    "/v1/score",
    "/classify",
    "/pooling",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """vLLM. `command` starts its server: `vllm serve`, or a Python with vLLM in it and the server's module."""

    command: tuple[str, ...] = SERVE
    version: str = NEWEST
    vendors: tuple[Vendor, ...] = ("nvidia", "amd", "intel", "cpu")
    """That this build runs on: each wheel is for one of them."""
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        old = in_range(self.version, "<0.24")
        return EngineFacts(
            name="vllm",
            version=self.version,
            formats=("safetensors", "pytorch", "gguf") if old else ("safetensors", "pytorch"),
            quantizations=(*_QUANTIZATIONS, "bitsandbytes") if in_range(self.version, "<0.28") else _QUANTIZATIONS,
            vendors=self.vendors,
            tasks=("chat", "completion", *POOLED) if in_range(self.version, ">=0.6.4") else ("chat", "completion"),
            parallel=("tensor", "pipeline", "data", "expert"),
            memory="vllm",
            routes=(
                *ROUTES,
                *_POOLED_ROUTES,
                *(("/v1/responses",) if in_range(self.version, ">=0.10") else ()),
                *(("/v1/messages",) if in_range(self.version, ">=0.12") else ()),
            ),
            health_path="/health",
            multi_node=True,
            kv_dtypes=("auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "fp8_ds_mla", "nvfp4"),
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One server; over several nodes one on each, the first with the API, or a Ray cluster and one server."""
        return serve(self.command, replica, ports, image=_image(replica.candidate))

    def read_log(self, lines: Iterable[str]) -> Observed:
        """Weights, cache, tokens, concurrency, graphs: the lines of 0.5 to 0.33."""
        return read_lines(lines, LINES, version=VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from vLLM's /metrics."""
        return read_exposition(exposition, METRICS)


def serve(command: tuple[str, ...], replica: Replica, ports: Ports, *, image: str) -> tuple[Process, ...]:
    """vLLM's processes for `replica`, also under a plugin."""
    candidate = replica.candidate
    version = candidate.engine.version
    if command == SERVE and in_range(version, "<0.6"):
        command = _MODULE
    if candidate.nodes == 1:
        return (_server(command, replica, ports, node=0, image=image),)
    if by_ray(candidate):
        head = node_address(ports.addresses, 0)
        port = 6379
        cluster = [
            Process(
                name="ray-head" if node == 0 else f"ray-worker-{node}",
                argv=(
                    ("ray", "start", "--head", "--port", str(port), "--node-ip-address", head, "--block")
                    if node == 0
                    else ("ray", "start", "--address", f"{head}:{port}", "--block")
                ),
                env=_environment(replica, ports, node),
                node=node,
                after=("ray-head",) if node else (),
                image=image,
            )
            for node in range(candidate.nodes)
        ]
        server = _server(command, replica, ports, node=0, image=image)
        joined = ("sh", "-c", f"until ray health-check --address {head}:{port}; do sleep 1; done")
        return (*cluster, replace(server, after=tuple(one.name for one in cluster), setup=(joined,)))
    return tuple(_server(command, replica, ports, node=node, image=image) for node in range(candidate.nodes))


def by_ray(candidate: Candidate) -> bool:
    """Whether several nodes are joined by Ray: where it is asked for, and before vLLM could do without (0.12)."""
    asked = candidate.options.get("distributed_executor_backend")
    return asked == "ray" or (asked is None and in_range(candidate.engine.version, "<0.12"))


def _server(command: tuple[str, ...], replica: Replica, ports: Ports, *, node: int, image: str) -> Process:
    candidate = replica.candidate
    model = (replica.model_path,) if command[-1] == "serve" else ("--model", replica.model_path)
    several = _node_flags(candidate, ports, node) if candidate.nodes > 1 else {}
    pooled = candidate.model.task in POOLED
    body: dict[str, object] = {"model": candidate.deployment.name}
    ready = Ready(
        health_path="/health",
        probe_path=_POOLED_PROBE.get(candidate.model.task, "/v1/completions"),
        probe_body=body | (_POOLED_BODY[candidate.model.task] if pooled else {"prompt": "ready?", "max_tokens": 1}),
        timeout_s=1200.0,
    )
    return Process(
        name="server" if node == 0 else f"server-{node}",
        argv=(*command, *model, *command_flags({**_planned(replica, ports), **several}, candidate, negate=True)),
        env={**_environment(replica, ports, node), **candidate.deployment.env},
        node=node,
        port=ports.serve if node == 0 else None,
        ready=ready if node == 0 else Ready(),
        image=image,
    )


_POOLED_PROBE = {"embed": "/v1/embeddings", "rerank": "/rerank", "classify": "/classify"}
_POOLED_BODY: Mapping[str, dict[str, object]] = {
    "embed": {"input": "ready?"},
    "rerank": {"query": "ready?", "documents": ["ready"]},
    "classify": {"input": "ready?"},
}


def _planned(replica: Replica, ports: Ports) -> dict[str, Value | None]:
    """The plan's settings under vLLM's names; None: left to vLLM."""
    candidate = replica.candidate
    deployment, parallel, version = candidate.deployment, candidate.parallel, candidate.engine.version
    own = candidate.model.quantization is not None
    planned: dict[str, Value | None] = {
        "served_model_name": deployment.name,
        "host": ports.host,
        "port": ports.serve,
        "tensor_parallel_size": parallel.tensor if parallel.tensor > 1 else None,
        "pipeline_parallel_size": parallel.pipeline if parallel.pipeline > 1 else None,
        "data_parallel_size": parallel.data if parallel.data > 1 else None,
        "enable_expert_parallel": parallel.expert > 1,
        "max_model_len": candidate.context_tokens,
        "max_num_seqs": candidate.sequences,
        "max_num_batched_tokens": candidate.batched_tokens,
        "gpu_memory_utilization": candidate.memory_share,
        "dtype": candidate.dtype if candidate.dtype != "auto" else None,
        "kv_cache_dtype": candidate.kv_dtype if candidate.kv_dtype != "auto" else None,
        # What the checkpoint states is found by vLLM itself; a name is for quantising on the fly.
        "quantization": None if own else deployment.quantization,
        "enforce_eager": candidate.eager,
        "trust_remote_code": deployment.trust_remote_code,
        **_task(candidate, version),
        **_draft(candidate, version),
    }
    if on_cpu(candidate) and in_range(version, _CPU_BYTES) and "VLLM_CPU_KVCACHE_SPACE" not in deployment.env:
        planned |= {"kv_cache_memory_bytes": _cache_bytes(replica) or None, "gpu_memory_utilization": None}
    return planned


def _task(candidate: Candidate, version: str) -> dict[str, Value | None]:
    """Pooling models: `--runner pooling` since 0.10.1, `--task` from 0.6.4 on, nothing before."""
    task = candidate.model.task
    if task not in POOLED or in_range(version, "<0.6.4"):
        return {}
    if in_range(version, "<0.10.1"):
        names = {"embed": "embed", "rerank": "score", "classify": "classify"}
        return {"task": "embedding" if task == "embed" and in_range(version, "<0.6.6") else names[task]}
    # A model that generates is made to pool; one that was made for it needs no conversion.
    generates = candidate.model.architecture.endswith(("ForCausalLM", "ForConditionalGeneration"))
    convert = ("embed" if task == "embed" else "classify") if generates else None
    return {"runner": "pooling", "convert": convert}


def _draft(candidate: Candidate, version: str) -> dict[str, Value | None]:
    """A draft model: one JSON since 0.8.3, single flags before."""
    draft = candidate.deployment.draft_model
    if draft is None or "speculative_config" in candidate.options:
        return {}
    if in_range(version, "<0.8.3"):
        return {"speculative_model": draft, "num_speculative_tokens": 5}
    return {"speculative_config": json.dumps({"model": draft, "num_speculative_tokens": 5})}


def _node_flags(candidate: Candidate, ports: Ports, node: int) -> dict[str, Value | None]:
    if by_ray(candidate):
        return {"distributed_executor_backend": "ray"}
    return {
        "nnodes": candidate.nodes,
        "node_rank": node,
        "master_addr": node_address(ports.addresses, 0),
        "master_port": ports.extra[0] if ports.extra else 29501,
        "distributed_executor_backend": "mp",
        "headless": node > 0,
    }


def _environment(replica: Replica, ports: Ports, node: int) -> dict[str, str]:
    candidate = replica.candidate
    env = visible_devices(candidate, node)
    if candidate.nodes > 1:
        env["VLLM_HOST_IP"] = node_address(ports.addresses, node)
        if ports.interface is not None:
            env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), ports.interface)
    if on_cpu(candidate) and not in_range(candidate.engine.version, _CPU_BYTES):
        env["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, _cache_bytes(replica) // GIB))
    return env


def _cache_bytes(replica: Replica) -> int:
    """What the plan gives the cache on a CPU: without it vLLM takes 4 GiB or a share of all RAM, by its version."""
    return min((device.of("kv_cache") for device in replica.ledger.devices), default=0)


def _image(candidate: Candidate) -> str:
    suffix = {"cpu": "-cpu", "amd": "-rocm", "intel": "-xpu"}.get(candidate.devices[0].vendor, "")
    return f"vllm/vllm-openai{suffix}:v{candidate.engine.version}"
