"""Context lengths, batches and chunks against the model and each other."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule


def _context_mend(case: Case, flag: str) -> tuple[tuple[str, object], ...]:
    return (("context", case.model.max_context_tokens), (f"extra_args.{flag}", None))


@rule(
    "vllm.context_beyond_model",
    cause="beyond the trained length positions mean nothing to the model",
    source="vllm 0.33.0: vllm/config/model.py:2664",
    fires={"context_tokens": 65536, "max_context_tokens": 32768},
    passes={"context_tokens": 32768, "max_context_tokens": 32768},
)
@rule(
    "sglang.context_beyond_model",
    versions=">=0.3.6",
    cause="beyond the trained length positions mean nothing to the model",
    source="sglang 0.5.23: sglang/srt/configs/model_config.py:1315",
    fires={"engine": "sglang", "context_tokens": 65536, "max_context_tokens": 32768},
    passes={"engine": "sglang", "context_tokens": 32768, "max_context_tokens": 32768},
)
def context_beyond_model(case: Case) -> Fault | None:
    """The context is longer than the model's."""
    wanted, most = case.candidate.context_tokens, case.model.max_context_tokens
    if not most or wanted <= most:
        return None
    allowed = ("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN")
    if any(case.env.get(name) == "1" for name in allowed):
        return None
    if any(case.json(name) for name in ("hf_overrides", "json_model_override_args", "rope_scaling")):
        return None
    flag = "context_length" if case.engine == "sglang" else "max_model_len"
    override = "--json-model-override-args" if case.engine == "sglang" else "--hf-overrides"
    return Fault(
        what=f"a context of {wanted} tokens, and the model was made for {most}",
        fix=f"a context of at most {most}, or rope scaling by {override}",
        mend=_context_mend(case, flag),
    )


@rule(
    "llamacpp.context_beyond_model",
    severity="warning",
    cause="llama-server caps each slot at the trained length",
    source="llama.cpp b11434: tools/server/server-context.cpp:1366",
    fires={"engine": "llamacpp", "context_tokens": 65536, "max_context_tokens": 32768},
    passes={"engine": "llamacpp", "context_tokens": 65536, "max_context_tokens": 32768,
            "options": {"rope_scaling": "yarn"}},
)  # fmt: skip
@rule(
    "ollama.context_beyond_model",
    severity="warning",
    cause="Ollama caps num_ctx at the trained length without a word",
    source="ollama fb30760: server/routes.go:2341",
    fires={"engine": "ollama", "context_tokens": 65536, "max_context_tokens": 32768},
    passes={"engine": "ollama", "context_tokens": 32768, "max_context_tokens": 32768},
)
@rule(
    "mindie.context_beyond_model",
    severity="warning",
    cause="MindIE does not check it; answers get worse beyond the trained length",
    source="MindIE-LLM 8b4871a: service_parameter_configuration.md:114",
    fires={"engine": "mindie", "vendor": "ascend", "context_tokens": 65536, "max_context_tokens": 32768},
    passes={"engine": "mindie", "vendor": "ascend", "context_tokens": 32768, "max_context_tokens": 32768},
)
def context_capped(case: Case) -> Fault | None:
    """The context is longer than the model's, which is not refused."""
    wanted, most = case.candidate.context_tokens, case.model.max_context_tokens
    if not most or wanted <= most or case.text("rope_scaling") or case.text("yarn_orig_ctx"):
        return None
    return Fault(
        what=f"a context of {wanted} tokens, and the model was made for {most}",
        fix=f"a context of at most {most}",
        mend=(("context", most),),
    )


@rule(
    "vllm.prompt_exceeds_batch",
    cause="without chunked prefill a whole prompt must fit one batch",
    source="vllm 0.33.0: vllm/config/scheduler.py:324",
    fires={"context_tokens": 8192, "batched_tokens": 2048, "options": {"no_enable_chunked_prefill": True}},
    passes={"context_tokens": 8192, "batched_tokens": 2048},
)
def prompt_exceeds_batch(case: Case) -> Fault | None:
    """Chunked prefill is off and the batch is smaller than the context."""
    batch = case.candidate.batched_tokens
    if batch is None or batch >= case.candidate.context_tokens or case.on("enable_chunked_prefill"):
        return None
    if case.encoder:
        # An encoder reads each text whole, so chunks are off by default.
        mend: tuple[tuple[str, object], ...] = (("extra_args.max_num_batched_tokens", None),)
    elif case.off("enable_chunked_prefill"):
        mend = (("extra_args.no_enable_chunked_prefill", None), ("extra_args.enable_chunked_prefill", None))
    else:
        return None
    return Fault(
        what=f"max_num_batched_tokens {batch} is smaller than the context of {case.candidate.context_tokens}, and "
        "prompts are not cut into chunks",
        fix="leave max_num_batched_tokens out" if case.encoder else "leave chunked prefill on",
        mend=mend,
    )


