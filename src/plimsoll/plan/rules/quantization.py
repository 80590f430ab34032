"""Quantization methods against the checkpoint, the engine and its version."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_SAME = (
    {"awq", "awq_marlin", "auto_awq", "marlin", "moe_wna16", "ipex", "cpu_awq", "cpu_wna16", "humming", "inc",
     "auto-round"},
    {"gptq", "gptq_marlin", "auto_gptq", "marlin", "moe_wna16", "gptq_bitblas", "gptq_marlin_24", "ipex", "cpu_gptq",
     "cpu_wna16", "humming", "exllama", "inc", "auto-round"},
    {"modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mxfp8", "modelopt_mixed", "nvfp4", "petit_nvfp4",
     "minimax_m3_nvfp4"},
    {"auto-round", "auto_round", "inc", "intel/auto-round", "auto-round-int8"},
    {"mxfp4", "gpt_oss_mxfp4", "quark", "humming"},
    {"fp8", "deepseek_v4_fp8", "ptpc_fp8", "w8a8_fp8", "w4afp8", "humming", "mxfp8", "modelopt_fp8"},
    {"compressed-tensors", "compressed_tensors", "humming", "w8a8_int8", "w8a8_fp8", "moe_wna16"},
    {"bitsandbytes", "bnb"},
    {"ascend", "modelslim", "w8a8", "w8a8_dynamic", "w4a8", "w8a16", "mxfp_w4a8"},
)  # fmt: skip
"""Names that may stand for one another, in a flag and in a checkpoint."""

_ONLINE = {
    "fp8", "bitsandbytes", "torchao", "experts_int8", "mxfp8", "mxfp4", "online", "fp8_per_tensor", "fp8_per_block",
    "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token", "humming", "quark_mxfp4", "nvfp4_online",
    "quark_int4fp8_moe", "modelopt", "modelopt_fp8", "modelopt_fp4", "mlx_q4", "mlx_q8", "unquant", "ptpc_fp8", "rtn",
    "w8a8_fp8", "w8a8_int8", "bnb-4bit", "bnb-8bit", "gguf", "deepspeedfp", "tpu_int8", "hqq", "auto",
}  # fmt: skip
"""Methods that can be made of unquantised weights while they load."""


@rule(
    "vllm.quantization_differs",
    cause="the method is read from the checkpoint, and the flag names another",
    source="vllm 0.33.0: vllm/config/model.py:1458",
    fires={"stored": "gptq", "quantization": "awq"},
    passes={"stored": "gptq", "quantization": "gptq_marlin"},
)
@rule(
    "sglang.quantization_differs",
    versions=">=0.4.0",
    cause="the method is read from the checkpoint, and the flag names another",
    source="sglang 0.5.23: sglang/srt/configs/model_config.py:2144",
    fires={"engine": "sglang", "stored": "compressed-tensors", "quantization": "gptq"},
    passes={"engine": "sglang", "stored": "gptq", "quantization": "gptq_marlin"},
)
def quantization_differs(case: Case) -> Fault | None:
    """The quantization asked for is not the checkpoint's."""
    asked, stored = case.quantization_asked, case.stored
    if asked is None or stored is None or asked == stored or stored == "gguf":
        return None
    if any(asked in names and stored in names for names in _SAME):
        return None
    if case.engine == "sglang" and asked in ("quark_mxfp4", "nvfp4_online"):
        return None
    return Fault(
        what=f"quantization {asked} is asked for and the checkpoint is {stored}",
        fix="leave the quantization out: it is read from the checkpoint",
        mend=(("quantization", None), ("extra_args.quantization", None)),
    )


@rule(
    "vllm.quantization_needs_checkpoint",
    cause="the method stores scales with the weights, and this checkpoint has none",
    source="vllm 0.33.0: vllm/model_executor/model_loader/weight_utils.py (get_quant_config)",
    fires={"quantization": "awq"},
    passes={"quantization": "fp8"},
)
@rule(
    "sglang.quantization_needs_checkpoint",
    cause="the method stores scales with the weights, and this checkpoint has none",
    source="sglang 0.5.23: sglang/srt/model_loader/weight_utils.py (get_quant_config)",
    fires={"engine": "sglang", "quantization": "gptq"},
    passes={"engine": "sglang", "quantization": "fp8"},
)
def quantization_needs_checkpoint(case: Case) -> Fault | None:
    """A quantization is asked for that unquantised weights cannot be turned into while they load."""
    asked = case.quantization_asked
    if asked is None or case.stored is not None or case.gguf or asked in _ONLINE:
        return None
    return Fault(
        what=f"quantization {asked} is asked for and the weights are not quantised",
        fix=f"a {asked} checkpoint of the model, or fp8, which is made while loading",
        mend=(("quantization", None), ("extra_args.quantization", None)),
    )


