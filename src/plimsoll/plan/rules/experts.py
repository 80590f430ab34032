"""Mixtures of experts: expert parallelism and how experts are cut."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule
from plimsoll.plan.rules.shapes import common_divisor


@rule(
    "vllm.experts_not_divisible",
    versions=">=0.5.0",
    cause="without expert parallelism every expert is cut over the tensor-parallel ranks",
    source="vllm 0.33.0: vllm/model_executor/layers/fused_moe/config.py:1352",
    fires={"heads": 30, "kv_heads": 30, "experts": 64, "moe_intermediate": 1408, "tp": 3},
    passes={"heads": 30, "kv_heads": 30, "experts": 63, "moe_intermediate": 1408, "tp": 3, "ep": 3},
)
def experts_not_divisible(case: Case) -> Fault | None:
    """The experts' width does not divide by the tensor-parallel size."""
    moe = case.model.moe
    if moe is None or case.ep > 1 or case.on("enable_expert_parallel") or moe.intermediate_size % case.tp == 0:
        return None
    return Fault(
        what=f"experts are {moe.intermediate_size} wide, which does not divide by tensor-parallel size {case.tp}",
        fix="turn expert parallelism on, which keeps experts whole, or lower the tensor-parallel size",
        mend=(("parallel.expert", case.tp * case.dp),),
    )


@rule(
    "vllm.expert_parallel_on_dense_model",
    versions=">=0.8.0",
    cause="expert parallelism deals out experts, and the model has none",
    source="vllm 0.33.0: vllm/config/model.py:1501",
    fires={"ep": 2, "tp": 2},
    passes={"ep": 2, "tp": 2, "experts": 64},
)
def expert_parallel_on_dense_model(case: Case) -> Fault | None:
    """Expert parallelism is asked for and the model has no experts."""
    if case.moe or (case.ep == 1 and not case.on("enable_expert_parallel")):
        return None
    return Fault(
        what="expert parallelism is on, but the model is dense",
        fix="drop expert parallelism",
        mend=(("parallel.expert", None), ("extra_args.enable_expert_parallel", None)),
    )


@rule(
    "vllm.expert_ranks",
    versions=">=0.8.0",
    cause="vLLM's expert-parallel size is not chosen: it is tensor x data parallel size",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:1305",
    fires={"experts": 64, "tp": 4, "ep": 2},
    passes={"experts": 64, "tp": 4, "ep": 4},
)
def expert_ranks(case: Case) -> Fault | None:
    """The expert-parallel size is not tensor x data parallel size."""
    ranks = case.tp * case.dp
    if case.ep in (1, ranks) or not case.moe:
        return None
    return Fault(
        what=f"expert-parallel size {case.ep} cannot be had: vLLM uses {case.tp} x {case.dp} = {ranks} or none",
        fix=f"set the expert-parallel size to {ranks}, or leave it out",
        mend=(("parallel.expert", ranks),),
    )


@rule(
    "vllm.eplb_needs_expert_parallel",
    versions=">=0.10.0",
    cause="the load balancer moves experts between expert-parallel ranks",
    source="vllm 0.33.0: vllm/config/parallel.py:570",
    fires={"experts": 64, "tp": 4, "options": {"enable_eplb": True}},
    passes={"experts": 64, "tp": 4, "ep": 4, "options": {"enable_eplb": True}},
)
def eplb_needs_expert_parallel(case: Case) -> Fault | None:
    """Expert load balancing without expert parallelism."""
    if not case.on("enable_eplb") or case.ep > 1 or case.on("enable_expert_parallel"):
        return None
    return Fault(
        what="--enable-eplb needs expert parallelism",
        fix="turn expert parallelism on",
        mend=(("parallel.expert", case.tp * case.dp),),
    )


@rule(
    "vllm.eplb_uneven",
    versions=">=0.9.2",
    cause="the load balancer deals out the same number of experts to each rank",
    source="vllm 0.33.0: vllm/model_executor/layers/fused_moe/layer.py:276",
    fires={"experts": 60, "tp": 8, "ep": 8, "heads": 64, "options": {"enable_eplb": True}},
    passes={"experts": 64, "tp": 8, "ep": 8, "heads": 64, "options": {"enable_eplb": True}},
)
def eplb_uneven(case: Case) -> Fault | None:
    """Expert load balancing over ranks that do not divide the experts."""
    moe = case.model.moe
    if moe is None or not case.on("enable_eplb") or case.ep == 1 or moe.experts % case.ep == 0:
        return None
    return Fault(
        what=f"{moe.experts} experts do not divide by {case.ep} expert-parallel ranks, which --enable-eplb needs",
        fix="choose ranks that divide the experts, or drop --enable-eplb",
        mend=(("extra_args.enable_eplb", None),),
    )


