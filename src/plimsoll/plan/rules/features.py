"""LoRA, tool calls, names, spellings and other features that need or exclude something."""

from __future__ import annotations

from plimsoll.facts.incompatible import architectures
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule


@rule(
    "vllm.cpu_loras_below_loras",
    cause="the adapters on the device are copies of those in CPU memory",
    source="vllm 0.33.0: vllm/config/lora.py:125",
    fires={"options": {"enable_lora": True, "max_loras": 4, "max_cpu_loras": 2}},
    passes={"options": {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 4}},
)
def cpu_loras_below_loras(case: Case) -> Fault | None:
    """--max-cpu-loras is below --max-loras."""
    on_cpu, on_device = case.number("max_cpu_loras"), case.number("max_loras") or 1
    if on_cpu is None or on_cpu >= on_device:
        return None
    return Fault(
        what=f"--max-cpu-loras {on_cpu:.0f} is below --max-loras {on_device:.0f}",
        fix=f"--max-cpu-loras {on_device:.0f}",
        mend=(("extra_args.max_cpu_loras", int(on_device)),),
    )


@rule(
    "vllm.no_lora_for_model",
    cause="the model's class does not say which of its layers adapters may change",
    source="vllm 0.33.0: vllm/config/lora.py:152; classes of 0.32.0, tried",
    fires={"architecture": "MambaForCausalLM", "options": {"enable_lora": True}},
    passes={"architecture": "LlamaForCausalLM", "options": {"enable_lora": True}},
)
def no_lora_for_model(case: Case) -> Fault | None:
    """LoRA for a model whose class has none."""
    if not case.on("enable_lora") or case.model.architecture not in architectures("vllm_without_lora"):
        return None
    return Fault(
        what=f"{case.model.architecture} takes no LoRA adapters",
        fix="drop --enable-lora, or merge the adapter into the weights",
        mend=(("extra_args.enable_lora", None),),
    )


@rule(
    "sglang.lora_needs_shape",
    versions=">=0.4.10",
    cause="buffers for adapters are made at the start",
    source="sglang 0.5.23: sglang/srt/arg_groups/lora_hook.py:153",
    fires={"engine": "sglang", "options": {"enable_lora": True}},
    passes={"engine": "sglang", "options": {"enable_lora": True, "lora_paths": "a=/a"}},
)
def lora_needs_shape(case: Case) -> Fault | None:
    """LoRA without adapters and without their rank and modules."""
    if not case.on("enable_lora") or case.text("lora_paths"):
        return None
    if case.text("max_lora_rank") and case.text("lora_target_modules"):
        return None
    return Fault(
        what="--enable-lora without --lora-paths",
        fix="name adapters by --lora-paths, or give --max-lora-rank and --lora-target-modules",
    )


@rule(
    "sglang.loaded_loras",
    versions=">=0.5.1",
    cause="a batch takes its adapters from the loaded ones",
    source="sglang 0.5.23: sglang/srt/arg_groups/lora_hook.py:159,163",
    fires={"engine": "sglang", "options": {"max_loaded_loras": 4, "max_loras_per_batch": 8}},
    passes={"engine": "sglang", "options": {"max_loaded_loras": 8, "max_loras_per_batch": 8}},
)
def loaded_loras(case: Case) -> Fault | None:
    """--max-loaded-loras is below the adapters per batch or the adapters named."""
    loaded = case.number("max_loaded_loras")
    if loaded is None:
        return None
    needed = max(case.number("max_loras_per_batch") or 8, len(case.text("lora_paths").split(",")))
    if loaded >= needed:
        return None
    return Fault(
        what=f"--max-loaded-loras {loaded:.0f}, and {needed:.0f} are needed",
        fix=f"--max-loaded-loras {needed:.0f}",
        mend=(("extra_args.max_loaded_loras", int(needed)),),
    )


@rule(
    "sglang.lora_off",
    versions=">=0.4.10",
    severity="warning",
    cause="--enable-lora is turned off on purpose",
    source="sglang 0.5.23: sglang/srt/arg_groups/lora_hook.py:47",
    fires={"engine": "sglang", "options": {"enable_lora": False, "lora_paths": "a=/a"}},
    passes={"engine": "sglang", "options": {"lora_paths": "a=/a"}},
)
def lora_off(case: Case) -> Fault | None:
    """Adapters are named and LoRA is off."""
    if not case.text("lora_paths") or not case.off("enable_lora"):
        return None
    return Fault(what="the adapters are ignored", fix="drop the switch", mend=(("extra_args.enable_lora", None),))


