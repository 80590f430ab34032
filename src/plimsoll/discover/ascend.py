"""Ascend devices out of `npu-smi info`."""

from __future__ import annotations

import re

from plimsoll.discover.seen import Seen
from plimsoll.units import MIB

_NAME = re.compile(r"^\|\s*(\d+)\s+((?:Ascend)?\d{3}\S*)\s*\|\s*(\S+)\s*\|")
_CHIP = re.compile(r"^\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*(?:[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:|NA\b)")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")


def parse_npu_smi(text: str) -> tuple[Seen, ...]:
    """The chips in npu-smi's table; () if the text is none. Chips that are not OK carry a note.

    An Atlas 300I Duo shows one card with two chips, an A3 server one module with two dies: each is a device.
    """
    version = re.search(r"npu-smi\s+(\S+)", text)
    seen: list[Seen] = []
    card: tuple[str, str] | None = None
    for line in text.splitlines():
        named = _NAME.match(line)
        if named:
            card = (named[2].removeprefix("Ascend"), named[3])
            continue
        if card is None or not _CHIP.match(line):
            continue
        # The last "used / total" of the row with a total: HBM on 910, DDR on 310P (whose HBM column is absent).
        sizes = [(int(used), int(total)) for used, total in _USAGE.findall(line) if int(total)]
        if not sizes:
            continue
        used, total = sizes[-1]
        name, health = card
        notes = () if health.upper() == "OK" else (f"npu-smi reports health {health}",)
        seen.append(
            Seen(
                vendor="ascend", name=_full_name(name, total), index=len(seen), total_bytes=total * MIB,
                used_bytes=min(used, total) * MIB, arch=_arch(name, total), driver=version[1] if version else None,
                source="npu-smi info", notes=notes,
            )
        )  # fmt: skip
    return tuple(seen)


def _full_name(name: str, total_mb: int) -> str:
    if name.startswith("310P"):
        return "Ascend 310P3 (300I Duo)" if total_mb > 30_000 else "Ascend 310P3"
    if name == "910":  # what A3 servers print of a 910C's dies, and what the first 910 was called
        return "Ascend 910C" if total_mb > 40_000 else "Ascend 910A"
    return f"Ascend {name}"


def _arch(name: str, total_mb: int) -> str:
    return _full_name(name, total_mb).split()[1].split("-")[0].removesuffix("3" if name.startswith("310P") else "")
