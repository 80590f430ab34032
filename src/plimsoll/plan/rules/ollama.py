"""Ollama's environment and parameters."""

from __future__ import annotations

from plimsoll.facts.incompatible import architectures
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Example, Fault, rule
from plimsoll.units import GIB

_OLLAMA: Example = {"engine": "ollama", "format": "gguf", "architecture": "llama"}
_INTEGERS = ("OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_MAX_QUEUE", "OLLAMA_CONTEXT_LENGTH",
             "OLLAMA_GPU_OVERHEAD")  # fmt: skip


def _slots(case: Case) -> int:
    text = case.env.get("OLLAMA_NUM_PARALLEL", "")
    return int(text) if text.isdigit() else case.candidate.sequences


@rule(
    "ollama.context_by_memory",
    severity="info",
    cause="without num_ctx the context is 4096, 32768 or 262144 tokens by the sum of device memory",
    source="ollama fb30760: server/routes.go:2052",
    fires={**_OLLAMA, "gpus": 2, "memory_gib": 24, "context_tokens": 8192, "options": {"num_ctx": 0}},
    passes={**_OLLAMA, "gpus": 2, "memory_gib": 24, "context_tokens": 8192, "options": {"num_ctx": 8192}},
)
def context_by_memory(case: Case) -> Fault | None:
    """The context is left to Ollama."""
    if case.number("num_ctx") != 0 or case.env.get("OLLAMA_CONTEXT_LENGTH"):
        return None
    total = sum(device.memory_bytes for device in case.devices if device.vendor != "cpu")
    context = 262144 if total >= 47 * GIB else 32768 if total >= 23 * GIB else 4096
    return Fault(what=f"the context will be {context} tokens on these devices", fix="context in the spec")


@rule(
    "ollama.context_times_requests",
    severity="warning",
    cause="the cache is num_ctx x OLLAMA_NUM_PARALLEL",
    source="ollama fb30760: llm/llama_server.go:375",
    fires={**_OLLAMA, "context_tokens": 32768, "env": {"OLLAMA_NUM_PARALLEL": "30"}},
    passes={**_OLLAMA, "context_tokens": 4096, "env": {"OLLAMA_NUM_PARALLEL": "4"}},
)
def context_times_requests(case: Case) -> Fault | None:
    """Many slots of a long context."""
    slots, context = _slots(case), case.candidate.context_tokens
    if slots <= 1 or slots * context < 262144:
        return None
    return Fault(
        what=f"{slots} slots x {context} tokens are {slots * context} tokens of cache",
        fix="fewer slots, or a shorter context",
    )


@rule(
    "ollama.one_request_at_once",
    severity="warning",
    cause="Ollama gives these families one slot",
    source="ollama fb30760: server/sched.go:509; ollama/ollama#4165",
    fires={**_OLLAMA, "architecture": "qwen3next", "sequences": 8},
    passes={**_OLLAMA, "sequences": 8},
)
def one_request_at_once(case: Case) -> Fault | None:
    """Several requests at once of a family that Ollama serves one by one."""
    if case.gguf_name not in architectures("ollama_one_request") or _slots(case) <= 1:
        return None
    return Fault(
        what=f"{case.model.architecture} is served one request at a time",
        fix="llama.cpp",
        mend=(("engine", "llamacpp"),),
    )


@rule(
    "ollama.num_gpu_zero",
    severity="warning",
    cause="0 layers on the devices is CPU only; -1 is automatic",
    source="ollama fb30760: llm/llama_server.go:406",
    fires={**_OLLAMA, "options": {"num_gpu": 0}},
    passes={**_OLLAMA, "options": {"num_gpu": 16}},
)
def num_gpu_zero(case: Case) -> Fault | None:
    """num_gpu 0 on a machine with devices."""
    if case.number("num_gpu") != 0 or case.vendor == "cpu":
        return None
    return Fault(what="num_gpu 0 leaves the devices idle", fix="leave it out", mend=(("extra_args.num_gpu", None),))


@rule(
    "ollama.smallest_context",
    severity="warning",
    cause="vision models get at least 2048 tokens, others at least 4",
    source="ollama fb30760: server/sched.go:176",
    fires={**_OLLAMA, "multimodal": True, "context_tokens": 1024},
    passes={**_OLLAMA, "multimodal": True, "context_tokens": 2048},
)
def smallest_context(case: Case) -> Fault | None:
    """A context below Ollama's floor."""
    floor = 2048 if case.model.multimodal else 4
    if case.candidate.context_tokens >= floor:
        return None
    return Fault(
        what=f"{case.candidate.context_tokens} tokens become {floor}",
        fix=f"context {floor}",
        mend=(("context", floor),),
    )


