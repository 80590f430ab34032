"""Ollama: `ollama serve`, set up by its environment and a Modelfile, single host; it runs llama.cpp underneath.

Settings as of main of August 2026 (`envconfig/config.go`, `docs/modelfile.mdx`). `num_ctx` counts for each request
slot. Nothing here is a flag: `ollama create` is told by the Modelfile, the server by its environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from plimsoll.engines.arguments import word_of
from plimsoll.engines.devices import on_cpu, visible_devices
from plimsoll.engines.llamacpp import LlamaCpp
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import count, gib, read_lines
from plimsoll.facts.engine import EngineFacts
from plimsoll.plan.types import Candidate, Replica

NEWEST = "0.33.0"
_LINES = (
    count(r"llama(?:-server| runner) started in ([\d.]+) seconds", "load_s"),
    gib(r'memory\.required\.full="([\d.]+) GiB"', "total_bytes"),
)
_VERSION = re.compile(r"Listening on \S+ \(version (\d\S*?)\)")
PARAMETERS = frozenset({
    "main_gpu", "num_batch", "num_thread", "num_keep", "num_predict", "repeat_last_n", "repeat_penalty", "seed", "stop",
    "temperature", "top_k", "top_p", "min_p", "draft_num_predict", "use_mmap",
})  # fmt: skip
"""Options that become PARAMETER lines; the rest must be OLLAMA_* and is put into the environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ollama:
    """Ollama. `command` is its binary."""

    command: tuple[str, ...] = ("ollama",)
    version: str = NEWEST
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="ollama",
            version=self.version,
            formats=("gguf",),
            quantizations=("gguf",),
            vendors=("nvidia", "amd", "apple", "cpu"),
            tasks=("chat", "completion", "embed"),
            parallel=("layer",),
            memory="ollama",
            routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
                    "/v1/messages", "/api/chat", "/api/generate", "/api/embed"),
            health_path="/api/version",
            kv_dtypes=("f16", "q8_0", "q4_0"),
            installed=self.installed,
        )  # fmt: skip

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """The server; once it is up the model is created from the Modelfile (or pulled), and the probe loads it."""
        candidate = replica.candidate
        served = candidate.deployment.name
        pulled = not replica.model_path.startswith(("/", "./", "~"))
        path = f"{ports.directory or '.'}/Modelfile"
        pull = ((*self.command, "pull", replica.model_path),) if pulled else ()
        embeds = candidate.model.task == "embed"
        body: dict[str, object] = {"model": served}
        return (
            Process(
                name="server",
                argv=(*self.command, "serve"),
                env={**environment(candidate, ports), **candidate.deployment.env},
                files={path: modelfile(replica)},
                once_up=(*pull, (*self.command, "create", served, "-f", path)),
                port=ports.serve,
                ready=Ready(
                    health_path="/api/version",
                    probe_path="/api/embed" if embeds else "/api/generate",
                    probe_body=body | ({"input": "ready?"} if embeds else _ONE_TOKEN),
                    timeout_s=1800.0,
                ),
                image=f"ollama/ollama:{candidate.engine.version}",
            ),
        )

    def read_log(self, lines: Iterable[str]) -> Observed:
        """What llama.cpp reports inside it, and its own estimate of all memory."""
        told = list(lines)
        inner = LlamaCpp(command=(), version="").read_log(told)
        own = read_lines(told, _LINES, version=_VERSION)
        return replace(own, quantities={**inner.quantities, **own.quantities}, lines=(*inner.lines, *own.lines))

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """It has none."""
        return {}


_ONE_TOKEN: dict[str, object] = {"prompt": "ready?", "stream": False, "options": {"num_predict": 1}}


def environment(candidate: Candidate, ports: Ports) -> dict[str, str]:
    """The server's environment: one model that is never unloaded, as many slots as planned."""
    env = {
        "OLLAMA_HOST": f"{ports.host}:{ports.serve}",
        "OLLAMA_NUM_PARALLEL": str(candidate.sequences),
        "OLLAMA_CONTEXT_LENGTH": str(candidate.context_tokens),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        **visible_devices(candidate),
    }
    if candidate.kv_dtype not in ("auto", "f16"):
        # A quantised cache runs with flash attention only; without it Ollama falls back to f16 in silence.
        env |= {"OLLAMA_KV_CACHE_TYPE": candidate.kv_dtype, "OLLAMA_FLASH_ATTENTION": "1"}
    if len(candidate.devices) > 1:
        env["OLLAMA_SCHED_SPREAD"] = "1"
    return env | {
        name.upper(): word_of(value) for name, value in candidate.options.items() if name.lower().startswith("ollama_")
    }


def modelfile(replica: Replica) -> str:
    """The Modelfile: weights, context of one slot, layers on the GPUs where the plan says how many."""
    candidate = replica.candidate
    lines = [f"FROM {_quoted(replica.model_path)}", f"PARAMETER num_ctx {candidate.context_tokens}"]
    layers = candidate.options.get("num_gpu", candidate.options.get("n_gpu_layers"))
    if layers is None and on_cpu(candidate) and candidate.host.devices:
        layers = 0
    if layers is not None:
        lines.append(f"PARAMETER num_gpu {layers}")
    lines += [f"PARAMETER {name} {value}" for name, value in candidate.options.items() if name in PARAMETERS]
    if candidate.deployment.draft_model:
        lines.append(f"DRAFT {_quoted(candidate.deployment.draft_model)}")
    return "\n".join(lines) + "\n"


def _quoted(path: str) -> str:
    """A Modelfile's word runs to the end of its line; only a line's end cannot be in it."""
    return " ".join(path.splitlines())
