"""MindIE's configuration, and what its models and chips can and cannot."""

from __future__ import annotations

import re

from plimsoll.facts.incompatible import architectures
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Example, Fault, rule

_MINDIE: Example = {"engine": "mindie", "vendor": "ascend", "stored_dtype": "float16"}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,254}[A-Za-z0-9])?")
_QUANTIZE = {"w8a8", "w8a16", "w4a16", "w4a8", "w8a8sc", "w8a8s", "w8a8_dynamic", "w8a8_pdmix", "w4a8_dynamic", "float"}
_GITHUB = "MindIE-LLM 8b4871a"
_HALF = "torch_dtype float16 in config.json"


def _on_310p(case: Case) -> bool:
    return any("310P" in device.arch for device in case.devices)


def _context(case: Case) -> int:
    return int(case.number("maxSeqLen") or case.candidate.context_tokens)


@rule(
    "mindie.max_iter_times",
    severity="warning",
    cause="the answer is cut at maxSeqLen - prompt, whatever maxIterTimes says; it should stay below maxSeqLen",
    source=f"{_GITHUB}: service_parameter_configuration.md:151; a field note",
    fires={**_MINDIE, "options": {"maxSeqLen": 8192, "maxIterTimes": 16384}},
    passes={**_MINDIE, "options": {"maxSeqLen": 8192, "maxIterTimes": 8000}},
)
def max_iter_times(case: Case) -> Fault | None:
    """maxIterTimes is not below maxSeqLen."""
    times = case.number("maxIterTimes")
    if times is None or times < _context(case):
        return None
    return Fault(
        what=f"maxIterTimes {times:.0f} is not below maxSeqLen {_context(case)}",
        fix=f"maxIterTimes {_context(case) - 1} at most",
        mend=(("extra_args.maxIterTimes", _context(case) - 1),),
    )


@rule(
    "mindie.prefill_tokens",
    cause="one prompt must fit one prefill batch",
    source=f"{_GITHUB}: src/config_manager/config_manager_impl.cpp:330",
    fires={**_MINDIE, "options": {"maxPrefillTokens": 2048, "maxInputTokenLen": 4096}},
    passes={**_MINDIE, "options": {"maxPrefillTokens": 8192, "maxInputTokenLen": 4096}},
)
def prefill_tokens(case: Case) -> Fault | None:
    """maxPrefillTokens is below maxInputTokenLen."""
    tokens, longest = case.number("maxPrefillTokens"), case.number("maxInputTokenLen")
    if tokens is None or longest is None or tokens >= longest or case.text("templateType") == "Mix":
        return None
    return Fault(
        what=f"maxPrefillTokens {tokens:.0f} is below maxInputTokenLen {longest:.0f}",
        fix=f"maxPrefillTokens {longest:.0f}",
        mend=(("extra_args.maxPrefillTokens", int(longest)),),
    )


@rule(
    "mindie.input_length",
    severity="warning",
    cause="MindIE lowers it to maxSeqLen - 1 without a word",
    source=f"{_GITHUB}: service_parameter_configuration.md:115",
    fires={**_MINDIE, "options": {"maxSeqLen": 4096, "maxInputTokenLen": 4096}},
    passes={**_MINDIE, "options": {"maxSeqLen": 4096, "maxInputTokenLen": 2048}},
)
def input_length(case: Case) -> Fault | None:
    """maxInputTokenLen leaves no room for an answer."""
    longest = case.number("maxInputTokenLen")
    if longest is None or longest < _context(case):
        return None
    return Fault(
        what=f"maxInputTokenLen {longest:.0f} with maxSeqLen {_context(case)}",
        fix=f"maxInputTokenLen below {_context(case)}",
        mend=(("extra_args.maxInputTokenLen", _context(case) - 1),),
    )


@rule(
    "mindie.batch_bounds",
    cause="these are parts of maxBatchSize",
    source=f"{_GITHUB}: src/config_manager/schedule_config.cpp:257,277,286",
    fires={**_MINDIE, "options": {"maxBatchSize": 50, "maxPrefillBatchSize": 100}},
    passes={**_MINDIE, "options": {"maxBatchSize": 200, "maxPrefillBatchSize": 50, "maxPreemptCount": 0}},
)
def batch_bounds(case: Case) -> Fault | None:
    """maxPrefillBatchSize, maxPreemptCount or maxN exceeds maxBatchSize."""
    batch = case.number("maxBatchSize")
    if batch is None:
        return None
    for name in ("maxPrefillBatchSize", "maxPreemptCount", "maxN"):
        part = case.number(name)
        if part is not None and part > batch:
            return Fault(
                what=f"{name} {part:.0f} exceeds maxBatchSize {batch:.0f}",
                fix=f"{name} {batch:.0f} at most",
                mend=((f"extra_args.{name}", int(batch)),),
            )
    return None