@rule(
    "vllm.batch_below_sequences",
    cause="each running request needs at least one token of the batch",
    source="vllm 0.33.0: vllm/config/scheduler.py:334",
    fires={"batched_tokens": 128, "sequences": 256},
    passes={"batched_tokens": 256, "sequences": 256},
)
def batch_below_sequences(case: Case) -> Fault | None:
    """Fewer tokens per batch than requests at once."""
    batch, sequences = case.candidate.batched_tokens, case.candidate.sequences
    if batch is None or batch >= sequences:
        return None
    return Fault(
        what=f"max_num_batched_tokens {batch} is below max_num_seqs {sequences}",
        fix=f"at most {batch} requests at once, or a larger batch",
        mend=(("concurrency", batch), ("extra_args.max_num_seqs", None)),
    )


@rule(
    "vllm.long_prefill_threshold",
    versions=">=0.7.3",
    cause="a threshold above the context is never reached",
    source="vllm 0.33.0: vllm/config/scheduler.py:359",
    fires={"context_tokens": 4096, "options": {"long_prefill_token_threshold": 8192}},
    passes={"context_tokens": 8192, "options": {"long_prefill_token_threshold": 4096}},
)
def long_prefill_threshold(case: Case) -> Fault | None:
    """--long-prefill-token-threshold exceeds the context."""
    threshold = case.number("long_prefill_token_threshold")
    if threshold is None or threshold <= case.candidate.context_tokens:
        return None
    return Fault(
        what=f"--long-prefill-token-threshold {threshold:.0f} exceeds the context of {case.candidate.context_tokens}",
        fix="leave it out",
        mend=(("extra_args.long_prefill_token_threshold", None),),
    )


