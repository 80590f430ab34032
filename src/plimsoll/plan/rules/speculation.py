"""Speculative decoding: drafts, their ranks, their tokens and their room in the batch."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case, as_number
from plimsoll.plan.rules.registry import Example, Fault, rule

_MTP_1: Example = {"speculative_config": '{"method": "mtp", "num_speculative_tokens": 1}'}
_MTP_3: Example = {"speculative_config": '{"method": "mtp", "num_speculative_tokens": 3}'}
_NGRAM: Example = {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 5}'}
_NO_MTP = {
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3",
    "gemma3_text", "phi", "phi3", "phimoe", "gpt_oss", "bert", "roberta", "xlm-roberta", "falcon", "bloom", "gpt2",
    "opt", "granite", "olmo", "olmo2", "stablelm", "starcoder2", "minimax_m2", "qwen2_vl", "qwen2_5_vl", "deepseek_v2",
}  # fmt: skip
"""Types that vLLM 0.32 answers with "Unsupported speculative method"."""
_SGLANG_PP: Example = {"engine": "sglang", "pp": 2}


@rule(
    "vllm.draft_ranks",
    versions=">=0.6.4.post1",
    cause="a draft model runs on one rank or on all",
    source="vllm 0.33.0: vllm/config/speculative.py:1868",
    fires={"tp": 4, "options": {"speculative_config.model": "d", "speculative_config.num_speculative_tokens": 3,
                                "speculative_config.draft_tensor_parallel_size": 2}},
    passes={"tp": 4, "options": {"speculative_config.model": "d", "speculative_config.num_speculative_tokens": 3,
                                 "speculative_config.draft_tensor_parallel_size": 4}},
)  # fmt: skip
def draft_ranks(case: Case) -> Fault | None:
    """The draft model's tensor-parallel size is neither 1 nor the model's."""
    ranks = as_number(case.json("speculative_config").get("draft_tensor_parallel_size"))
    ranks = ranks or case.number("speculative_draft_tensor_parallel_size")
    if ranks is None or int(ranks) in (1, case.tp):
        return None
    return Fault(
        what=f"draft tensor-parallel size {int(ranks)} is neither 1 nor {case.tp}",
        fix="1",
        mend=(("extra_args.speculative_config.draft_tensor_parallel_size", 1),),
    )


@rule(
    "vllm.draft_tokens_missing",
    versions=">=0.8.3",
    cause="the number of draft tokens has no default for a separate draft model",
    source="vllm 0.33.0: vllm/config/speculative.py:1616,1948",
    fires={"options": {"speculative_config": '{"model": "d"}'}},
    passes={"options": {"speculative_config": '{"model": "d", "num_speculative_tokens": 4}'}},
)
def draft_tokens_missing(case: Case) -> Fault | None:
    """A draft model or n-gram drafts without a number of tokens."""
    config = case.json("speculative_config")
    method = str(config.get("method") or case.text("spec_method"))
    if not (config.get("model") or method in ("ngram", "draft_model") or case.text("spec_model")):
        return None
    if config.get("num_speculative_tokens") or case.text("spec_tokens") or "mtp" in method:
        return None
    return Fault(
        what="a draft without num_speculative_tokens",
        fix="num_speculative_tokens 3 to 5",
        mend=(("extra_args.speculative_config.num_speculative_tokens", 4),),
    )


@rule(
    "vllm.draft_ranks_key",
    versions=">=0.16.0",
    cause="the key is draft_tensor_parallel_size",
    source="vllm 0.33.0: vllm/config/speculative.py:1942",
    fires={"options": {"speculative_config": '{"model": "d", "num_speculative_tokens": 4, "tensor_parallel_size": 1}'}},
    passes={"options": {"speculative_config": '{"model": "d", "num_speculative_tokens": 4}'}},
)
def draft_ranks_key(case: Case) -> Fault | None:
    """tensor_parallel_size inside --speculative-config."""
    config = case.json("speculative_config")
    if "tensor_parallel_size" not in config:
        return None
    return Fault(
        what="tensor_parallel_size is no key of --speculative-config",
        fix="draft_tensor_parallel_size",
        mend=(
            ("extra_args.speculative_config.tensor_parallel_size", None),
            ("extra_args.speculative_config.draft_tensor_parallel_size", config["tensor_parallel_size"]),
        ),
    )


@rule(
    "vllm.mtp_tokens",
    versions=">=0.8.0",
    cause="the predicted tokens are made in rounds of as many as the model has layers for it",
    source="vllm 0.33.0: vllm/config/speculative.py:1611",
    fires={
        "config": {"num_nextn_predict_layers": 2},
        "options": _MTP_3,
    },
    passes={
        "config": {"num_nextn_predict_layers": 1},
        "options": _MTP_3,
    },
)
def mtp_tokens(case: Case) -> Fault | None:
    """num_speculative_tokens is no multiple of the model's prediction layers."""
    config = case.json("speculative_config")
    layers = int(case.model.config.get("num_nextn_predict_layers") or 0)
    tokens = int(as_number(config.get("num_speculative_tokens")) or 0)
    if "mtp" not in str(config.get("method", "")) or layers < 2 or tokens <= layers or tokens % layers == 0:
        return None
    return Fault(
        what=f"num_speculative_tokens {tokens} is no multiple of {layers}",
        fix=f"{tokens // layers * layers}",
        mend=(("extra_args.speculative_config.num_speculative_tokens", tokens // layers * layers),),
    )


@rule(
    "vllm.mtp_method_name",
    versions=">=0.11.0",
    severity="warning",
    cause="the names by model family are deprecated",
    source="vllm 0.33.0: vllm/config/speculative.py:1248",
    fires={"options": {"speculative_config": '{"method": "deepseek_mtp", "num_speculative_tokens": 1}'}},
    passes={"options": _MTP_1},
)
def mtp_method_name(case: Case) -> Fault | None:
    """A family's name for multi-token prediction."""
    method = str(case.json("speculative_config").get("method", ""))
    if not method.endswith("_mtp"):
        return None
    return Fault(
        what=f"the method {method} is called mtp",
        fix="method mtp",
        mend=(("extra_args.speculative_config.method", "mtp"),),
    )


@rule(
    "vllm.mtp_without_layers",
    versions=">=0.8.0",
    cause="multi-token prediction uses layers that come with the model",
    source="vllm 0.32.0: vllm/config/speculative.py, tried",
    fires={"config": {"model_type": "llama"}, "options": _MTP_1},
    passes={"config": {"model_type": "deepseek_v3"}, "options": _MTP_1},
)
def mtp_without_layers(case: Case) -> Fault | None:
    """Multi-token prediction for a model without the layers."""
    config = case.json("speculative_config")
    if "mtp" not in str(config.get("method", "")) or config.get("model"):
        return None
    if case.model_type not in _NO_MTP:
        return None
    return Fault(
        what=f"models of type {case.model_type} have no layers for multi-token prediction",
        fix="ngram, or a draft model",
        mend=(("extra_args.speculative_config", None),),
    )


@rule(
    "vllm.lora_speculation_budget",
    versions=">=0.11.1",
    cause="each request brings its draft tokens into the batch",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:2722",
    fires={"sequences": 256, "batched_tokens": 1024, "options": {"enable_lora": True, "speculative_config":
           '{"method": "ngram", "num_speculative_tokens": 5}'}},
    passes={"sequences": 256, "batched_tokens": 2048, "options": {"enable_lora": True, "speculative_config":
            '{"method": "ngram", "num_speculative_tokens": 5}'}},
)  # fmt: skip
def lora_speculation_budget(case: Case) -> Fault | None:
    """LoRA with drafts and too small a batch."""
    tokens = int(as_number(case.json("speculative_config").get("num_speculative_tokens")) or 0)
    batch, needed = case.candidate.batched_tokens, case.candidate.sequences * (tokens + 1)
    if not case.on("enable_lora") or not tokens or batch is None or batch >= needed:
        return None
    return Fault(
        what=f"max_num_batched_tokens {batch} is below {case.candidate.sequences} x {tokens + 1} tokens",
        fix=f"--max-num-batched-tokens {needed}",
        mend=(("extra_args.max_num_batched_tokens", needed),),
    )


@rule(
    "vllm.small_batch_with_speculation",
    versions=">=0.20.0",
    severity="info",
    cause="the draft tokens come out of the batch",
    source="vllm 0.33.0: vllm/config/vllm.py:2363",
    fires={
        "batched_tokens": 2048,
        "options": _NGRAM,
    },
    passes={
        "batched_tokens": 16384,
        "options": _NGRAM,
    },
)
def small_batch_with_speculation(case: Case) -> Fault | None:
    """Speculative decoding with a batch below 8192 tokens."""
    batch = case.candidate.batched_tokens
    if not case.json("speculative_config") or batch is None or batch >= 8192:
        return None
    return Fault(what=f"{batch} tokens per step with drafts", fix="--max-num-batched-tokens 8192 or more")


@rule(
    "sglang.speculation_caps_requests",
    versions=">=0.5.4",
    severity="warning",
    cause="with drafts SGLang sets --max-running-requests to 48 unless told otherwise",
    source="sglang 0.5.23: sglang/srt/arg_groups/speculative_hook.py:445",
    fires={"engine": "sglang", "sequences": 64, "options": {"speculative_algorithm": "NGRAM"}},
    passes={
        "engine": "sglang",
        "sequences": 64,
        "options": {"speculative_algorithm": "NGRAM", "max_running_requests": 64},
    },
)
def speculation_caps_requests(case: Case) -> Fault | None:
    """Speculative decoding without --max-running-requests."""
    if not case.text("speculative_algorithm") or case.text("max_running_requests") or case.candidate.sequences <= 48:
        return None
    return Fault(
        what="48 requests at once, not more",
        fix=f"--max-running-requests {case.candidate.sequences}",
        mend=(("extra_args.max_running_requests", case.candidate.sequences),),
    )


@rule(
    "sglang.draft_missing",
    versions=">=0.5.3",
    cause="this algorithm drafts with a model of its own",
    source="sglang 0.5.23: sglang/srt/arg_groups/speculative_hook.py:326",
    fires={"engine": "sglang", "options": {"speculative_algorithm": "DFLASH"}},
    passes={"engine": "sglang", "options": {"speculative_algorithm": "DFLASH", "speculative_draft_model_path": "d"}},
)
def draft_missing(case: Case) -> Fault | None:
    """A speculative algorithm without its draft model."""
    algorithm = case.text("speculative_algorithm")
    if algorithm not in ("DFLASH", "STANDALONE", "EAGLE3"):
        return None
    if case.text("speculative_draft_model_path") or case.candidate.deployment.draft_model:
        return None
    return Fault(
        what=f"{algorithm} without --speculative-draft-model-path",
        fix="name the draft model",
        # The others are let through and fail while the draft loads.
        severity="error" if algorithm == "DFLASH" else "warning",
    )


@rule(
    "sglang.pipeline_speculation_outside_prefill",
    versions=">=0.5.20",
    cause="drafts cross pipeline stages on prefill nodes only",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:162",
    fires={**_SGLANG_PP, "options": {"speculative_algorithm": "EAGLE"}},
    passes={
        "engine": "sglang",
        "pp": 2,
        "options": {"speculative_algorithm": "EAGLE", "disaggregation_mode": "prefill"},
    },
)
def pipeline_speculation_outside_prefill(case: Case) -> Fault | None:
    """EAGLE with pipeline parallelism outside prefill nodes."""
    if case.pp == 1 or case.text("speculative_algorithm") != "EAGLE":
        return None
    if case.text("disaggregation_mode") == "prefill" or case.env.get("SGLANG_ENABLE_PP_SPEC") == "1":
        return None
    return Fault(
        what="EAGLE with pipeline parallelism",
        fix="drop one, or SGLANG_ENABLE_PP_SPEC=1",
        mend=(("env.SGLANG_ENABLE_PP_SPEC", "1"),),
    )
