"""Rows of a memory CSV as candidates: engine, version, devices and flags out of what people write.

Only input columns are read. `other_flags` is free text that mixes settings with findings, so settings are picked out of
it by name and all else is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plimsoll.facts.devices import match_driver
from plimsoll.facts.engine import EngineFacts, MemoryPolicy
from plimsoll.facts.hardware import Device, Host
from plimsoll.facts.versions import in_range
from plimsoll.units import GIB, MIB

Row = Mapping[str, str]

_POLICIES: tuple[tuple[str, str, MemoryPolicy], ...] = (
    ("vllm-ascend", "vllm-ascend", "vllm"),
    ("vllm", "vllm", "vllm"),
    ("sglang", "sglang", "sglang"),
    ("ollama", "ollama", "ollama"),
    ("ik_llama", "ik_llama.cpp", "llamacpp"),
    ("koboldcpp", "koboldcpp", "llamacpp"),
    ("llama", "llama.cpp", "llamacpp"),
    ("mindie", "mindie", "mindie"),
    ("fastchat", "fastchat", "transformers"),
    ("transformers", "transformers", "transformers"),
)
# What is taken where a row does not say: the release around which such reports lie.
ASSUMED_VERSION = {
    "vllm": "0.6.4", "vllm-ascend": "0.11.0", "sglang": "0.4.6", "llama.cpp": "b5500", "koboldcpp": "b2300",
    "ik_llama.cpp": "b4000", "ollama": "0.5.7", "mindie": "1.0", "fastchat": "0.2.36", "transformers": "4.50",
}  # fmt: skip
# Models that no release before these can load, by a part of their name.
_FIRST_RELEASE = (
    (r"deepseek-?v4|qwen3\.[678]|gemma-?4|kimi-?k2\.[5-9]|kimik25|glm-?5|mistral-small-4", "0.21.0"),
    (r"qwen3\.5|qwen3_5|deepseek-?v3\.2|minimax-?m2", "0.13.0"),
    (r"qwen3-?next|gpt-?oss|glm-?4\.[5-9]|qwen3-?vl|qwen3-?coder|2507", "0.11.0"),
    (r"qwen3|llama-?4|gemma-?3|mistral-small-3", "0.8.5"),
    (r"deepseek-?(?:r1|v3)|qwen2\.5-?vl", "0.7.3"),
)

_NUMBERS: tuple[tuple[str, str], ...] = (
    ("ubatch_size", r"(?:n_ubatch|ubatch[-_]size|-ub)[ =]+(\d+)"),
    ("batch_size", r"(?:n_batch|[^u]batch[-_]size|(?<!\S)-b)[ =]+(\d+)"),
    ("mla", r"\bmla[ =]+(\d)"),
    ("amb", r"\bamb[ =]+(\d+)"),
    ("max_lora_rank", r"max[-_]lora[-_]rank[ =]+(\d+)"),
    ("max_loras", r"max[-_]loras[ =]+(\d+)"),
    ("cpu_offload_gb", r"cpu[-_]offload[-_]gb[ =]+([\d.]+)"),
    ("num_gpu_blocks_override", r"num[-_]gpu[-_]blocks[-_]override[ =]+(\d+)"),
    ("kv_cache_memory_bytes", r"kv[-_]cache[-_]memory[-_]bytes[ =]+(\d+)"),
    ("max_total_tokens", r"--max[-_]total[-_]tokens[ =]+(\d+)"),
    ("cuda_graph_max_bs", r"cuda[-_]graph[-_]max[-_]bs[ =]+(\d+)"),
    ("num_gpu", r"num_gpu[ =]+(\d+)"),
    ("npuMemSize", r"npuMemSize[ =]+(-?\d+)"),
    ("n_cpu_moe", r"n[-_]cpu[-_]moe[ =]+(\d+)"),
)
_SWITCHES: tuple[tuple[str, str], ...] = (
    ("enable_lora", r"enable[-_]lora|\blora \("),
    ("kv_unified", r"-kvu\b|kv[-_]unified"),
    ("swa_full", r"swa[-_]full"),
    ("no_kv_offload", r"-nkvo\b|no[-_]kv[-_]offload"),
    ("cpu_moe", r"--cpu[-_]moe"),
    ("enable_dp_attention", r"enable[-_]dp[-_]attention"),
    ("enable_prefix_caching", r"enable[-_]prefix[-_]caching"),
    ("enable_chunked_prefill", r"enable[-_]chunked[-_]prefill|chunked_prefill max_num"),
    ("pipeline_copies", r"n_copies=4|pipeline parallelism"),
)
_EXPERTS_ELSEWHERE = re.compile(r"ktransformers|experts on cpu|(?<!\S)-ot\b|override[-_]tensor", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row without its results, read as far as it goes; `device_known` False: only sizes that need no device."""

    id: str
    engine: EngineFacts
    model: str
    weight_format: str
    devices: tuple[Device, ...]
    device_known: bool
    tensor: int
    pipeline: int
    expert: int
    nodes: int
    context: int | None
    share: float | None
    kv_dtype: str
    dtype: str
    sequences: int | None
    batched_tokens: int | None
    eager: bool
    pooling: bool
    moved_tensors: bool
    """Some tensors were placed by hand and the row does not say which."""
    unified: bool
    """Whether the device's memory is the machine's own, used by who knows what."""
    layers_hint: int | None
    file_bytes: int | None
    """Size of the GGUF, where the row states it."""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flash(self) -> bool:
        """Whether the row turns flash attention on."""
        return str(self.options.get("flash_attn", "0")).lower() in ("1", "on")