@rule(
    "vllm.quantization_deprecated",
    versions=">=0.14.0",
    cause="the method goes away and is blocked unless allowed on purpose",
    source="vllm 0.33.0: vllm/config/model.py:1483",
    fires={"stored": "fbgemm_fp8"},
    passes={"stored": "fbgemm_fp8", "options": {"allow_deprecated_quantization": True}},
)
def quantization_deprecated(case: Case) -> Fault | None:
    """A deprecated quantization without --allow-deprecated-quantization."""
    if case.quantization not in ("fbgemm_fp8", "fp_quant") or case.on("allow_deprecated_quantization"):
        return None
    return Fault(
        what=f"{case.quantization} is deprecated and refused",
        fix="--allow-deprecated-quantization, or another checkpoint",
        mend=(("extra_args.allow_deprecated_quantization", True),),
    )


@rule(
    "vllm.quantization_needs_half",
    versions="<0.20",
    cause="the plain kernels (not Marlin) compute in float16 only",
    source="vllm 0.18.0: vllm/model_executor/layers/quantization/awq.py:70, gptq.py:131",
    fires={"version": "0.18.0", "stored": "awq", "quantization": "awq", "dtype": "bfloat16"},
    passes={"version": "0.18.0", "stored": "awq", "quantization": "awq", "dtype": "float16"},
)
@rule(
    "sglang.quantization_needs_half",
    versions=">=0.4.0",
    cause="the plain kernels (not Marlin) compute in float16 only",
    source="sglang 0.5.23: sglang/srt/layers/quantization/awq/awq.py:106, sglang/srt/model_loader/loader.py:269",
    fires={"engine": "sglang", "stored": "gptq", "quantization": "gptq", "dtype": "bfloat16"},
    passes={"engine": "sglang", "stored": "gptq", "quantization": "gptq_marlin", "dtype": "bfloat16"},
)
def quantization_needs_half(case: Case) -> Fault | None:
    """Plain AWQ or GPTQ kernels with another dtype than float16."""
    asked = case.quantization_asked
    if asked not in ("awq", "gptq") or case.stored != asked or case.dtype == "float16" or case.vendor != "nvidia":
        return None
    if case.dtype_asked == "auto" and case.capability is not None and case.capability < 80:
        return None
    return Fault(
        what=f"quantization {asked} with {case.dtype}",
        fix=f"leave the quantization out (or {asked}_marlin), or dtype float16",
        mend=(("quantization", None), ("extra_args.quantization", None)),
    )


@rule(
    "vllm.quantization_with_float32",
    cause="quantised layers compute in 16 bits",
    source="vllm 0.33.0: vllm/config/vllm.py:940",
    fires={"stored": "awq", "dtype": "float32"},
    passes={"stored": "awq", "dtype": "bfloat16"},
)
@rule(
    "sglang.quantization_with_float32",
    versions=">=0.4.0",
    cause="quantised layers compute in 16 bits",
    source="sglang 0.5.23: sglang/srt/model_loader/loader.py:269",
    fires={"engine": "sglang", "stored": "awq", "dtype": "float32"},
    passes={"engine": "sglang", "stored": "awq", "dtype": "float16"},
)
def quantization_with_float32(case: Case) -> Fault | None:
    """Quantised weights with dtype float32."""
    method = case.quantization
    if case.dtype_asked != "float32" or method in (None, "torchao", "compressed-tensors", "bitsandbytes", "gguf"):
        return None
    return Fault(what=f"{method} with float32", fix="dtype auto", mend=(("dtype", "auto"), ("extra_args.dtype", None)))


@rule(
    "vllm.mxfp4_with_half",
    cause="MXFP4 layers compute in bfloat16",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/mxfp4.py:80",
    fires={"stored": "mxfp4", "dtype": "float16"},
    passes={"stored": "mxfp4", "dtype": "bfloat16"},
)
def mxfp4_with_half(case: Case) -> Fault | None:
    """MXFP4 weights with another dtype than bfloat16."""
    if case.quantization not in ("mxfp4", "gpt_oss_mxfp4") or case.dtype_asked in ("auto", "bfloat16"):
        return None
    return Fault(
        what=f"{case.quantization} with {case.dtype_asked}",
        fix="dtype auto",
        mend=(("dtype", "auto"), ("extra_args.dtype", None)),
    )


