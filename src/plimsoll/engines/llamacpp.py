"""llama.cpp: GGUF models on CPUs, Apple and any GPU, from the `xllamacpp` wheel or a `llama-server` binary.

Flags as of build b11549. `--ctx-size` is the total over slots; `--fit off` because the plan has already fitted it and
a context that the engine shrinks in silence would make the plan a lie; `--cache-ram 0` because prompts kept outside
the slots (8 GiB by default) are memory that nobody planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.engines.arguments import command_flags, planned_options
from plimsoll.engines.devices import on_cpu, visible_devices
from plimsoll.engines.llamacpp_rpc import COMMAND, rpc_endpoints, rpc_servers
from plimsoll.engines.protocol import Observed, Ports, Process, Quantity, Ready
from plimsoll.engines.reading import read_exposition
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Vendor
from plimsoll.plan.rules.options import Value
from plimsoll.plan.types import Candidate, Replica
from plimsoll.units import MIB

_SIZE = r"=\s+([0-9.]+) MiB"
_BUFFERS: tuple[tuple[Quantity, re.Pattern[str]], ...] = (
    ("weights_bytes", re.compile(r"(\S+) model buffer size +" + _SIZE)),
    # Builds before 2025 name only the device.
    ("weights_bytes", re.compile(r"\b((?:CPU|CUDA|ROCm|Metal|SYCL|Vulkan|Graphics)\w*) buffer size +" + _SIZE)),
    ("kv_cache_bytes", re.compile(r"(\S+) KV buffer size +" + _SIZE)),
    ("kv_cache_bytes", re.compile(r"(\S+) RS buffer size +" + _SIZE)),
    ("compute_bytes", re.compile(r"(\S+) compute buffer size +" + _SIZE)),
    ("output_bytes", re.compile(r"(\S+)\s+output buffer size +" + _SIZE)),
)
_COUNTS: tuple[tuple[Quantity, re.Pattern[str]], ...] = (
    ("kv_tokens", re.compile(r"llama_(?:context|new_context_with_model): n_ctx\s+= (\d+)")),
    ("context_tokens", re.compile(r"llama_context: n_ctx_seq\s+= (\d+)")),
    ("context_tokens", re.compile(r"llama_context: n_ctx_per_seq\s+= (\d+)")),
    ("sequences", re.compile(r"llama_context: n_seq_max\s+= (\d+)")),
)
_VERSION = re.compile(r"xllamacpp (\d\S*)|build_info: (b\d\S*)")
_METRICS = {
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
    "llamacpp:kv_cache_usage_ratio": "kv_usage",
    "llamacpp:prompt_tokens_total": "prompt_tokens",
    "llamacpp:tokens_predicted_total": "output_tokens",
}
_POOLED = ("embed", "rerank", "classify")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """llama.cpp's server. `command` starts it: the wheel's child process or the path of a `llama-server`."""

    command: tuple[str, ...]
    version: str
    installed: bool = True
    vendors: tuple[Vendor, ...] = ("cpu", "nvidia", "amd", "apple", "intel")
    """That this build runs on; PyPI's wheel for Linux is for CPUs."""
    rpc_command: str = COMMAND
    """`ggml-rpc-server`, on the other nodes of a fleet; the wheel has none."""

    @property
    def facts(self) -> EngineFacts:
        """What this build can do."""
        return EngineFacts(
            name="llamacpp",
            version=self.version,
            formats=("gguf",),
            quantizations=("gguf",),
            vendors=self.vendors,
            tasks=("chat", "completion", "embed", "rerank"),
            parallel=("layer",),
            memory="llamacpp",
            routes=(
                "/v1/models",
                "/v1/chat/completions",
                "/v1/completions",
                "/v1/embeddings",
                "/v1/rerank",
                "/v1/messages",
                "/tokenize",
                "/detokenize",
                "/metrics",
            ),
            health_path="/health",
            multi_node=True,
            kv_dtypes=("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"),
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One server; over several nodes also one rpc server for each card of the others."""
        candidate = replica.candidate
        image = _image(candidate)
        helpers = rpc_servers(candidate, ports, command=self.rpc_command) if candidate.nodes > 1 else ()
        pooled = candidate.model.task in _POOLED
        rerank = candidate.model.task == "rerank"
        body: dict[str, object] = {"query": "ready?", "documents": ["ready"]} if rerank else {"input": "ready?"}
        server = Process(
            name="server",
            argv=(*self.command, *_arguments(candidate, replica.model_path, ports)),
            # One user's decode is 999 short graph nodes between barriers. OpenMP's endless spinning at each of them
            # starves whatever shares the cores, and then itself; sleeping at once costs a wake-up per node.
            env={"GOMP_SPINCOUNT": "10000", **visible_devices(candidate), **candidate.deployment.env},
            after=tuple(helper.name for helper in helpers),
            port=ports.serve,
            ready=Ready(
                health_path="/health",
                probe_path=("/v1/rerank" if rerank else "/v1/embeddings") if pooled else "/v1/completions",
                probe_body=body if pooled else {"prompt": "ready?", "max_tokens": 1, "cache_prompt": False},
                timeout_s=1800.0 if helpers else 600.0,
            ),
            image=image,
        )
        return (*helpers, server)

    def read_log(self, lines: Iterable[str]) -> Observed:
        """Buffers per device (summed per device, the largest device kept), cells, slots and version."""
        per_device: dict[Quantity, dict[str, float]] = {}
        quantities: dict[Quantity, float] = {}
        version, used = None, []
        for line in lines:
            text = line.rstrip("\n")
            for quantity, pattern in _BUFFERS:
                if match := pattern.search(text):
                    # Mapped weights are the same device under another name: CPU_Mapped, CUDA0.
                    device = match[1].removesuffix("_Mapped").removesuffix("_Host")
                    account = per_device.setdefault(quantity, {})
                    account[device] = account.get(device, 0.0) + float(match[2]) * MIB
                    used.append(text)
            for quantity, pattern in _COUNTS:
                if match := pattern.search(text):
                    quantities[quantity] = float(match[1])
                    used.append(text)
            if version is None and (match := _VERSION.search(text)):
                version = match[1] or match[2]
        for quantity, account in per_device.items():
            quantities[quantity] = max(account.values())
        return Observed(quantities=quantities, version=version, lines=tuple(used))

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from llama.cpp's /metrics."""
        return read_exposition(exposition, _METRICS)


def _arguments(candidate: Candidate, model_path: str, ports: Ports) -> tuple[str, ...]:
    """llama-server's arguments; `serve_llamacpp` takes those that the plan sets by itself."""
    kv_dtype = "f16" if candidate.kv_dtype == "auto" else candidate.kv_dtype
    task = candidate.model.task
    planned: dict[str, Value | None] = {
        "model": model_path,
        "alias": candidate.deployment.name,
        "host": ports.host,
        "port": ports.serve,
        "ctx_size": candidate.context_tokens * candidate.sequences,
        "parallel": candidate.sequences,
        "cache_type_k": kv_dtype,
        "cache_type_v": kv_dtype,
        "cache_ram": 0,
        "fit": "off",
        "metrics": True,
        "slots": True,
        "no_ui": True,
        "verbosity": 4,
        "batch_size": candidate.batched_tokens,
        "reranking": task in ("rerank", "classify"),
        "embeddings": task == "embed",
        # Without a word on it llama.cpp gives a chat model's embeddings a vector for each token: no client wants that.
        "pooling": "last" if task == "embed" and not _pools(candidate) else None,
        "n_gpu_layers": _gpu_layers(candidate),
        "spec_draft_model": candidate.deployment.draft_model,
        "spec_type": "draft-simple" if candidate.deployment.draft_model else None,
        "rpc": rpc_endpoints(candidate, ports) if candidate.nodes > 1 else None,
    }
    return command_flags(planned, candidate, taken={"gpu_layers", "n_gpu_layers", "num_gpu"})


def _gpu_layers(candidate: Candidate) -> Value | None:
    """All layers on the cards unless the plan says how many; none where the CPU of a host with cards is meant."""
    asked = [name for name in ("gpu_layers", "n_gpu_layers", "num_gpu") if name in candidate.options]
    if asked:
        return planned_options(candidate).get(asked[0])
    if on_cpu(candidate):
        return 0 if candidate.host.devices else None
    return candidate.model.layers + 1


def _image(candidate: Candidate) -> str:
    """Published images carry the newest build of their day: a pinned one is not to be had by number for long."""
    kind = {"cpu": "server", "nvidia": "server-cuda", "amd": "server-rocm", "intel": "server-intel"}
    name = kind.get(candidate.devices[0].vendor)
    return f"ghcr.io/ggml-org/llama.cpp:{name}" if name else ""


def _pools(candidate: Candidate) -> bool:
    """Whether the file says how its vectors are pooled; models made for chat do not."""
    return any(key.endswith("pooling_type") for key in candidate.model.config)