@rule(
    "sglang.expert_parallel_not_in_tensor",
    versions=">=0.5.6",
    cause="SGLang carves expert-parallel groups out of the tensor-parallel ranks (not tensor x data, as vLLM does)",
    source="sglang 0.5.23: sglang/srt/model_executor/model_runner_components/moe_ep_setup.py:152",
    fires={"engine": "sglang", "experts": 64, "tp": 8, "ep": 3},
    passes={"engine": "sglang", "experts": 64, "tp": 8, "ep": 4},
)
def expert_parallel_not_in_tensor(case: Case) -> Fault | None:
    """The tensor-parallel size does not divide by the expert-parallel size."""
    if case.tp % case.ep == 0:
        return None
    size = common_divisor(case.tp, case.ep)
    return Fault(
        what=f"tensor-parallel size {case.tp} does not divide by expert-parallel size {case.ep}",
        fix=f"set the expert-parallel size to {size}",
        mend=(("parallel.expert", size),),
    )


@rule(
    "sglang.experts_not_divisible",
    versions=">=0.5.4",
    cause="each expert is cut over tensor / expert parallel ranks",
    source="sglang 0.5.23: sglang/srt/model_executor/model_runner_components/moe_ep_setup.py:164",
    fires={"engine": "sglang", "heads": 30, "kv_heads": 30, "experts": 60, "moe_intermediate": 1408, "tp": 6},
    passes={"engine": "sglang", "heads": 30, "kv_heads": 30, "experts": 60, "moe_intermediate": 1408, "tp": 6, "ep": 3},
)
def sglang_experts_not_divisible(case: Case) -> Fault | None:
    """The experts' width does not divide by tensor / expert parallel size."""
    moe = case.model.moe
    if moe is None or case.tp % case.ep:
        return None
    ranks = case.tp // case.ep
    if moe.intermediate_size % ranks == 0:
        return None
    return Fault(
        what=f"experts are {moe.intermediate_size} wide and would be cut by {ranks} ({case.tp} / {case.ep})",
        fix=f"set the expert-parallel size to {case.tp}",
        mend=(("parallel.expert", case.tp),),
    )


@rule(
    "sglang.moe_dp_not_in_tensor",
    versions=">=0.5.9",
    cause="MoE data parallelism and expert parallelism share the tensor-parallel ranks",
    source="sglang 0.5.23: sglang/srt/arg_groups/parallel_hook.py:173",
    fires={"engine": "sglang", "experts": 64, "tp": 8, "ep": 8, "options": {"moe_dp_size": 2}},
    passes={"engine": "sglang", "experts": 64, "tp": 8, "ep": 4, "options": {"moe_dp_size": 2}},
)
def moe_dp_not_in_tensor(case: Case) -> Fault | None:
    """MoE data-parallel size that the tensor-parallel ranks cannot hold."""
    size = int(case.number("moe_dp_size") or 1)
    if size <= 1 or (case.tp % size == 0 and case.ep * size <= case.tp):
        return None
    return Fault(
        what=f"--moe-dp-size {size} x expert-parallel size {case.ep} does not go into tensor-parallel size {case.tp}",
        fix="leave --moe-dp-size out",
        mend=(("extra_args.moe_dp_size", None),),
    )


@rule(
    "sglang.moe_dense_tp_size",
    versions=">=0.5.13",
    cause="dense layers of a mixture are cut over all ranks or over none",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:211",
    fires={"engine": "sglang", "experts": 64, "tp": 8, "options": {"moe_dense_tp_size": 2}},
    passes={"engine": "sglang", "experts": 64, "tp": 8, "options": {"moe_dense_tp_size": 1}},
)
def moe_dense_tp_size(case: Case) -> Fault | None:
    """--moe-dense-tp-size is neither 1 nor the tensor-parallel size."""
    size = case.number("moe_dense_tp_size")
    if size is None or int(size) in (1, case.tp):
        return None
    return Fault(
        what=f"--moe-dense-tp-size {size:.0f} is neither 1 nor {case.tp}",
        fix="set it to 1",
        mend=(("extra_args.moe_dense_tp_size", 1),),
    )


@rule(
    "sglang.cutlass_experts",
    versions=">=0.5.1",
    cause="the flashinfer_cutlass kernel knows whole experts or experts cut over all ranks",
    source="sglang 0.5.23: sglang/srt/arg_groups/moe_hook.py:92",
    fires={
        "engine": "sglang",
        "experts": 64,
        "tp": 8,
        "ep": 2,
        "options": {"moe_runner_backend": "flashinfer_cutlass"},
    },
    passes={
        "engine": "sglang",
        "experts": 64,
        "tp": 8,
        "ep": 8,
        "options": {"moe_runner_backend": "flashinfer_cutlass"},
    },
)
def cutlass_experts(case: Case) -> Fault | None:
    """flashinfer_cutlass with an expert-parallel size between 1 and the tensor-parallel size."""
    if case.text("moe_runner_backend") != "flashinfer_cutlass" or case.ep in (1, case.tp):
        return None
    return Fault(
        what=f"--moe-runner-backend flashinfer_cutlass with expert-parallel size {case.ep} of {case.tp}",
        fix=f"set the expert-parallel size to {case.tp}",
        mend=(("parallel.expert", case.tp),),
    )