@rule(
    "sglang.chunk_not_in_pages",
    versions=">=0.4.10",
    cause="a chunk is a whole number of pages",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:245",
    fires={"engine": "sglang", "options": {"chunked_prefill_size": 2000, "page_size": 64}},
    passes={"engine": "sglang", "options": {"chunked_prefill_size": 2048, "page_size": 64}},
)
def chunk_not_in_pages(case: Case) -> Fault | None:
    """The chunked-prefill size is no multiple of the page size."""
    chunk, page = case.number("chunked_prefill_size"), case.number("page_size")
    # With attention data parallelism each rank has its part of the chunk.
    parts = max(1, int(case.number("attn_dp_size") or 1))
    if not chunk or not page or chunk < 0 or chunk // parts % page == 0:
        return None
    whole = int(max(1, chunk // (page * parts)) * page * parts)
    return Fault(
        what=f"--chunked-prefill-size {chunk:.0f} is no multiple of --page-size {page:.0f}"
        + (f" on each of {parts} attention ranks" if parts > 1 else ""),
        fix=f"--chunked-prefill-size {whole}",
        mend=(("extra_args.chunked_prefill_size", whole),),
    )


@rule(
    "llamacpp.context_is_shared",
    severity="warning",
    cause="--ctx-size is the total over all slots",
    source="llama.cpp b11434: src/llama-context.cpp:297",
    fires={"engine": "llamacpp", "context_tokens": 8192, "options": {"ctx_size": 8192, "parallel": 4}},
    passes={"engine": "llamacpp", "context_tokens": 8192, "options": {"ctx_size": 32768, "parallel": 4}},
)
def context_is_shared(case: Case) -> Fault | None:
    """--ctx-size divided by the slots is shorter than the context."""
    total, slots = case.number("ctx_size"), case.number("parallel") or 1
    if not total or slots <= 1 or case.on("kv_unified"):
        return None
    if total / slots >= case.candidate.context_tokens:
        return None
    return Fault(
        what=f"--ctx-size {total:.0f} over {slots:.0f} slots is {total // slots:.0f} tokens each, not "
        f"{case.candidate.context_tokens}",
        fix=f"--ctx-size {case.candidate.context_tokens * slots:.0f}, or --kv-unified",
        mend=(("extra_args.ctx_size", int(case.candidate.context_tokens * slots)),),
    )


@rule(
    "llamacpp.context_rounded",
    severity="info",
    cause="each slot is a multiple of 256 tokens",
    source="llama.cpp b11434: src/llama-context.cpp:306",
    fires={"engine": "llamacpp", "context_tokens": 1000, "options": {"ctx_size": 4000, "parallel": 4}},
    passes={"engine": "llamacpp", "context_tokens": 1024, "options": {"ctx_size": 4096, "parallel": 4}},
)
def context_rounded(case: Case) -> Fault | None:
    """--ctx-size is no multiple of 256 per slot."""
    total, slots = int(case.number("ctx_size") or 0), int(case.number("parallel") or 1)
    if not total or slots < 1 or case.on("kv_unified") or total % (256 * slots) == 0:
        return None
    return Fault(what=f"--ctx-size {total} is rounded to 256 tokens per slot", fix=f"a multiple of {256 * slots}")


@rule(
    "llamacpp.slots_by_default",
    severity="info",
    cause="without --parallel llama-server opens 4 slots that share one cache",
    source="llama.cpp b11434: tools/server/server.cpp:169",
    fires={"engine": "llamacpp", "options": {"parallel": -1}},
    passes={"engine": "llamacpp", "options": {"parallel": 1}},
)
def slots_by_default(case: Case) -> Fault | None:
    """The number of slots is left to llama-server."""
    if case.number("parallel") != -1:
        return None
    return Fault(what="--parallel -1 is 4 slots with one cache between them", fix="--parallel N")


@rule(
    "llamacpp.layers_by_hand_stop_fitting",
    severity="info",
    cause="--fit adjusts arguments that were left out only",
    source="llama.cpp b11434: common/fit.cpp:464",
    fires={"engine": "llamacpp", "gpus": 2, "options": {"tensor_split": "3,1", "fit": "on"}},
    passes={"engine": "llamacpp", "gpus": 2, "options": {"fit": "on"}},
)
def layers_by_hand_stop_fitting(case: Case) -> Fault | None:
    """--fit together with layers or splits set by hand."""
    by_hand = [n for n in ("gpu_layers", "tensor_split", "override_tensor", "n_cpu_moe") if n in case.options]
    if not case.on("fit") or not by_hand or case.text("gpu_layers") == "auto":
        return None
    return Fault(
        what=f"--fit does nothing with --{by_hand[0].replace('_', '-')} given",
        fix="leave one of them out",
        mend=(("extra_args.fit", None),),
    )


@rule(
    "llamacpp.devices_in_split",
    cause="llama.cpp compares the entries with the limit of 16 devices, and takes 15",
    source="llama.cpp b11434: common/arg.cpp:2845; ggml-org/llama.cpp#13293",
    fires={"engine": "llamacpp", "options": {"tensor_split": ",".join("1" * 16)}},
    passes={"engine": "llamacpp", "options": {"tensor_split": ",".join("1" * 15)}},
)
def devices_in_split(case: Case) -> Fault | None:
    """More than 15 entries in --tensor-split."""
    entries = case.text("tensor_split").replace("/", ",").split(",")
    if len(entries) <= 15:
        return None
    return Fault(
        what=f"--tensor-split has {len(entries)} entries",
        fix="at most 15",
        mend=(("extra_args.tensor_split", None),),
    )


@rule(
    "vllm.small_default_batch",
    versions=">=0.9.0",
    severity="info",
    cause="on devices with less than 70 GiB the API server takes 2048 tokens per step by default",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:3001",
    fires={"memory_gib": 24, "sequences": 256},
    passes={"memory_gib": 24, "sequences": 256, "batched_tokens": 8192},
)
def small_default_batch(case: Case) -> Fault | None:
    """The default batch is small for many requests."""
    if case.candidate.batched_tokens is not None or case.vendor != "nvidia" or case.candidate.sequences < 128:
        return None
    if max(device.memory_bytes for device in case.devices) >= 70 << 30:
        return None
    return Fault(
        what="long prompts of many users will queue for 2048 tokens per step",
        fix="--max-num-batched-tokens 8192 if memory allows",
    )


@rule(
    "vllm.eager_is_slow",
    versions=">=0.5.0",
    severity="info",
    cause="every kernel of every step is launched by Python",
    source="vllm 0.33.0: vllm/config/vllm.py:1779",
    fires={"eager": True, "options": {"enforce_eager": True}},
    passes={"eager": False},
)
def eager_is_slow(case: Case) -> Fault | None:
    """Eager mode on devices that could run graphs."""
    if not case.candidate.eager or case.vendor in ("cpu", "ascend"):
        return None
    return Fault(
        what="eager mode: no CUDA graphs, no compilation",
        fix="leave --enforce-eager out once it works",
        mend=(("extra_args.enforce_eager", None),),
    )
