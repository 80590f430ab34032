"""Candidates for the examples beside each rule: an 8B Llama on one H100 with vLLM, but for what is overridden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from plimsoll.facts.engine import EngineFacts, MemoryPolicy
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.model import AttentionGroup, AttentionKind, ModelFacts, Moe, Quantization, TensorClass
from plimsoll.plan.ledger import DeviceLedger, Entry, Ledger
from plimsoll.plan.types import Candidate, Parallel
from plimsoll.spec.deployment import Deployment
from plimsoll.units import GIB

VERSIONS = {
    "vllm": "0.33.0",
    "vllm_ascend": "0.23.0.post1",
    "sglang": "0.5.23",
    "llamacpp": "b11434",
    "ollama": "fb30760 (2026-08-21)",
    "mindie": "8b4871a (2026-04-23)",
    "fastchat": "0.2.36",
    "transformers": "5.23.0",
}
"""The versions that the rules were read from."""

_MEMORY: dict[str, MemoryPolicy] = {"vllm_ascend": "vllm", "fastchat": "none"}
_MODEL = {f.name for f in fields(ModelFacts)} - {"quantization", "attention", "moe"}
_DEPLOYMENT = set(Deployment.model_fields) - {"dtype", "quantization", "parallel", "engine", "model", "task"}
_CANDIDATE = {"dtype", "kv_dtype", "eager", "sequences", "context_tokens", "batched_tokens", "memory_share", "nodes"}
_HOST = {"cores", "ram_bytes", "glibc"}
_DEVICE = {"arch", "driver", "runtime", "link"}
_OWN = {
    "activation", "bits", "block", "dp", "encoder", "engine", "ep", "experts", "free_gib", "gpu_names", "gpus",
    "group_size", "hybrid", "ledger_free_bytes", "ledger_kv_tokens", "memory_gib", "mla", "model_id",
    "moe_intermediate", "moe_layers", "options", "pp", "quantization", "shared_intermediate", "skip", "stored",
    "stored_dtype", "task", "tp", "vendor", "version", "weight_gib", "window",
}  # fmt: skip


def candidate(**overrides: Any) -> Candidate:
    """A candidate with `overrides`; KeyError for a name that means nothing here."""
    unknown = set(overrides) - _MODEL - _DEPLOYMENT - _CANDIDATE - _HOST - _DEVICE - _OWN
    if unknown:
        raise KeyError(f"no such override: {', '.join(sorted(unknown))}")
    given = overrides.get
    engine = given("engine", "vllm")
    model = _model(overrides)
    parallel = Parallel(tensor=given("tp", 1), pipeline=given("pp", 1), data=given("dp", 1), expert=given("ep", 1))
    devices = _devices(overrides, count=given("gpus", parallel.world))
    ram_bytes = given("ram_bytes", 256 * GIB)
    return Candidate(
        deployment=Deployment(
            **{
                "name": "served",
                "model": given("model_id", "example/model"),
                "engine": engine,
                "task": given("task"),
                "quantization": given("quantization"),
            }
            | {key: value for key, value in overrides.items() if key in _DEPLOYMENT}
        ),
        model=model,
        engine=EngineFacts(
            name=engine,
            version=given("version", VERSIONS.get(engine, "")),
            formats=("safetensors", "gguf"),
            quantizations=(),
            vendors=("nvidia", "amd", "ascend", "cpu"),
            tasks=("chat", "completion", "embed", "rerank", "classify"),
            parallel=("tensor", "pipeline", "data", "expert"),
            memory=_MEMORY.get(engine, engine),
            routes=(),
            health_path="/health",
        ),
        host=Host(
            name="here",
            cpu=_device("cpu", "cpu", "x86-64-v4", ram_bytes),
            cores=given("cores", 32),
            ram_bytes=ram_bytes,
            ram_free_bytes=ram_bytes,
            devices=devices,
            glibc=given("glibc", "2.36"),
        ),
        devices=devices,
        parallel=parallel,
        **({"context_tokens": 8192} | {key: value for key, value in overrides.items() if key in _CANDIDATE}),
        options=given("options", {}),
    )


def ledger(**overrides: Any) -> Ledger | None:
    """The ledger that belongs to an example; None where the example speaks of none."""
    if "ledger_free_bytes" not in overrides:
        return None
    entry = Entry(name="weights", bytes=16 * GIB, basis="assumed", source="an example")
    device = DeviceLedger(
        device="device 0",
        total_bytes=80 * GIB,
        limit_bytes=entry.bytes + overrides["ledger_free_bytes"],
        entries=(entry,),
    )
    return Ledger(devices=(device,), kv_tokens=overrides.get("ledger_kv_tokens", 1 << 20))


def _device(name: str, vendor: Any, arch: str, memory_bytes: int, **more: Any) -> Device:
    return Device(
        name=name, vendor=vendor, arch=arch, memory_bytes=memory_bytes, free_bytes=memory_bytes, bandwidth=1e12, **more
    )


def _devices(overrides: dict[str, Any], *, count: int) -> tuple[Device, ...]:
    vendor = overrides.get("vendor", "nvidia")
    arch = {"nvidia": "9.0", "ascend": "910B4", "amd": "gfx942", "cpu": "x86-64-v4"}.get(vendor, "")
    names = overrides.get("gpu_names", ("accelerator",) * count)
    size = round(overrides.get("memory_gib", 80) * GIB)
    free = round(overrides.get("free_gib", overrides.get("memory_gib", 80)) * GIB)
    more = {key: overrides[key] for key in ("driver", "runtime", "link") if key in overrides}
    return tuple(
        Device(
            name=name, vendor=vendor, arch=overrides.get("arch", arch), memory_bytes=size, free_bytes=free,
            bandwidth=3.35e12, index=index, **more,
        )
        for index, name in enumerate(names)
    )  # fmt: skip


def _model(overrides: dict[str, Any]) -> ModelFacts:
    given: Callable[..., Any] = overrides.get
    heads, kv_heads, head_dim = given("heads", 32), given("kv_heads", 8), given("head_dim", 128)
    layers = given("layers", 32)
    mla = given("mla")
    kind: AttentionKind = "mla" if mla else "encoder" if given("encoder") else "sliding" if given("window") else "full"
    group = AttentionGroup(
        kind=kind,
        layers=layers,
        heads=heads,
        kv_heads=1 if mla else kv_heads,
        head_dim=576 if mla else head_dim,
        v_head_dim=0 if mla else head_dim,
        window_tokens=given("window"),
    )
    state = AttentionGroup(
        kind="linear", layers=3 * layers, heads=heads, kv_heads=kv_heads, head_dim=0, v_head_dim=0, state_bytes=1 << 20
    )
    moe = None
    if given("experts"):
        moe = Moe(
            experts=given("experts"),
            per_token=8,
            intermediate_size=given("moe_intermediate", 2048),
            layers=given("moe_layers", layers),
            shared_experts=1 if given("shared_intermediate") else 0,
            shared_intermediate_size=given("shared_intermediate", 0),
        )
    quantization = None
    if given("stored"):
        quantization = Quantization(
            method=given("stored"),
            bits=given("bits", 8 if "8" in given("stored") else 4),
            group_size=given("group_size"),
            block=given("block"),
            skip=given("skip", ()),
            activation=given("activation"),
        )
    facts: dict[str, Any] = {
        "id": given("model_id", "example/model"), "architecture": "LlamaForCausalLM", "task": "chat", "layers": layers,
        "hidden_size": 4096, "intermediate_size": 14336, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
        "vocab_size": 128256, "max_context_tokens": 131072, "tied_embeddings": False, "dtype": "bfloat16",
        "format": "safetensors", "tensors": (), "source": "an example",
    }  # fmt: skip
    facts |= {key: value for key, value in overrides.items() if key in _MODEL and key != "dtype"}
    facts["task"] = given("task") or facts["task"]
    facts["dtype"] = given("stored_dtype", facts["dtype"])
    if given("weight_gib"):
        size = round(given("weight_gib") * GIB)
        facts["tensors"] = (
            TensorClass(role="mlp", params=size // 2, bytes=size, dtype="bfloat16", sharding="tensor", layers=layers),
        )
    return ModelFacts(
        **facts, attention=(group, state) if given("hybrid") else (group,), moe=moe, quantization=quantization
    )
