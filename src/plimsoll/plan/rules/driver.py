"""Engine builds against drivers and compute capabilities."""

from __future__ import annotations

import re

from plimsoll.plan.rules.case import Case
from plimsoll.plan.rules.registry import Fault, rule

_BUILD = re.compile(r"\+cu(\d{2})(\d)")


def _driver_cuda(case: Case) -> float | None:
    """The oldest CUDA version that the drivers carry; None where none says."""
    found = [float(device.runtime) for device in case.devices if device.runtime and device.vendor == "nvidia"]
    return min(found, default=None)


def _build_cuda(case: Case) -> float:
    """The CUDA version that the engine's wheels are built with, by its version."""
    local = _BUILD.search(case.candidate.engine.version)
    if local:
        return float(f"{local[1]}.{local[2]}")
    if case.engine == "sglang":
        return 13.0 if case.since(">=0.5.23") else 12.4
    return 12.9 if case.since(">=0.33") else 12.1


@rule(
    "vllm.engine_build_does_not_match_driver_cuda",
    cause="a build needs a driver of its CUDA generation; builds for CUDA 11.8 lack FlashAttention besides",
    source="vllm 0.33.0: requirements/cuda.txt:7, gpu.cuda.inc.md; a field note (0.6.1.post1+cu118)",
    fires={"version": "0.6.1.post1+cu118", "runtime": "12.6"},
    passes={"version": "0.6.1.post1", "runtime": "12.6"},
)
@rule(
    "sglang.engine_build_does_not_match_driver_cuda",
    cause="the wheel depends on CUDA 13 since 0.5.23, which drivers before 580 do not carry",
    source="sglang 0.5.23: METADATA (cuda-python>=13, torch 2.14.1)",
    fires={"engine": "sglang", "runtime": "12.6"},
    passes={"engine": "sglang", "runtime": "13.0"},
)
def engine_build_does_not_match_driver_cuda(case: Case) -> Fault | None:
    """The engine's build and the driver are of different CUDA generations."""
    if case.vendor != "nvidia":
        return None
    build, driver = _build_cuda(case), _driver_cuda(case)
    if build < 12 and (driver is None or driver >= 12) and (case.capability or 0) >= 80:
        return Fault(
            what=f"a build for CUDA {build:g} on a driver with CUDA {f'{driver:g}' if driver else '12 or newer'}",
            fix="the default build of the same version (CUDA 12), which carries FlashAttention",
        )
    if driver is not None and int(driver) < int(build):
        return Fault(
            what=f"a build for CUDA {build:g} on a driver with CUDA {driver:g}",
            fix="a newer driver (525 for CUDA 12, 580 for CUDA 13), or an older engine",
        )
    return None


@rule(
    "vllm.driver_older_than_build",
    versions=">=0.33",
    severity="warning",
    cause="kernels compiled at run time need the driver of the build's minor version",
    source="vllm 0.33.0: docs/getting_started/installation/gpu.cuda.inc.md",
    fires={"runtime": "12.6"},
    passes={"runtime": "12.9"},
)
def driver_older_than_build(case: Case) -> Fault | None:
    """The driver's CUDA is older than the build's within one generation."""
    build, driver = _build_cuda(case), _driver_cuda(case)
    if driver is None or int(driver) != int(build) or driver >= build:
        return None
    return Fault(
        what=f"the wheels are built with CUDA {build:g} and the driver carries {driver:g}",
        fix="driver 575 or newer if kernels fail to compile, or the cu128 build",
    )


@rule(
    "vllm.no_kernel_image",
    versions=">=0.20.0",
    cause="the wheels hold kernels for 7.5, 8.0, 8.6, 8.9, 9.0, 10.0, 11.0 and 12.0",
    source="vllm 0.33.0: docker/Dockerfile:274, CMakeLists.txt:123",
    fires={"arch": "7.0", "stored_dtype": "float16"},
    passes={"arch": "7.5", "stored_dtype": "float16"},
)
@rule(
    "sglang.no_kernel_image",
    cause="SGLang supports 7.5 and newer",
    source="sglang 0.5.23: load_model_utils.py:91",
    fires={"engine": "sglang", "arch": "7.0", "stored_dtype": "float16"},
    passes={"engine": "sglang", "arch": "7.5", "stored_dtype": "float16"},
)
def no_kernel_image(case: Case) -> Fault | None:
    """Devices that the engine's wheels hold no kernels for."""
    if case.capability is None or case.capability >= 75:
        return None
    older = "vllm==0.18.1" if case.engine != "sglang" else "llamacpp"
    return Fault(
        what=f"compute capability {case.capability / 10:g} is not in the wheels",
        fix="llama.cpp, or vLLM up to 0.19 (7.0)",
        mend=(("engine", older if case.capability >= 70 and not case.gguf else "llamacpp"),),
    )


@rule(
    "llamacpp.no_kernel_image",
    severity="warning",
    cause="builds with CUDA 13 hold kernels for 7.5 and newer only",
    source="llama.cpp b11434: ggml/src/ggml-cuda/CMakeLists.txt:44",
    fires={"engine": "llamacpp", "arch": "6.1"},
    passes={"engine": "llamacpp", "arch": "7.5"},
)
def old_device_needs_cuda_12(case: Case) -> Fault | None:
    """Devices that need a build with CUDA 12."""
    if case.capability is None or case.capability >= 75:
        return None
    return Fault(
        what=f"compute capability {case.capability / 10:g} needs a build with CUDA 12",
        fix="a CUDA 12 build, or -DCMAKE_CUDA_ARCHITECTURES",
    )


@rule(
    "vllm.flash_attention_missing",
    versions="<=0.6.1.post2",
    severity="warning",
    cause="builds for CUDA 11.8 came without vllm-flash-attn; attention falls back to XFormers",
    source="vLLM releases 0.5.0 to 0.10.2; a field note",
    fires={"version": "0.6.1.post1+cu118"},
    passes={"version": "0.6.1.post1"},
)
def flash_attention_missing(case: Case) -> Fault | None:
    """A CUDA 11.8 build without FlashAttention."""
    if "cu118" not in case.candidate.engine.version or (case.capability or 0) < 80:
        return None
    return Fault(what="this build has no FlashAttention", fix="the default build")