@rule(
    "vllm.tool_parser_missing",
    versions=">=0.6.0",
    cause="tool calls are read out of text in the model's own format",
    source="vllm 0.33.0: vllm/entrypoints/common/cli_args.py:554",
    fires={"options": {"enable_auto_tool_choice": True}},
    passes={"options": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}},
)
def tool_parser_missing(case: Case) -> Fault | None:
    """--enable-auto-tool-choice without --tool-call-parser."""
    if not case.on("enable_auto_tool_choice") or case.text("tool_call_parser"):
        return None
    return Fault(what="--enable-auto-tool-choice without --tool-call-parser", fix="--tool-call-parser NAME")


@rule(
    "sglang.name_with_colon",
    versions=">=0.5.6",
    cause="the colon divides model and adapter",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:216",
    fires={"engine": "sglang", "name": "qwen3:8b"},
    passes={"engine": "sglang", "name": "qwen3-8b"},
)
def name_with_colon(case: Case) -> Fault | None:
    """A served name with a colon."""
    name = case.text("served_model_name") or case.candidate.deployment.name
    if ":" not in name:
        return None
    return Fault(
        what=f"the served name {name} has a colon",
        fix=name.replace(":", "-"),
        mend=(("name", name.replace(":", "-")), ("extra_args.served_model_name", None)),
    )


@rule(
    "sglang.grpc_port",
    versions=">=0.5.11",
    cause="two servers cannot listen on one port",
    source="sglang 0.5.23: sglang/srt/arg_groups/validation_hook.py:361",
    fires={"engine": "sglang", "options": {"port": 30000, "grpc_port": 30000}},
    passes={"engine": "sglang", "options": {"port": 30000, "grpc_port": 30001}},
)
def grpc_port(case: Case) -> Fault | None:
    """--grpc-port is --port."""
    if not case.text("grpc_port") or case.text("grpc_port") != case.text("port"):
        return None
    return Fault(what="--grpc-port is --port", fix="another port", mend=(("extra_args.grpc_port", None),))


@rule(
    "sglang.half_a_certificate",
    versions=">=0.5.10",
    cause="TLS needs the key and the certificate",
    source="sglang 0.5.23: sglang/srt/arg_groups/serving_hook.py:52",
    fires={"engine": "sglang", "options": {"ssl_keyfile": "k.pem"}},
    passes={"engine": "sglang", "options": {"ssl_keyfile": "k.pem", "ssl_certfile": "c.pem"}},
)
def half_a_certificate(case: Case) -> Fault | None:
    """A TLS key without a certificate, or the other way round."""
    if bool(case.text("ssl_keyfile")) == bool(case.text("ssl_certfile")):
        return None
    return Fault(what="one of --ssl-keyfile and --ssl-certfile", fix="give both, or neither")


@rule(
    "vllm.device_ids_twice",
    versions=">=0.24.0",
    cause="one rank, one device",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:2151",
    fires={"options": {"device_ids": "0,0"}},
    passes={"options": {"device_ids": "0,1"}},
)
def device_ids_twice(case: Case) -> Fault | None:
    """--device-ids names a device twice."""
    ids = [part.strip() for part in case.text("device_ids").split(",") if part.strip()]
    if len(ids) == len(set(ids)):
        return None
    return Fault(what=f"--device-ids {case.text('device_ids')}", fix="name each device once")


@rule(
    "vllm.compilation_config_number",
    versions=">=0.10.1",
    cause="the option is an object since 0.10.1",
    source="vLLM releases; vllm 0.33.0: vllm/engine/arg_utils.py:1891, tried",
    fires={"options": {"compilation_config": 3}},
    passes={"options": {"compilation_config": '{"mode": 3}'}},
)
def compilation_config_number(case: Case) -> Fault | None:
    """--compilation-config is a bare number."""
    level = case.text("compilation_config")
    if not level.isdigit():
        return None
    return Fault(
        what=f"--compilation-config {level}: a number is no configuration any more",
        fix=f"-cc.mode={level}, or leave it out: compilation is on by default",
        mend=(("extra_args.compilation_config", None),),
    )


