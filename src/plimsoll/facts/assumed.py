"""What words leave open of a machine: RAM, CPU, what a desktop takes. Everything filled in here is noted as assumed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from plimsoll.facts.cpus import Cpu, find_cpu
from plimsoll.facts.devices import Entry, with_memory
from plimsoll.facts.hardware import Device, Host
from plimsoll.units import GIB, MIB, format_bytes

DESKTOP_BYTES = 258 * MIB
"""What X and a GNOME shell hold of the first card: an nvidia-smi of an idle workstation with two A6000."""
_SYSTEM_BYTES = GIB
"""Of RAM, for the operating system: a headless Linux machine has 0.8 GiB less available than in all."""
_SYSTEM_UNIFIED_BYTES = 4 * GIB


@dataclass(slots=True)
class Group:
    """`count` devices of one kind on one machine."""

    entry: Entry
    count: int = 1
    link: str | None = None
    box_bytes: int = 0


@dataclass(slots=True)
class Machine:
    """What the words say of one machine, before the gaps are filled."""

    text: str
    hosts: int = 1
    groups: list[Group] = field(default_factory=list)
    cpu: Cpu | None = None
    sockets: int = 1
    cores: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0
    network_bandwidth: float = 0.0
    free_bytes: int | None = None
    desktop: bool | None = None
    name: str = ""
    source: str = ""


def fill_host(machine: Machine) -> Host:
    """One host of `machine`, every gap filled and noted."""
    notes: list[str] = []
    devices = _devices(machine, notes)
    unified = [group for group in machine.groups if group.entry.unified]
    box = sum((group.box_bytes or group.entry.device.box_bytes) * group.count for group in machine.groups)
    ram = machine.ram_bytes
    if not ram:
        ram = box if unified else _assumed_ram(box)
        if not unified:
            notes.append(f"RAM is not stated: {format_bytes(ram)} assumed")
    ram_free = max(0, ram - (_SYSTEM_UNIFIED_BYTES if unified else _SYSTEM_BYTES))
    cpu, cores, threads = _cpu(machine, devices, notes)
    return Host(
        name=machine.name or "host",
        cpu=replace(cpu, memory_bytes=ram, free_bytes=ram_free),
        cores=cores,
        ram_bytes=ram,
        ram_free_bytes=ram_free,
        devices=devices,
        disk_free_bytes=machine.disk_bytes,
        network_bandwidth=machine.network_bandwidth,
        os="darwin" if any(device.vendor == "apple" for device in devices) else "linux",
        source=machine.source or f"by words: {machine.text!r}",
        threads_per_core=threads,
        numa_nodes=machine.sockets,
        notes=tuple(notes),
    )


def _devices(machine: Machine, notes: list[str]) -> tuple[Device, ...]:
    devices: list[Device] = []
    total = sum(group.count for group in machine.groups)
    for group in machine.groups:
        device = with_memory(group.entry, group.box_bytes) if group.box_bytes else group.entry.device
        device = _linked(group, device, alone=total == 1, notes=notes)
        for _ in range(group.count):
            taken = _taken(machine, group.entry, first=not devices, total=total)
            if taken:
                notes.append(
                    f"{format_bytes(taken)} of device {len(devices)} assumed taken by the desktop or the system"
                )
            free = device.memory_bytes - taken if machine.free_bytes is None else machine.free_bytes
            free = min(free, device.memory_bytes)
            devices.append(
                replace(device, index=len(devices), free_bytes=free, others_bytes=device.memory_bytes - free)
            )
    return tuple(devices)


def _taken(machine: Machine, entry: Entry, *, first: bool, total: int) -> int:
    if machine.free_bytes is not None or entry.device.vendor == "apple":
        return 0
    if entry.unified:
        return _SYSTEM_UNIFIED_BYTES
    desktop = machine.desktop if machine.desktop is not None else total <= 2 and "GeForce" in entry.device.name
    return DESKTOP_BYTES if desktop and first else 0


def _linked(group: Group, device: Device, *, alone: bool, notes: list[str]) -> Device:
    if group.link in (None, device.link) or alone:
        return device
    if group.link == "nvlink" and group.entry.bridge_bandwidth:
        if group.count > 2:
            notes.append(f"NVLink bridges join {device.name} in pairs; between the pairs it is PCIe")
        return replace(device, link="nvlink", link_bandwidth=group.entry.bridge_bandwidth)
    if group.link == "pcie" and group.entry.pcie_bandwidth:
        return replace(device, link="pcie", link_bandwidth=group.entry.pcie_bandwidth)
    notes.append(f"{device.name} has no {group.link}: {device.link} kept")
    return device


def _cpu(machine: Machine, devices: tuple[Device, ...], notes: list[str]) -> tuple[Device, int, int]:
    """The CPU device (memory still 0), hardware threads in all, threads per core."""
    own = next((group.entry for group in machine.groups if group.entry.unified), None)
    known = machine.cpu or (find_cpu(own.cpu) if own is not None and own.cpu else None)
    if known is not None:
        cores = machine.cores or known.cores * machine.sockets
        rate = cores / known.cores
        device = replace(
            known.device,
            bandwidth=known.device.bandwidth * machine.sockets,
            flops={dtype: peak * rate for dtype, peak in known.device.flops.items()},
        )
        threads = 1 if machine.cores else known.threads_per_core
        return device, cores * threads, threads
    if own is not None:
        cores = machine.cores or 10
        notes.append(f"the CPU is not stated: {cores} Arm cores at 3 GHz assumed, on the memory of the GPU")
        return _assumed_cpu("aarch64", ("asimd",), own.device.bandwidth, 16 * 3e9 * cores), cores, 1
    cores = machine.cores or max(16, 8 * len(devices))
    if cores > 16 or any(device.link not in ("pcie", "none") for device in devices):
        bandwidth, channels = 204.8e9, "eight channels of DDR4-3200"
    else:
        bandwidth, channels = 76.8e9, "two channels of DDR5-4800"
    notes.append(f"the CPU is not stated: {cores} AVX2 cores at 2.5 GHz with {channels} assumed")
    return _assumed_cpu("x86-64-v3", ("avx2", "fma"), bandwidth, 32 * 2.5e9 * cores), cores, 1


def _assumed_cpu(arch: str, features: tuple[str, ...], bandwidth: float, fp32: float) -> Device:
    return Device(
        name="assumed CPU",
        vendor="cpu",
        arch=arch,
        memory_bytes=0,
        free_bytes=0,
        bandwidth=bandwidth,
        flops={"fp32": fp32},
        link="none",
        source="assumed",
        dtypes=("fp32",),
        features=features,
    )


def _assumed_ram(box_bytes: int) -> int:
    """Twice the devices' memory, in powers of two from 32 GiB: what such machines are commonly sold with."""
    return 1 << max(32 * GIB, 2 * box_bytes).bit_length() - 1 if box_bytes else 64 * GIB