def read_case(row: Row) -> Case | str:
    """The case that `row` describes, or why it cannot be read."""
    engine = _engine(row)
    if engine is None:
        return f"engine {row.get('engine', '')!r} is not one that is planned for"
    # What would have helped is not what was set.
    flags = re.sub(r"\bfix:.*", "", row.get("other_flags", ""))
    options = _options(flags, engine.memory)
    devices, known = _devices(row, flags)
    pipeline = _whole(row.get("pp")) or 1
    tensor = _whole(row.get("tp")) or max(1, len(devices) // pipeline)
    if engine.memory in ("vllm", "sglang", "mindie"):
        # Data-parallel copies and idle cards are left out: a rank is a rank.
        wanted = tensor * pipeline
        devices = (devices * wanted)[:wanted] if len(devices) < wanted else devices[:wanted]
    offload = re.search(r"offload(?:ed)?[ =]+(\d+)/(\d+)", flags)
    if offload and engine.memory == "llamacpp":
        options["n_gpu_layers"] = int(offload[1])
    dtype = re.search(r"--dtype[ =]+(half|float16|bfloat16|float32|float)\b", flags)
    named = {"half": "float16", "float": "float32"}
    weight_format = row.get("weight_format", "")
    plain = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}.get(weight_format, "auto")
    stated_dtype = named.get(dtype[1], dtype[1]) if dtype else plain
    return Case(
        id=row.get("id", ""),
        engine=engine,
        model=_model_name(row, flags),
        weight_format=weight_format,
        devices=devices,
        device_known=known,
        tensor=tensor,
        pipeline=pipeline,
        expert=tensor if re.search(r"enable[-_]expert[-_]parallel|--ep\b", flags) else 1,
        nodes=2 if re.search(r"multi[- ]node|\bpods\b|nnodes", flags) or len(devices) > 16 else 1,
        context=_whole(row.get("max_model_len")),
        share=_real(row.get("gpu_memory_utilization")),
        kv_dtype=(row.get("kv_cache_dtype") or "auto").lower(),
        dtype=stated_dtype,
        sequences=_parallel(row, flags, engine.memory),
        batched_tokens=_batched(flags),
        eager=row.get("enforce_eager", "").lower() == "true",
        pooling="runner=pooling" in flags or "embedding model" in row.get("model_id", ""),
        moved_tensors=bool(_EXPERTS_ELSEWHERE.search(flags)),
        unified=bool(re.search(r"unified|jetson|gb10|spark|strix", row.get("gpu", ""), re.IGNORECASE)),
        layers_hint=int(offload[2]) - 1 if offload else _layers_hint(row, flags),
        file_bytes=_file_bytes(flags),
        options=options,
    )


