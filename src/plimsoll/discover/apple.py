"""Apple machines out of `sysctl` and `system_profiler -json SPDisplaysDataType`."""

from __future__ import annotations

import json
import re
from typing import Any

from plimsoll.discover.seen import Seen
from plimsoll.facts.devices import metal_limit


def parse_system_profiler(text: str, ram_bytes: int) -> tuple[Seen, ...]:
    """The GPU of an Apple chip, lent what Metal lends of `ram_bytes`; () on an Intel Mac or garbled text."""
    try:
        data: Any = json.loads(text)
    except ValueError:
        return ()
    displays = data.get("SPDisplaysDataType") if isinstance(data, dict) else None
    for display in displays if isinstance(displays, list) else ():
        name = display.get("sppci_model") if isinstance(display, dict) else None
        if isinstance(name, str) and name.startswith("Apple M"):
            return (
                Seen(
                    vendor="apple", name=name, index=0, total_bytes=ram_bytes, used_bytes=0,
                    usable_bytes=metal_limit(ram_bytes), source="system_profiler",
                    notes=(f"{display['sppci_cores']} GPU cores",) if display.get("sppci_cores") else (),
                ),
            )  # fmt: skip
    return ()


def parse_sysctl(text: str) -> dict[str, str]:
    """`sysctl` lines by name."""
    pairs = (re.split(r"[:=]\s*", line, maxsplit=1) for line in text.splitlines())
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def parse_vm_stat(text: str) -> int:
    """Bytes that macOS can hand out at once: free, inactive, speculative and purgeable pages of `vm_stat`."""
    size = re.search(r"page size of (\d+) bytes", text)
    pages = sum(
        int(count)
        for count in re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    )
    return pages * int(size[1]) if size else 0
