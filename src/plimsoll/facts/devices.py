"""The catalogue of accelerators: what is known of a device before anything runs on it.

One table per device in `data/devices/*.toml`, each number with basis and source. Loaded on first use (about 10 ms).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from plimsoll.errors import FactError
from plimsoll.facts.hardware import Device, Vendor
from plimsoll.units import GB, GIB, MIB

_NOISE = re.compile(
    r"\((?:r|tm)\)|\b(?:nvidia|geforce|amd|instinct|radeon|tesla|huawei|ascend|intel|apple|"
    r"gpu|card|graphics|generation|edition|hbm3e?|arc)\b"
)
_GIGABYTES = re.compile(r"(?<=\d)\s*gi?b?\b")
_SAME_CARD = 0.12
"""Reported memory may differ by this much from the catalogue's before it is taken for another card of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One device of the catalogue; `device` has index 0 and everything free."""

    word: str
    aliases: tuple[str, ...]
    device: Device
    bridge_bandwidth: float = 0.0
    """Bytes/s in one direction over an NVLink bridge, where one can be plugged in."""
    pcie_bandwidth: float = 0.0
    unified: bool = False
    """The memory is the machine's own, shared with the CPU."""
    sizes: tuple[int, ...] = ()
    """Bytes of memory that the machine is sold with, where there are several."""
    cpu: str = ""
    """The word of the CPU that the device is built together with."""


@cache
def catalogue() -> Mapping[str, Entry]:
    """Every device by its word ("rtx-3090", "a100-80g"), in the order of the files."""
    entries: dict[str, Entry] = {}
    for path in sorted((resources.files("plimsoll.facts") / "data" / "devices").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".toml"):
            for word, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
                entries[word] = _entry(word, row)
    return MappingProxyType(entries)


def find_device(word: str) -> Entry:
    """The device that a person means by "3090", "A100 80GB PCIe" or "mi300x"; FactError with the nearest words."""
    entry = _index().get(_key(word))
    if entry is None:
        near = nearest(word, [name for entry in catalogue().values() for name in (entry.word, *entry.aliases)])
        raise FactError(
            f"{word!r} is no device of the catalogue",
            hint=f"did you mean {', '.join(near)}?" if near else "docs/devices.md lists the words",
            source="plimsoll/facts/data/devices",
        )
    return entry


def match_driver(name: str, memory_bytes: int | None) -> Entry | None:
    """The catalogue's entry for a device as its driver names it; None where name and memory fit none.

    Cards of one name are sold with different memory (a 3060 with 8 or 12 GB), so the memory decides between them where
    it is known. Apple's chips are sold with any.
    """
    key = _key(name)
    entry = _index().get(key)
    if entry is not None and (entry.device.vendor == "apple" or _fits(entry, memory_bytes)):
        return entry
    if len(key) < 2:
        return None
    for other in catalogue().values():
        named = _key(other.word).startswith(key) or _key(other.device.name).startswith(key)
        if named and other.device.vendor != "apple" and _fits(other, memory_bytes):
            return other
    return None


def match_arch(vendor: Vendor, arch: str, memory_bytes: int) -> Entry | None:
    """The entry of that architecture and memory, for drivers that give only a family's name ("AMD Radeon Graphics")."""
    fitting = (entry for entry in catalogue().values() if (entry.device.vendor, entry.device.arch) == (vendor, arch))
    return next((entry for entry in fitting if _fits(entry, memory_bytes)), None) if vendor == "amd" else None


def nearest(word: str, known: list[str]) -> list[str]:
    """Up to three of `known` that look like `word`."""
    keys = {_key(name): name for name in reversed(known)}
    close = difflib.get_close_matches(_key(word), list(keys), n=3, cutoff=0.5)
    return [keys[key] for key in close]


def metal_limit(ram_bytes: int) -> int:
    """What Metal lends the GPU of an Apple machine with `ram_bytes`: two thirds up to 32 GiB, three quarters above.

    Source: recommendedMaxWorkingSetSize in public llama.cpp logs: 11453 MB of 16 GiB, 22906 MB of 32, 28991 MB of 36.
    """
    return ram_bytes * 2 // 3 if ram_bytes <= 32 * GIB else ram_bytes * 3 // 4


def with_memory(entry: Entry, box_bytes: int) -> Device:
    """The device of `entry` in a version with other memory (an Apple chip sold with several sizes)."""
    usable = metal_limit(box_bytes) if entry.device.vendor == "apple" else round(
        entry.device.memory_bytes * box_bytes / entry.device.box_bytes
    )  # fmt: skip
    return replace(entry.device, memory_bytes=usable, free_bytes=usable, box_bytes=box_bytes, memory_basis="derived")


def _fits(entry: Entry, memory_bytes: int | None) -> bool:
    known = entry.device.box_bytes
    return memory_bytes is None or entry.unified or abs(memory_bytes - known) <= _SAME_CARD * known


@cache
def _index() -> Mapping[str, Entry]:
    index: dict[str, Entry] = {}
    for entry in catalogue().values():
        for name in (entry.word, *entry.aliases, entry.device.name):
            index.setdefault(_key(name), entry)
    return index


def _key(name: str) -> str:
    """`name` without what people leave out or write differently: "NVIDIA A100-SXM4-80GB" is "a100sxm480g"."""
    plain = _NOISE.sub(" ", _GIGABYTES.sub("g", name.lower().replace("_", " ")))
    return re.sub(r"[^a-z0-9]+", "", plain)


def _entry(word: str, row: Mapping[str, Any]) -> Entry:
    # Memory chips come in binary gigabytes: a 24 GB card has 24 GiB of them.
    box = row["box_gb"] * GIB
    memory = metal_limit(box) if row["vendor"] == "apple" else row["memory_mib"] * MIB
    tflops = {dtype: value * 1e12 for dtype, value in row["tflops"].items()}
    device = Device(
        name=row["name"],
        vendor=row["vendor"],
        arch=row["arch"],
        memory_bytes=memory,
        free_bytes=memory,
        bandwidth=row["bandwidth_gb_s"] * GB,
        flops=tflops,
        link=row["link"],
        link_bandwidth=row.get("link_gb_s", 0) * GB,
        source=row["source"],
        memory_basis=row.get("memory_basis", "derived"),
        bandwidth_basis="derived",
        dtypes=tuple(tflops),
        box_bytes=box,
        tdp_watts=row.get("tdp_w", 0),
        notes=tuple(row.get("notes", ())),
    )
    return Entry(
        word=word,
        aliases=tuple(row.get("aliases", ())),
        device=device,
        bridge_bandwidth=row.get("bridge_gb_s", 0) * GB,
        pcie_bandwidth=row.get("pcie_gb_s", row.get("link_gb_s", 0) if row["link"] == "pcie" else 0) * GB,
        unified=row.get("unified", False),
        cpu=row.get("cpu", ""),
        sizes=tuple(int(size) * GIB for size in row["sizes_gb"]) if "sizes_gb" in row else (),
    )
