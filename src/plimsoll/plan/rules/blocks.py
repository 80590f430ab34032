"""Quantised weights cut by tensor parallelism: scale blocks, groups and kernel tiles must come out whole."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule
from plimsoll.plan.rules.shapes import advise_tensor, cuts, smaller_tensor
from plimsoll.plan.types import Severity

_DEEPSEEK = {
    "mla": True, "heads": 128, "kv_heads": 128, "layers": 61, "intermediate_size": 18432, "hidden_size": 7168,
    "experts": 256, "moe_intermediate": 2048, "moe_layers": 58, "stored": "fp8", "block": (128, 128),
}  # fmt: skip
"""DeepSeek-V3 and R1 as published: FP8 with 128 x 128 blocks."""
_INT4 = {"stored": "awq", "group_size": 128}


@rule(
    "vllm.weight_block_not_divisible",
    versions=">=0.6.6.post1",
    cause="one FP8 scale belongs to a block of rows that a cut may not split",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/fp8_utils.py:1326",
    fires={**_DEEPSEEK, "tp": 32, "ep": 32},
    passes={**_DEEPSEEK, "tp": 16, "ep": 16},
)
@rule(
    "sglang.weight_block_not_divisible",
    versions=">=0.4.1",
    cause="one FP8 scale belongs to a block of rows that a cut may not split",
    source="sglang 0.5.23: sglang/srt/layers/quantization/fp8.py:607; sgl-project/sglang#3345",
    fires={**_DEEPSEEK, "engine": "sglang", "tp": 32, "ep": 32},
    passes={**_DEEPSEEK, "engine": "sglang", "tp": 16, "ep": 16},
)
def weight_block_not_divisible(case: Case) -> Fault | None:
    """The outputs of a block-quantised layer are cut inside a block."""
    block = _block(case)
    if block is None or case.tp == 1:
        return None
    for cut in cuts(case):
        if cut.outputs and cut.size % case.tp == 0 and cut.part(case.tp) % block[0]:
            return Fault(
                what=f"{cut.layer}: {cut.size} / {case.tp} = {cut.part(case.tp)}, not divisible by the "
                f"weight block of {block[0]}",
                fix=f"use {advise_tensor(case)}",
                mend=smaller_tensor(case),
                severity=_unless_assumed(case),
            )
    return None


@rule(
    "vllm.weight_block_inputs_not_divisible",
    versions=">=0.6.6.post1",
    cause="one FP8 scale belongs to a block of columns that a cut may not split",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/fp8_utils.py:1326",
    fires={"heads": 32, "kv_heads": 32, "head_dim": 64, "stored": "fp8", "block": (128, 128), "tp": 32,
           "intermediate_size": 16384},
    passes={"heads": 32, "kv_heads": 32, "head_dim": 128, "stored": "fp8", "block": (128, 128), "tp": 32,
            "intermediate_size": 16384},
)  # fmt: skip
@rule(
    "sglang.weight_block_inputs_not_divisible",
    versions=">=0.4.1",
    cause="one FP8 scale belongs to a block of columns that a cut may not split",
    source="sglang 0.5.23: sglang/srt/layers/quantization/fp8.py:597",
    fires={"engine": "sglang", "heads": 32, "kv_heads": 32, "head_dim": 64, "stored": "fp8", "block": (128, 128),
           "tp": 32, "intermediate_size": 16384},
    passes={"engine": "sglang", "heads": 32, "kv_heads": 32, "head_dim": 128, "stored": "fp8", "block": (128, 128),
            "tp": 32, "intermediate_size": 16384},
)  # fmt: skip
def weight_block_inputs_not_divisible(case: Case) -> Fault | None:
    """The inputs of a block-quantised layer are cut inside a block."""
    block = _block(case)
    if block is None or case.tp == 1:
        return None
    for cut in cuts(case):
        if not cut.outputs and cut.size % case.tp == 0 and cut.part(case.tp) % block[1]:
            return Fault(
                what=f"{cut.layer}: {cut.size} / {case.tp} = {cut.part(case.tp)}, not divisible by the "
                f"weight block of {block[1]}",
                fix=f"use {advise_tensor(case)}",
                mend=smaller_tensor(case),
                severity=_unless_assumed(case),
            )
    return None


def _unless_assumed(case: Case) -> Severity | None:
    """A warning where the settings are guessed by the model's name: published ones are often padded."""
    return "warning" if case.assumed_quantization else None


