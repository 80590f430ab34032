"""What opens a machine to others: code and pickles from the hub, and servers without a key."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_ALL = "0.0.0.0"  # noqa: S104
_EVERYWHERE = (_ALL, "::", "[::]")
_KEYS = ("api_key", "api_keys", "api_key_file", "admin_api_key")


@rule(
    "vllm.remote_code_needed",
    cause="the model's classes are in its repository, not in the engine",
    source="vllm 0.33.0: vllm/transformers_utils/config.py:461",
    fires={"remote_code": True},
    passes={"remote_code": True, "trust_remote_code": True},
)
@rule(
    "sglang.remote_code_needed",
    cause="the model's classes are in its repository, not in the engine",
    source="sglang 0.5.23: sglang/srt/arg_groups/fields/model.py:106",
    fires={"engine": "sglang", "remote_code": True},
    passes={"engine": "sglang", "remote_code": True, "trust_remote_code": True},
)
def remote_code_needed(case: Case) -> Fault | None:
    """The model brings its own code and it is not trusted."""
    if not case.model.remote_code or case.candidate.deployment.trust_remote_code or case.on("trust_remote_code"):
        return None
    return Fault(
        what="the model's repository has code of its own (auto_map)",
        fix="read that code, pin the revision, then trust_remote_code: true; or a model that needs none",
        severity="warning",
    )


@rule(
    "any.remote_code_runs",
    severity="warning",
    cause="trust_remote_code runs Python out of the model's repository with all rights of the server",
    source="transformers: auto_map",
    fires={"trust_remote_code": True},
    passes={"trust_remote_code": True, "revision": "0123abcd", "remote_code": True},
)
def remote_code_runs(case: Case) -> Fault | None:
    """Code from the model's repository is trusted, unpinned or for nothing."""
    deployment = case.candidate.deployment
    if not (deployment.trust_remote_code or case.on("trust_remote_code")):
        return None
    if not case.model.remote_code:
        return Fault(
            what="trust_remote_code is on, and this model brings no code",
            fix="leave it out",
            mend=(("trust_remote_code", False), ("extra_args.trust_remote_code", None)),
        )
    if deployment.revision or deployment.model.startswith(("/", ".", "~")):
        return None
    return Fault(what="code of whatever revision is newest is run", fix="pin the revision that was read")


@rule(
    "any.pickled_weights",
    severity="warning",
    cause="unpickling a .bin or .pt file can run code",
    source="PyTorch documentation of torch.load",
    fires={"format": "pytorch"},
    passes={"format": "safetensors"},
)
def pickled_weights(case: Case) -> Fault | None:
    """Weights are pickles."""
    if case.model.format != "pytorch":
        return None
    return Fault(what="the weights are pickles", fix="safetensors of the same model, or convert them once, apart")


@rule(
    "vllm.open_without_key",
    severity="warning",
    cause="whoever reaches the port can use the model",
    source="vllm 0.33.0: vllm/entrypoints/common/cli_args.py:293,335",
    fires={"options": {"host": _ALL}},
    passes={"options": {"host": _ALL, "api_key": "secret"}},
)
@rule(
    "sglang.open_without_key",
    severity="warning",
    cause="whoever reaches the port can use the model",
    source="sglang 0.5.23: sglang/srt/arg_groups/fields/serving.py:65,160",
    fires={"engine": "sglang", "options": {"host": _ALL}},
    passes={"engine": "sglang", "options": {"host": "127.0.0.1"}},
)
@rule(
    "llamacpp.open_without_key",
    severity="warning",
    cause="whoever reaches the port can use the model, and any web page may call it (CORS allows all origins)",
    source="llama.cpp b11434: tools/server/server.cpp:341",
    fires={"engine": "llamacpp", "options": {"host": _ALL}},
    passes={"engine": "llamacpp", "options": {"host": _ALL, "api_key": "secret"}},
)
@rule(
    "transformers.open_without_key",
    severity="warning",
    cause="transformers serve knows no keys",
    source="transformers 5.23.0: transformers/cli/serve.py:111",
    fires={"engine": "transformers", "options": {"host": _ALL}},
    passes={"engine": "transformers", "options": {"host": "localhost"}},
)
@rule(
    "ollama.open_without_key",
    severity="warning",
    cause="Ollama knows no keys: whoever reaches it can use, pull and delete models",
    source="ollama fb30760: envconfig/config.go:21",
    fires={"engine": "ollama", "format": "gguf", "env": {"OLLAMA_HOST": "0.0.0.0:11434"}},
    passes={"engine": "ollama", "format": "gguf", "env": {"OLLAMA_HOST": "127.0.0.1:11434"}},
)
def open_without_key(case: Case) -> Fault | None:
    """The engine listens on all interfaces without a key."""
    host = case.text("host") or case.env.get("OLLAMA_HOST", "").removeprefix("http://").rpartition(":")[0]
    if host not in _EVERYWHERE or any(case.text(key) for key in _KEYS) or case.env.get("VLLM_API_KEY"):
        return None
    mend: tuple[tuple[str, object], ...] = (("extra_args.host", None),)
    if case.engine == "ollama":
        mend = (("env.OLLAMA_HOST", None),)
    return Fault(
        what=f"{case.engine} listens on {host} without a key",
        fix="leave the host out: the gateway is the address for others, with keys",
        mend=mend,
    )


@rule(
    "vllm.key_guards_some_routes",
    severity="info",
    cause="the key guards /v1, /v2 and /inference; /metrics, /tokenize, /invocations and others stay open",
    source="vllm 0.33.0: vllm/entrypoints/common/cli_args.py:339",
    fires={"options": {"host": _ALL, "api_key": "secret"}},
    passes={"options": {"host": "127.0.0.1", "api_key": "secret"}},
)
def key_guards_some_routes(case: Case) -> Fault | None:
    """An API key that does not guard every route."""
    if not case.text("api_key") or case.text("host") not in _EVERYWHERE:
        return None
    return Fault(what="some routes answer without the key", fix="a proxy in front, such as plimsoll's gateway")


@rule(
    "any.key_on_command_line",
    severity="info",
    cause="arguments of processes can be read by every user of the machine",
    source="proc(5)",
    fires={"extra_args": ("--api-key", "secret")},
    passes={"env": {"VLLM_API_KEY": "secret"}},
)
def key_on_command_line(case: Case) -> Fault | None:
    """An API key among the engine's arguments."""
    if not any(arg.startswith(("--api-key", "--api_key")) for arg in case.candidate.deployment.extra_args):
        return None
    return Fault(what="the key is visible in the process list", fix="the gateway's keys, or VLLM_API_KEY in env")


@rule(
    "vllm.cross_origin",
    versions=">=0.32.0",
    severity="info",
    cause="browsers are refused by default since 0.32; all origins are allowed here",
    source="vllm 0.33.0: vllm/entrypoints/common/cli_args.py:329",
    fires={"options": {"allowed_origins": '["*"]'}},
    passes={"options": {"allowed_origins": '["https://app.example"]'}},
)
def cross_origin(case: Case) -> Fault | None:
    """Every web page may call the engine."""
    if "*" not in case.text("allowed_origins"):
        return None
    return Fault(what="every web page may call the engine", fix="the origins of your own pages")
