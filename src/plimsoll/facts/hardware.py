"""What is known of devices and hosts: memory, speed, links; `free` is what is free now, other processes deducted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from plimsoll.facts.basis import Basis

Vendor = Literal["nvidia", "amd", "ascend", "apple", "intel", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or the CPU of a host seen as one. Bytes, bytes/s, FLOP/s (dense, per dtype name)."""

    name: str
    vendor: Vendor
    arch: str
    """Compute capability ("8.6"), gfx name ("gfx942"), SoC ("910B4"), ISA ("x86-64-v4"), chip ("M2 Ultra")."""
    memory_bytes: int
    """As the driver reports it in all (not the number on the box), where known."""
    free_bytes: int
    bandwidth: float
    flops: Mapping[str, float] = field(default_factory=dict)
    """Dense peak per second by dtype: fp32, fp16, bf16, fp8, int8, fp4."""
    index: int = 0
    link: str = "pcie"
    """Between the devices of a host: nvlink, pcie, xgmi, hccs, unified, none."""
    link_bandwidth: float = 0.0
    """Bytes/s between two devices, one direction; 0: not known."""
    driver: str | None = None
    runtime: str | None = None
    """Highest CUDA / ROCm / CANN version that the driver carries."""
    source: str = ""
    memory_basis: Basis = "assumed"
    bandwidth_basis: Basis = "assumed"
    dtypes: tuple[str, ...] = ()
    """That it computes in natively, of the names in `flops`; (): not known."""
    features: tuple[str, ...] = ()
    """Instruction-set extensions of a CPU as the kernel names them: avx2, avx512f, amx_bf16, sve ..."""
    box_bytes: int = 0
    """What is printed on the box, or soldered on the board; 0: not known."""
    tdp_watts: float = 0.0
    """Board power limit as it leaves the factory; 0: not known."""
    others_bytes: int = 0
    """Of `memory_bytes`, what other processes hold now (a desktop, another service)."""
    notes: tuple[str, ...] = ()
    """What a reader should know of these numbers, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine: its devices and what surrounds them. `cpu` is always there, `devices` may be empty."""

    name: str
    cpu: Device
    cores: int
    """That this process may use (cgroup quota and affinity included)."""
    ram_bytes: int
    ram_free_bytes: int
    """Free now and allowed to this process (cgroup limit included)."""
    devices: tuple[Device, ...] = ()
    disk_free_bytes: int = 0
    network_bandwidth: float = 0.0
    """Bytes/s to the other hosts of the fleet; 0: not known."""
    os: str = "linux"
    glibc: str | None = None
    source: str = ""
    threads_per_core: int = 1
    """2 where `cores` counts both hardware threads of each core."""
    numa_nodes: int = 1
    notes: tuple[str, ...] = ()
