"""llama.cpp: GGUF models on CPUs, Apple and any GPU, from the `xllamacpp` wheel or a `llama-server` binary.

Flags as of build b11549. `--ctx-size` is the total over slots; `--fit off` because the plan has already fitted it and
a context that the engine shrinks in silence would make the plan a lie; `--cache-ram 0` because prompts kept outside
the slots (8 GiB by default) are memory that nobody planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.engines.arguments import as_flags, planned_options
from plimsoll.engines.protocol import Observed, Ports, Process, Quantity, Ready
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Candidate, Replica
from plimsoll.units import MIB

_SIZE = r"=\s+([0-9.]+) MiB"
_BUFFERS: tuple[tuple[Quantity, re.Pattern[str]], ...] = (
    ("weights_bytes", re.compile(r"(\S+) model buffer size " + _SIZE)),
    ("kv_cache_bytes", re.compile(r"(\S+) KV buffer size " + _SIZE)),
    ("kv_cache_bytes", re.compile(r"(\S+) RS buffer size " + _SIZE)),
    ("compute_bytes", re.compile(r"(\S+) compute buffer size " + _SIZE)),
    ("output_bytes", re.compile(r"(\S+)\s+output buffer size " + _SIZE)),
)
_COUNTS: tuple[tuple[Quantity, re.Pattern[str]], ...] = (
    ("kv_tokens", re.compile(r"llama_context: n_ctx\s+= (\d+)")),
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

    @property
    def facts(self) -> EngineFacts:
        """What this build can do."""
        return EngineFacts(
            name="llamacpp",
            version=self.version,
            formats=("gguf",),
            quantizations=("gguf",),
            vendors=("cpu", "nvidia", "amd", "apple", "intel"),
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
        """One server process."""
        candidate = replica.candidate
        return (
            Process(
                name="server",
                argv=(*self.command, *_arguments(candidate, replica.model_path, ports)),
                # One user's decode is 999 short graph nodes between barriers. OpenMP's endless spinning at each of them
                # starves whatever shares the cores, and then itself; sleeping at once costs a wake-up per node.
                env={"GOMP_SPINCOUNT": "10000", **candidate.deployment.env},
                port=ports.serve,
                ready=Ready(
                    health_path="/health",
                    probe_path="/v1/embeddings" if candidate.model.task in _POOLED else "/v1/completions",
                    probe_body={"input": "ready?"}
                    if candidate.model.task in _POOLED
                    else {"prompt": "ready?", "max_tokens": 1, "cache_prompt": False},
                ),
            ),
        )

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
        found: dict[str, float] = {}
        for line in exposition.splitlines():
            name, _, value = line.partition(" ")
            if name in _METRICS:
                found[_METRICS[name]] = float(value)
        return found


def _arguments(candidate: Candidate, model_path: str, ports: Ports) -> tuple[str, ...]:
    """llama-server's arguments; options that the plan set come first, the user's own extra_args last."""
    options = dict(planned_options(candidate))
    kv_dtype = "f16" if candidate.kv_dtype == "auto" else candidate.kv_dtype
    arguments = [
        "--model", model_path,
        "--alias", candidate.deployment.name,
        "--host", ports.host,
        "--port", str(ports.serve),
        "--ctx-size", str(candidate.context_tokens * candidate.sequences),
        "--parallel", str(candidate.sequences),
        "--cache-type-k", kv_dtype,
        "--cache-type-v", kv_dtype,
        "--cache-ram", str(options.pop("cache_ram", 0)),
        "--fit", "off",
        "--metrics", "--slots", "--no-ui",
        "--verbosity", "4",
    ]  # fmt: skip
    if candidate.model.task in _POOLED:
        arguments.append("--reranking" if candidate.model.task == "rerank" else "--embeddings")
    return (*arguments, *as_flags(options), *candidate.deployment.extra_args)
