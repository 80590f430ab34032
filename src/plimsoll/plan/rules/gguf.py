"""Formats of weights, GGUF above all: which engine loads which architecture, and from which files."""

from __future__ import annotations

import re

from plimsoll.facts.incompatible import architectures
from plimsoll.facts.versions import in_range
from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@rule(
    "vllm.gguf_is_a_plugin",
    versions=">=0.24.0",
    cause="GGUF left vLLM for a plugin",
    source="vllm 0.33.0: docs/features/quantization/gguf.md:7, tried",
    fires={"format": "gguf", "architecture": "qwen2"},
    passes={"format": "gguf", "architecture": "qwen2", "version": "0.23.0"},
)
def gguf_is_a_plugin(case: Case) -> Fault | None:
    """GGUF weights without vllm-gguf-plugin."""
    if not case.gguf or case.on("vllm_gguf_plugin"):
        return None
    return Fault(
        what="vLLM reads no GGUF of its own since 0.24",
        fix="llama.cpp for this file, a safetensors checkpoint, or vllm-gguf-plugin in the engine's environment",
        mend=(("engine", "llamacpp"),),
    )


@rule(
    "vllm.gguf_architecture_unsupported",
    versions=">=0.5.5",
    cause="vLLM derives the model's config from the GGUF by transformers, which knows a few architectures",
    source="transformers 5.23.0: transformers/modeling_gguf_pytorch_utils.py:650",
    fires={"format": "gguf", "architecture": "deepseek2"},
    passes={"format": "gguf", "architecture": "llama"},
)
@rule(
    "transformers.gguf_architecture_unsupported",
    cause="transformers turns a few architectures of GGUF into its own",
    source="transformers 5.23.0: transformers/modeling_gguf_pytorch_utils.py:650",
    fires={"engine": "transformers", "format": "gguf", "architecture": "deepseek2"},
    passes={"engine": "transformers", "format": "gguf", "architecture": "qwen2"},
)
def gguf_architecture_unsupported(case: Case) -> Fault | None:
    """A GGUF architecture that transformers does not know."""
    if case.model.format != "gguf" or case.gguf_name in architectures("transformers_gguf"):
        return None
    if case.text("hf_config_path"):
        return None
    return Fault(
        what=f"GGUF model with architecture {case.gguf_name or case.model.architecture} is not supported",
        fix="llama.cpp, or an AWQ, GPTQ or FP8 checkpoint (vLLM: or --hf-config-path with the original config.json)",
        mend=(("engine", "llamacpp"),),
    )


@rule(
    "vllm.gguf_tokenizer",
    versions=">=0.5.5",
    severity="warning",
    cause="converting the tokenizer out of a GGUF is slow and not exact",
    source="vllm 0.33.0: docs/features/quantization/gguf.md:18",
    fires={"format": "gguf", "architecture": "llama"},
    passes={"format": "gguf", "architecture": "llama", "options": {"tokenizer": "meta-llama/Llama-3.1-8B"}},
)
def gguf_tokenizer(case: Case) -> Fault | None:
    """A GGUF without --tokenizer."""
    if not case.gguf or case.text("tokenizer"):
        return None
    return Fault(
        what="the tokenizer would be converted out of the GGUF", fix="--tokenizer with the original model's id"
    )


@rule(
    "llamacpp.architecture_unknown",
    cause="the file is newer than the program, or of a kind it does not serve",
    source="llama.cpp b11434: src/llama-model.cpp:373, src/llama-arch.cpp",
    fires={"engine": "llamacpp", "format": "gguf", "architecture": "tomorrow3"},
    passes={"engine": "llamacpp", "format": "gguf", "architecture": "qwen3"},
)
def architecture_unknown(case: Case) -> Fault | None:
    """A GGUF architecture that llama.cpp does not know."""
    if case.model.format != "gguf" or case.gguf_name is None or case.gguf_name in architectures("llamacpp"):
        return None
    known = in_range(case.candidate.engine.version, "<=11434")
    return Fault(
        what=f"llama.cpp b11434 knows no architecture {case.gguf_name}",
        fix="a newer llama.cpp, or another conversion of the model",
        severity="error" if known else "warning",
    )


@rule(
    "llamacpp.tensor_split_mode_model",
    cause="splitting tensors is not written for every architecture",
    source="llama.cpp b11434: src/llama-arch.cpp:1196 (llm_arch_supports_sm_tensor)",
    fires={"engine": "llamacpp", "gpus": 2, "format": "gguf", "architecture": "deepseek2",
           "options": {"split_mode": "tensor"}},
    passes={"engine": "llamacpp", "gpus": 2, "format": "gguf", "architecture": "qwen3",
            "options": {"split_mode": "tensor"}},
)  # fmt: skip
def tensor_split_mode_model(case: Case) -> Fault | None:
    """--split-mode tensor for an architecture that has none."""
    if case.text("split_mode") != "tensor":
        return None
    if case.gguf_name not in architectures("llamacpp_without_tensor_split"):
        return None
    return Fault(
        what=f"--split-mode tensor does not exist for {case.model.architecture}",
        fix="--split-mode layer",
        mend=(("extra_args.split_mode", "layer"),),
    )


@rule(
    "llamacpp.not_the_first_part",
    cause="the first part holds the metadata that leads to the others",
    source="llama.cpp b11434: src/llama-model-loader.cpp:605",
    fires={"engine": "llamacpp", "format": "gguf", "architecture": "llama", "model_id": "m/Q4-00002-of-00003.gguf"},
    passes={"engine": "llamacpp", "format": "gguf", "architecture": "llama", "model_id": "m/Q4-00001-of-00003.gguf"},
)
def not_the_first_part(case: Case) -> Fault | None:
    """A part of a split GGUF other than the first."""
    part = _PART.search(case.candidate.deployment.model)
    if part is None or int(part[1]) == 1:
        return None
    first = case.candidate.deployment.model[: part.start()] + f"-00001-of-{part[2]}.gguf"
    return Fault(what=f"part {int(part[1])} of {int(part[2])} is named", fix=first, mend=(("model", first),))


