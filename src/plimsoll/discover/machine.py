"""This machine, as this process may use it: CPU, RAM, disk, devices."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from plimsoll.discover.cgroup import read_allowance
from plimsoll.discover.cpu import Cpu, read_cpu
from plimsoll.discover.memory import Ram, read_glibc, read_ram
from plimsoll.discover.memory import measure_bandwidth as time_reads
from plimsoll.facts.hardware import Device, Host

_ASSUMED_BANDWIDTH = 40e9
"""Of a CPU that nothing is known of: about one socket with two channels of DDR4-3200 (51.2 GB/s) at 80 %."""


def this_machine(*, measure_bandwidth: bool = False, root: Path = Path("/")) -> Host:
    """The host this runs on, with what is free now; `measure_bandwidth` spends up to 0.3 s on reading RAM.

    Cores are affinity cut down to the cgroup quota; free RAM is MemAvailable cut down to what the cgroups still allow,
    file cache counted as free. `root` stands for "/" (tests pass a recorded tree).
    """
    cpu = read_cpu(root)
    allowance = read_allowance(root)
    ram = read_ram(allowance, root)
    cores = min(cpu.threads, max(1, int(allowance.cores))) if allowance.cores is not None else cpu.threads
    notes = []
    if cores < cpu.threads:
        notes.append(f"a CPU quota of {allowance.cores:g} allows {cores} of {cpu.threads} threads ({allowance.source})")
    if ram.capped_by:
        notes.append(f"the memory limit of {ram.capped_by} is below what the machine has")
    measured = time_reads(threads=cores, free_bytes=ram.free_bytes) if measure_bandwidth else None
    return Host(
        name=os.uname().nodename,
        cpu=_cpu_device(cpu, ram, measured=measured, share=cores / cpu.threads),
        cores=cores,
        ram_bytes=ram.total_bytes,
        ram_free_bytes=ram.free_bytes,
        disk_free_bytes=shutil.disk_usage(root).free,
        os=sys.platform,
        glibc=read_glibc(root),
        threads_per_core=cpu.threads_per_core,
        numa_nodes=cpu.numa_nodes,
        source=f"{root}proc, {root}sys",
        notes=tuple(notes),
    )


def _cpu_device(cpu: Cpu, ram: Ram, *, measured: float | None, share: float) -> Device:
    return Device(
        name=cpu.name,
        vendor="cpu",
        arch=cpu.arch,
        memory_bytes=ram.total_bytes,
        free_bytes=ram.free_bytes,
        bandwidth=measured or _ASSUMED_BANDWIDTH,
        flops={dtype: peak * share for dtype, peak in cpu.flops.items()},
        link="none",
        source="/proc/cpuinfo, /proc/meminfo",
        memory_basis="measured",
        bandwidth_basis="measured" if measured else "assumed",
        dtypes=tuple(cpu.flops),
        features=cpu.features,
    )
