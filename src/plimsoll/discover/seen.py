"""What a vendor's tool reports of one device, and how it becomes a `Device` with the catalogue's help."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plimsoll.facts.devices import Entry, match_arch, match_driver, with_memory
from plimsoll.facts.hardware import Device, Vendor
from plimsoll.units import format_bytes

_RESERVED_SHARE = 0.018
"""Of the total that nvidia-smi prints, what CUDA does not hand out: 0.9 to 3 % on cards whose both numbers we have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One device as reported; a field that the tool does not tell is None or 0."""

    vendor: Vendor
    name: str
    index: int
    total_bytes: int
    used_bytes: int = 0
    free_bytes: int | None = None
    """Free now as the driver says; None: what is usable less what is used."""
    usable_bytes: int = 0
    """What a process can allocate of it, where that is known apart from `total_bytes`."""
    arch: str | None = None
    driver: str | None = None
    runtime: str | None = None
    bandwidth: float = 0.0
    link: str | None = None
    link_bandwidth: float = 0.0
    share: float = 1.0
    """Of the chip's bandwidth and arithmetic: below 1 for a slice of it (MIG)."""
    source: str = ""
    notes: tuple[str, ...] = ()


def device_of(seen: Seen) -> Device:
    """The device that was seen, with the catalogue's numbers for what the tool does not tell."""
    entry = match_driver(seen.name, seen.total_bytes if seen.share == 1 else None)
    if entry is None and seen.arch and seen.share == 1:
        entry = match_arch(seen.vendor, seen.arch, seen.total_bytes)
    if entry is None:
        return _unknown(seen)
    known = with_memory(entry, seen.total_bytes) if entry.sizes else entry.device
    usable = seen.usable_bytes or _usable(seen, entry)
    free = _free(seen, usable)
    link, link_bandwidth = _link(seen, entry)
    return replace(
        known,
        name=seen.name,
        index=seen.index,
        arch=seen.arch or known.arch,
        memory_bytes=usable,
        free_bytes=free,
        others_bytes=usable - free,
        bandwidth=(seen.bandwidth or known.bandwidth) * seen.share,
        flops={dtype: peak * seen.share for dtype, peak in known.flops.items()},
        link=link,
        link_bandwidth=link_bandwidth,
        driver=seen.driver,
        runtime=seen.runtime,
        memory_basis="measured",
        source=f"{seen.source}; catalogue: {entry.word}",
        notes=known.notes + seen.notes,
    )


def _usable(seen: Seen, entry: Entry) -> int:
    if entry.unified or seen.vendor != "nvidia":
        return entry.device.memory_bytes if not seen.total_bytes else seen.total_bytes
    known = entry.device.memory_bytes
    if 0.93 * seen.total_bytes <= known <= seen.total_bytes:
        return known
    return round(seen.total_bytes * (1 - _RESERVED_SHARE))


def _free(seen: Seen, usable: int) -> int:
    return max(0, min(usable, seen.free_bytes if seen.free_bytes is not None else usable - seen.used_bytes))


def _link(seen: Seen, entry: Entry) -> tuple[str, float]:
    if seen.link is None or seen.link == entry.device.link:
        return entry.device.link, seen.link_bandwidth or entry.device.link_bandwidth
    if seen.link == "nvlink":
        return "nvlink", seen.link_bandwidth or entry.bridge_bandwidth
    return seen.link, seen.link_bandwidth or entry.pcie_bandwidth


def _unknown(seen: Seen) -> Device:
    usable = seen.usable_bytes or seen.total_bytes
    free = _free(seen, usable)
    note = f"{seen.name} with {format_bytes(seen.total_bytes)} is not in the catalogue: its speed is not known"
    return Device(
        name=seen.name,
        vendor=seen.vendor,
        arch=seen.arch or "unknown",
        memory_bytes=usable,
        free_bytes=free,
        others_bytes=usable - free,
        bandwidth=seen.bandwidth * seen.share,
        index=seen.index,
        link=seen.link or "pcie",
        link_bandwidth=seen.link_bandwidth,
        driver=seen.driver,
        runtime=seen.runtime,
        source=seen.source,
        memory_basis="measured",
        notes=(*seen.notes, note),
    )