@rule(
    "mindie.batch_on_310p",
    cause="an Atlas 300I Duo takes at most 2000 requests",
    source=f"{_GITHUB}: service_parameter_configuration.md:150",
    fires={**_MINDIE, "arch": "310P3", "options": {"maxBatchSize": 4000}},
    passes={**_MINDIE, "arch": "910B4", "options": {"maxBatchSize": 4000}},
)
def batch_on_310p(case: Case) -> Fault | None:
    """maxBatchSize above 2000 on a 310P."""
    batch = case.number("maxBatchSize")
    if not _on_310p(case) or batch is None or batch <= 2000:
        return None
    return Fault(what=f"maxBatchSize {batch:.0f} on a 310P", fix="2000", mend=(("extra_args.maxBatchSize", 2000),))


@rule(
    "mindie.model_name",
    cause="the name may hold letters, digits, _ . and -, and begins and ends with a letter or digit",
    source=f"{_GITHUB}: src/config_manager/model_deploy_config.cpp:427",
    fires={**_MINDIE, "name": "Qwen/Qwen2-7B"},
    passes={**_MINDIE, "name": "qwen2-7b"},
)
def model_name(case: Case) -> Fault | None:
    """A served name that MindIE refuses."""
    name = case.text("modelName") or case.candidate.deployment.name
    if _NAME.fullmatch(name):
        return None
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name.rpartition("/")[2]).strip("_.-") or "model"
    return Fault(
        what=f"the served name {name}",
        fix=plain,
        mend=(("name", plain), ("extra_args.modelName", None)),
    )


@rule(
    "mindie.dtype",
    cause="MindIE takes the dtype from config.json and knows float16 and bfloat16",
    source=f"{_GITHUB}: examples/atb_models/atb_llm/runner/model_runner.py:304",
    fires={"engine": "mindie", "vendor": "ascend", "stored_dtype": "float32"},
    passes={"engine": "mindie", "vendor": "ascend", "stored_dtype": "bfloat16"},
)
def mindie_dtype(case: Case) -> Fault | None:
    """A model whose config.json says another dtype than float16 or bfloat16."""
    if case.dtype in ("float16", "bfloat16"):
        return None
    return Fault(what=f"torch_dtype {case.dtype}", fix=_HALF, mend=(("dtype", "float16"),))


@rule(
    "mindie.bfloat16_on_310p",
    cause="the 310P computes in float16 only",
    source="a field note; vllm-ascend 0.23.0.post1: docs/source/tutorials/models/PaddleOCR-VL.md:162",
    fires={"engine": "mindie", "vendor": "ascend", "arch": "310P3", "stored_dtype": "bfloat16"},
    passes={"engine": "mindie", "vendor": "ascend", "arch": "310P3", "stored_dtype": "float16"},
)
def bfloat16_on_310p(case: Case) -> Fault | None:
    """A bfloat16 model on a 310P."""
    if not _on_310p(case) or case.dtype != "bfloat16":
        return None
    return Fault(what="bfloat16 on a 310P", fix=_HALF, mend=(("dtype", "float16"),))


@rule(
    "mindie.bfloat16_by_model",
    severity="warning",
    cause="on Atlas A2 bfloat16 depends on the model's own support in MindIE; releases of 2024 refused it",
    source="a field note (910B4, MindIE 1.0.RC2); MindIE-LLM 8b4871a accepts it",
    fires={"engine": "mindie", "vendor": "ascend", "stored_dtype": "bfloat16"},
    passes={"engine": "mindie", "vendor": "ascend", "stored_dtype": "float16"},
)
def bfloat16_by_model(case: Case) -> Fault | None:
    """A bfloat16 model on an Atlas A2."""
    if _on_310p(case) or case.dtype != "bfloat16":
        return None
    return Fault(
        what="torch_dtype is bfloat16",
        fix="torch_dtype float16 in config.json if the model does not load",
    )


@rule(
    "mindie.quantization",
    cause="MindIE serves weights quantised by ModelSlim",
    source=f"{_GITHUB}: examples/atb_models/atb_llm/models/base/config.py:292",
    fires={**_MINDIE, "stored": "awq"},
    passes={**_MINDIE, "stored": "w8a8"},
)
def mindie_quantization(case: Case) -> Fault | None:
    """A quantization other than ModelSlim's."""
    method = case.quantization
    if method is None or method in _QUANTIZE or method in ("ascend", "modelslim"):
        return None
    return Fault(what=f"{method} weights", fix="W8A8 (or W8A16, W4A16) weights from ModelSlim, or unquantised ones")


