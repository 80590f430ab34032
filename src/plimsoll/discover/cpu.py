"""The CPU of this machine: name, instruction sets, threads that this process may use, peak arithmetic."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from plimsoll.discover.procfs import count_listed, read_int, read_text

_LEVELS = (
    ("x86-64-v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    ("x86-64-v3", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)
"""The x86-64 psABI's microarchitecture levels, by the kernel's flag names."""

_INTERESTING = frozenset({
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd",
    "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme", "sme2",
})  # fmt: skip

_ARM_PARTS = {
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd42"): "Cortex-A78AE", ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2", ("0x41", "0xd83"): "Neoverse-V3AE", ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd85"): "Cortex-X925", ("0x41", "0xd87"): "Cortex-A725", ("0x48", "0xd01"): "Kunpeng-920",
    ("0xc0", "0xac3"): "AmpereOne", ("0xc0", "0xac4"): "AmpereOne",
}  # fmt: skip
"""(implementer, part) in /proc/cpuinfo: Arm's MIDR_EL1 assignments, as listed in the kernel's cputype.h."""

_FP32_PER_CYCLE = (("avx512f", 64), ("sve", 32), ("avx2", 32), ("avx", 16), ("asimd", 16), ("sse4_2", 8))
"""Two fused multiply-add units of the vector's width, two operations each; what most cores with that extension have."""
_AMX_BF16_PER_CYCLE = 1024
"""Intel 64 and IA-32 optimization manual, ch. 20: a TDPBF16PS of 8192 multiply-adds every 16 cycles."""
_DEFAULT_CLOCK_HZ = 2.5e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """What the kernel says of the CPU; `flops` are derived, per second, of all allowed cores together."""

    name: str
    arch: str
    features: tuple[str, ...]
    threads: int
    """Hardware threads that the affinity mask allows."""
    threads_per_core: int
    numa_nodes: int
    flops: dict[str, float]


def read_cpu(root: Path = Path("/")) -> Cpu:
    """The CPU that /proc and /sys below `root` describe."""
    info = read_text(root / "proc/cpuinfo")
    first: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    flags = set((first.get("flags") or first.get("Features") or "").split())
    threads_per_core = _threads_per_core(root, first)
    threads = _allowed_threads(root, info)
    return Cpu(
        name=_name(root, first),
        arch=_arch(flags),
        features=tuple(sorted(flags & _INTERESTING)),
        threads=threads,
        threads_per_core=threads_per_core,
        numa_nodes=max(1, count_listed(read_text(root / "sys/devices/system/node/online"))),
        flops=peak_flops(flags, cores=max(1, threads // threads_per_core), clock_hz=_clock_hz(root, first)),
    )


def peak_flops(flags: set[str], *, cores: int, clock_hz: float) -> dict[str, float]:
    """Dense peak FLOP/s by dtype of `cores` physical cores; derived from the widest vector extension in `flags`."""
    per_cycle = next((width for flag, width in _FP32_PER_CYCLE if flag in flags), 8)
    fp32 = float(per_cycle * cores * clock_hz)
    flops = {"fp32": fp32}
    if "amx_bf16" in flags:
        flops["bf16"] = float(_AMX_BF16_PER_CYCLE * cores * clock_hz)
    elif flags & {"avx512_bf16", "bf16"}:
        flops["bf16"] = 2 * fp32
    if flags & {"avx512_fp16", "asimdhp"}:
        flops["fp16"] = 2 * fp32
    if "amx_int8" in flags:
        flops["int8"] = float(2 * _AMX_BF16_PER_CYCLE * cores * clock_hz)
    elif flags & {"avx512_vnni", "avx_vnni", "i8mm", "asimddp"}:
        flops["int8"] = 4 * fp32
    return flops


def _arch(flags: set[str]) -> str:
    machine = platform.machine()
    if flags & {"asimd", "fp"} and "sse2" not in flags:
        return "aarch64"
    level = "x86-64" if "sse2" in flags or machine in ("x86_64", "AMD64") else machine or "unknown"
    for name, needed in _LEVELS:
        if not needed <= flags:
            break
        level = name
    return level


def _name(root: Path, first: dict[str, str]) -> str:
    if first.get("model name"):
        return " ".join(first["model name"].split())
    board = read_text(root / "proc/device-tree/model").strip("\0 \n")
    part = _ARM_PARTS.get((first.get("CPU implementer", ""), first.get("CPU part", "")))
    return " ".join(name for name in (board, part) if name) or platform.processor() or "unknown CPU"


def _allowed_threads(root: Path, info: str) -> int:
    for line in read_text(root / "proc/self/status").splitlines():
        if line.startswith("Cpus_allowed_list:"):
            allowed = count_listed(line.partition(":")[2])
            if allowed:
                return allowed
    listed = sum(1 for line in info.splitlines() if line.startswith("processor"))
    return listed or os.cpu_count() or 1


def _threads_per_core(root: Path, first: dict[str, str]) -> int:
    siblings = count_listed(read_text(root / "sys/devices/system/cpu/cpu0/topology/thread_siblings_list"))
    if siblings:
        return siblings
    threads, cores = first.get("siblings", ""), first.get("cpu cores", "")
    return max(1, int(threads) // int(cores)) if threads.isdecimal() and cores.isdecimal() and int(cores) else 1


def _clock_hz(root: Path, first: dict[str, str]) -> float:
    """The base clock where the kernel tells it (all cores at work do not reach the boost clock)."""
    for name in ("base_frequency", "cpuinfo_max_freq"):
        khz = read_int(root / f"sys/devices/system/cpu/cpu0/cpufreq/{name}")
        if khz:
            return khz * 1e3
    try:
        return float(first.get("cpu MHz", "")) * 1e6 or _DEFAULT_CLOCK_HZ
    except ValueError:
        return _DEFAULT_CLOCK_HZ
