"""OpenVINO GenAI: the fastest engine measured on CPUs, behind a thin server process of ours (`serve_openvino`).

The library batches continuously and reads GGUF by itself; the server gives it HTTP. Settings are those of its
SchedulerConfig (2026.4): blocks of cache, sequences and tokens of a step.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.engines.arguments import command_flags
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import count, gib, read_exposition, read_lines
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.rules.options import Value
from plimsoll.plan.types import Replica

NEWEST = "2026.4.1.0"
SERVER = "plimsoll.engines.serve_openvino"
_LINES = (
    count(r"serve_openvino: loaded in ([\d.]+) s", "load_s"),
    gib(r"serve_openvino: model ([\d.]+) GiB", "weights_bytes"),
    gib(r"serve_openvino: cache ([\d.]+) GiB", "kv_cache_bytes"),
    count(r"serve_openvino: cache [\d.]+ GiB, (\d+) blocks", "kv_blocks"),
    count(r"serve_openvino: (\d+) sequences of (\d+) tokens", "sequences", "context_tokens"),
)
_VERSION = re.compile(r"serve_openvino: openvino-genai (\d[\d.]*)")
_METRICS = {
    "openvino_requests_running": "running",
    "openvino_requests_waiting": "waiting",
    "openvino_kv_cache_usage_ratio": "kv_usage",
    "openvino_prompt_tokens_total": "prompt_tokens",
    "openvino_output_tokens_total": "output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVino:
    """OpenVINO GenAI. `command` starts the server: a Python with openvino-genai in it and the server's module."""

    command: tuple[str, ...] = (sys.executable, "-m", SERVER)
    version: str = NEWEST
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="openvino",
            version=self.version,
            formats=("gguf",),
            quantizations=("gguf",),
            vendors=("cpu", "intel"),
            tasks=("chat", "completion"),
            parallel=(),
            memory="openvino",
            routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics"),
            health_path="/health",
            kv_dtypes=("auto", "f16", "u8"),
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One server process."""
        candidate = replica.candidate
        planned: dict[str, Value | None] = {
            "model": replica.model_path,
            "alias": candidate.deployment.name,
            "host": ports.host,
            "port": ports.serve,
            "device": "CPU" if candidate.devices[0].vendor == "cpu" else f"GPU.{candidate.devices[0].index}",
            "max_context": candidate.context_tokens,
            "max_num_seqs": candidate.sequences,
            "max_num_batched_tokens": candidate.batched_tokens,
            "num_kv_blocks": replica.ledger.kv_blocks,
            "kv_cache_precision": candidate.kv_dtype if candidate.kv_dtype != "auto" else None,
        }
        return (
            Process(
                name="server",
                argv=(*self.command, *command_flags(planned, candidate)),
                env=dict(candidate.deployment.env),
                port=ports.serve,
                ready=Ready(
                    health_path="/health",
                    probe_path="/v1/completions",
                    probe_body={"model": candidate.deployment.name, "prompt": "ready?", "max_tokens": 1},
                ),
            ),
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """What the server says of itself."""
        return read_lines(lines, _LINES, version=_VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Neutral names from the server's /metrics."""
        return read_exposition(exposition, _METRICS)