@rule(
    "vllm.awq_slow_on_vllm",
    severity="warning",
    cause="4-bit weights are unpacked at every step: they save memory and help one user, but cost speed with many; "
    "the plain AWQ kernels, before 0.6.3 and below 8.0, cost most",
    source="a field note of November 2024 (vLLM 0.6.4); vllm 0.18.0: awq_marlin.py:160",
    fires={"stored": "awq", "sequences": 64},
    passes={"stored": "awq", "sequences": 4, "quantization": "awq_marlin"},
)
def awq_slow_on_vllm(case: Case) -> Fault | None:
    """AWQ weights where vLLM is slow with them."""
    plain = case.quantization_asked == "awq" or case.since("<0.6.3") or (case.capability or 80) < 80
    if case.stored != "awq" or (case.candidate.sequences <= 16 and not plain):
        return None
    return Fault(
        what="AWQ weights are slower than 16-bit ones when many requests run at once",
        fix="leave the quantization out so that Marlin is used, or FP8 (from 8.9) or 16-bit weights where they fit",
    )


@rule(
    "vllm.fp8_without_hardware",
    versions=">=0.5.1",
    severity="warning",
    cause="devices below 8.9 have no FP8 arithmetic: the weights are unpacked to 16 bits in the kernel (Marlin)",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/marlin_utils_fp8.py:109",
    fires={"stored": "fp8", "arch": "8.6"},
    passes={"stored": "fp8", "arch": "8.9"},
)
@rule(
    "sglang.fp8_without_hardware",
    versions=">=0.4.1",
    severity="warning",
    cause="devices below 8.9 have no FP8 arithmetic: the weights are unpacked to 16 bits in the kernel (Marlin)",
    source="sglang 0.5.23: sglang/srt/layers/quantization/fp8.py",
    fires={"engine": "sglang", "stored": "fp8", "arch": "8.6"},
    passes={"engine": "sglang", "stored": "fp8", "arch": "9.0"},
)
def fp8_without_hardware(case: Case) -> Fault | None:
    """FP8 weights on devices without FP8 arithmetic."""
    if case.quantization != "fp8" or case.capability is None or not 75 <= case.capability < 89:
        return None
    return Fault(
        what=f"FP8 weights on compute capability {case.capability / 10:g}: memory is saved, speed is not gained",
        fix="INT8, AWQ or GPTQ weights for speed; nothing if memory was the reason",
    )


@rule(
    "sglang.modelopt_fp8_device",
    cause="ModelOpt's FP8 layers multiply in FP8, which devices below 8.9 cannot",
    source="sglang 0.5.23: sglang/srt/layers/quantization/modelopt_quant.py:463",
    fires={"engine": "sglang", "stored": "modelopt", "bits": 8, "arch": "8.6"},
    passes={"engine": "sglang", "stored": "modelopt", "bits": 8, "arch": "8.9"},
)
def modelopt_fp8_device(case: Case) -> Fault | None:
    """ModelOpt FP8 weights on devices without FP8 arithmetic."""
    stored = case.model.quantization
    if case.stored != "modelopt" or stored is None or stored.bits != 8 or (case.capability or 90) >= 89:
        return None
    return Fault(
        what=f"ModelOpt FP8 weights on compute capability {(case.capability or 0) / 10:g}",
        fix="block-quantised FP8, AWQ or GPTQ weights, or vllm",
        mend=(("engine", "vllm"),),
    )


@rule(
    "vllm.compressed_fp8_without_hardware",
    versions=">=0.6.0",
    severity="warning",
    cause="the W8A8-FP8 scheme needs 8.9; below, weights are FP8 and computing is 16-bit",
    source="vllm 0.33.0: compressed_tensors_w8a8_fp8.py:85",
    fires={"stored": "compressed-tensors", "activation": "fp8", "arch": "8.0"},
    passes={"stored": "compressed-tensors", "activation": "fp8", "arch": "9.0"},
)
def compressed_fp8_without_hardware(case: Case) -> Fault | None:
    """compressed-tensors FP8 weights on devices without FP8 arithmetic."""
    stored = case.model.quantization
    if case.stored != "compressed-tensors" or stored is None or case.capability is None or case.capability >= 89:
        return None
    if not (stored.activation or "").startswith(("fp8", "float8")):
        return None
    return Fault(
        what=f"W8A8-FP8 weights on compute capability {case.capability / 10:g}: memory is saved, speed is not gained",
        fix="a W8A8-INT8 or W4A16 checkpoint for speed",
    )


@rule(
    "vllm.bitsandbytes_is_a_plugin",
    versions=">=0.28.0",
    cause="bitsandbytes left vLLM for a plugin",
    source="vllm 0.33.0: docs/features/quantization/bnb.md:8, tried",
    fires={"stored": "bitsandbytes"},
    passes={"stored": "bitsandbytes", "version": "0.27.1"},
)
def bitsandbytes_is_a_plugin(case: Case) -> Fault | None:
    """bitsandbytes without vllm-bnb-plugin."""
    if case.quantization != "bitsandbytes" or case.on("vllm_bnb_plugin"):
        return None
    return Fault(
        what="vLLM has no bitsandbytes of its own since 0.28",
        fix="install vllm-bnb-plugin into the engine's environment, or take an AWQ, GPTQ or FP8 checkpoint",
    )