def _file_bytes(flags: str) -> int | None:
    found = re.search(r"file_size=([\d.]+) (GiB|GB|MiB)", flags)
    scale = {"GiB": GIB, "GB": 10**9, "MiB": MIB}
    return round(float(found[1]) * scale[found[2]]) if found else None


def host_of(devices: tuple[Device, ...]) -> Host:
    """A host that carries `devices` and RAM enough for what they leave."""
    ram = 2048 * GIB
    cpu = Device(name="cpu", vendor="cpu", arch="x86-64", memory_bytes=ram, free_bytes=ram, bandwidth=200e9, index=0)
    cards = tuple(device for device in devices if device.vendor != "cpu")
    return Host(name="row", cpu=cpu, cores=32, ram_bytes=ram, ram_free_bytes=ram, devices=cards)


def _engine(row: Row) -> EngineFacts | None:
    word = row.get("engine", "").strip().lower()
    for part, name, policy in _POLICIES:
        if part in word:
            return EngineFacts(
                name=name, version=_version(row, name), formats=(), quantizations=(), vendors=(), tasks=(),
                parallel=(), memory=policy, routes=(), health_path="/health",
            )  # fmt: skip
    return None


def _version(row: Row, engine: str) -> str:
    """The version stated, made orderable; V0 of a later release counts as 0.7.3, whose accounting it is."""
    text = row.get("engine_version", "").strip()
    if engine in ("llama.cpp", "ik_llama.cpp", "koboldcpp"):
        build = re.search(r"b?(\d{4,5})", text)
        return f"b{build[1]}" if build else ASSUMED_VERSION[engine]
    found = re.search(r"\d+\.\d+(?:\.\d+)?", text)
    if not found:
        version = ASSUMED_VERSION[engine]
        names = f"{row.get('model_id', '')} {row.get('other_flags', '')}".lower()
        if engine == "vllm":
            version = next((least for part, least in _FIRST_RELEASE if re.search(part, names)), version)
        return version
    version = found[0]
    if version.count(".") == 1:
        version += ".3" if ".x" in text else ".0"
    noted = f"{text} {row.get('other_flags', '')}"
    if engine == "vllm" and re.search(r"\bV0\b", noted) and in_range(version, ">=0.7.3"):
        return "0.7.3"
    return version


def _model_name(row: Row, flags: str) -> str:
    inferred = re.search(r"inferred_model=([^;]+)", flags)
    return row.get("model_id", "").strip() or (inferred[1].strip() if inferred else "")


def _options(flags: str, policy: MemoryPolicy) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, pattern in _NUMBERS:
        if found := re.search(pattern, flags):
            options[name] = float(found[1]) if "." in found[1] else int(found[1])
    for name, pattern in _SWITCHES:
        if re.search(pattern, flags, re.IGNORECASE):
            options[name] = True
    if options.get("enable_lora") and "max_lora_rank" not in options and re.search("unsloth", flags, re.IGNORECASE):
        options["max_lora_rank"] = 32  # Unsloth's notebooks take 16 to 64
    if split := re.search(r"(?:-ts|tensor[-_]split)[ =]+([\d.,/]+\d)", flags):
        options["tensor_split"] = split[1]
    flash = re.search(r"(?:flash[-_]attn|-fa)(?:[ =]+(\d|on|off|auto))?", flags)
    if flash:
        options["flash_attn"] = flash[1] or "on"
    elif policy == "llamacpp" and re.search(r"flash attention", flags):
        options["flash_attn"] = "on"
    if sizes := re.search(r"capture sizes \[([\d, ]+)\]", flags):
        options["capture_sizes"] = sizes[1].count(",") + 1
    if re.search(r"\bMTP\b|eagle|speculative", flags, re.IGNORECASE) and "without MTP" not in flags:
        options["speculative_method"] = "mtp" if "MTP" in flags else "eagle"
        options["speculative_algorithm"] = options["speculative_method"]
    return options


def _batched(flags: str) -> int | None:
    found = re.search(
        r"(?:max[-_]num[-_]batched[-_]tokens|chunked[-_]prefill[-_]size|maxPrefillTokens)[ =]+(\d+)", flags
    )
    return int(found[1]) if found else None


