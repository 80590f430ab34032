"""Dtypes against the devices and the model."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_TO_HALF = (("dtype", "float16"), ("extra_args.dtype", None))


@rule(
    "vllm.bfloat16_device",
    cause="devices below compute capability 8.0 have no bfloat16 arithmetic",
    source="vllm 0.33.0: vllm/platforms/cuda.py:651",
    fires={"dtype": "bfloat16", "arch": "7.5"},
    passes={"dtype": "bfloat16", "arch": "8.0"},
)
def bfloat16_device(case: Case) -> Fault | None:
    """bfloat16 is asked for on devices without it."""
    if case.dtype_asked != "bfloat16" or case.capability is None or case.capability >= 80:
        return None
    return Fault(
        what=f"bfloat16 on compute capability {case.capability / 10:g}",
        fix="dtype float16",
        mend=_TO_HALF,
    )


@rule(
    "vllm.bfloat16_falls_back",
    severity="warning",
    cause="vLLM computes in float16 where bfloat16 is missing since 0.9; before, it refuses to start",
    source="vllm 0.33.0: vllm/config/model.py:2458",
    fires={"stored_dtype": "bfloat16", "arch": "7.5"},
    passes={"stored_dtype": "float16", "arch": "7.5"},
)
@rule(
    "sglang.bfloat16_falls_back",
    severity="warning",
    cause="SGLang computes in float16 below 8.0, even where bfloat16 is asked for",
    source="sglang 0.5.23: load_model_utils.py:83",
    fires={"engine": "sglang", "stored_dtype": "bfloat16", "arch": "7.5"},
    passes={"engine": "sglang", "stored_dtype": "bfloat16", "arch": "8.6"},
)
def bfloat16_falls_back(case: Case) -> Fault | None:
    """A bfloat16 model on devices without bfloat16."""
    if case.dtype != "bfloat16" or case.capability is None or case.capability >= 80:
        return None
    if case.engine != "sglang" and case.dtype_asked == "bfloat16":
        return None
    return Fault(
        what=f"the model is bfloat16 and compute capability {case.capability / 10:g} has none",
        fix="dtype float16, if the model keeps within its range (Gemma does not)",
        mend=_TO_HALF,
    )


@rule(
    "vllm.float16_overflows",
    versions=">=0.9.1",
    cause="its activations leave the range of float16",
    source="vllm 0.33.0: vllm/config/model.py:2417",
    fires={"config": {"model_type": "gemma2"}, "dtype": "float16"},
    passes={"config": {"model_type": "gemma2"}, "dtype": "bfloat16"},
)
def float16_overflows(case: Case) -> Fault | None:
    """Gemma 2, Gemma 3 and GLM-4 in float16."""
    if case.dtype_asked != "float16" or case.model_type not in ("gemma2", "gemma3", "gemma3_text", "glm4"):
        return None
    usable = "bfloat16" if (case.capability or 80) >= 80 else "float32"
    return Fault(
        what=f"{case.model_type} does not work in float16",
        fix=f"dtype {usable}",
        mend=(("dtype", usable), ("extra_args.dtype", None)),
    )


@rule(
    "vllm.float32_on_turing",
    versions=">=0.6.5",
    severity="warning",
    cause="the tensor cores of 7.5 do not multiply float32",
    source="vllm 0.33.0: vllm/config/vllm.py:1761",
    fires={"dtype": "float32", "arch": "7.5"},
    passes={"dtype": "float16", "arch": "7.5"},
)
def float32_on_turing(case: Case) -> Fault | None:
    """float32 on compute capability 7.5."""
    if case.dtype_asked != "float32" or case.capability != 75:
        return None
    return Fault(what="float32 on compute capability 7.5 is slow", fix="dtype float16", mend=_TO_HALF)


@rule(
    "vllm.float32_is_wasteful",
    severity="warning",
    cause="float32 takes twice the memory and twice the time per token of a 16-bit dtype",
    source="a field note (Qwen-7B on two V100: 42 tokens/s in float32, 65 in float16)",
    fires={"dtype": "float32", "stored_dtype": "float16"},
    passes={"dtype": "float32", "stored_dtype": "float32"},
)
def float32_is_wasteful(case: Case) -> Fault | None:
    """float32 is asked for and the model is stored in 16 bits."""
    if case.dtype_asked != "float32" or case.model.dtype == "float32" or case.vendor == "cpu":
        return None
    usable = "bfloat16" if (case.capability or 80) >= 80 else "float16"
    return Fault(
        what=f"float32 is asked for and the weights are {case.model.dtype}",
        fix=f"dtype {usable}",
        mend=(("dtype", usable), ("extra_args.dtype", None)),
    )


@rule(
    "vllm.pooling_downcast",
    severity="info",
    cause="dtype auto turns float32 models into 16 bits",
    source="vllm 0.33.0: vllm/config/model.py:2513",
    fires={"task": "embed", "stored_dtype": "float32"},
    passes={"task": "embed", "stored_dtype": "float32", "dtype": "float32"},
)
def pooling_downcast(case: Case) -> Fault | None:
    """A float32 embedding model runs in 16 bits by default."""
    if not case.pooling or case.model.dtype != "float32" or case.dtype_asked != "auto":
        return None
    return Fault(
        what="the model is float32 and will run in 16 bits", fix="dtype float32 for the same vectors as elsewhere"
    )


@rule(
    "vllm.kv_dtype_differs",
    versions=">=0.33.0",
    cause="a cache in floating point must have the model's dtype",
    source="vllm 0.33.0: vllm/config/vllm.py:1506",
    fires={"kv_dtype": "float16", "dtype": "bfloat16"},
    passes={"kv_dtype": "bfloat16", "dtype": "bfloat16"},
)
def kv_dtype_differs(case: Case) -> Fault | None:
    """A float16 or bfloat16 KV cache that is not the model's dtype."""
    if case.kv_dtype not in ("float16", "bfloat16") or case.kv_dtype == case.dtype:
        return None
    return Fault(
        what=f"a {case.kv_dtype} cache for a model in {case.dtype}",
        fix="kv_cache_dtype auto",
        mend=(("kv_cache_dtype", "auto"), ("extra_args.kv_cache_dtype", None)),
    )


@rule(
    "vllm.kv_bfloat16_device",
    versions=">=0.24.0",
    cause="devices below compute capability 8.0 have no bfloat16 arithmetic",
    source="vllm 0.33.0: vllm/v1/attention/backends/triton_attn.py:529",
    fires={"kv_dtype": "bfloat16", "stored_dtype": "bfloat16", "arch": "7.5"},
    passes={"kv_dtype": "float16", "dtype": "float16", "arch": "7.5"},
)
def kv_bfloat16_device(case: Case) -> Fault | None:
    """A bfloat16 KV cache on devices without bfloat16."""
    if case.kv_dtype != "bfloat16" or case.capability is None or case.capability >= 80:
        return None
    return Fault(
        what=f"a bfloat16 cache on compute capability {case.capability / 10:g}",
        fix="kv_cache_dtype auto",
        mend=(("kv_cache_dtype", "auto"), ("extra_args.kv_cache_dtype", None)),
    )