def _block(case: Case) -> tuple[int, int] | None:
    """Rows and columns of one scale, when the checkpoint has such blocks and they are served as stored."""
    stored = case.model.quantization
    return stored.block if stored and stored.block and case.stored in ("fp8", "compressed-tensors", "quark") else None


@rule(
    "vllm.expert_block_not_divisible",
    versions=">=0.6.6.post1",
    cause="without expert parallelism each expert is cut over the ranks, and a cut may not split a block of scales",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/fp8_utils.py:1363",
    fires={"heads": 48, "kv_heads": 8, "experts": 256, "moe_intermediate": 1536, "stored": "fp8", "block": (128, 128),
           "tp": 8},
    passes={"heads": 48, "kv_heads": 8, "experts": 256, "moe_intermediate": 1536, "stored": "fp8", "block": (128, 128),
            "tp": 8, "ep": 8},
)  # fmt: skip
@rule(
    "sglang.expert_block_not_divisible",
    versions=">=0.4.1",
    cause="each expert is cut over tensor / expert parallel ranks, and a cut may not split a block of scales",
    source="sglang 0.5.23: sglang/srt/model_executor/model_runner_components/moe_ep_setup.py:173",
    fires={"engine": "sglang", "heads": 48, "kv_heads": 8, "experts": 256, "moe_intermediate": 1536, "stored": "fp8",
           "block": (128, 128), "tp": 8},
    passes={"engine": "sglang", "heads": 48, "kv_heads": 8, "experts": 256, "moe_intermediate": 1536, "stored": "fp8",
            "block": (128, 128), "tp": 8, "ep": 2},
)  # fmt: skip
def expert_block_not_divisible(case: Case) -> Fault | None:
    """Block-quantised experts are cut inside a block."""
    moe, block = case.model.moe, _block(case)
    if moe is None or block is None:
        return None
    ranks = _expert_cut(case)
    part = moe.intermediate_size // ranks
    if ranks == 1 or moe.intermediate_size % ranks or (part % block[0] == 0 and part % block[1] == 0):
        return None
    whole = case.tp * case.dp if case.engine != "sglang" else case.tp
    return Fault(
        what=f"experts: {moe.intermediate_size} / {ranks} = {part}, not divisible by the weight block of {block[0]}",
        fix=f"turn expert parallelism on ({whole} ranks), which keeps experts whole, or lower the tensor-parallel size",
        mend=(("parallel.expert", whole),),
        severity=_unless_assumed(case),
    )


