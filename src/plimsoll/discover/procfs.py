"""Small reads of /proc and /sys: what is missing or garbled reads as nothing."""

from __future__ import annotations

import re
from pathlib import Path

_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


def read_bytes(path: Path) -> bytes:
    """The file's bytes; empty if it is not there or not ours to read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_text(path: Path) -> str:
    """The file's text; empty if it is not there or not ours to read."""
    return read_bytes(path).decode("utf-8", errors="replace")


def read_int(path: Path) -> int | None:
    """The one whole number in the file; None if there is none ("max", a missing file)."""
    text = read_text(path).strip()
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else None


def read_fields(path: Path) -> dict[str, int]:
    """The `name number` lines of a file such as memory.stat or meminfo, where the number is in kB."""
    fields = {}
    for line in read_text(path).splitlines():
        name, _, value = line.replace(":", " ").partition(" ")
        number = value.removesuffix("kB").strip()
        if number.isdecimal():
            fields[name] = int(number)
    return fields


def count_listed(text: str) -> int:
    """How many numbers a kernel list such as "0-3,8" holds; 0 if it is none."""
    return sum(int(last or first) - int(first) + 1 for first, last in _RANGE.findall(text))
