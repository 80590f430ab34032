"""FastChat's worker, templates and addresses, and what transformers serve cannot."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Example, Fault, rule

_FASTCHAT: Example = {"engine": "fastchat"}
_TEMPLATES = ("vicuna", "llama", "qwen", "chatglm", "baichuan", "mistral", "mixtral", "yi-", "gemma", "deepseek",
              "zephyr", "falcon", "codellama", "internlm", "phi-", "solar", "tulu", "wizard", "alpaca", "dolly",
              "koala", "openchat", "starchat", "xgen", "mpt", "claude", "gpt", "olmo", "dbrx", "yuan")  # fmt: skip
"""Parts of names that the conversation registry of 0.2.36 answers to."""


@rule(
    "fastchat.worker_needs_old_vllm",
    cause="its vllm_worker calls what vLLM removed: use_beam_search (0.6.3), engine.tokenizer (0.11), best_of (0.12)",
    source="fastchat 0.2.36: fastchat/serve/vllm_worker.py:57,110,117, tried against vLLM 0.33.0",
    fires={**_FASTCHAT, "options": {"vllm_worker": True, "vllm_version": "0.33.0"}},
    passes={**_FASTCHAT, "options": {"vllm_worker": True, "vllm_version": "0.6.2"}},
)
def worker_needs_old_vllm(case: Case) -> Fault | None:
    """vllm_worker with a vLLM newer than 0.6.2."""
    if not case.on("vllm_worker"):
        return None
    try:
        version = Version(case.text("vllm_version") or "1000")
    except InvalidVersion:
        return None
    if version <= Version("0.6.2"):
        return None
    return Fault(
        what="FastChat's vllm_worker works with vLLM up to 0.6.2 only",
        fix="engine vllm, whose server does what the three processes did; or vllm==0.6.2 in the worker's environment",
        mend=(("engine", "vllm"), ("extra_args.vllm_worker", None), ("extra_args.vllm_version", None)),
    )


@rule(
    "fastchat.no_template",
    severity="warning",
    cause="chat formats are looked up by name in a registry of early 2024; the model's own template is not used",
    source="fastchat 0.2.36: fastchat/serve/model_worker.py:318",
    fires={**_FASTCHAT, "model_id": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    passes={**_FASTCHAT, "model_id": "lmsys/vicuna-7b-v1.5"},
)
def no_template(case: Case) -> Fault | None:
    """A model that FastChat's registry does not know."""
    name = case.candidate.deployment.model.lower()
    if case.text("conv_template") or any(part in name for part in _TEMPLATES) or case.pooling:
        return None
    return Fault(
        what="the conversation format would be a generic one, without stop tokens",
        fix="--conv-template, or an engine that reads the model's own template",
    )


@rule(
    "fastchat.open_controller",
    severity="warning",
    cause="only the API server knows keys: workers can be registered and used by whoever reaches them",
    source="fastchat 0.2.36: fastchat/serve/controller.py:288",
    fires={**_FASTCHAT, "options": {"host": "::"}},
    passes={**_FASTCHAT, "options": {"host": "127.0.0.1"}},
)
def open_controller(case: Case) -> Fault | None:
    """Controller and worker on all interfaces."""
    if case.text("host") not in ("0.0.0.0", "::"):  # noqa: S104
        return None
    return Fault(
        what="controller and workers listen on all interfaces without keys",
        fix="127.0.0.1, with the gateway in front",
        mend=(("extra_args.host", None),),
    )


@rule(
    "fastchat.answers_are_cut",
    severity="info",
    cause="the API server waits 100 s for a worker unless FASTCHAT_WORKER_API_TIMEOUT says otherwise",
    source="fastchat 0.2.36: fastchat/constants.py:36",
    fires={**_FASTCHAT, "vendor": "cpu", "context_tokens": 32768},
    passes={**_FASTCHAT, "vendor": "cpu", "context_tokens": 32768, "env": {"FASTCHAT_WORKER_API_TIMEOUT": "1200"}},
)
def answers_are_cut(case: Case) -> Fault | None:
    """Long answers on a CPU with the default timeout."""
    if case.vendor != "cpu" or case.candidate.context_tokens < 8192 or case.env.get("FASTCHAT_WORKER_API_TIMEOUT"):
        return None
    return Fault(
        what="answers that take more than 100 s are cut",
        fix="FASTCHAT_WORKER_API_TIMEOUT=1200",
        mend=(("env.FASTCHAT_WORKER_API_TIMEOUT", "1200"),),
    )


@rule(
    "transformers.attention_implementation",
    cause="it takes eager, sdpa, flash_attention_2, flash_attention_3, flex_attention or a kernel of the hub",
    source="transformers 5.23.0: transformers/cli/serving/model_manager.py:208",
    fires={"engine": "transformers", "options": {"attn_implementation": "xformers"}},
    passes={"engine": "transformers", "options": {"attn_implementation": "sdpa"}},
)
def attention_implementation(case: Case) -> Fault | None:
    """--attn-implementation names no implementation."""
    name = case.text("attn_implementation")
    known = ("", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
    if name in known or "/" in name:
        return None
    return Fault(
        what=f"--attn-implementation {name}",
        fix="sdpa",
        mend=(("extra_args.attn_implementation", "sdpa"),),
    )


@rule(
    "transformers.one_at_a_time",
    severity="warning",
    cause="without continuous batching requests wait for each other",
    source="transformers 5.23.0: transformers/cli/serve.py:54; measured: 38 and 281 tokens/s at 16 users with it",
    fires={"engine": "transformers", "sequences": 16, "options": {"no_continuous_batching": True}},
    passes={"engine": "transformers", "sequences": 16, "options": {"continuous_batching": True}},
)
def one_at_a_time(case: Case) -> Fault | None:
    """Many requests at once with continuous batching off."""
    if case.candidate.sequences <= 1 or not case.off("continuous_batching"):
        return None
    return Fault(
        what=f"{case.candidate.sequences} requests are served one after the other",
        fix="--continuous-batching",
        mend=(("extra_args.continuous_batching", True), ("extra_args.no_continuous_batching", None)),
    )
