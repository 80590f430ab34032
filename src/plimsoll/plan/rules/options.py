"""Engine flags as users write them, read into one mapping: long names, underscores, numbers as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Value = str | int | float | bool

ALIASES: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size",
        "q": "quantization", "n": "nnodes", "r": "node_rank", "dcp": "decode_context_parallel_size",
        "dpl": "data_parallel_size_local", "dpa": "data_parallel_address", "dpp": "data_parallel_rpc_port",
        "dpr": "data_parallel_start_rank", "ep": "enable_expert_parallel", "cc": "compilation_config",
        "sc": "speculative_config", "asc": "api_server_count", "device_memory_utilization": "gpu_memory_utilization",
        "O": "optimization_level",
    },
    "sglang": {
        "tp": "tp_size", "tensor_parallel_size": "tp_size", "pp": "pp_size", "pipeline_parallel_size": "pp_size",
        "dp": "dp_size", "data_parallel_size": "dp_size", "ep": "ep_size", "expert_parallel_size": "ep_size",
        "model": "model_path", "tokenizer": "tokenizer_path", "quant": "quantization",
        "nccl_init_addr": "dist_init_addr", "attention_dp_size": "attn_dp_size",
    },
    "llamacpp": {
        "m": "model", "c": "ctx_size", "n": "n_predict", "np": "parallel", "ngl": "gpu_layers",
        "n_gpu_layers": "gpu_layers", "sm": "split_mode", "ts": "tensor_split", "mg": "main_gpu", "dev": "device",
        "b": "batch_size", "ub": "ubatch_size", "md": "spec_draft_model", "model_draft": "spec_draft_model",
        "ctk": "cache_type_k", "ctv": "cache_type_v", "fa": "flash_attn", "a": "alias", "t": "threads",
        "tb": "threads_batch", "kvu": "kv_unified", "cmoe": "cpu_moe", "ncmoe": "n_cpu_moe", "ot": "override_tensor",
        "mm": "mmproj", "embedding": "embeddings", "rerank": "reranking", "hf": "hf_repo", "hfr": "hf_repo",
        "s": "seed", "to": "timeout", "cb": "cont_batching", "nocb": "no_cont_batching", "lm": "load_mode",
        "p": "prompt", "ngld": "gpu_layers_draft", "f": "file",
    },
}  # fmt: skip
"""Short and older spellings, to the name that rules use."""

SWITCHES: Mapping[str, frozenset[str]] = {
    "vllm": frozenset({
        "trust_remote_code", "enforce_eager", "enable_lora", "headless", "enable_expert_parallel",
        "enable_prefix_caching", "enable_chunked_prefill", "enable_auto_tool_choice", "disable_custom_all_reduce",
        "disable_log_stats", "disable_log_requests", "enable_eplb", "enable_log_requests", "enable_sleep_mode",
        "async_scheduling", "worker_use_ray", "engine_use_ray", "enable_reasoning", "use_v2_block_manager",
        "disable_frontend_multiprocessing", "allow_deprecated_quantization", "calculate_kv_scales",
    }),
    "sglang": frozenset({"trust_remote_code", "enable_metrics", "is_embedding", "enable_lora", "enable_mixed_chunk"}),
    "llamacpp": frozenset({
        "embeddings", "reranking", "metrics", "no_slots", "slots", "jinja", "no_jinja", "cont_batching", "mlock",
        "no_mmap", "kv_unified", "cpu_moe", "context_shift", "no_context_shift", "no_webui", "verbose", "swa_full",
        "no_kv_offload", "offline", "props", "no_warmup",
    }),
}  # fmt: skip
"""Flags that take no value, so that what follows is not theirs."""

_NUMBER_FIRST = "-.0123456789"


def options_from_args(engine: str, args: Iterable[str]) -> Mapping[str, Value]:
    """The flags in `args` under their long names with underscores; a bare switch is True, the last of several wins.

    `--max-model-len 8192`, `--max_model_len=8192`, `-tp 2` and `-ngl 99` are all understood; a value that reads as a
    number becomes one. Words that belong to no flag are left out. Several words after one flag are joined by commas.
    """
    return {
        name: True if not words else parse_value(words[0]) if len(words) == 1 else ",".join(words)
        for name, words in words_of_flags(engine, args).items()
    }


def words_of_flags(engine: str, args: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The same with the words after each flag as they stand; none for a bare switch."""
    name = engine.replace("-", "_")
    family = "vllm" if name == "vllm_ascend" else name
    aliases, switches = ALIASES.get(family, {}), SWITCHES.get(family, frozenset())
    found: dict[str, tuple[str, ...]] = {}
    flag: str | None = None
    for word in args:
        if is_flag(word):
            text, equals, value = word.partition("=")
            flag = long_name(text, aliases)
            if flag[:1] == "O" and flag[1:].isdigit():
                found["optimization_level"], flag = (flag[1:],), None
                continue
            found[flag] = (value,) if equals else ()
            if equals or flag in switches:
                flag = None
        elif flag is not None:
            found[flag] = (*found[flag], word)
        elif "=" in word and word.partition("=")[0].isidentifier():
            key, _, value = word.partition("=")
            found[key] = (value,)
    return found


def long_name(flag: str, aliases: Mapping[str, str]) -> str:
    """`-tp` or `--tensor-parallel-size` as `tensor_parallel_size`; dots divide nested names."""
    head, dot, rest = flag.lstrip("-").replace("-", "_").partition(".")
    return aliases.get(head, head) + dot + rest


def parse_value(text: str) -> Value:
    """A number if it reads as one, True or False if it says so, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[:1] in _NUMBER_FIRST and text:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def is_flag(word: str) -> bool:
    """Whether a word is a flag and not a value; negative numbers are values."""
    return word.startswith("-") and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")