@rule(
    "mindie.rope_scaling",
    cause="MindIE knows linear, dynamic, yarn, llama3, su and longrope",
    source=f"{_GITHUB}: examples/atb_models/atb_llm/models/base/config.py:318",
    fires={**_MINDIE, "config": {"rope_scaling": {"type": "ntk"}}},
    passes={**_MINDIE, "config": {"rope_scaling": {"type": "yarn"}}},
)
def rope_scaling(case: Case) -> Fault | None:
    """A rope scaling that MindIE does not know."""
    scaling = case.model.config.get("rope_scaling")
    if not isinstance(scaling, dict):
        return None
    kind = scaling.get("type") or scaling.get("rope_type")
    if kind in (None, "default", "mrope", "linear", "dynamic", "yarn", "llama3", "su", "longrope"):
        return None
    return Fault(what=f"rope_scaling of type {kind}", fix="vllm-ascend", mend=(("engine", "vllm-ascend"),))


@rule(
    "mindie.model_not_listed",
    severity="warning",
    cause="models are written by hand for MindIE; others fail to load",
    source=f"{_GITHUB}: docs/zh/user_guide/model_support_list.md; a field note (StarCoder2, CodeGeeX2)",
    fires={**_MINDIE, "architecture": "Starcoder2ForCausalLM"},
    passes={**_MINDIE, "architecture": "Qwen2ForCausalLM"},
)
def model_not_listed(case: Case) -> Fault | None:
    """An architecture outside MindIE's support list."""
    if case.model.architecture in architectures("mindie"):
        return None
    return Fault(
        what=f"{case.model.architecture} is not in MindIE's support list",
        fix="vllm-ascend",
        mend=(("engine", "vllm-ascend"),),
    )


@rule(
    "mindie.tokenizer_package",
    severity="warning",
    cause="the tokenizer needs a package that the image may lack",
    source="a field note (CodeGeeX2 without sentencepiece); MindIE-LLM 8b4871a: docs/zh/faq/faq.md:163",
    fires={**_MINDIE, "architecture": "ChatGLMModel"},
    passes={**_MINDIE, "architecture": "Qwen2ForCausalLM"},
)
def tokenizer_package(case: Case) -> Fault | None:
    """A model whose tokenizer needs sentencepiece."""
    if not case.model.architecture.startswith(("ChatGLM", "Baichuan", "BaiChuan")):
        return None
    return Fault(what="the tokenizer needs sentencepiece", fix="pip install sentencepiece in the image")


@rule(
    "mindie.devices_listed",
    cause="npuDeviceIds holds one list per instance, each with one id per rank, none twice",
    source=f"{_GITHUB}: src/config_manager/backend_config.cpp:157,163,214",
    fires={**_MINDIE, "options": {"worldSize": 4, "npuDeviceIds": "0,1,2,2"}},
    passes={**_MINDIE, "options": {"worldSize": 4, "npuDeviceIds": "0,1,2,3"}},
)
def devices_listed(case: Case) -> Fault | None:
    """npuDeviceIds does not name worldSize different devices."""
    text = case.text("npuDeviceIds").replace("[", "").replace("]", "")
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids:
        return None
    world = int(case.number("worldSize") or case.candidate.parallel.world)
    instances = int(case.number("modelInstanceNumber") or 1)
    if len(ids) == len(set(ids)) == world * instances:
        return None
    return Fault(
        what=f"npuDeviceIds {','.join(ids)} for worldSize {world} x {instances} instances",
        fix=f"{world * instances} different ids",
        mend=(("extra_args.npuDeviceIds", None),),
    )


@rule(
    "mindie.ports_differ",
    cause="each port is listened on by one server",
    source=f"{_GITHUB}: src/config_manager/config_manager_impl.cpp:313",
    fires={**_MINDIE, "options": {"port": 1120, "multiNodesInferPort": 1120}},
    passes={**_MINDIE, "options": {"port": 1025, "managementPort": 1026, "metricsPort": 1027}},
)
def ports_differ(case: Case) -> Fault | None:
    """Two of MindIE's ports are the same."""
    names = ("port", "managementPort", "metricsPort", "multiNodesInferPort")
    given = [(name, case.text(name)) for name in names if case.text(name)]
    for index, (name, port) in enumerate(given):
        for other, same in given[:index]:
            if port == same:
                return Fault(
                    what=f"{other} and {name} are both {port}",
                    fix="different ports",
                    mend=((f"extra_args.{name}", None),),
                )
    return None