def _parallel(row: Row, flags: str, policy: MemoryPolicy) -> int | None:
    stated = _whole(row.get("max_num_seqs"))
    if stated is None and policy in ("llamacpp", "ollama"):
        found = re.search(r"(?:-np|(?<![\w-])parallel|OLLAMA_NUM_PARALLEL)[ =]+(\d+)", flags)
        return int(found[1]) if found else 1
    return stated


def _layers_hint(row: Row, flags: str) -> int | None:
    found = re.search(r"\((\d+) layers(?: incl\. output)?", f"{row.get('model_id', '')} {flags}")
    if not found:
        return None
    return int(found[1]) - (1 if "incl. output" in found[0] else 0)


# --- devices -----------------------------------------------------------------------------------------------------


def _devices(row: Row, flags: str) -> tuple[tuple[Device, ...], bool]:
    """The row's devices, and whether their memory is known; memory as stated goes before the catalogue's."""
    stated = _real(row.get("total_gpu_gib"))
    count = _whole(row.get("gpus_count")) or _whole(row.get("tp")) or 1
    ascend = "ascend" in f"{row.get('engine', '')} {row.get('gpu', '')}".lower()
    parts = [_one_kind(part) for part in re.split(r"\s\+\s", row.get("gpu", "")) if part.strip()]
    found = [device for device, copies in parts if device for _ in range(copies)]
    missing = not found or len(found) < sum(copies for _, copies in parts)
    base = found or [_unknown(ascend=ascend, gib=stated or 80.0)]
    devices = (base * count)[: max(count, len(found))]
    free = re.search(r"available (?:\d+x)?([\d.]+)|avail before (?:load )?([\d.]+)", flags)
    out = []
    for index, device in enumerate(devices):
        memory = round(stated * GIB) if stated is not None else device.memory_bytes
        left = memory
        if free:
            # SGLang measures with its context already in place.
            left = round((float(free[1]) if free[1] else float(free[2]) + 0.6) * GIB)
            memory = max(left, memory if stated is not None or not missing else left)
        out.append(replace(device, memory_bytes=memory, free_bytes=min(left, memory), index=index))
    return tuple(out), not missing or stated is not None or free is not None


def _one_kind(part: str) -> tuple[Device | None, int]:
    """One device of "2x RTX 3090", "RTX 4070 (8GB)", "12 GB CUDA (12281 MiB)", and how many of it."""
    copies = re.match(r"\s*(\d+)\s*x\s+", part)
    word = part[copies.end() :] if copies else part
    size = re.search(r"([\d.]+)\s*(GiB|GB|MiB)\b", word)
    number = int(copies[1]) if copies else 1
    plain = re.sub(r"\([^)]*\)", "", word).strip()
    entry = match_driver(plain, None) or match_driver(re.sub(r"[\d.]+\s*(?:GiB|GB|MiB)\b.*", "", plain).strip(), None)
    memory = round(float(size[1]) * (MIB if size[2] == "MiB" else GIB)) if size else None
    if entry is not None:
        device = entry.device
        if memory is not None and abs(memory - device.memory_bytes) > 0.12 * device.memory_bytes:
            sized = match_driver(plain, memory)
            device = sized.device if sized else replace(device, memory_bytes=memory, free_bytes=memory)
        return device, number
    if memory is None:
        return None, number
    return _unknown(ascend="ascend" in word.lower(), gib=memory / GIB), number


def _unknown(*, ascend: bool, gib: float) -> Device:
    size = round(gib * GIB)
    return Device(
        name="unknown", vendor="ascend" if ascend else "nvidia", arch="910B" if ascend else "8.0", memory_bytes=size,
        free_bytes=size, bandwidth=1e12,
    )  # fmt: skip


def _whole(text: str | None) -> int | None:
    found = re.search(r"\d+", text or "")
    return int(found[0]) if found else None


def _real(text: str | None) -> float | None:
    found = re.search(r"\d+(?:\.\d+)?", text or "")
    return float(found[0]) if found else None
