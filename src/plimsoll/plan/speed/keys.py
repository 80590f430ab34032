"""What a case is like, in the words by which efficiencies are kept: kind of device, engine, format, architecture."""

from __future__ import annotations

from plimsoll.facts.hardware import Device
from plimsoll.facts.model import ModelFacts
from plimsoll.facts.versions import in_range, is_known
from plimsoll.plan.types import Candidate

_HBM = ("6.0", "7.0", "8.0", "9.0", "10.0", "10.3")
"""NVIDIA compute capabilities whose chips carry HBM; the A10, L4 and the like are 8.6 and 8.9."""
_FAMILIES = (
    ("ascend", "vllm-ascend"), ("vllm", "vllm"), ("sglang", "sglang"), ("ktrans", "ktransformers"), ("ik", "llamacpp"),
    ("ollama", "llamacpp"), ("llama.cpp", "llamacpp"), ("llamacpp", "llamacpp"), ("koboldcpp", "llamacpp"),
    ("lmstudio", "llamacpp"), ("tensorrt", "tensorrt"), ("trt", "tensorrt"), ("mindie", "mindie"),
    ("transformers", "transformers"), ("fastchat", "transformers"), ("autoawq", "transformers"),
    ("openvino", "openvino"), ("mlx", "mlx"), ("mlc", "mlc"), ("lmdeploy", "lmdeploy"), ("exllama", "exllama"),
)  # fmt: skip
_ERAS = {"vllm": (("<0.6", "old"), ("<0.8", "v0"), (">=0.8", "v1"))}


def keys_of(candidate: Candidate, device: Device) -> dict[str, str]:
    """The case's words by level; "" where nothing is known, which leaves the parent's number as it is."""
    kind = kind_of(device)
    engine = engine_family(candidate.engine.name)
    if engine == "vllm" and kind == "ascend":
        engine = "vllm-ascend"
    form = format_of(candidate.model)
    keys = {
        "kind": kind,
        "chip": f"{device.vendor} {device.arch.partition('.')[0]}",
        "engine": engine,
        "format": form,
        "arch": arch_of(candidate.model),
        "era": era_of(engine, candidate.engine.version),
        "link": "network" if candidate.nodes > 1 else device.link,
    }
    keys["engine-kind"] = f"{engine} {kind}" if engine else ""
    keys["engine-format"] = f"{engine} {form}" if engine else ""
    keys["engine-arch"] = f"{engine} {keys['arch']}" if engine else ""
    keys["kind-format"] = f"{kind} {form}"
    return keys


def kind_of(device: Device) -> str:
    """The kind of memory and chip that a device's efficiency goes by."""
    if device.vendor == "nvidia":
        if device.link == "unified" or device.arch in ("8.7", "12.1", "7.2", "11.0"):
            return "nvidia-edge"
        return "nvidia-hbm" if device.arch in _HBM else "nvidia-gddr"
    if device.vendor == "amd":
        return "amd-hbm" if device.arch.startswith(("gfx90", "gfx94", "gfx95")) else "amd-gddr"
    return device.vendor


def engine_family(name: str) -> str:
    """The engine whose kernels run, by its name; "" for one that is not known."""
    word = name.lower()
    return next((family for part, family in _FAMILIES if word.startswith(part) or part in word), "")


def format_of(model: ModelFacts) -> str:
    """How the weights are stored, as far as kernels differ by it."""
    scheme = model.quantization
    if model.format == "gguf" or (scheme and scheme.method == "gguf"):
        bits = 16.0 if scheme is None else 8.0 * model.weight_bytes / max(1, model.params)
        return "gguf16" if bits > 12 else "gguf" if bits > 3 else "gguf-low"
    if scheme is None:
        return "bf16"
    if scheme.bits < 5:
        if scheme.method in ("modelopt", "nvfp4", "mxfp4", "fp4"):
            return "fp4"
        return scheme.method if scheme.method in ("awq", "bitsandbytes") else "int4"
    if "fp8" in scheme.method or "float" in scheme.name.lower() or scheme.block:
        return "fp8-block" if scheme.block else "fp8"
    return "int8"


def arch_of(model: ModelFacts) -> str:
    """dense, moe, mla (always with experts here) or hybrid: what decides how many kernels a layer launches."""
    kinds = {group.kind for group in model.attention}
    if "linear" in kinds:
        return "hybrid"
    if "mla" in kinds:
        return "mla"
    return "moe" if model.moe else "dense"


def era_of(engine: str, version: str) -> str:
    """The span of releases with one scheduler, where there were several; "" where the version is not known."""
    if not version or not is_known(version):
        return ""
    return next((f"{engine} {era}" for span, era in _ERAS.get(engine, ()) if in_range(version, span)), "")