@rule(
    "llamacpp.parts_missing",
    cause="all parts of a split GGUF are loaded together",
    source="llama.cpp b11434: src/llama-model-loader.cpp:615",
    fires={"engine": "llamacpp", "format": "gguf", "architecture": "llama",
           "files": (("q-00001-of-00003.gguf", 9), ("q-00003-of-00003.gguf", 9))},
    passes={"engine": "llamacpp", "format": "gguf", "architecture": "llama",
            "files": (("q-00001-of-00002.gguf", 9), ("q-00002-of-00002.gguf", 9))},
)  # fmt: skip
def parts_missing(case: Case) -> Fault | None:
    """Parts of a split GGUF are missing."""
    parts = [part for name, _ in case.model.files if (part := _PART.search(name))]
    if not parts:
        return None
    total = int(parts[0][2])
    missing = sorted(set(range(1, total + 1)) - {int(part[1]) for part in parts})
    if not missing:
        return None
    return Fault(what=f"parts {', '.join(map(str, missing))} of {total} are missing", fix="download all parts")


@rule(
    "ollama.architecture_not_converted",
    cause="ollama create converts safetensors of a fixed list of architectures",
    source="ollama fb30760: convert/convert.go:360",
    fires={"engine": "ollama", "format": "safetensors", "architecture": "Qwen3ForCausalLM"},
    passes={"engine": "ollama", "format": "safetensors", "architecture": "Qwen2ForCausalLM"},
)
def architecture_not_converted(case: Case) -> Fault | None:
    """safetensors that Ollama cannot convert."""
    if case.model.format != "safetensors" or case.model.architecture in architectures("ollama_convert"):
        return None
    return Fault(
        what=f"ollama create knows no {case.model.architecture}",
        fix="convert with llama.cpp's convert_hf_to_gguf.py and use the GGUF, or find one",
    )


@rule(
    "ollama.quantised_again",
    cause="only F16, BF16 and F32 files can be quantised",
    source="ollama fb30760: server/create.go:756",
    fires={"engine": "ollama", "format": "gguf", "architecture": "llama", "stored": "gguf", "quantization": "q4_K_M"},
    passes={"engine": "ollama", "format": "gguf", "architecture": "llama", "quantization": "q4_K_M"},
)
def quantised_again(case: Case) -> Fault | None:
    """A quantization is asked for of a GGUF that is quantised already."""
    stored = case.model.quantization
    if case.model.format != "gguf" or stored is None or stored.bits >= 16 or case.quantization_asked is None:
        return None
    if case.quantization_asked == "gguf" or case.quantization_asked in case.candidate.deployment.model.lower():
        return None
    return Fault(
        what=f"{case.quantization_asked} is asked for and the file has {stored.bits:g} bits per weight already",
        fix="start from the F16 or BF16 file, or leave the quantization out",
        mend=(("quantization", None),),
    )


@rule(
    "mindie.weights_not_safetensors",
    cause="MindIE reads safetensors only",
    source="MindIE-LLM 8b4871a: examples/atb_models/atb_llm/utils/hub.py:38",
    fires={"engine": "mindie", "vendor": "ascend", "format": "pytorch", "stored_dtype": "float16"},
    passes={"engine": "mindie", "vendor": "ascend", "format": "safetensors", "stored_dtype": "float16"},
)
def weights_not_safetensors(case: Case) -> Fault | None:
    """Weights in another format than safetensors."""
    if case.model.format == "safetensors":
        return None
    return Fault(
        what=f"the weights are {case.model.format}",
        fix="convert them to safetensors (plimsoll does it for .bin files), or take the model's safetensors",
    )


@rule(
    "vllm.weights_missing",
    cause="without weight files there is nothing to load",
    source="vllm 0.33.0: vllm/model_executor/model_loader/default_loader.py:260",
    fires={"files": (("README.md", 10),)},
    passes={"files": (("model.safetensors", 10),)},
)
def weights_missing(case: Case) -> Fault | None:
    """The model's directory has no weight files."""
    if not case.model.files or case.text("load_format") == "dummy":
        return None
    if any(name.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf")) for name, _ in case.model.files):
        return None
    return Fault(what="no .safetensors, .bin or .pt file", fix="download the weights again")


@rule(
    "vllm.object_store_needs_streamer",
    versions=">=0.18.0",
    cause="objects are streamed, not mapped",
    source="vllm 0.33.0: vllm/config/vllm.py:2790",
    fires={"model_id": "s3://bucket/model", "options": {"load_format": "safetensors"}},
    passes={"model_id": "s3://bucket/model", "options": {"load_format": "runai_streamer"}},
)
def object_store_needs_streamer(case: Case) -> Fault | None:
    """A model in an object store with a loader for files."""
    if not case.candidate.deployment.model.startswith(("s3://", "gs://", "az://")):
        return None
    streamers = ("", "auto", "modelexpress", "runai_streamer", "runai_streamer_sharded")
    if case.text("load_format") in streamers:
        return None
    return Fault(
        what=f"--load-format {case.text('load_format')} for {case.candidate.deployment.model}",
        fix="--load-format runai_streamer",
        mend=(("extra_args.load_format", "runai_streamer"),),
    )
