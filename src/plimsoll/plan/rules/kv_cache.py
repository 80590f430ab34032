"""The KV cache: its dtypes, its room, and the share of memory it may take."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule
from plimsoll.units import GIB, format_bytes

_TO_AUTO = (("kv_cache_dtype", "auto"), ("extra_args.kv_cache_dtype", None))


@rule(
    "vllm.fp8_kv_latent_attention",
    versions=">=0.24.0",
    cause="below 8.9 latent attention has the Triton backend only, and that needs FP8 instructions for an FP8 cache",
    source="vllm 0.33.0: vllm/v1/attention/backends/mla/triton_mla.py:210",
    fires={"mla": True, "heads": 128, "arch": "8.6", "kv_dtype": "fp8"},
    passes={"mla": True, "heads": 128, "arch": "9.0", "kv_dtype": "fp8"},
)
def fp8_kv_latent_attention(case: Case) -> Fault | None:
    """An FP8 cache for multi-head latent attention below compute capability 8.9."""
    if not case.mla or not case.kv_dtype.startswith("fp8") or case.capability is None or case.capability >= 89:
        return None
    return Fault(
        what=f"an {case.kv_dtype} cache for latent attention on compute capability {case.capability / 10:g}",
        fix="kv_cache_dtype auto (twice the bytes per token)",
        mend=_TO_AUTO,
    )


@rule(
    "vllm.memory_share_of_1_leaves_no_room_for_cuda_graphs",
    severity="warning",
    cause="the driver, other processes and (before 0.21) CUDA graphs need memory outside the share",
    source="vllm 0.33.0: vllm/config/cache.py:215; a field note (two V100 at share 1)",
    fires={"memory_share": 1.0},
    passes={"memory_share": 0.95},
)
def memory_share_of_1_leaves_no_room_for_cuda_graphs(case: Case) -> Fault | None:
    """The share of memory is 1."""
    if case.share is None or case.share < 0.985:
        return None
    return Fault(
        what=f"a memory share of {case.share:g} leaves nothing for CUDA graphs and for other processes",
        fix="0.9 to 0.95",
        mend=(("memory_share", 0.95), ("extra_args.gpu_memory_utilization", None)),
    )


@rule(
    "vllm.free_memory_below_share",
    versions=">=0.9.1",
    cause="the share is of the device's whole memory, and vLLM refuses to start when less is free",
    source="vllm 0.33.0: vllm/v1/worker/utils.py:766",
    fires={"memory_gib": 48, "free_gib": 30, "memory_share": 0.9},
    passes={"memory_gib": 48, "free_gib": 30, "memory_share": 0.6},
)
def free_memory_below_share(case: Case) -> Fault | None:
    """Less memory is free than the share asks for."""
    if case.share is None or case.vendor == "cpu":
        return None
    for device in case.devices:
        wanted = case.share * device.memory_bytes
        if device.free_bytes < wanted - GIB // 4:
            share = max(0.01, int(device.free_bytes / device.memory_bytes * 100 - 1) / 100)
            return Fault(
                what=f"device {device.index}: {format_bytes(device.free_bytes)} are free, and a share of "
                f"{case.share:g} asks for {format_bytes(wanted)}",
                fix=f"a memory share of {share:g}, or stop what holds the memory",
                mend=(("memory_share", share), ("extra_args.gpu_memory_utilization", None)),
            )
    return None


@rule(
    "any.out_of_memory",
    cause="the account of what must lie in memory exceeds what is there",
    source="the memory ledger of the plan",
    fires={"ledger_free_bytes": -(1 << 30)},
    passes={"ledger_free_bytes": 1 << 30},
)
def out_of_memory(case: Case) -> Fault | None:
    """The model does not fit."""
    if case.ledger is None or case.ledger.fits:
        return None
    tight = min(case.ledger.devices, key=lambda device: device.free_bytes)
    return Fault(
        what=f"{tight.device}: {format_bytes(tight.used_bytes)} are needed and {format_bytes(tight.limit_bytes)} may "
        "be used",
        fix="a smaller quantization, a shorter context, fewer requests at once, or more devices",
    )


@rule(
    "vllm.cache_below_context",
    cause="one request of full length must fit the cache",
    source="vllm 0.33.0: vllm/v1/core/kv_cache_planning.py:78",
    fires={"ledger_free_bytes": 0, "ledger_kv_tokens": 4096, "context_tokens": 8192},
    passes={"ledger_free_bytes": 0, "ledger_kv_tokens": 8192, "context_tokens": 8192},
)
def cache_below_context(case: Case) -> Fault | None:
    """The cache holds fewer tokens than one request may have."""
    if (
        case.ledger is None
        or not case.ledger.fits
        or case.encoder
        or case.ledger.kv_tokens >= case.candidate.context_tokens
    ):
        return None
    longest = case.ledger.longest_context_tokens or case.ledger.kv_tokens
    if longest >= case.candidate.context_tokens:
        return None
    return Fault(
        what=f"the cache holds {case.ledger.kv_tokens} tokens and the context is {case.candidate.context_tokens}",
        fix=f"a context of at most {longest}, a larger memory share, or an FP8 cache",
        mend=(("context", max(1, longest)),),
    )


@rule(
    "vllm.graphs_inside_share",
    versions=">=0.21.0",
    severity="info",
    cause="since 0.21 the memory of CUDA graphs is inside the share; before it lay outside",
    source="vllm 0.33.0: vllm/v1/worker/gpu_worker.py:788",
    fires={"options": {"gpu_memory_utilization": 0.9}},
    passes={"version": "0.20.0", "options": {"gpu_memory_utilization": 0.9}},
)
def graphs_inside_share(case: Case) -> Fault | None:
    """A share from before 0.21 now includes CUDA graphs."""
    if "gpu_memory_utilization" not in case.options or case.candidate.eager or case.vendor != "nvidia":
        return None
    return Fault(
        what=f"--gpu-memory-utilization {case.text('gpu_memory_utilization')} now pays for CUDA graphs too: the cache "
        "is smaller than it was before 0.21",
        fix="raise it by the graphs' size over the device's memory (vLLM prints the equivalent), or leave it",
    )


@rule(
    "vllm.cpu_cache_space",
    severity="warning",
    cause="on CPUs the cache is taken from RAM, by this variable",
    source="vllm 0.33.0: vllm/platforms/cpu.py:341",
    fires={"vendor": "cpu", "env": {"VLLM_CPU_KVCACHE_SPACE": "0.001"}},
    passes={"vendor": "cpu", "env": {"VLLM_CPU_KVCACHE_SPACE": "4"}},
)
def cpu_cache_space(case: Case) -> Fault | None:
    """VLLM_CPU_KVCACHE_SPACE is too small for one request."""
    text = case.env.get("VLLM_CPU_KVCACHE_SPACE")
    if case.vendor != "cpu" or text is None:
        return None
    try:
        space = float(text) * GIB
    except ValueError:
        space = 0.0
    needed = case.model.kv_bytes_per_token() * case.candidate.context_tokens
    if space >= needed:
        return None
    gib = int(needed // GIB) + 1
    return Fault(
        what=f"VLLM_CPU_KVCACHE_SPACE={text} GiB, and one request of {case.candidate.context_tokens} tokens takes "
        f"{format_bytes(needed)}",
        fix=f"VLLM_CPU_KVCACHE_SPACE={gib}",
        mend=(("env.VLLM_CPU_KVCACHE_SPACE", str(gib)),),
    )


@rule(
    "llamacpp.latent_cache_types",
    cause="with latent attention V is a view of K",
    source="llama.cpp b11434: src/llama-context.cpp:3839",
    fires={"engine": "llamacpp", "mla": True, "heads": 128, "options": {"cache_type_k": "q8_0"}},
    passes={
        "engine": "llamacpp",
        "mla": True,
        "heads": 128,
        "options": {"cache_type_k": "q8_0", "cache_type_v": "q8_0"},
    },
)
def latent_cache_types(case: Case) -> Fault | None:
    """Different types for K and V with latent attention."""
    key, value = case.text("cache_type_k") or "f16", case.text("cache_type_v") or "f16"
    if not case.mla or key == value:
        return None
    return Fault(
        what=f"K is {key} and V is {value}",
        fix=f"--cache-type-v {key}",
        mend=(("extra_args.cache_type_v", key),),
    )


@rule(
    "sglang.share_eaten_by_weights",
    versions=">=0.5.14",
    cause="--mem-fraction-static holds the weights and the cache together",
    source="sglang 0.5.23: sglang/srt/mem_cache/kv_cache_configurator.py:3051",
    fires={"engine": "sglang", "memory_gib": 24, "memory_share": 0.5, "weight_gib": 15},
    passes={"engine": "sglang", "memory_gib": 24, "memory_share": 0.85, "weight_gib": 15},
)
def share_eaten_by_weights(case: Case) -> Fault | None:
    """The weights alone exceed --mem-fraction-static."""
    if case.share is None or not case.devices or case.vendor == "cpu" or not case.model.weight_bytes:
        return None
    # Data parallelism copies the weights; expert parallelism in SGLang is inside the tensor-parallel ranks.
    part = case.model.weight_bytes / (case.tp * case.pp)
    smallest = min(device.memory_bytes for device in case.devices)
    if part <= case.share * smallest:
        return None
    return Fault(
        what=f"weights of {format_bytes(part)} per device, and {case.share:g} of {format_bytes(smallest)} is "
        f"{format_bytes(case.share * smallest)}",
        fix="raise the memory share, or use more tensor-parallel ranks",
        mend=(("memory_share", 0.9), ("extra_args.mem_fraction_static", None)) if part < 0.85 * smallest else (),
    )


@rule(
    "sglang.state_slots",
    versions=">=0.5.17",
    severity="info",
    cause="each running request keeps a state, and the number of states caps the requests",
    source="sglang 0.5.23: sglang/srt/mem_cache/kv_cache_configurator.py:3141",
    fires={"engine": "sglang", "hybrid": True, "options": {"max_running_requests": 512}},
    passes={"engine": "sglang", "hybrid": False, "options": {"max_running_requests": 512}},
)
def state_slots(case: Case) -> Fault | None:
    """A model with recurrent layers and many running requests."""
    if not case.hybrid or (case.number("max_running_requests") or 0) <= 256:
        return None
    return Fault(
        what=f"--max-running-requests {case.text('max_running_requests')} may be capped by the state cache",
        fix="--mamba-full-memory-ratio, or --mamba-ssm-dtype bfloat16",
    )
