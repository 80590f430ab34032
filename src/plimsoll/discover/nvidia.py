"""NVIDIA devices through NVML; through nvidia-smi's text where NVML is not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from plimsoll.discover.seen import Seen
from plimsoll.units import MIB

_T = TypeVar("_T")
_NVLINK_LANE = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 50e9}
"""Bytes/s of one link in one direction by NVLink version; the bridges of single cards are slower, see the catalogue."""
_PCIE_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
_MOST_LINKS = 18
_TABLE_NAME = re.compile(r"^\|\s+(\d+)\s+(\S.*?)\s+(?:On|Off|N/A)\s*\|\s*[0-9A-Fa-f]+:[0-9A-Fa-f]{2}:")
_TABLE_MEMORY = re.compile(r"(\d+)\s*MiB\s*/\s*(\d+)\s*MiB")
_TABLE_NO_MEMORY = re.compile(r"\|\s*(?:Not Supported|N/A\s*/\s*N/A)\s*\|")
_MIG_ROW = re.compile(r"^\|\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+\|\s*(\d+)MiB\s*/\s*(\d+)MiB\s*\|\s*(\d+)")


def read_nvml(nvml: Any) -> tuple[Seen, ...]:
    """The devices that `nvml` (the pynvml module) shows; () where there is no driver.

    A GPU in MIG mode is given as its slices. Free is what the driver has left now.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        driver = _ask(nvml, nvml.nvmlSystemGetDriverVersion)
        cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
        seen: list[Seen] = []
        for number in range(count):
            handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, number)
            if handle is not None:
                seen += _device(nvml, handle, number, driver=_text(driver), runtime=_cuda_version(cuda))
        return tuple(seen)
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _device(nvml: Any, handle: Any, index: int, *, driver: str | None, runtime: str | None) -> Iterator[Seen]:
    name = _text(_ask(nvml, nvml.nvmlDeviceGetName, handle)) or "unknown NVIDIA device"
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    arch = ".".join(map(str, capability)) if capability else None
    total, free, reserved = _memory(nvml, handle)
    link, link_bandwidth = _link(nvml, handle)
    bandwidth = _bandwidth(nvml, handle)
    slices = list(_mig_slices(nvml, handle))
    for slice_total, slice_free, compute, profile in slices:
        yield Seen(
            vendor="nvidia", name=name, index=index, total_bytes=slice_total, free_bytes=slice_free,
            usable_bytes=slice_total, arch=arch, driver=driver, runtime=runtime, bandwidth=bandwidth, link="none",
            share=compute, source=f"NVML, MIG {profile}", notes=(f"a MIG slice of {name}",),
        )  # fmt: skip
    if not slices:
        yield Seen(
            vendor="nvidia", name=name, index=index, total_bytes=total, free_bytes=free,
            usable_bytes=total - reserved if reserved else 0, arch=arch, driver=driver, runtime=runtime,
            bandwidth=bandwidth, link=link, link_bandwidth=link_bandwidth, source="NVML",
        )  # fmt: skip


def _memory(nvml: Any, handle: Any) -> tuple[int, int | None, int]:
    """Total, free and reserved bytes; 0, None, 0 on a unified machine, where NVML tells no memory."""
    info = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, getattr(nvml, "nvmlMemory_v2", None))
    if info is None:
        info = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return (info.total, info.free, getattr(info, "reserved", 0)) if info is not None else (0, None, 0)


def _mig_slices(nvml: Any, handle: Any) -> Iterator[tuple[int, int, float, str]]:
    mode = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if not mode or mode[0] != 1:
        return
    for number in range(_ask(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        mig = _ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        info = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, mig) if mig is not None else None
        if info is None:
            continue
        name = _text(_ask(nvml, nvml.nvmlDeviceGetName, mig)) or ""
        profile = re.search(r"(\d)g\.\d+gb", name)
        yield info.total, info.free, (int(profile[1]) if profile else 1) / 7, profile[0] if profile else str(number)


def _link(nvml: Any, handle: Any) -> tuple[str | None, float]:
    active = [n for n in range(_MOST_LINKS) if _ask(nvml, nvml.nvmlDeviceGetNvLinkState, handle, n) == 1]
    if active:
        version = _ask(nvml, nvml.nvmlDeviceGetNvLinkVersion, handle, active[0]) or 0
        # Four links are a bridge between two cards: slower lanes than a module's, and the catalogue knows how slow.
        return "nvlink", _NVLINK_LANE.get(version, 0.0) * len(active) if len(active) > 4 else 0.0
    generation = _ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle)
    width = _ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle)
    return ("pcie", _PCIE_LANE.get(generation or 0, 0.0) * (width or 0)) if generation else (None, 0.0)