@rule(
    "mindie.instances_on_nodes",
    cause="over several nodes there is one instance",
    source=f"{_GITHUB}: src/config_manager/backend_config.cpp:204",
    fires={**_MINDIE, "nodes": 2, "options": {"modelInstanceNumber": 2}},
    passes={**_MINDIE, "nodes": 1, "options": {"modelInstanceNumber": 2}},
)
def instances_on_nodes(case: Case) -> Fault | None:
    """Several instances over several nodes."""
    if case.nodes <= 1 or (case.number("modelInstanceNumber") or 1) <= 1:
        return None
    return Fault(
        what="several instances over several nodes",
        fix="modelInstanceNumber 1",
        mend=(("extra_args.modelInstanceNumber", 1),),
    )


@rule(
    "mindie.prefix_cache_models",
    cause="prefix caching is written for Qwen2, Qwen2.5, Qwen3 and DeepSeek V3 and R1",
    source=f"{_GITHUB}: docs/zh/user_guide/feature/prefix_cache.md:18",
    fires={**_MINDIE, "options": {"plugin_type": "prefix_cache"}},
    passes={**_MINDIE, "architecture": "Qwen2ForCausalLM", "options": {"plugin_type": "prefix_cache"}},
)
def prefix_cache_models(case: Case) -> Fault | None:
    """Prefix caching for a model that MindIE has none for."""
    if case.text("plugin_type") != "prefix_cache":
        return None
    if case.model.architecture.startswith(("Qwen2", "Qwen3", "DeepseekV3", "DeepseekV32")):
        return None
    return Fault(
        what=f"prefix caching for {case.model.architecture}",
        fix="leave it out",
        mend=(("extra_args.plugin_type", None),),
        severity="warning",
    )


@rule(
    "mindie.parallel_sizes",
    cause="worldSize is the number of NPUs of an instance, cut by cp x dp x tp",
    source="MindIE-LLM 8b4871a: docs/zh/user_guide/feature/context_parallel.md:15",
    fires={"engine": "mindie", "vendor": "ascend", "tp": 4, "gpus": 8, "options": {"worldSize": 8, "cp": 4, "tp": 4}},
    passes={
        "engine": "mindie",
        "vendor": "ascend",
        "tp": 4,
        "gpus": 8,
        "options": {"worldSize": 8, "cp": 2, "tp": 4, "sp": 4},
    },
)
def mindie_parallel_sizes(case: Case) -> Fault | None:
    """MindIE's cp, dp and tp do not multiply to worldSize, or cp runs without sp = tp."""
    parts = {name: int(case.number(name) or 1) for name in ("cp", "dp", "tp", "sp")}
    world = int(case.number("worldSize") or case.candidate.parallel.world)
    if parts["cp"] == 1:
        return None
    if parts["cp"] * parts["dp"] * parts["tp"] == world and parts["sp"] == parts["tp"] and parts["dp"] == 1:
        return None
    return Fault(
        what=f"cp {parts['cp']} x dp {parts['dp']} x tp {parts['tp']} (sp {parts['sp']}) on worldSize {world}",
        fix="context parallelism needs dp 1, sp equal to tp, and cp x tp equal to worldSize",
        mend=(("extra_args.cp", None),),
    )


@rule(
    "mindie.sequence_parallel",
    cause="sequence parallelism spans the tensor-parallel ranks and has no bfloat16 path",
    source="MindIE-LLM 8b4871a: docs/zh/user_guide/feature/sequence_parallel.md:10",
    fires={"engine": "mindie", "vendor": "ascend", "stored_dtype": "float16", "options": {"sp": 4, "tp": 8}},
    passes={"engine": "mindie", "vendor": "ascend", "stored_dtype": "float16", "options": {"sp": 8, "tp": 8}},
)
def mindie_sequence_parallel(case: Case) -> Fault | None:
    """MindIE's sequence-parallel size differs from tp, or the model is bfloat16."""
    sequence = int(case.number("sp") or 1)
    tensor = int(case.number("tp") or case.tp)
    if sequence == 1 or (sequence == tensor and case.dtype != "bfloat16"):
        return None
    return Fault(
        what=f"sp {sequence} with tp {tensor} and {case.dtype}",
        fix="sp equal to tp, and a float16 (W8A8) model",
        mend=(("extra_args.sp", None),),
    )
