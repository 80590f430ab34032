"""Bytes and seconds as people write them; inside Plimsoll memory is `int` bytes and time `float` seconds.

"GB" is 10^9 and "GiB" is 2^30, always. A bare number is bytes, or seconds.
"""

from __future__ import annotations

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
GB = 10**9

_BYTE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB, "t": TIB, "tib": TIB,
}  # fmt: skip
_SECOND_UNITS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes of "24 GiB", "80GB", "512M" (binary) or a bare number; ValueError if it is none of these."""
    return round(_parse(str(text), _BYTE_UNITS, "a size such as 24GiB"))


def parse_seconds(text: str | float) -> float:
    """Seconds of "500ms", "20m", "1.5h" or a bare number; ValueError if it is none of these."""
    return _parse(str(text), _SECOND_UNITS, "a time such as 500ms or 20m")


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not {what}")
    return float(match[1]) * units[match[2].lower()]


def format_bytes(count: float) -> str:
    """Bytes in the largest binary unit that leaves at least 1: `format_bytes(98362432)` is "93.8 MiB"."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(count) >= size:
            value = count / size
            return f"{value:.2f} {unit}" if abs(value) < 10 else f"{value:.1f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Seconds as "850 us", "12.3 ms", "4.2 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