def _expert_cut(case: Case) -> int:
    """Over how many ranks one expert is cut."""
    if case.engine == "sglang":
        return max(1, case.tp // case.ep)
    return 1 if case.ep > 1 or case.on("enable_expert_parallel") else case.tp


@rule(
    "vllm.group_not_divisible",
    cause="one scale belongs to a group of inputs that a cut may not split",
    source="vllm 0.33.0: vllm/distributed/utils.py:148, auto_awq.py:821",
    fires={**_INT4, "heads": 64, "intermediate_size": 29568, "tp": 2},
    passes={**_INT4, "heads": 64, "intermediate_size": 29696, "tp": 2},
)
@rule(
    "sglang.group_not_divisible",
    versions=">=0.4.10",
    cause="one scale belongs to a group of inputs that a cut may not split",
    source="sglang 0.5.23: sglang/srt/layers/quantization/marlin_utils.py:190",
    fires={**_INT4, "engine": "sglang", "heads": 64, "intermediate_size": 29568, "tp": 2},
    passes={**_INT4, "engine": "sglang", "heads": 64, "intermediate_size": 29696, "tp": 2},
)
def group_not_divisible(case: Case) -> Fault | None:
    """The inputs of a group-quantised layer are cut inside a group."""
    stored = case.model.quantization
    if stored is None or not stored.group_size or stored.group_size < 0 or case.tp == 1 or case.stored == "gguf":
        return None
    for cut in cuts(case):
        if not cut.outputs and cut.size % case.tp == 0 and cut.part(case.tp) % stored.group_size:
            return Fault(
                what=f"{cut.layer}: {cut.size} / {case.tp} = {cut.part(case.tp)}, not divisible by the "
                f"quantization group of {stored.group_size}",
                fix=f"use {advise_tensor(case)}",
                mend=smaller_tensor(case),
                severity=_unless_assumed(case),
            )
    return None


@rule(
    "vllm.expert_group_not_divisible",
    versions=">=0.24.0",
    cause="one scale belongs to a group of inputs, and each expert is cut over the ranks",
    source="vllm 0.33.0: compressed_tensors_moe_wna16.py:246",
    fires={"heads": 64, "experts": 64, "moe_intermediate": 1408, "stored": "compressed-tensors", "group_size": 128,
           "tp": 2},
    passes={"heads": 64, "experts": 64, "moe_intermediate": 1408, "stored": "compressed-tensors", "group_size": 128,
            "tp": 2, "ep": 2},
)  # fmt: skip
def expert_group_not_divisible(case: Case) -> Fault | None:
    """Group-quantised experts are cut inside a group."""
    moe, stored = case.model.moe, case.model.quantization
    if moe is None or stored is None or case.stored != "compressed-tensors" or not stored.group_size:
        return None
    ranks = _expert_cut(case)
    if (
        stored.group_size < 0
        or moe.intermediate_size % ranks
        or not (moe.intermediate_size // ranks) % stored.group_size
    ):
        return None
    return Fault(
        what=f"experts: {moe.intermediate_size} / {ranks} = {moe.intermediate_size // ranks}, not divisible by the "
        f"quantization group of {stored.group_size}",
        fix="turn expert parallelism on, or lower the tensor-parallel size",
        mend=(("parallel.expert", case.tp * case.dp),),
    )


@rule(
    "vllm.group_size",
    cause="the Marlin kernels know groups of 32, 64 and 128, and one group per column",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/marlin_utils.py:146",
    fires={"stored": "gptq_marlin", "group_size": 16},
    passes={"stored": "gptq_marlin", "group_size": 32},
)
def group_size(case: Case) -> Fault | None:
    """A quantization group that the Marlin kernels do not know."""
    stored = case.model.quantization
    if stored is None or stored.group_size in (None, -1, 32, 64, 128):
        return None
    if case.quantization not in ("awq_marlin", "gptq_marlin", "auto_gptq"):
        return None
    return Fault(what=f"quantization groups of {stored.group_size}", fix="quantise the model again with groups of 128")


@rule(
    "vllm.packed_outputs",
    cause="eight 4-bit weights are packed into one word, which a cut may not split",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/auto_awq.py:829",
    fires={**_INT4, "group_size": 4, "heads": 6, "kv_heads": 6, "head_dim": 64, "intermediate_size": 12012, "tp": 3},
    passes={**_INT4, "group_size": 8, "heads": 6, "kv_heads": 6, "head_dim": 64, "intermediate_size": 12288, "tp": 3},
)
def packed_outputs(case: Case) -> Fault | None:
    """AWQ outputs are cut inside a packed word."""
    if case.stored != "awq" or case.tp == 1:
        return None
    bad = next((c for c in cuts(case) if c.outputs and c.size % case.tp == 0 and c.part(case.tp) % 8), None)
    if bad is None:
        return None
    return Fault(
        what=f"{bad.layer}: {bad.size} / {case.tp} = {bad.part(case.tp)}, not divisible by 8",
        fix=f"use {advise_tensor(case)}",
        mend=smaller_tensor(case),
    )


@rule(
    "vllm.marlin_tiles",
    severity="warning",
    cause="the Marlin kernels compute 64 x 128 tiles; since 0.24 others are padded on every step, before that slower "
    "kernels were used or the layer was refused",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/utils/marlin_utils.py:183,240",
    fires={"stored": "gptq", "group_size": 32, "heads": 32, "kv_heads": 32, "head_dim": 64, "intermediate_size": 11008,
           "tp": 32},
    passes={"stored": "gptq", "group_size": 32, "heads": 32, "kv_heads": 32, "intermediate_size": 14336, "tp": 4},
)  # fmt: skip
def marlin_tiles(case: Case) -> Fault | None:
    """4-bit layers whose cut is no multiple of a Marlin tile."""
    if case.stored not in ("awq", "gptq") or case.capability is None or case.capability < 75 or case.tp == 1:
        return None
    for cut in cuts(case):
        if cut.size % case.tp == 0 and cut.part(case.tp) % (64 if cut.outputs else 128):
            return Fault(
                what=f"{cut.layer}: {cut.part(case.tp)} per rank is no multiple of a Marlin tile",
                fix="a smaller tensor-parallel size",
            )
    return None


@rule(
    "sglang.marlin_tiles",
    versions=">=0.4.10",
    severity="warning",
    cause="the Marlin kernels compute 64 x 128 tiles and refuse other shapes",
    source="sglang 0.5.23: sglang/srt/layers/quantization/marlin_utils.py:172,182",
    fires={"engine": "sglang", "stored": "gptq", "group_size": 32, "heads": 32, "kv_heads": 32, "head_dim": 64,
           "intermediate_size": 11008, "tp": 32},
    passes={"engine": "sglang", "stored": "gptq", "group_size": 32, "heads": 32, "kv_heads": 32, "tp": 4},
)  # fmt: skip
def sglang_marlin_tiles(case: Case) -> Fault | None:
    """4-bit layers whose cut is no multiple of a Marlin tile."""
    return marlin_tiles(case)


@rule(
    "vllm.nvfp4_inputs",
    versions=">=0.8.0",
    cause="one NVFP4 scale belongs to 16 inputs",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/modelopt.py:2028",
    fires={"stored": "modelopt_fp4", "arch": "10.0", "heads": 32, "kv_heads": 32, "intermediate_size": 11024, "tp": 4},
    passes={"stored": "modelopt_fp4", "arch": "10.0", "heads": 32, "kv_heads": 32, "intermediate_size": 11008, "tp": 4},
)
def nvfp4_inputs(case: Case) -> Fault | None:
    """NVFP4 layers cut inside a block of 16."""
    return _inputs_not_multiple(case, ("modelopt_fp4", "nvfp4"), 16)


@rule(
    "vllm.mxfp8_inputs",
    versions=">=0.19.0",
    cause="one MXFP8 scale belongs to 32 inputs",
    source="vllm 0.33.0: vllm/model_executor/layers/quantization/online/mxfp8.py:59",
    fires={"quantization": "mxfp8", "arch": "10.0", "heads": 32, "kv_heads": 32, "intermediate_size": 11040, "tp": 4},
    passes={"quantization": "mxfp8", "arch": "10.0", "heads": 32, "kv_heads": 32, "intermediate_size": 11008, "tp": 4},
)
def mxfp8_inputs(case: Case) -> Fault | None:
    """MXFP8 layers cut inside a block of 32."""
    return _inputs_not_multiple(case, ("mxfp8", "modelopt_mxfp8"), 32)


def _inputs_not_multiple(case: Case, methods: tuple[str, ...], block: int) -> Fault | None:
    if case.quantization not in methods:
        return None
    bad = next((c for c in cuts(case) if not c.outputs and c.size % case.tp == 0 and c.part(case.tp) % block), None)
    if bad is None:
        return None
    return Fault(
        what=f"{bad.layer}: {bad.size} / {case.tp} = {bad.part(case.tp)}, not divisible by the block of {block}",
        fix=f"use {advise_tensor(case, inputs=block)}",
        mend=smaller_tensor(case, inputs=block),
    )


@rule(
    "mindie.group_size",
    cause="the kernels know groups of 64, 128 and 256, and one group per column",
    source="MindIE-LLM 8b4871a: examples/atb_models/atb_llm/models/base/config.py:281",
    fires={"engine": "mindie", "vendor": "ascend", "stored": "w8a8", "group_size": 32},
    passes={"engine": "mindie", "vendor": "ascend", "stored": "w8a8", "group_size": 64},
)
def mindie_group_size(case: Case) -> Fault | None:
    """A quantization group that MindIE does not know."""
    stored = case.model.quantization
    if stored is None or stored.group_size in (None, 0, 64, 128, 256):
        return None
    return Fault(what=f"quantization groups of {stored.group_size}", fix="quantise the model again with ModelSlim")


@rule(
    "llamacpp.kv_block",
    cause="quantised cache types hold 32 values per block, which must divide the head for flash attention",
    source="llama.cpp b11434: src/llama-context.cpp:3858",
    fires={"engine": "llamacpp", "head_dim": 80, "options": {"cache_type_k": "q8_0"}},
    passes={"engine": "llamacpp", "head_dim": 80, "options": {"cache_type_k": "f16"}},
)
def kv_block(case: Case) -> Fault | None:
    """A quantised KV cache for heads that are no multiple of 32 wide."""
    quantised = [name for name in ("cache_type_k", "cache_type_v") if case.text(name).startswith(("q", "iq"))] or (
        ["kv_cache_dtype"] if case.kv_dtype.startswith(("q4", "q5", "q8", "iq4")) else []
    )
    if not quantised or case.model.head_dim % 32 == 0 or case.mla or case.off("flash_attn"):
        return None
    return Fault(
        what=f"heads are {case.model.head_dim} wide, no multiple of the cache's blocks of 32",
        fix="an f16 cache",
        mend=tuple((name if "_type_" not in name else f"extra_args.{name}", "f16") for name in quantised),
    )