@rule(
    "ollama.projector_on_cpu",
    severity="warning",
    cause="the projector follows to the device only when all text layers are there",
    source="ollama fb30760: llm/llama_server.go:675",
    fires={**_OLLAMA, "multimodal": True, "layers": 32, "options": {"num_gpu": 16}},
    passes={**_OLLAMA, "multimodal": True, "layers": 32, "options": {"num_gpu": 33}},
)
def projector_on_cpu(case: Case) -> Fault | None:
    """A vision model with some layers on the CPU."""
    layers = case.number("num_gpu")
    if not case.model.multimodal or layers is None or not 0 < layers < case.model.layers:
        return None
    return Fault(what="images are read on the CPU", fix="num_gpu for all layers")


@rule(
    "ollama.number_not_read",
    severity="warning",
    cause="a value that is no whole number is replaced by the default",
    source="ollama fb30760: envconfig/config.go:263",
    fires={**_OLLAMA, "env": {"OLLAMA_NUM_PARALLEL": "four"}},
    passes={**_OLLAMA, "env": {"OLLAMA_NUM_PARALLEL": "4"}},
)
def number_not_read(case: Case) -> Fault | None:
    """A number in an OLLAMA_ variable that is none."""
    bad = next((name for name in _INTEGERS if name in case.env and not case.env[name].strip().isdigit()), None)
    if bad is None:
        return None
    return Fault(what=f"{bad}={case.env[bad]} is not read", fix="a whole number", mend=((f"env.{bad}", None),))


@rule(
    "ollama.port",
    severity="warning",
    cause="a port outside 0 to 65535 is replaced by 11434",
    source="ollama fb30760: envconfig/config.go:51",
    fires={**_OLLAMA, "env": {"OLLAMA_HOST": "127.0.0.1:99999"}},
    passes={**_OLLAMA, "env": {"OLLAMA_HOST": "127.0.0.1:11434"}},
)
def port(case: Case) -> Fault | None:
    """OLLAMA_HOST with a port that is none."""
    text = case.env.get("OLLAMA_HOST", "").rpartition(":")[2].rstrip("/")
    if not text.isdigit() or int(text) <= 65535:
        return None
    return Fault(what=f"port {text} becomes 11434", fix="a port up to 65535", mend=(("env.OLLAMA_HOST", None),))


@rule(
    "ollama.no_tuning_flags",
    cause="Ollama takes environment variables and PARAMETER lines, no engine flags",
    source="ollama fb30760: envconfig/config.go",
    fires={**_OLLAMA, "extra_args": ("--tensor-parallel-size", "2")},
    passes={**_OLLAMA, "extra_args": ("num_gpu=16",)},
)
def no_tuning_flags(case: Case) -> Fault | None:
    """Command-line flags for Ollama."""
    flags = [arg for arg in case.candidate.deployment.extra_args if arg.startswith("--")]
    if not flags:
        return None
    return Fault(
        what=f"{flags[0]} is no option of Ollama",
        fix="PARAMETER names as extra_args (num_gpu=16), OLLAMA_ variables in env",
        mend=tuple((f"extra_args.{flag[2:].partition('=')[0].replace('-', '_')}", None) for flag in flags),
    )


@rule(
    "ollama.requests_queue",
    severity="warning",
    cause="requests beyond OLLAMA_MAX_QUEUE are answered with 503",
    source="ollama fb30760: server/sched.go:88",
    fires={**_OLLAMA, "sequences": 64, "env": {"OLLAMA_MAX_QUEUE": "16"}},
    passes={**_OLLAMA, "sequences": 64, "env": {"OLLAMA_MAX_QUEUE": "512"}},
)
def requests_queue(case: Case) -> Fault | None:
    """A queue shorter than the requests at once."""
    text = case.env.get("OLLAMA_MAX_QUEUE", "")
    if not text.isdigit() or int(text) >= case.candidate.sequences:
        return None
    return Fault(
        what=f"OLLAMA_MAX_QUEUE={text} for {case.candidate.sequences} requests at once",
        fix="leave OLLAMA_MAX_QUEUE at 512",
        mend=(("env.OLLAMA_MAX_QUEUE", None),),
    )