def _bandwidth(nvml: Any, handle: Any) -> float:
    """Peak from bus width and memory clock; 0 where the driver does not tell (two transfers per clock: DDR)."""
    width = _ask(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle)
    clock_mhz = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, getattr(nvml, "NVML_CLOCK_MEM", 2))
    return width / 8 * clock_mhz * 1e6 * 2 if width and clock_mhz else 0.0


def _ask(nvml: Any, call: Callable[..., _T], *args: Any) -> _T | None:
    """The answer, or None: a driver may refuse any single question (too old, in a container, on a laptop)."""
    try:
        return call(*args)
    except (nvml.NVMLError, AttributeError):
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _cuda_version(number: int | None) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def parse_nvidia_smi(text: str) -> tuple[Seen, ...]:
    """The devices in nvidia-smi's table, of any version; () if the text is none."""
    driver = re.search(r"Driver Version:\s*([\d.]+)", text)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", text)
    seen: list[Seen] = []
    pending: tuple[int, str] | None = None
    for line in text.splitlines():
        named = _TABLE_NAME.match(line)
        if named:
            pending = (int(named[1]), named[2].removesuffix("...").strip())
            continue
        memory = _TABLE_MEMORY.search(line)
        if pending is None or not (memory or _TABLE_NO_MEMORY.search(line)):
            continue
        used, total = (int(memory[1]) * MIB, int(memory[2]) * MIB) if memory else (0, 0)
        seen.append(
            Seen(
                vendor="nvidia", name=pending[1], index=pending[0], total_bytes=total, used_bytes=min(used, total),
                driver=driver[1] if driver else None, runtime=cuda[1] if cuda else None, source="nvidia-smi",
            )
        )  # fmt: skip
        pending = None
    return _with_slices(seen, text)


def _with_slices(seen: list[Seen], text: str) -> tuple[Seen, ...]:
    """GPUs in MIG mode replaced by the slices that the table lists below."""
    slices: dict[int, list[Seen]] = {}
    by_index = {device.index: device for device in seen}
    for row in filter(None, map(_MIG_ROW.match, text.splitlines())):
        whole = by_index.get(int(row[1]))
        if whole is None or whole.total_bytes == 0:
            continue
        total = int(row[6]) * MIB
        # A slice is named for its sevenths of the chip, and has about as many of the memory.
        share = max(1, round(7 * total / whole.total_bytes)) / 7
        slices.setdefault(whole.index, []).append(
            Seen(
                vendor="nvidia", name=whole.name, index=whole.index, total_bytes=total, usable_bytes=total,
                used_bytes=int(row[5]) * MIB, driver=whole.driver, runtime=whole.runtime, link="none", share=share,
                source="nvidia-smi, MIG", notes=(f"a MIG slice of {whole.name}",),
            )
        )  # fmt: skip
    return tuple(part for device in seen for part in slices.get(device.index, [device]))


def parse_topology(text: str) -> dict[tuple[int, int], str]:
    """`nvidia-smi topo -m`: how two GPUs are joined ("NV12", "PIX", "NODE", "SYS" ...), by pair of indices."""
    joined: dict[tuple[int, int], str] = {}
    for line in text.splitlines():
        cells = line.replace("\x1b[4m", "").replace("\x1b[0m", "").split()
        if not cells or not re.fullmatch(r"GPU\d+", cells[0]):
            continue
        row = int(cells[0][3:])
        for column, cell in enumerate(cells[1:]):
            if not re.fullmatch(r"X|NV\d+|PIX|PXB|PHB|NODE|SYS", cell):
                break
            if cell != "X":
                joined[row, column] = cell
    return joined
