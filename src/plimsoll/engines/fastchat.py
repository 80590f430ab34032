"""FastChat 0.2.36: a controller, a worker that holds the model, an API server in front, and a web page if asked for.

Its model_worker serves one request at a time with transformers; `worker` as an option names another one
(`vllm_worker` goes with vLLM 0.6.2 and older only). The chat format comes from the model's name, not its template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from plimsoll.engines.arguments import command_flags
from plimsoll.engines.devices import on_cpu, visible_devices
from plimsoll.engines.protocol import Observed, Ports, Process, Ready
from plimsoll.engines.reading import gib, read_lines
from plimsoll.facts.engine import EngineFacts
from plimsoll.facts.hardware import Vendor
from plimsoll.plan.rules.options import Value
from plimsoll.plan.types import Candidate, Replica

NEWEST = "0.2.36"
_LINES = (gib(r"[Ll]oading model weights took ([\d.]+) GB", "weights_bytes"),)
_VERSION = re.compile(r"fschat[ =-]+(\d[\w.]*)")
_OWN = frozenset({"worker", "web"})
_DEVICES = {"nvidia": "cuda", "amd": "cuda", "ascend": "npu", "apple": "mps", "intel": "xpu", "cpu": "cpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FastChat:
    """FastChat. `command` is a Python with fschat in it."""

    command: tuple[str, ...] = ("python3",)
    version: str = NEWEST
    vendors: tuple[Vendor, ...] = ("nvidia", "amd", "ascend", "apple", "intel", "cpu")
    """That this build runs on, by its torch."""
    installed: bool = False

    @property
    def facts(self) -> EngineFacts:
        """What this version can do."""
        return EngineFacts(
            name="fastchat",
            version=self.version,
            formats=("safetensors", "pytorch"),
            quantizations=("gptq", "awq"),
            vendors=self.vendors,
            tasks=("chat", "completion", "embed"),
            parallel=("layer",),
            memory="transformers",
            routes=("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
            health_path="/v1/models",
            installed=self.installed,
        )

    def processes(self, replica: Replica, ports: Ports) -> tuple[Process, ...]:
        """Controller, then worker, then API server; the web page last where the option `web` is set."""
        candidate = replica.candidate
        control, work, page = (*ports.extra, ports.serve + 1, ports.serve + 2, ports.serve + 3)[:3]
        # These two hand out and obey work without a key: they stay on this host whatever address the API has.
        inside = "127.0.0.1"
        controller, worker = f"http://{inside}:{control}", f"http://{inside}:{work}"
        env = dict(candidate.deployment.env)
        kind = str(candidate.options.get("worker", "model_worker"))
        # vllm_worker trusts the model's code unless this flag is given; vLLM's own, with hyphens, is another.
        distrusts = kind == "vllm_worker" and not candidate.deployment.trust_remote_code
        distrust = ("--trust_remote_code",) if distrusts else ()
        planned: dict[str, Value | None] = {
            "model_path": replica.model_path,
            "model_names": candidate.deployment.name,
            "host": inside,
            "port": work,
            "controller_address": controller,
            "worker_address": worker,
            "limit_worker_concurrency": candidate.sequences,
            **(_vllm(candidate) if kind == "vllm_worker" else _own(candidate)),
        }
        found = [
            Process(
                name="controller",
                argv=(*self._module("controller"), "--host", inside, "--port", str(control)),
                env=env,
                port=control,
                ready=Ready(health_path="/test_connection", timeout_s=120.0),
            ),
            Process(
                name="worker",
                argv=(*self._module(kind), *distrust, *command_flags(planned, candidate, taken=_OWN)),
                env={**visible_devices(candidate), **env},
                after=("controller",),
                port=work,
                # It listens only once the model is loaded; its own routes take POST alone.
                ready=Ready(health_path="/openapi.json", timeout_s=1200.0),
            ),
            Process(
                name="api",
                argv=(*self._module("openai_api_server"), "--host", ports.host, "--port", str(ports.serve),
                      "--controller-address", controller),
                env=env,
                after=("worker",),
                port=ports.serve,
                ready=_ready(candidate),
            ),
        ]  # fmt: skip
        if candidate.options.get("web"):
            found.append(
                Process(
                    name="web",
                    argv=(*self._module("gradio_web_server"), "--host", ports.host, "--port", str(page),
                          "--controller-url", controller),
                    env=env,
                    after=("worker",),
                    port=page,
                    ready=Ready(health_path="/", timeout_s=120.0),
                )
            )  # fmt: skip
        return tuple(found)

    def read_log(self, lines: Iterable[str]) -> Observed:
        """What a vLLM worker says; its own worker says nothing of memory."""
        return read_lines(lines, _LINES, version=_VERSION)

    def metrics(self, exposition: str) -> Mapping[str, float]:
        """It has none."""
        return {}

    def _module(self, name: str) -> tuple[str, ...]:
        return (*self.command, "-m", f"fastchat.serve.{name}")


def _own(candidate: Candidate) -> dict[str, Value | None]:
    """Settings of model_worker. Context has none: the model's own length holds."""
    cards = len(candidate.devices)
    return {
        "device": _DEVICES[candidate.devices[0].vendor],
        "num_gpus": cards if cards > 1 else None,
        "dtype": candidate.dtype if candidate.dtype != "auto" else None,
        "load_8bit": candidate.deployment.quantization == "8bit",
    }


def _vllm(candidate: Candidate) -> dict[str, Value | None]:
    """Settings of vllm_worker, which takes vLLM's flags too."""
    cards = len(candidate.devices)
    return {
        "num_gpus": cards if cards > 1 and not on_cpu(candidate) else None,
        "dtype": candidate.dtype if candidate.dtype != "auto" else None,
        "gpu_memory_utilization": candidate.memory_share,
        "max_model_len": candidate.context_tokens,
        "max_num_seqs": candidate.sequences,
    }


def _ready(candidate: Candidate) -> Ready:
    embeds = candidate.model.task == "embed"
    body: dict[str, object] = {"model": candidate.deployment.name}
    return Ready(
        health_path="/v1/models",
        probe_path="/v1/embeddings" if embeds else "/v1/completions",
        probe_body=body | ({"input": "ready?"} if embeds else {"prompt": "ready?", "max_tokens": 1}),
        timeout_s=300.0,
    )
