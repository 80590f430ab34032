"""Safetensors files, read by header and written tensor by tensor. Whatever a header claims, memory stays small."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from plimsoll.errors import WeightError
from plimsoll.facts.safetensors import BITS
from plimsoll.units import MIB

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
COPY_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a file: its bytes are those from `start` to `end`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """As stored."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a safetensors file says of itself; tensors in the order of their bytes."""

    path: Path
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; WeightError where it is not one, is cut short, or contradicts itself."""

    def broken(what: str) -> WeightError:
        return WeightError(
            f"{path.name}: {what}", hint="fetch it again; if it stays so, do not use it", source=str(path)
        )

    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise broken("not a safetensors file, or cut short: its header is longer than the file")
        if length > MAX_HEADER_BYTES:
            raise broken(f"its header claims {length} bytes")
        raw = file.read(length)
    try:
        table = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise broken(f"its header is not JSON: {str(error)[:100]}") from None
    if not isinstance(table, dict):
        raise broken("its header is not a table of tensors")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise broken("its metadata is not a table")
    tensors = sorted(
        (_tensor(name, entry, 8 + length, broken) for name, entry in table.items()),
        key=lambda one: (one.start, one.end),
    )
    position = 8 + length
    for tensor in tensors:
        if tensor.start != position:
            raise broken(f"{tensor.name} begins at {tensor.start}, expected {position}: overlap or hole")
        position = tensor.end
    if position != size:
        raise broken(f"it has {size} bytes, its header describes {position}")
    return Header(path=path, tensors=tuple(tensors), metadata={str(key): str(value) for key, value in metadata.items()})


def _tensor(name: str, entry: Any, base: int, broken: Callable[[str], WeightError]) -> Tensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, start, end)
    except (TypeError, KeyError, ValueError):
        raise broken(f"the entry of {name[:100]!r} is not dtype, shape and data_offsets") from None
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or len(shape) > 32:
        raise broken(f"the entry of {name[:100]!r} has impossible numbers")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(f"{name[:100]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if prod(shape) * BITS[dtype] != (end - start) * 8:
        raise broken(f"{name[:100]!r} takes {end - start} bytes, its shape needs others")
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), start=base + start, end=base + end)


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes it takes."""
        return prod(self.shape) * BITS[self.dtype] // 8


def header_bytes(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file that holds `tensors` in this order, padded so that the first one is aligned to 8."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in tensors:
        end = position + tensor.size_bytes
        table[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def copy_range(source: int, start: int, target: int, position: int, length: int) -> None:
    """Copy bytes between two open files inside the kernel; WeightError if the source ends early."""
    while length > 0:
        try:
            count = os.copy_file_range(source, target, min(length, 1 << 30), start, position)
        except OSError:  # an old kernel, or two file systems
            count = os.pwrite(target, os.pread(source, min(length, COPY_BYTES), start), position)
        if count == 0:
            raise WeightError("a weight file became shorter while it was read", hint="fetch it again")
        start, position, length = start + count, position + count, length - count


def same_range(one: int, start: int, other: int, position: int, length: int) -> bool:
    """Whether two open files hold the same bytes there."""
    left, right = _buffers()
    while length > 0:
        count = min(length, len(left))
        with memoryview(left)[:count] as first, memoryview(right)[:count] as second:
            if os.preadv(one, [first], start) != count or os.preadv(other, [second], position) != count:
                return False
        if left[:count] != right[:count] if count < len(left) else left != right:
            return False
        start, position, length = start + count, position + count, length - count
    return True


_BUFFERS = threading.local()


def _buffers() -> tuple[bytearray, bytearray]:
    """Two buffers of this thread, kept: a fresh megabyte costs more in page faults than comparing it."""
    if not hasattr(_BUFFERS, "pair"):
        _BUFFERS.pair = bytearray(MIB), bytearray(MIB)
    pair: tuple[bytearray, bytearray] = _BUFFERS.pair
    return pair
