"""`transformers serve`: any model that transformers knows, on one device or spread over several by `device_map`.

Flags as of 5.23.0 (`cli/serve.py`). No context limit, no tensor parallelism, no served name: requests carry the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.engines.arguments import command_flags
from plimsoll.engines.devices import visible_devices
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import read_lines
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Vendor
from plimsoll.plan.rules.options import Value
from plimsoll.plan.types import Candidate, Replica

NEWEST = "5.23.0"
_VERSION = re.compile(r"transformers(?:==| version:? )(\d[\w.]*)")
_DEVICES = {"nvidia": "cuda", "amd": "cuda", "ascend": "npu", "apple": "mps", "intel": "xpu", "cpu": "cpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformers:
    """transformers' own server. `command` is its command line tool."""

    command: tuple[str, ...] = ("transformers", "serve")
    version: str = NEWEST
    vendors: tuple[Vendor, ...] = ("nvidia", "amd", "ascend", "apple", "intel", "cpu")
    """That this build runs on, by its torch."""
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="transformers",
            version=self.version,
            formats=("safetensors", "pytorch"),
            quantizations=("awq", "gptq", "auto-round", "fp8", "compressed-tensors", "bitsandbytes", "mxfp4", "quark"),
            vendors=self.vendors,
            tasks=("chat", "completion"),
            parallel=("layer",),
            memory="transformers",
            routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/health"),
            health_path="/health",
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One server, pinned to the model."""
        candidate = replica.candidate
        path = replica.model_path
        return (
            Process(
                name="server",
                argv=(*self.command, path, *command_flags(_planned(candidate, ports), candidate, negate=True)),
                env={**visible_devices(candidate), **candidate.deployment.env},
                port=ports.serve,
                ready=Ready(
                    health_path="/health",
                    probe_path="/v1/completions",
                    probe_body={"model": path, "prompt": "ready?", "max_tokens": 1},
                    timeout_s=1200.0,
                ),
                served_name=path,
            ),
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """Its version, where it tells; nothing of memory."""
        return read_lines(lines, (), version=_VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """It has none."""
        return {}


def _planned(candidate: Candidate, ports: Ports) -> dict[str, Value | None]:
    device = _DEVICES[candidate.devices[0].vendor]
    several = len(candidate.devices) > 1
    asked = candidate.deployment.quantization
    return {
        "host": ports.host,
        "port": ports.serve,
        "device": "auto" if several else device,
        "dtype": candidate.dtype if candidate.dtype != "auto" else None,
        "quantization": asked if asked in ("bnb-4bit", "bnb-8bit") else None,
        "continuous_batching": candidate.sequences > 1,
        "cb_max_batch_tokens": candidate.batched_tokens if candidate.sequences > 1 else None,
        "cb_max_memory_percent": candidate.memory_share if candidate.sequences > 1 else None,
        "trust_remote_code": candidate.deployment.trust_remote_code,
        # Lines of uvicorn are the only sign of life while it loads.
        "log_level": "info",
    }