@rule(
    "vllm.optimization_level_meaning",
    versions=">=0.12.0",
    severity="info",
    cause="-O was short for --compilation-config until 0.11, and is --optimization-level since 0.12",
    source="vllm 0.33.0: vllm/engine/arg_utils.py:1911",
    fires={"extra_args": ("-O3",)},
    passes={"extra_args": ("--optimization-level", "3")},
)
def optimization_level_meaning(case: Case) -> Fault | None:
    """-O<n>, whose meaning changed."""
    short = [arg for arg in case.candidate.deployment.extra_args if arg[:2] == "-O" and arg[2:].isdigit()]
    if not short:
        return None
    return Fault(what=f"{short[0]} is a preset now, not a compilation level", fix="-cc.mode for the level")


@rule(
    "vllm.disable_spelling",
    versions="<0.33",
    cause="switches are negated as --no-enable-...",
    source="vLLM releases; vllm 0.33.0: option list, tried",
    fires={"version": "0.32.0", "options": {"disable_prefix_caching": True}},
    passes={"version": "0.32.0", "options": {"no_enable_prefix_caching": True}},
)
def disable_spelling(case: Case) -> Fault | None:
    """--disable-prefix-caching or --disable-chunked-prefill."""
    for name in ("prefix_caching", "chunked_prefill"):
        if f"disable_{name}" in case.options:
            return Fault(
                what=f"--disable-{name.replace('_', '-')} is not recognised",
                fix=f"--no-enable-{name.replace('_', '-')}",
                mend=((f"extra_args.disable_{name}", None), (f"extra_args.no_enable_{name}", True)),
            )
    return None


@rule(
    "sglang.ambiguous_pp",
    cause="--pp is short for three options; --tp, --dp and --ep are options of their own",
    source="sglang 0.5.23: sglang/srt/arg_groups/fields/parallel.py:59, tried",
    fires={"engine": "sglang", "extra_args": ("--pp", "2")},
    passes={"engine": "sglang", "extra_args": ("--pp-size", "2")},
)
def ambiguous_pp(case: Case) -> Fault | None:
    """--pp, which is ambiguous."""
    if not any(arg == "--pp" or arg.startswith("--pp=") for arg in case.candidate.deployment.extra_args):
        return None
    return Fault(
        what="--pp is ambiguous",
        fix="parallel.pipeline in the spec, or --pp-size",
        mend=(("parallel.pipeline", int(case.number("pp_size") or case.pp)), ("extra_args.pp_size", None)),
    )


@rule(
    "llamacpp.given_twice",
    severity="warning",
    cause="of several values only the last is used",
    source="llama.cpp b11434: common/arg.cpp:836",
    fires={"engine": "llamacpp", "extra_args": ("--lora", "a.gguf", "--lora", "b.gguf")},
    passes={"engine": "llamacpp", "extra_args": ("--lora", "a.gguf,b.gguf")},
)
def given_twice(case: Case) -> Fault | None:
    """A list option is given twice."""
    for flag in ("--rpc", "--lora", "--lora-scaled", "--control-vector", "--api-key"):
        if case.candidate.deployment.extra_args.count(flag) > 1:
            return Fault(what=f"{flag} is given twice", fix=f"one {flag} with values divided by commas")
    return None


@rule(
    "llamacpp.flags_of_llama_cpp_python",
    cause="llama-cpp-python's server is another program with other flags",
    source="llama.cpp b11434: common/arg.cpp:830",
    fires={"engine": "llamacpp", "options": {"n_ctx": 2048}},
    passes={"engine": "llamacpp", "options": {"ctx_size": 2048}},
)
def flags_of_llama_cpp_python(case: Case) -> Fault | None:
    """Flags of python -m llama_cpp.server."""
    names = {"n_ctx": "ctx_size", "model_alias": "alias", "chat_format": "chat_template", "n_batch": "batch_size"}
    for old, new in names.items():
        if old in case.options:
            return Fault(
                what=f"--{old} is a flag of llama-cpp-python's server",
                fix=f"--{new.replace('_', '-')}",
                mend=((f"extra_args.{old}", None), (f"extra_args.{new}", case.options[old])),
            )
    return None
