"""The catalogue of CPUs: cores, memory channels and what follows from them, for machines that are not at hand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from plimsoll.errors import FactError
from plimsoll.facts.devices import nearest
from plimsoll.facts.hardware import Device

_ISA: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, int]]] = {
    "avx2": ("x86-64-v3", ("avx2", "fma"), {"fp32": 32}),
    "avx2-vnni": ("x86-64-v3", ("avx2", "avx_vnni", "fma"), {"fp32": 32, "int8": 128}),
    "avx512-one-fma": ("x86-64-v4", ("avx512_vnni", "avx512f"), {"fp32": 32, "int8": 128}),
    "avx512-vnni": ("x86-64-v4", ("avx512_vnni", "avx512f"), {"fp32": 64, "int8": 256}),
    "avx512-double-pumped": ("x86-64-v4", ("avx512_bf16", "avx512_vnni", "avx512f"),
                             {"fp32": 32, "bf16": 64, "int8": 128}),
    "avx512-bf16": ("x86-64-v4", ("avx512_bf16", "avx512_vnni", "avx512f"), {"fp32": 64, "bf16": 128, "int8": 256}),
    "amx": ("x86-64-v4", ("amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_vnni", "avx512f"),
            {"fp32": 64, "bf16": 1024, "int8": 2048}),
    "neon": ("aarch64", ("asimd", "asimddp", "asimdhp"), {"fp32": 16, "fp16": 32, "int8": 64}),
    "neon-bf16": ("aarch64", ("asimd", "asimddp", "asimdhp", "bf16", "i8mm"),
                  {"fp32": 16, "fp16": 32, "bf16": 64, "int8": 128}),
    "neoverse-v1": ("aarch64", ("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"),
                    {"fp32": 32, "fp16": 64, "bf16": 128, "int8": 256}),
    "neoverse-v2": ("aarch64", ("asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2"),
                    {"fp32": 32, "fp16": 64, "bf16": 128, "int8": 256}),
}  # fmt: skip
"""Operations per core and cycle by dtype: fused multiply-adds count two. Double-pumped: Zen 4's 256-bit data paths."""


class Cpu:
    """One socket of the catalogue."""

    __slots__ = ("aliases", "cores", "device", "threads_per_core", "word")

    def __init__(self, word: str, row: Mapping[str, Any]) -> None:
        arch, features, per_cycle = _ISA[row["isa"]]
        rate = row["cores"] * row["clock_ghz"] * 1e9
        self.word = word
        self.aliases: tuple[str, ...] = tuple(row.get("aliases", ()))
        self.cores: int = row["cores"]
        self.threads_per_core: int = row["threads_per_core"]
        self.device = Device(
            name=row["name"],
            vendor="cpu",
            arch=arch,
            memory_bytes=0,
            free_bytes=0,
            bandwidth=row["channels"] * row["mega_transfers"] * 8e6,
            flops={dtype: count * rate for dtype, count in per_cycle.items()},
            link="none",
            source=row["source"],
            memory_basis="assumed",
            bandwidth_basis="derived",
            dtypes=tuple(per_cycle),
            features=features,
            tdp_watts=row.get("tdp_w", 0),
        )


@cache
def cpus() -> Mapping[str, Cpu]:
    """Every CPU by its word ("epyc-9654", "xeon-6430")."""
    text = (resources.files("plimsoll.facts") / "data" / "cpus.toml").read_text(encoding="utf-8")
    return MappingProxyType({word: Cpu(word, row) for word, row in tomllib.loads(text).items()})


def find_cpu(word: str) -> Cpu:
    """The CPU that a person or /proc/cpuinfo means; FactError with the nearest words.

    Clock and marketing words of the kernel's name do not matter: "Intel(R) Xeon(R) Gold 6430 @ 2.10GHz" is found.
    """
    cpu = _index().get(_key(word))
    if cpu is None:
        near = nearest(word, [name for cpu in cpus().values() for name in (cpu.word, *cpu.aliases)])
        raise FactError(
            f"{word!r} is no CPU of the catalogue",
            hint=f"did you mean {', '.join(near)}?" if near else "docs/devices.md lists the words",
            source="plimsoll/facts/data/cpus.toml",
        )
    return cpu


@cache
def _index() -> Mapping[str, Cpu]:
    index: dict[str, Cpu] = {}
    for cpu in cpus().values():
        for name in (cpu.word, *cpu.aliases, cpu.device.name):
            index.setdefault(_key(name), cpu)
    return index


def _key(name: str) -> str:
    plain = re.sub(r"@.*$|\((?:r|tm)\)|\b\d+-cores?\b|\d+th gen|\bcpu\b|\bprocessor\b", " ", name.lower())
    return re.sub(r"[^a-z0-9]+|^amd |^intel ", "", plain.strip())
