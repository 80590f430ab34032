"""The fake engine's adapter: renders `serve_fake`'s command and reads its log. For tests and demos; infers nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from plimsoll.engines.arguments import as_flags, planned_options
from plimsoll.engines.protocol import Observed, Ports, Process, Quantity, Ready
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Replica

FACTS = EngineFacts(
    name="fake",
    version="1.0",
    formats=("safetensors", "gguf", "pytorch"),
    quantizations=(),
    vendors=("cpu",),
    tasks=("chat", "completion", "embed"),
    parallel=(),
    memory="none",
    routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
    health_path="/health",
    fake=True,
)
_PAIR = re.compile(r"\b([a-z_]+)=(\S+)")
_METRICS = {
    "fake_requests_running": "running",
    "fake_requests_waiting": "waiting",
    "fake_kv_cache_usage_ratio": "kv_usage",
    "fake_prompt_tokens_total": "prompt_tokens",
    "fake_output_tokens_total": "output_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """An engine that answers with the same words always; see `serve_fake` for what can be set."""

    command: tuple[str, ...]
    """How `serve_fake` is started: a Python with Plimsoll in it, -m and the module's name."""

    @property
    def facts(self) -> EngineFacts:
        """Marked `fake=True`; the planner never picks it by itself."""
        return FACTS

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """One process; the candidate's options and the deployment's extra_args become its flags."""
        candidate = replica.candidate
        argv = [*self.command, "--host", ports.host, "--port", str(ports.serve)]
        argv += ["--model", candidate.deployment.name, "--slots", str(candidate.sequences)]
        argv += ["--context-tokens", str(candidate.context_tokens)]
        if replica.ledger.kv_tokens:
            argv += ["--kv-tokens", str(replica.ledger.kv_tokens)]
        argv += as_flags(planned_options(candidate))
        embeds = candidate.model.task == "embed"
        body: dict[str, object] = {"model": candidate.deployment.name}
        body |= {"input": "a"} if embeds else {"prompt": "a", "max_tokens": 1}
        ready = Ready(
            health_path=FACTS.health_path,
            probe_path="/v1/embeddings" if embeds else "/v1/completions",
            probe_body=body,
            timeout_s=30.0,
        )
        return (
            Process(
                name="engine",
                argv=(*argv, *candidate.deployment.extra_args),
                env=dict(candidate.deployment.env),
                port=ports.serve,
                ready=ready,
            ),
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """The `name=value` pairs of its `report` line, and its version."""
        quantities: dict[Quantity, float] = {}
        version = None
        kept = []
        for line in lines:
            if not line.startswith("fake-engine "):
                continue
            pairs = dict(_PAIR.findall(line))
            if line.startswith("fake-engine version="):
                version = pairs["version"]
                kept.append(line)
            elif line.startswith("fake-engine report "):
                quantities |= {name: float(pairs[name]) for name in get_args(Quantity) if name in pairs}
                kept.append(line)
        return Observed(quantities=quantities, version=version, lines=tuple(kept))

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """Its own five metrics under neutral names."""
        pairs = (line.split() for line in exposition.splitlines() if line.startswith("fake_"))
        return {_METRICS[name]: float(value) for name, value in pairs if name in _METRICS}
