"""Command lines of SGLang, llama.cpp, Ollama, FastChat and transformers serve."""

from __future__ import annotations

from plimsoll.engines.translate.draft import Draft, spelled
from plimsoll.engines.translate.vllm import translate_vllm
from plimsoll.facts.incompatible import gone_flags

_ENSEMBLE = "plimsoll starts the ranks on the machines under `hosts`"


def translate_sglang(draft: Draft) -> None:
    """Bring one SGLang command line up to date."""
    draft.into("model", "model_path")
    draft.into("name", "served_model_name")
    draft.serve_at()
    draft.spec["context"] = draft.number("context_length")
    draft.spec["concurrency"] = draft.number("max_running_requests")
    draft.dtype("dtype")
    draft.into("quantization", "quantization")
    draft.into("kv_cache_dtype", "kv_cache_dtype")
    draft.into("memory_share", "mem_fraction_static")
    draft.into("revision", "revision")
    draft.ranks("tensor", "tp_size")
    draft.ranks("pipeline", "pp_size")
    draft.ranks("expert", "ep_size")
    if not draft.flags.get("enable_dp_attention"):
        draft.ranks("data", "dp_size")
    if draft.take("is_embedding"):
        draft.spec["task"] = "embed"
    if draft.take("trust_remote_code"):
        draft.spec["trust_remote_code"] = True
    draft.nodes = draft.number("nnodes") or 1
    draft.drop("moved", _ENSEMBLE, "node_rank", "dist_init_addr")
    for name, row in gone_flags("sglang").items():
        if name in draft.flags:
            value = draft.flags.pop(name)
            new = {row["rename"]: value} if "rename" in row else dict(row.get("set", {}))
            today = " ".join(f"{spelled(key)} {to}" for key, to in new.items())
            advice = today or row.get("instead") or row.get("note", "")
            draft.note(row["flag"], "renamed" if new else "removed", f"gone since {row['gone']}: {advice}".rstrip(": "))
            for key, to in new.items():
                draft.add(key, to)
    draft.keep_rest()


def translate_llamacpp(draft: Draft) -> None:
    """Bring one llama-server or llama-cli command line up to date."""
    draft.into("model", "model", "hf_repo")
    draft.into("name", "alias")
    draft.serve_at()
    slots = draft.number("parallel")
    total = draft.number("ctx_size")
    if slots is not None and slots > 0:
        draft.spec["concurrency"] = slots
    if total:
        each = total // slots if slots and slots > 1 and not draft.flags.get("kv_unified") else total
        draft.spec["context"] = each
        if each != total:
            draft.note("--ctx-size", "changed", f"{total} tokens over {slots} slots are a context of {each}")
    key, value = draft.flags.get("cache_type_k"), draft.flags.get("cache_type_v")
    if key is not None and key == value:
        draft.spec["kv_cache_dtype"] = str(draft.take("cache_type_k"))
        draft.take("cache_type_v")
    if draft.take("embeddings"):
        draft.spec["task"] = "embed"
    if draft.take("reranking"):
        draft.spec["task"] = "rerank"
    draft.into("draft_model", "spec_draft_model")
    draft.drop("void", "one question on the command line; a server answers many", "prompt", "n_predict", "file")
    draft.drop("removed", "it has no effect any more", "defrag_thold")
    for old, new in (
        ("draft_max", "spec_draft_n_max"),
        ("draft", "spec_draft_n_max"),
        ("draft_min", "spec_draft_n_min"),
    ):
        if old in draft.flags:
            draft.note(spelled(old), "renamed", f"today {spelled(new)}")
            draft.add(new, draft.flags.pop(old))
    if "rpc" in draft.flags:
        servers = str(draft.flags["rpc"]).split(",")
        draft.nodes = 1 + len({server.rpartition(":")[0] for server in servers})
        draft.note("--rpc", "changed", "a server exposes all cards of its machine since October 2025 (ggml-rpc-server)")
    draft.keep_rest()


_LLAMA_CPP_PYTHON = {
    "n_ctx": "ctx_size", "n_gpu_layers": "gpu_layers", "model_alias": "alias",
    "n_batch": "batch_size", "n_threads": "threads", "type_k": "cache_type_k", "type_v": "cache_type_v",
    "chat_format": "chat_template", "embedding": "embeddings", "hf_model_repo_id": "hf_repo",
}  # fmt: skip


def translate_llama_cpp_python(draft: Draft) -> None:
    """Turn a command line of `python -m llama_cpp.server` into llama-server's."""
    draft.note("python -m llama_cpp.server", "moved", "llama.cpp's own server does it, with several requests at once")
    for old, new in _LLAMA_CPP_PYTHON.items():
        if old in draft.flags and old != new:
            draft.note(f"--{old}", "renamed", f"today {spelled(new)}")
            draft.flags[new] = draft.flags.pop(old)
    translate_llamacpp(draft)


def translate_ollama(draft: Draft) -> None:
    """Read an Ollama environment; a model is known only from `ollama run` or a Modelfile."""
    host, _, port = draft.env.pop("OLLAMA_HOST", "").removeprefix("http://").rpartition(":")
    draft.host = host or None
    draft.port = int(port) if port.isdigit() else None
    slots = draft.env.pop("OLLAMA_NUM_PARALLEL", "")
    if slots.isdigit() and int(slots) > 0:
        draft.spec["concurrency"] = int(slots)
    context = draft.env.pop("OLLAMA_CONTEXT_LENGTH", "")
    if context.isdigit() and int(context) > 0:
        draft.spec["context"] = int(context)
    draft.spec["kv_cache_dtype"] = draft.env.pop("OLLAMA_KV_CACHE_TYPE", None)
    draft.into("context", "num_ctx")
    for name in list(draft.flags):
        draft.extra.append(f"{name}={draft.flags.pop(name)}")


def translate_fastchat(draft: Draft) -> None:
    """Turn FastChat's vllm_worker or model_worker into the engine behind it."""
    draft.into("model", "model_path")
    names = draft.take("model_names")
    if names is not None:
        draft.spec["name"] = str(names).split(",")[0]
    draft.drop("moved", "plimsoll's gateway knows its engines", "controller_address", "worker_address", "controller",
               "host", "port", "limit_worker_concurrency", "no_register")  # fmt: skip
    if draft.engine == "vllm":
        if "trust_remote_code" in draft.flags:
            draft.note(
                "--trust_remote_code", "changed", "in vllm_worker the flag turned trust off; it is taken as meant"
            )
        gpus = draft.number("num_gpus")
        if gpus and gpus > 1:
            draft.flags["tensor_parallel_size"] = gpus
        draft.note("fastchat.serve.vllm_worker", "moved", "works with vLLM up to 0.6.2 only; vLLM's own server does it")
        draft.drop("moved", "vLLM reads the model's own template", "conv_template")
        translate_vllm(draft)
        return
    if draft.take("load_8bit"):
        draft.spec["quantization"] = "bnb-8bit"
    draft.dtype("dtype")
    draft.ranks("tensor", "num_gpus")
    if draft.take("trust_remote_code"):
        draft.spec["trust_remote_code"] = True
    draft.keep_rest()


def translate_transformers(draft: Draft) -> None:
    """Read a command line of transformers serve."""
    draft.into("model", "force_model", "model")
    draft.serve_at()
    draft.dtype("dtype", "torch_dtype")
    draft.into("quantization", "quantization")
    if draft.take("trust_remote_code"):
        draft.spec["trust_remote_code"] = True
    draft.keep_rest()
