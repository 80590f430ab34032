"""vllm-ascend: what vLLM's plugin for Huawei's NPUs can and cannot."""

from __future__ import annotations

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Example, Fault, rule

_PLUGIN: Example = {"engine": "vllm_ascend", "vendor": "ascend"}
_UNKNOWN_SOCS = {"910A", "910PROA", "910PROB", "310", "310B"}


@rule(
    "vllm_ascend.unknown_soc",
    cause="the plugin knows the Atlas A2, A3, 950 and 310P",
    source="vllm-ascend 0.23.0.post1: vllm_ascend/utils.py:860",
    fires={**_PLUGIN, "arch": "910A"},
    passes={**_PLUGIN, "arch": "910B4"},
)
def unknown_soc(case: Case) -> Fault | None:
    """An NPU that vllm-ascend does not know."""
    for device in case.devices:
        if device.vendor == "ascend" and device.arch.upper().removeprefix("ASCEND") in _UNKNOWN_SOCS:
            return Fault(what=f"SoC {device.arch}", fix="MindIE, if it lists the device, or other hardware")
    return None


@rule(
    "vllm_ascend.latent_heads",
    cause="the kernel knows 32, 64 and 128 query heads per rank",
    source="vllm-ascend 0.23.0.post1: docs/source/faqs.md:160",
    fires={**_PLUGIN, "mla": True, "heads": 16, "tp": 2},
    passes={**_PLUGIN, "mla": True, "heads": 128, "tp": 4},
)
def latent_heads(case: Case) -> Fault | None:
    """Latent attention with a number of heads per rank that the kernel does not know."""
    if (
        not case.mla
        or case.candidate.eager
        or case.model.heads // case.tp in (32, 64, 128)
        or case.devices[0].arch.startswith("310P")
    ):
        return None
    return Fault(
        what=f"{case.model.heads} heads / {case.tp} = {case.model.heads // case.tp} per rank",
        fix="fewer tensor-parallel ranks, or --enforce-eager",
        mend=(("extra_args.enforce_eager", True),),
    )


@rule(
    "vllm_ascend.flash_comm",
    cause="it merges communication of tensor-parallel ranks, and of experts for mixtures",
    source="vllm-ascend 0.23.0.post1: vllm_ascend/platform.py:765,769",
    fires={**_PLUGIN, "env": {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}},
    passes={**_PLUGIN, "tp": 2, "env": {"VLLM_ASCEND_ENABLE_FLASHCOMM1": "1"}},
)
def flash_comm(case: Case) -> Fault | None:
    """Flash Comm without tensor parallelism, or for a mixture without expert parallelism."""
    if case.env.get("VLLM_ASCEND_ENABLE_FLASHCOMM1") != "1":
        return None
    if case.tp > 1 and (not case.moe or case.ep > 1 or case.on("enable_expert_parallel")):
        return None
    return Fault(
        what="Flash Comm needs tensor parallelism" if case.tp == 1 else "Flash Comm needs expert parallelism here",
        fix="unset VLLM_ASCEND_ENABLE_FLASHCOMM1",
        mend=(("env.VLLM_ASCEND_ENABLE_FLASHCOMM1", None),),
    )


@rule(
    "vllm_ascend.pipeline_mtp",
    cause="multi-token prediction crosses pipeline stages on prefill nodes only",
    source="vllm-ascend 0.23.0.post1: vllm_ascend/platform.py:444",
    fires={**_PLUGIN, "pp": 2, "config": {"num_nextn_predict_layers": 1},
           "options": {"speculative_config": '{"method": "mtp", "num_speculative_tokens": 1}'}},
    passes={**_PLUGIN, "pp": 1, "config": {"num_nextn_predict_layers": 1},
            "options": {"speculative_config": '{"method": "mtp", "num_speculative_tokens": 1}'}},
)  # fmt: skip
def pipeline_mtp(case: Case) -> Fault | None:
    """Pipeline parallelism with multi-token prediction."""
    if case.pp == 1 or "mtp" not in str(case.json("speculative_config").get("method", "")):
        return None
    if case.json("kv_transfer_config").get("kv_role") == "kv_producer":
        return None
    return Fault(
        what="pipeline parallelism with multi-token prediction",
        fix="pipeline-parallel size 1",
        mend=(("parallel.pipeline", 1),),
    )


@rule(
    "vllm_ascend.capture_sizes",
    severity="warning",
    cause="each captured size takes stream resources, and they run out",
    source="vllm-ascend 0.23.0.post1: docs/source/faqs.md:213",
    fires={**_PLUGIN, "options": {"cudagraph_capture_sizes": ",".join(map(str, range(1, 80)))}},
    passes={**_PLUGIN, "options": {"cudagraph_capture_sizes": "1,2,4,8"}},
)
def capture_sizes(case: Case) -> Fault | None:
    """Many graph sizes on an NPU."""
    sizes = case.text("cudagraph_capture_sizes").split(",")
    if len(sizes) <= 64:
        return None
    return Fault(
        what=f"{len(sizes)} sizes to capture",
        fix="fewer sizes",
        mend=(("extra_args.cudagraph_capture_sizes", None),),
    )
