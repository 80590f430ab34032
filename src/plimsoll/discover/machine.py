"""This machine, as this process may use it: CPU, RAM, disk, devices."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plimsoll.discover.apple import parse_sysctl, parse_vm_stat
from plimsoll.discover.cgroup import read_allowance
from plimsoll.discover.cpu import Cpu, peak_flops, read_cpu
from plimsoll.discover.devices import load_nvml, read_devices
from plimsoll.discover.memory import Ram, read_glibc, read_ram
from plimsoll.discover.memory import measure_bandwidth as time_reads
from plimsoll.discover.tools import RunTool, run_tool
from plimsoll.errors import FactError
from plimsoll.facts.cpus import find_cpu
from plimsoll.facts.hardware import Device, Host

_ASSUMED_BANDWIDTH = 40e9
"""Of a CPU that nothing is known of: about one socket with two channels of DDR4-3200 (51.2 GB/s) at 80 %."""


def this_machine(
    *,
    measure_bandwidth: bool = False,
    root: Path = Path("/"),
    run: RunTool = run_tool,
    nvml: Any = None,
    environment: Mapping[str, str] = os.environ,
) -> Host:
    """The host this runs on, with what is free now; `measure_bandwidth` spends about 0.3 s on reading RAM.

    Cores are affinity cut down to the cgroup quota; free RAM is MemAvailable cut down to what the cgroups still allow,
    file cache counted as free. The other arguments are for tests: a recorded tree, recorded tool outputs, a fake NVML.
    FactError where not even RAM can be read.
    """
    notes: list[str] = []
    cpu, ram, cores = _mac(run) if sys.platform == "darwin" else _linux(root, notes)
    if ram.total_bytes == 0:
        raise FactError(
            "the memory of this machine cannot be read",
            hint="Linux and macOS are read; describe other machines by words, --on cpu:16c:64GiB",
            source=str(root / "proc/meminfo"),
        )
    devices = read_devices(
        run,
        nvml=nvml if nvml is not None else load_nvml(),
        ram_bytes=ram.total_bytes,
        ram_free_bytes=ram.free_bytes,
        environment=environment,
    )
    measured = time_reads(threads=cores, free_bytes=ram.free_bytes) if measure_bandwidth else None
    return Host(
        name=platform.node(),
        cpu=_cpu_device(cpu, ram, measured=measured, share=cores / cpu.threads, devices=devices),
        cores=cores,
        ram_bytes=ram.total_bytes,
        ram_free_bytes=ram.free_bytes,
        devices=devices,
        disk_free_bytes=shutil.disk_usage(Path.home() if Path.home().is_dir() else root).free,
        os=sys.platform,
        glibc=read_glibc(root),
        threads_per_core=cpu.threads_per_core,
        numa_nodes=cpu.numa_nodes,
        source=f"{root}proc, {root}sys",
        notes=tuple(notes),
    )


def _linux(root: Path, notes: list[str]) -> tuple[Cpu, Ram, int]:
    cpu = read_cpu(root)
    allowance = read_allowance(root)
    ram = read_ram(allowance, root)
    cores = min(cpu.threads, max(1, int(allowance.cores))) if allowance.cores is not None else cpu.threads
    if cores < cpu.threads:
        notes.append(f"a CPU quota of {allowance.cores:g} allows {cores} of {cpu.threads} threads ({allowance.source})")
    if ram.capped_by:
        notes.append(f"the memory limit of {ram.capped_by} is below what the machine has")
    return cpu, ram, cores


def _mac(run: RunTool) -> tuple[Cpu, Ram, int]:
    values = parse_sysctl(run(("sysctl", "machdep.cpu.brand_string", "hw.memsize", "hw.logicalcpu", "hw.physicalcpu")))
    threads = int(values.get("hw.logicalcpu") or 1)
    physical = int(values.get("hw.physicalcpu") or threads)
    total = int(values.get("hw.memsize") or 0)
    flags = {"asimd", "asimdhp", "asimddp"} if platform.machine() == "arm64" else {"avx2"}
    cpu = Cpu(
        name=values.get("machdep.cpu.brand_string", "unknown CPU"),
        arch="aarch64" if platform.machine() == "arm64" else "x86-64-v3",
        features=tuple(sorted(flags)),
        threads=threads,
        threads_per_core=max(1, threads // physical),
        numa_nodes=1,
        flops=peak_flops(flags, cores=physical, clock_hz=3e9),
    )
    return cpu, Ram(total_bytes=total, free_bytes=min(total, parse_vm_stat(run(("vm_stat",))))), threads


def _cpu_device(cpu: Cpu, ram: Ram, *, measured: float | None, share: float, devices: tuple[Device, ...]) -> Device:
    """The CPU seen as a device; bandwidth measured, else of the catalogue's CPU, else of the chip it is part of."""
    bandwidth, source = measured, "measured"
    if bandwidth is None:
        bandwidth, source = _known_bandwidth(cpu, devices)
    return Device(
        name=cpu.name,
        vendor="cpu",
        arch=cpu.arch,
        memory_bytes=ram.total_bytes,
        free_bytes=ram.free_bytes,
        bandwidth=bandwidth,
        flops={dtype: peak * share for dtype, peak in cpu.flops.items()},
        link="none",
        source=f"/proc/cpuinfo, /proc/meminfo; bandwidth: {source}",
        memory_basis="measured",
        bandwidth_basis="measured" if measured is not None else "assumed",
        dtypes=tuple(cpu.flops),
        features=cpu.features,
    )


def _known_bandwidth(cpu: Cpu, devices: tuple[Device, ...]) -> tuple[float, str]:
    if devices and devices[0].vendor == "apple":
        return devices[0].bandwidth, "the chip's unified memory"
    try:
        known = find_cpu(cpu.name)
    except FactError:
        return _ASSUMED_BANDWIDTH, "assumed, two channels of DDR4-3200 at 80 %"
    # A guest may hold a few cores of a socket: it is not given the whole socket's bandwidth here.
    share = min(1.0, cpu.threads / (known.cores * known.threads_per_core))
    sockets = max(1, round(cpu.threads / (known.cores * known.threads_per_core)))
    return known.device.bandwidth * share * sockets, f"catalogue, {known.word}"
