"""vLLM's command lines of all ages."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from plimsoll.engines.translate.draft import Draft, as_json, spelled
from plimsoll.engines.translate.notes import Fate
from plimsoll.facts.incompatible import gone_flags

_SPECULATIVE = {
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "speculative_draft_tensor_parallel_size": "draft_tensor_parallel_size",
    "spec_draft_tp": "draft_tensor_parallel_size",
    "speculative_max_model_len": "max_model_len",
    "speculative_model_quantization": "quantization",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
}
_TASKS = {
    "generate": None, "auto": None, "embed": "embed", "embedding": "embed", "score": "rerank", "classify": "classify",
    "reward": "classify", "cross_encoder": "rerank",
}  # fmt: skip
_ENCODERS = ("bge-", "bce-", "gte-", "e5-", "minilm", "reranker", "jina-embedding", "nomic")
"""Parts of names of models that embed or rerank, where no task is said."""


def translate_vllm(draft: Draft) -> None:
    """Bring one vLLM command line up to date; the model is already set where it stood without a flag."""
    draft.into("model", "model")
    _name(draft)
    draft.serve_at()
    _task(draft)
    draft.spec["context"] = draft.number("max_model_len")
    draft.spec["concurrency"] = draft.number("max_num_seqs")
    draft.dtype("dtype")
    draft.into("quantization", "quantization")
    draft.into("kv_cache_dtype", "kv_cache_dtype")
    draft.into("memory_share", "gpu_memory_utilization")
    draft.into("revision", "revision")
    draft.ranks("tensor", "tensor_parallel_size")
    draft.ranks("pipeline", "pipeline_parallel_size")
    draft.ranks("data", "data_parallel_size")
    if draft.take("enable_expert_parallel"):
        draft.parallel["expert"] = draft.parallel.get("tensor", 1) * draft.parallel.get("data", 1)
    if draft.take("trust_remote_code"):
        draft.spec["trust_remote_code"] = True
    _speculation(draft)
    _compilation(draft)
    _rope(draft)
    _defaults(draft)
    _nodes(draft)
    draft.drop("moved", "plimsoll keeps weights in a store of its own, or serves the directory named", "download_dir")
    _gone(draft)
    draft.keep_rest()


def _name(draft: Draft) -> None:
    names = str(draft.take("served_model_name") or "").split(",")
    draft.spec["name"] = names[0]
    if len(names) > 1:
        draft.note("--served-model-name", "changed", f"one name is kept: {names[0]}")


def _task(draft: Draft) -> None:
    task = draft.take("task")
    runner, convert = draft.take("runner"), draft.take("convert")
    if task is not None:
        draft.spec["task"] = _TASKS.get(str(task))
        today = "--runner generate" if draft.spec["task"] is None else f"--runner pooling, task: {draft.spec['task']}"
        draft.note(f"--task {task}", "renamed", f"gone since 0.13, today {today}")
    elif convert in ("embed", "classify"):
        draft.spec["task"] = convert
    elif runner == "pooling":
        draft.spec["task"] = "embed"
    elif any(part in str(draft.spec.get("model", "")).lower() for part in _ENCODERS):
        reranks = "rerank" in str(draft.spec["model"]).lower()
        draft.spec["task"] = "rerank" if reranks else "embed"


def _speculation(draft: Draft) -> None:
    found: dict[str, Any] = {}
    for flag, key in _SPECULATIVE.items():
        value = draft.take(flag)
        if value is not None:
            found[key] = value
            draft.note(spelled(flag), "renamed", f"gone since 0.8.3, today {key} in --speculative-config")
    if found.get("model") == "[ngram]" or ("model" not in found and "prompt_lookup_max" in found):
        found.pop("model", None)
        found["method"] = "ngram"
    if found:
        draft.add("speculative_config", as_json(found))
    elif "speculative_config" in draft.flags:
        with contextlib.suppress(ValueError):
            read = json.loads(str(draft.flags["speculative_config"]))
            found = read if isinstance(read, dict) else {}
        draft.keep("speculative_config")
    if isinstance(found.get("model"), str):
        draft.spec["draft_model"] = found["model"]


def _compilation(draft: Draft) -> None:
    level = draft.flags.get("compilation_config")
    if isinstance(level, int) and not isinstance(level, bool):
        del draft.flags["compilation_config"]
        draft.note(f"--compilation-config {level}", "default", "compilation is on by default; a number is refused now")
    preset = draft.flags.get("optimization_level")
    if preset is not None:
        draft.note(f"-O{preset}", "changed", "a preset since 0.12, before that a level of compilation")


def _rope(draft: Draft) -> None:
    scaling, theta = draft.take("rope_scaling"), draft.take("rope_theta")
    if scaling is None and theta is None:
        return
    parameters: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        read = json.loads(str(scaling))
        parameters = read if isinstance(read, dict) else {}
    if "type" in parameters:
        parameters["rope_type"] = parameters.pop("type")
    if theta is not None:
        parameters["rope_theta"] = theta
    draft.note("--rope-scaling, --rope-theta", "renamed", "gone since 0.11.1, today rope_parameters in --hf-overrides")
    draft.add("hf_overrides", as_json({"rope_parameters": parameters}))


def _defaults(draft: Draft) -> None:
    pooling = draft.spec.get("task") is not None
    for name in ("enable_prefix_caching", "enable_chunked_prefill"):
        if draft.flags.get(name) is True:
            del draft.flags[name]
            fate: Fate = "void" if pooling else "default"
            why = "an encoder reads each text whole" if pooling else "on by default since 0.8 for models that generate"
            draft.note(spelled(name), fate, why)
    for name in ("disable_prefix_caching", "disable_chunked_prefill"):
        if draft.take(name):
            new = name.replace("disable", "no_enable")
            draft.note(spelled(name), "renamed", f"today {spelled(new)}")
            draft.add(new, value=True)


def _nodes(draft: Draft) -> None:
    nodes = draft.number("nnodes")
    if nodes:
        draft.nodes = nodes
    draft.drop("moved", "plimsoll starts the ranks on the machines under `hosts`", "node_rank", "master_addr",
               "master_port", "headless")  # fmt: skip


def _gone(draft: Draft) -> None:
    """Whatever else has been removed since."""
    for name, row in gone_flags("vllm").items():
        if name not in draft.flags:
            continue
        value = draft.flags.pop(name)
        since = f"gone since {row['gone']}"
        if "rename" in row:
            draft.note(row["flag"], "renamed", f"{since}, today {spelled(row['rename'])}")
            draft.add(row["rename"], value)
        elif "set" in row:
            for key, new in row["set"].items():
                draft.note(row["flag"], "renamed", f"{since}, today {spelled(key)} {new}")
                draft.add(key, new)
        else:
            advice = row.get("instead") or row.get("note") or row.get("cause", "")
            draft.note(row["flag"], "removed", f"{since}: {advice}" if advice else since)
